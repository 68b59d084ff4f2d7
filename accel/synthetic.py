"""Synthetic programs: layers of any shape with random weights and with the routing one asks for.

Test benches, benchmarks and the simulator need layers that no network has (one token, 256 experts, every token to one
expert, two tasks with equal queues), at real size and without training. The gate of a synthetic layer reads the routing
out of its input: some channels of a token hold a code, the largest value where its best expert is, and the gate table
copies these channels into the logits. Several such tables, each reading its own copy of the code, route equally, byte
for byte different as they are: what a task switch needs to be measured apart from a change of routing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from accel import pack, tables
from accel.commands import COMMAND_BYTES, Command, Flag, Opcode, encode_program
from accel.compiler import Job, Program
from accel.config import Hardware
from accel.errors import ProgramError
from accel.layers import Kind, Layer
from accel.limits import OPCODES
from accel.memory_map import ArenaMap
from accel.params import Gate, Linear, Unit
from accel.record import record_bytes
from accel.routing import Schedule

Array = NDArray[Any]

_BEST, _STEP = 120, 12
"""Code of a token's best expert, and how much less every further one has."""
_NOT_CHOSEN = (-120, -60)
_NO_FLAGS = Flag(0)


def plain_units(kind: Kind, tokens: int, inputs: int, outputs: int, hardware: Hardware) -> int:
    """Least number of units that a LINEAR or ACCUMULATE layer needs on ``hardware``."""
    for units in range(1, 256):
        layer = Layer("", kind, tokens, inputs, outputs, 0, 1, units, 1, hardware)
        if layer.second.rows <= hardware.slot_rows and layer.second.tiles <= hardware.slot_groups:
            return units
    raise ProgramError(f"layer {inputs} → {outputs}: no number of units fits slot_rows = {hardware.slot_rows}")


@dataclass(eq=False)
class Weights:
    """Weights of a layer in memory format, placed once however many layers share them."""

    units: Array
    gates: list[Array] = field(default_factory=list)
    gate_shift: int = 0


@dataclass(eq=False)
class SyntheticLayer:
    """A layer with its operands. ``gate`` chooses among the gate tables of ``weights``."""

    layer: Layer
    weights: Weights
    x: Array
    residual: Array | None
    gate: int = 0
    schedule: Schedule = Schedule.INDEX
    flags: Flag = Flag(0)


def _linear(rng: np.random.Generator, outputs: int, inputs: int, spread: float, target: float, limit: int) -> Linear:
    """Random layer whose outputs have about the standard deviation ``target`` for inputs of ``spread``."""
    deviation = spread * limit / math.sqrt(3.0) * math.sqrt(inputs)
    shift = np.clip(round(math.log2(deviation / target)) + rng.integers(-1, 2, outputs), -8, 31)
    bias = rng.normal(0.0, 0.3 * deviation, outputs)
    return Linear(
        rng.integers(-limit, limit, (outputs, inputs), dtype=np.int8, endpoint=True),
        np.rint(bias).astype(np.int32),
        shift.astype(np.int8),
    )


def random_weights(layer: Layer, seed: int, *, gates: int = 1, limit: int = 127) -> Weights:
    """Weights of every expert, and ``gates`` gate tables that route equally (see the module's docstring)."""
    rng = np.random.default_rng(seed)
    if not layer.hidden:
        target = 40.0 if layer.kind is Kind.LINEAR else 3000.0
        return Weights(pack.pack_plain(_linear(rng, layer.outputs, layer.inputs, 40.0, target, limit), layer))
    blobs = []
    for _ in range(layer.experts * layer.units):
        first = _linear(rng, layer.hidden, layer.inputs, 40.0, 40.0, limit)
        second = _linear(rng, layer.outputs, layer.hidden, 20.0, 3000.0, limit)
        blobs.append(pack.pack_unit(Unit(first, tables.gelu(-5, -5, 8), second), layer))
    weights = Weights(np.concatenate(blobs))
    if layer.kind is Kind.MOE:
        if layer.inputs < gates * layer.experts:
            raise ProgramError(
                f"synthetic gates: inputs = {layer.inputs}: expected at least {gates} × {layer.experts} experts"
            )
        for index in range(gates):
            table = np.zeros((layer.experts, layer.inputs), np.int8)
            table[np.arange(layer.experts), index * layer.experts + np.arange(layer.experts)] = 16
            gate = Gate(table, np.zeros(layer.experts, np.int32), 0)
            weights.gates.append(pack.pack_gate(gate, layer))
    return weights


