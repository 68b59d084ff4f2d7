"""Commands: 64-byte records in memory that name operands, shapes and shifts.

Every unit of the engine (load, route, compute, combine, store) sees every command in order and does its share; what
orders them against each other are the two-way tokens of the buffers, never the commands.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum, IntFlag

import numpy as np

from accel.errors import ProgramError

COMMAND_BYTES = 64
WORDS = COMMAND_BYTES // 4


class Opcode(IntEnum):
    """What a command asks for."""

    END = 0x00
    """Finish everything, write the record, raise done. A program of END alone identifies the engine."""
    JOB_END = 0x01
    """Close the job's entry in the record."""
    BARRIER = 0x02
    """Start nothing (loads included) that follows before everything that precedes is complete."""
    LINEAR = 0x10
    """output[t] = s8(input[t]·Wᵀ + b)."""
    ACCUMULATE = 0x11
    """output[t] = s16(residual[t] + s16(input[t]·Wᵀ + b))."""
    MLP = 0x12
    """output[t] = s16(residual[t] + Σ over units s16(second(gelu(first(input[t])))))."""
    MOE = 0x13
    """Gate, top-k, one queue per expert; output[t] = s16(residual[t] + Σ weight · expert(input[t]))."""
    NORM = 0x20
    """Reserved: LayerNorm."""
    ATTENTION = 0x21
    """Reserved: attention of one layer."""
    CONV3X3 = 0x22
    """Reserved: 3×3 convolution as nine shifted linear layers."""


RESERVED = frozenset({Opcode.NORM, Opcode.ATTENTION, Opcode.CONV3X3})


class Flag(IntFlag):
    """Modifiers of a command."""

    NARROW = 1
    """Saturate int8 outputs to −127…127, because they will sit in the array's weight operand."""
    NO_PREFETCH = 2
    """Do not load this command's weights before the preceding commands have been computed."""


@dataclass(frozen=True)
class Field:
    """Place of a field: bits ``low`` … ``low + bits − 1`` of 32-bit little-endian word ``word``."""

    name: str
    word: int
    low: int
    bits: int
    signed: bool
    meaning: str


FIELDS: tuple[Field, ...] = (
    Field("opcode", 0, 0, 8, False, "what to do"),
    Field("flags", 0, 8, 8, False, "modifiers"),
    Field("schedule", 0, 16, 4, False, "order of the experts: 0 index, 1 longest first, 2 resident first"),
    Field("top_k", 0, 20, 4, False, "experts per token"),
    Field("gate_shift", 0, 24, 8, True, "logits to octaves in Q8"),
    Field("job", 1, 0, 16, False, "index of the job (task on a frame) in the program"),
    Field("layer", 1, 16, 16, False, "index of the layer, for traces"),
    Field("tokens", 2, 0, 16, False, "rows of input and output"),
    Field("experts", 2, 16, 16, False, "experts whose weights lie at `weights`"),
    Field("inputs", 3, 0, 16, False, "channels of an input row"),
    Field("outputs", 3, 16, 16, False, "channels of an output row"),
    Field("hidden", 4, 0, 16, False, "hidden columns per unit; 0 without first layer"),
    Field("units", 4, 16, 8, False, "units per expert"),
    Field("tiles_per_unit", 4, 24, 8, False, "output tiles per unit"),
    Field("unit_bytes", 5, 0, 32, False, "distance between units, a multiple of the stripe"),
    Field("weights", 6, 0, 32, False, "arena offset of the first unit of expert 0"),
    Field("gate", 7, 0, 32, False, "arena offset of the gate table"),
    Field("input", 8, 0, 32, False, "arena offset of the input rows"),
    Field("residual", 9, 0, 32, False, "arena offset of the residual rows"),
    Field("output", 10, 0, 32, False, "arena offset of the output rows"),
    Field("weight_source", 11, 0, 4, False, "weight operand: 0 the weight store; 1 (on-chip tile) is reserved"),
)
"""All other bits are reserved and zero. Fields an opcode does not use are ignored; the compiler leaves them zero."""

