"""What the generators emit, as plain tables: one list of constants shared by SystemVerilog, C++ and Markdown.

Values come from the configuration and the contract's modules, descriptions from their docstrings
wherever they have one, so that no generated file restates a number or a sentence by hand.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import textwrap
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import Any

from accel import commands, layers, memory_map, numerics, record, registers, tables
from accel.config import Formats, Hardware, build_hash, engine_hash
from accel.limits import MAX_UNITS

COMMAND_LINE = "python -m accel.generate"


@dataclass(frozen=True)
class Constant:
    """A named integer; ``bits`` > 0 marks a bit pattern (unsigned, written in hexadecimal) instead of a number."""

    name: str
    value: int
    meaning: str
    bits: int = 0


@dataclass(frozen=True)
class Group:
    """Constants that belong under one heading."""

    title: str
    constants: tuple[Constant, ...]


NUMERIC_MEANINGS = {
    "RESIDUAL_BITS": "residual stream and unit outputs, signed",
    "BIAS_BITS": "biases, signed, at the accumulator's exponent",
    "ACCUMULATOR_BITS": "accumulator of a linear layer, signed",
    "COMBINE_FRACTION": "fraction bits of a combine weight",
    "COMBINE_ONE": "combine weight 1.0 (dense layers); gates give at most one less",
    "COMBINE_BITS": "combine accumulator: residual << COMBINE_FRACTION plus weighted unit outputs, signed",
    "SHIFT_MIN": "smallest requantization shift; negative shifts multiply",
    "SHIFT_MAX": "largest requantization shift",
    "OCTAVE_SHIFT_MIN": "smallest shift of scores and logits to octaves in Q8",
    "OCTAVE_SHIFT_MAX": "largest shift of scores and logits to octaves in Q8",
    "GAMMA_BITS": "LayerNorm gamma, signed",
    "GAMMA_FRACTION": "fraction bits of gamma",
    "BETA_FRACTION": "fraction bits of beta",
    "NORM_FRACTION": "fraction bits of LayerNorm's normalized value",
    "PROBABILITY_MAX": "largest attention probability, unsigned 8 bit",
    "RECIPROCAL_BITS": "reciprocals are R * 2^-(RECIPROCAL_BITS + k)",
    "INPUT_EXPONENT": "pixels enter as u8 - 128 at this exponent",
}


def described_fields(cls: type) -> dict[str, str]:
    """Descriptions in the ``Attributes:`` section of a docstring; names that share a line share the text."""
    _, found, section = inspect.cleandoc(cls.__doc__ or "").partition("Attributes:\n")
    descriptions: dict[str, str] = {}
    names: list[str] = []
    for line in textwrap.dedent(section).splitlines() if found else ():
        head, colon, text = line.partition(": ")
        if colon and not line.startswith(" "):
            names = [name.strip() for name in head.split(",")]
            descriptions.update(dict.fromkeys(names, text.strip()))
        elif line.strip():
            descriptions.update({name: f"{descriptions[name]} {line.strip()}" for name in names})
    return descriptions


def described_members(cls: type) -> dict[str, str]:
    """Docstrings that follow the members of an enumeration in its source."""
    body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
    assert isinstance(body, ast.ClassDef)
    descriptions: dict[str, str] = {}
    for statement, following in zip(body.body, body.body[1:], strict=False):
        if (
            isinstance(statement, ast.Assign)
            and isinstance(statement.targets[0], ast.Name)
            and isinstance(following, ast.Expr)
            and isinstance(following.value, ast.Constant)
        ):
            descriptions[statement.targets[0].id] = " ".join(str(following.value.value).split())
    return descriptions


def _integer_fields(part: Any) -> tuple[Constant, ...]:
    texts = described_fields(type(part))
    return tuple(
        Constant(item.name.upper(), getattr(part, item.name), texts.get(item.name, ""))
        for item in dataclasses.fields(part)
        if isinstance(getattr(part, item.name), int)
    )


def groups(formats: Formats, hardware: Hardware) -> tuple[Group, ...]:
    """Every plain constant of an engine, by heading."""
    group_bytes = layers.TileGeometry(hardware.tile_outputs, hardware.tile_inputs, hardware).group_bytes
    identity = (
        Constant(
            "ENGINE_HASH",
            engine_hash(formats, hardware),
            "identity: what bytes in memory and results depend on",
            32,
        ),
        Constant("BUILD_HASH", build_hash(formats, hardware), "everything the engine is built with, for logs", 32),
        Constant("RECORD_MAGIC", record.MAGIC, "first word of every record", 32),
        Constant("RECORD_VERSION", record.VERSION, "layout of the record"),
    )
    derived = (
        Constant("MACS_PER_CYCLE", hardware.macs_per_cycle, "multiply-accumulates of the array per cycle"),
        Constant("ROW_BYTES", hardware.row_bytes, "one weight row, read every cycle"),
        Constant("LINE_BYTES", hardware.line_bytes, "one beat of all ports side by side"),
        Constant("BURST_BYTES", hardware.burst_bytes, "one burst of one port"),
        Constant(
            "STRIPE_BYTES",
            hardware.stripe_bytes,
            "one burst of every port; alignment of every tensor",
        ),
    )
    memory = (
        Constant("GELU_BYTES", layers.GELU_BYTES, "GELU table at the start of a unit with hidden columns"),
        Constant("BIAS_BYTES", layers.BIAS_BYTES, "one bias in a parameter group, little-endian"),
        Constant(
            "SHIFT_BYTES",
            layers.SHIFT_BYTES,
            "one requantization shift in a parameter group, signed",
        ),
        Constant(
            "GROUP_BYTES",
            group_bytes,
            "parameter group before the rows of an output tile, padded to lines",
        ),
        Constant("ARENA_ALIGNMENT", memory_map.ARENA_ALIGNMENT, "alignment of an arena and of its regions"),
        Constant("COMMAND_BYTES", commands.COMMAND_BYTES, "one command"),
        Constant("COMMAND_WORDS", commands.WORDS, "32-bit words of a command"),
    )
    numeric = tuple(Constant(name, getattr(numerics, name), meaning) for name, meaning in NUMERIC_MEANINGS.items()) + (
        Constant("EXP2_BITS", tables.EXP2_BITS, "index bits of EXP2"),
        Constant("EXP2_ENTRIES", len(tables.EXP2), "entries of EXP2, 16 bit each"),
        Constant("RSQRT_ENTRIES", len(tables.RSQRT), "entries of RSQRT, 16 bit each"),
    )
    limits = tuple(
        Constant(f"MAX_UNITS_{kind.name}", MAX_UNITS[kind], "") for kind in (layers.Kind.MLP, layers.Kind.MOE)
    )
    weight_max = Constant("WEIGHT_MAX", formats.weight_max, "largest |weight| (narrow range)")
    return (
        Group("Identity", identity),
        Group("Number formats", (*_integer_fields(formats), weight_max)),
        Group("Hardware parameters", _integer_fields(hardware)),
        Group("Derived from the hardware parameters", derived),
        Group("Sizes in memory", memory),
        Group("Numeric contract", numeric),
        Group("Units per expert: the combine accumulator holds their sum", limits),
    )


def register_constants() -> tuple[Constant, ...]:
    """Register offsets and the masks of their fields."""
    width = (registers.SPAN - 1).bit_length()
    result = [
        Constant("REGISTER_SPAN", registers.SPAN, "bytes of register space"),
        Constant("REGISTER_ADDRESS_BITS", width, "address bits of the register space"),
        Constant("UNMAPPED", registers.UNMAPPED, "read value of addresses without a register", 32),
    ]
    for item in registers.REGISTERS:
        result.append(Constant(f"REG_{item.name}", item.offset, item.meaning, width))
        for bit in item.bits:
            result.append(Constant(f"MASK_{item.name}_{bit.name.upper()}", 1 << bit.bit, bit.meaning, 32))
    return tuple(result)


def record_constants() -> tuple[Constant, ...]:
    """Byte offsets of the record's slots; those of a job entry count from the start of the entry."""
    result = [
        Constant(f"{prefix}_{slot.name.upper()}", slot.offset, f"{slot.bytes} bytes: {slot.meaning}")
        for prefix, table in (
            ("RECORD", record.HEADER),
            ("COUNTER", record.COUNTERS),
            ("JOB", record.JOB),
        )
        for slot in table
    ]
    # The first header slot holds the magic: its offset must not share the name of the magic itself.
    result = [dataclasses.replace(item, name=f"{item.name}_OFFSET") for item in result]
    return (
        *result,
        Constant("COUNTERS", len(record.COUNTERS), "named counters, 8 bytes each"),
        Constant("RECORD_JOBS_START", record.JOBS_OFFSET, "first job entry"),
        Constant("RECORD_JOB_BYTES", record.JOB_BYTES, "bytes of a job entry"),
    )