def random_inputs(layer: Layer, seed: int, chosen: Array | None = None, gates: int = 1) -> tuple[Array, Array | None]:
    """Input rows int8 [tokens, inputs] and residual rows int16 [tokens, outputs] (None for LINEAR).

    Args:
        chosen: for MOE, experts per token [tokens, top_k], best first.
        gates: copies of the code, one per gate table.
    """
    rng = np.random.default_rng(seed)
    x = np.clip(np.rint(rng.normal(0.0, 40.0, (layer.tokens, layer.inputs))), -128, 127).astype(np.int8)
    if chosen is not None:
        if chosen.shape != (layer.tokens, layer.top_k):
            raise ProgramError(f"routing: expected shape {(layer.tokens, layer.top_k)}, found {chosen.shape}")
        code = rng.integers(*_NOT_CHOSEN, (layer.tokens, layer.experts))
        for rank in range(layer.top_k):
            code[np.arange(layer.tokens), chosen[:, rank]] = _BEST - rank * _STEP
        x[:, : gates * layer.experts] = np.tile(code, (1, gates)).astype(np.int8)
    if layer.kind is Kind.LINEAR:
        return x, None
    return x, np.clip(np.rint(rng.normal(0.0, 6000.0, (layer.tokens, layer.outputs))), -32768, 32767).astype(np.int16)


def routing_of_loads(loads: Sequence[int], tokens: int, top_k: int, seed: int = 0) -> Array:
    """Experts per token [tokens, top_k] such that expert e is chosen ``loads[e]`` times, in random order.

    Raises:
        ProgramError: the loads do not add up, or an expert is chosen more often than there are tokens.
    """
    rng = np.random.default_rng(seed)
    if sum(loads) != tokens * top_k or max(loads) > tokens or min(loads) < 0:
        raise ProgramError(
            f"loads: expected {tokens} × {top_k} pairs in all and at most {tokens} per expert, found {list(loads)}"
        )
    # Dealing the experts column by column, largest first, never gives a token the same expert twice.
    order = np.argsort(-np.asarray(loads), kind="stable")
    dealt = np.repeat(order, np.asarray(loads)[order]).reshape(top_k, tokens).T
    ranks = rng.permuted(np.tile(np.arange(top_k), (tokens, 1)), axis=1)
    return np.take_along_axis(dealt[rng.permutation(tokens)], ranks, axis=1)


def uniform_loads(experts: int, tokens: int, top_k: int) -> list[int]:
    """Loads that differ by one at most."""
    base, rest = divmod(tokens * top_k, experts)
    return [base + (expert < rest) for expert in range(experts)]


def skewed_loads(experts: int, tokens: int, top_k: int, *, longest: float = 3.0, empty: float = 0.25) -> list[int]:
    """Loads as trained routers have them: the longest queue ``longest`` times the mean over all experts, falling
    geometrically, a share ``empty`` of the experts without tokens (docs: recorded traces of trained two-task nets)."""
    pairs = tokens * top_k
    used = max(top_k, experts - round(empty * experts))
    top = min(tokens, round(longest * pairs / experts))
    low, high = 0.0, 1.0
    for _ in range(60):  # ratio of the geometric series that adds up to all pairs
        ratio = (low + high) / 2
        low, high = (ratio, high) if sum(top * ratio**i for i in range(used)) < pairs else (low, ratio)
    loads = [max(1, math.floor(top * ratio**i)) for i in range(used)]
    rest = pairs - sum(loads)
    for index in [*range(1, used), 0] * pairs:
        if not rest:
            break
        step = 1 if rest > 0 else -1
        if 1 <= loads[index] + step <= tokens:
            loads[index] += step
            rest -= step
    return loads + [0] * (experts - used)


@dataclass(frozen=True, eq=False)
class SyntheticProgram:
    """A program and the memory it runs in.

    Attributes:
        memory: arena image, uint8, everything placed.
        arena: regions.
        commands: ending with END.
        outputs: per layer, job by job: offset and bytes of its output rows.
    """

    memory: Array
    arena: ArenaMap
    commands: tuple[Command, ...]
    outputs: tuple[tuple[int, int], ...]

    @property
    def program(self) -> Program:
        """What a driver starts; weights and inputs are in ``memory`` already."""
        closed = [command.job for command in self.commands if command.opcode is Opcode.JOB_END]
        return Program(self.commands, self.arena, tuple(Job("synthetic", job) for job in closed))

    @property
    def program_offset(self) -> int:
        return self.arena.offsets["program"]

    @property
    def record_offset(self) -> int:
        return self.arena.offsets["record"]