_RESERVED_BITS = tuple(
    0xFFFFFFFF & ~sum(((1 << item.bits) - 1) << item.low for item in FIELDS if item.word == word)
    for word in range(WORDS)
)
"""Per word, the bits that belong to no field."""


@dataclass(frozen=True)
class Command:
    """One command; field names are those of :data:`FIELDS`."""

    opcode: Opcode
    flags: Flag = Flag(0)
    schedule: int = 0
    top_k: int = 0
    gate_shift: int = 0
    job: int = 0
    layer: int = 0
    tokens: int = 0
    experts: int = 0
    inputs: int = 0
    outputs: int = 0
    hidden: int = 0
    units: int = 0
    tiles_per_unit: int = 0
    unit_bytes: int = 0
    weights: int = 0
    gate: int = 0
    input: int = 0
    residual: int = 0
    output: int = 0
    weight_source: int = 0

    def encode(self) -> bytes:
        """64 bytes; raises ProgramError if a value does not fit its field."""
        words = [0] * WORDS
        for item in FIELDS:
            value = int(getattr(self, item.name))
            low = -(1 << (item.bits - 1)) if item.signed else 0
            high = low + (1 << item.bits) - 1
            if not low <= value <= high:
                raise ProgramError(f"{self.opcode.name}: {item.name} = {value}: expected {low} to {high}")
            words[item.word] |= (value & ((1 << item.bits) - 1)) << item.low
        return np.array(words, dtype="<u4").tobytes()

    @classmethod
    def decode(cls, data: bytes, where: str = "command") -> Command:
        """Inverse of :meth:`encode`; unknown opcodes, flags and non-zero reserved bits are ProgramErrors."""
        if len(data) != COMMAND_BYTES:
            raise ProgramError(f"{where}: expected {COMMAND_BYTES} bytes, found {len(data)}")
        words = [int(word) for word in np.frombuffer(data, dtype="<u4")]
        values: dict[str, int] = {}
        for item in FIELDS:
            raw = (words[item.word] >> item.low) & ((1 << item.bits) - 1)
            values[item.name] = raw - (1 << item.bits) if item.signed and raw >> (item.bits - 1) else raw
        if values["opcode"] not in Opcode.__members__.values():
            known = ", ".join(Opcode.__members__)
            raise ProgramError(f"{where}: opcode = {values['opcode']:#x}: expected one of {known}")
        if values["flags"] & ~sum(Flag):
            raise ProgramError(f"{where}: flags = {values['flags']:#x}: expected a combination of {sum(Flag):#x}")
        if any(word & reserved for word, reserved in zip(words, _RESERVED_BITS, strict=True)):
            raise ProgramError(f"{where}: expected zero in the reserved bits, found other values")
        return cls(Opcode(values.pop("opcode")), Flag(values.pop("flags")), **values)

    def asdict(self) -> dict[str, int | str]:
        """Field names and values, for traces and listings; zero fields left out."""
        fields = {item.name: int(getattr(self, item.name)) for item in dataclasses.fields(self)}
        return {"opcode": self.opcode.name} | {k: v for k, v in fields.items() if v and k != "opcode"}


def encode_program(commands: Iterable[Command]) -> bytes:
    return b"".join(command.encode() for command in commands)


def decode_program(data: bytes) -> list[Command]:
    """All commands of a program image."""
    count, rest = divmod(len(data), COMMAND_BYTES)
    if rest:
        raise ProgramError(f"program: expected a multiple of {COMMAND_BYTES} bytes, found {len(data)}")
    pieces = (data[i * COMMAND_BYTES : (i + 1) * COMMAND_BYTES] for i in range(count))
    return [Command.decode(piece, f"command {index}") for index, piece in enumerate(pieces)]