def headed(formats: Formats, hardware: Hardware) -> tuple[Group, ...]:
    """Every constant of a source package in the order it is emitted: plain ones, registers, record."""
    return (
        *groups(formats, hardware),
        Group("Registers: byte offsets and field masks", register_constants()),
        Group("Record: byte offsets; JOB_* count from the start of a job entry", record_constants()),
    )


def flag_constants() -> tuple[Constant, ...]:
    """Flags of a command."""
    return tuple(Constant(f"FLAG_{name}", value, meaning, 8) for name, value, meaning in members(commands.Flag))


TABLES: tuple[tuple[str, tuple[int, ...], str], ...] = (
    ("EXP2", tuple(int(value) for value in tables.EXP2), "2^(-i/256) in Q15"),
    ("RSQRT", tuple(int(value) for value in tables.RSQRT), "first estimate of 2^31/sqrt(m), i = (m >> 25) - 32"),
)
"""Lookup tables of 16-bit words: name, entries, meaning."""


def preamble(formats: Formats, hardware: Hardware) -> tuple[str, str]:
    """The comment lines that open a generated source file."""
    identity = engine_hash(formats, hardware)
    return (
        f"// Generated by `{COMMAND_LINE} --hardware {hardware.name}`. Do not edit.",
        f"// Engine {ascii_comment(hardware.name)}: weights {formats.weight_bits} bit, activations "
        f"{formats.activation_bits} bit, hash 0x{identity:08x}.",
    )


def members(cls: type[IntEnum] | type[IntFlag]) -> list[tuple[str, int, str]]:
    """Name, value and description of every member."""
    texts = described_members(cls)
    return [(item.name or "", int(item), texts.get(item.name or "", "")) for item in cls]


_ASCII = str.maketrans({"×": "x", "·": "*", "…": "..", "−": "-", "²": "^2", "→": "->", "≥": ">=", "≤": "<=", "Σ": "sum",
                        "ᵀ": "^T", "±": "+-", "³": "3", "–": "-"})  # fmt: skip


def ascii_comment(text: str) -> str:
    """Text for a source comment that any tool reads."""
    return text.translate(_ASCII).encode("ascii", "replace").decode()