def build_program(
    jobs: Sequence[Sequence[SyntheticLayer]],
    hardware: Hardware,
    *,
    barrier_between_jobs: bool = False,
    prefetch_across_jobs: bool = True,
) -> SyntheticProgram:
    """Chain jobs of synthetic layers into one program with a memory image.

    Args:
        jobs: layers of each job; weights shared between layers are placed once.
        barrier_between_jobs, prefetch_across_jobs: negative controls, as in ``accel.compiler.compile_replay``.
    """
    placed: dict[int, list[int]] = {}
    blobs: list[tuple[int, Array]] = []
    cursor = 0

    def put(data: Array) -> int:
        nonlocal cursor
        offset, cursor = cursor, cursor + len(data)
        blobs.append((offset, data))
        return offset

    for layers in jobs:
        for item in layers:
            if id(item.weights) not in placed:
                placed[id(item.weights)] = [put(data) for data in (item.weights.units, *item.weights.gates)]
    weights_end = cursor
    commands: list[Command] = []
    outputs: list[tuple[int, int]] = []
    # Activations follow the weights; the arena rounds regions up to its alignment.
    cursor = -(-weights_end // 4096) * 4096
    start = cursor
    for job, layers in enumerate(jobs):
        if job and barrier_between_jobs:
            commands.append(Command(Opcode.BARRIER, job=job))
        for index, item in enumerate(layers):
            layer = item.layer
            addresses = placed[id(item.weights)]
            operands = {"input": put(pack.pack_tokens(item.x, hardware))}
            if item.residual is not None:
                operands["residual"] = put(pack.pack_tokens(item.residual, hardware))
            size = pack.token_bytes(layer.tokens, layer.outputs, layer.output_bytes_per_value, hardware)
            operands["output"] = cursor
            outputs.append((cursor, size))
            cursor += size
            gated = layer.kind is Kind.MOE
            hold = job > 0 and index == 0 and not prefetch_across_jobs
            commands.append(
                Command(
                    OPCODES[layer.kind], item.flags | (Flag.NO_PREFETCH if hold else Flag(0)),
                    int(item.schedule) if gated else 0, layer.top_k if gated else 0,
                    item.weights.gate_shift if gated else 0, job, index, layer.tokens, layer.experts if gated else 0,
                    layer.inputs, layer.outputs, layer.hidden, layer.units, layer.tiles_per_unit, layer.unit_bytes,
                    addresses[0], addresses[1 + item.gate] if gated else 0, **operands,
                )
            )  # fmt: skip
        commands.append(Command(Opcode.JOB_END, job=job))
    commands.append(Command(Opcode.END))
    arena = ArenaMap.layout(
        weights=weights_end, activations=cursor - start, record=record_bytes(len(jobs)),
        program=len(commands) * COMMAND_BYTES,
    )  # fmt: skip
    memory = np.zeros(arena.bytes, np.uint8)
    for offset, data in blobs:
        memory[offset : offset + len(data)] = data
    image = np.frombuffer(encode_program(commands), np.uint8)
    memory[arena.offsets["program"] :][: len(image)] = image
    return SyntheticProgram(memory, arena, tuple(commands), tuple(outputs))


def synthetic_layer(
    kind: Kind, tokens: int, inputs: int, outputs: int, hardware: Hardware, seed: int, *,
    hidden: int = 0, units: int | None = None, experts: int = 1, top_k: int = 1, chosen: Array | None = None,
    gates: int = 1, weights: Weights | None = None, schedule: Schedule = Schedule.INDEX, flags: Flag = _NO_FLAGS,
) -> SyntheticLayer:  # fmt: skip
    """A layer with random weights and inputs; ``chosen`` defaults to uniform routing for MOE."""
    if units is None:
        units = 1 if hidden else plain_units(kind, tokens, inputs, outputs, hardware)
    layer = Layer("synthetic", kind, tokens, inputs, outputs, hidden, experts, units, top_k, hardware)
    if kind is Kind.MOE and chosen is None:
        chosen = routing_of_loads(uniform_loads(experts, tokens, top_k), tokens, top_k, seed)
    x, residual = random_inputs(layer, seed, chosen, gates)
    return SyntheticLayer(
        layer, weights or random_weights(layer, seed + 1, gates=gates), x, residual, 0, schedule, flags
    )
