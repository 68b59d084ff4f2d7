"""Programs that are hard on the engine: named corner cases, and random ones."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from accel import pack
from accel.commands import Command, Flag, Opcode, encode_program
from accel.config import Hardware
from accel.errors import M3vitError
from accel.layers import Kind, Layer
from accel.limits import KINDS, EngineError, Limits
from accel.memory_map import ArenaMap
from accel.params import Gate, Linear, Unit
from accel.record import empty_record
from accel.routing import Schedule
from accel.synthetic import (
    SyntheticLayer,
    SyntheticProgram,
    Weights,
    build_program,
    routing_of_loads,
    synthetic_layer,
)

Array = NDArray[Any]
Build = Callable[[Hardware], SyntheticProgram]

CASES: dict[str, Build] = {}


def case(build: Build) -> Build:
    """Add a program to the named cases."""
    CASES[build.__name__] = build
    return build


# ---- programs with other commands


def replaced(command: Command, **fields: Any) -> Command:
    return dataclasses.replace(command, **fields)


def with_commands(program: SyntheticProgram, commands: Iterable[Command]) -> SyntheticProgram:
    """The same memory with other commands."""
    return with_image(program, encode_program(commands), tuple(commands))


def with_image(program: SyntheticProgram, image: bytes, commands: tuple[Command, ...]) -> SyntheticProgram:
    """The same memory with another program, which may hold what no Command object can. The record gets room for as many
    jobs as there are commands."""
    jobs = sum(command.opcode is Opcode.JOB_END for command in commands)
    sizes = dict(program.arena.sizes) | {"program": len(image), "record": len(empty_record(jobs))}
    arena = ArenaMap.layout(**sizes)
    memory = np.zeros(arena.bytes, np.uint8)
    end = arena.offsets["record"]
    assert end == program.arena.offsets["record"]
    memory[:end] = program.memory[:end]
    memory[arena.offsets["program"] :][: len(image)] = np.frombuffer(image, np.uint8)
    return SyntheticProgram(memory, arena, commands, program.outputs)


# ---- layers


def dense(
    kind: Kind, tokens: int, inputs: int, outputs: int, hw: Hardware, seed: int = 1, *, units: int | None = None,
    **more: Any,
) -> SyntheticLayer:
    """A dense layer of ``units`` units, or fewer if one of them would be without a tile."""
    tiles = -(-outputs // hw.tile_outputs)
    while units is not None and kind in (Kind.LINEAR, Kind.ACCUMULATE):
        if (units - 1) * Layer("", kind, tokens, inputs, outputs, 0, 1, units, 1, hw).tiles_per_unit < tiles:
            break
        units -= 1
    return synthetic_layer(kind, tokens, inputs, outputs, hw, seed, units=units, **more)


def moe(
    loads: Sequence[int], tokens: int, top_k: int, hw: Hardware, *, width: int = 64, hidden: int = 32, units: int = 1,
    seed: int = 1, schedule: Schedule = Schedule.INDEX, weights: Weights | None = None,
) -> SyntheticLayer:  # fmt: skip
    """An MoE layer whose expert e gets ``loads[e]`` tokens."""
    return synthetic_layer(
        Kind.MOE, tokens, max(width, -(-len(loads) // 8) * 8), width, hw, seed, hidden=hidden, units=units,
        experts=len(loads), top_k=top_k, chosen=routing_of_loads(loads, tokens, top_k, seed), schedule=schedule,
        weights=weights,
    )  # fmt: skip


def random_gate(item: SyntheticLayer, seed: int, shift: int, bias: int) -> SyntheticLayer:
    """The same layer with random logits: weights of full range, biases up to ±``bias``."""
    layer, rng = item.layer, np.random.default_rng(seed)
    table = rng.integers(-127, 127, (layer.experts, layer.inputs), np.int8, endpoint=True)
    gate = Gate(table, rng.integers(-bias, bias, layer.experts, endpoint=True).astype(np.int32), shift)
    weights = Weights(item.weights.units, [pack.pack_gate(gate, layer)], shift)
    return SyntheticLayer(layer, weights, item.x, item.residual, 0, item.schedule, item.flags)


def extreme_linear(outputs: int, inputs: int, shift: int, bias: int) -> Linear:
    """Weights of largest size, their sign and the bias's alternating with the output."""
    sign = np.where(np.arange(outputs) % 2, -1, 1)
    return Linear(
        np.repeat((127 * sign)[:, None], inputs, 1).astype(np.int8),
        (bias * np.where(np.arange(outputs) % 3, -1, 1)).astype(np.int32),
        np.full(outputs, shift, np.int8),
    )


def extreme_operands(layer: Layer, weights: Weights, seed: int = 0) -> SyntheticLayer:
    """Inputs at the ends of int8, residuals at the ends of int16; every token has one sign."""
    low = np.arange(layer.tokens)[:, None] % 2 == 0
    x = np.broadcast_to(np.where(low, -128, 127), (layer.tokens, layer.inputs)).astype(np.int8)
    ends = np.where(np.arange(layer.tokens)[:, None] // 2 % 2 == 0, -32768, 32767)
    residual = np.broadcast_to(ends, (layer.tokens, layer.outputs)).astype(np.int16)
    return SyntheticLayer(layer, weights, x, None if layer.kind is Kind.LINEAR else residual)


def saturated_unit(layer: Layer, bias: int) -> Unit:
    """Both layers saturate; the table swaps the signs, so that −128 reaches the second layer too."""
    table = (-np.arange(-128, 128) - 1).astype(np.int8)
    return Unit(
        extreme_linear(layer.hidden, layer.inputs, -8, bias), table,
        Linear(
            np.repeat(np.where(np.arange(layer.outputs) % 2, -127, 127)[:, None], layer.hidden, 1).astype(np.int8)
            * np.where(np.arange(layer.hidden) % 2, -1, 1).astype(np.int8),
            np.zeros(layer.outputs, np.int32), np.full(layer.outputs, -8, np.int8),
        ),
    )  # fmt: skip


# ---- named cases


@case
def one_token_of_every_kind(hw: Hardware) -> SyntheticProgram:
    layers = [
        dense(Kind.LINEAR, 1, 8, 1, hw), dense(Kind.LINEAR, 1, 64, 200, hw), dense(Kind.ACCUMULATE, 1, 40, 17, hw),
        dense(Kind.MLP, 1, 24, 33, hw, hidden=8), moe([0, 0, 1, 0], 1, 1, hw), moe([1, 1, 1, 1], 1, 4, hw),
    ]  # fmt: skip
    return build_program([layers], hw)


@case
def all_tokens_to_one_expert(hw: Hardware) -> SyntheticProgram:
    chosen = [[0] * e + [97] + [0] * (7 - e) for e in (0, 3, 7)]
    return build_program([[moe(loads, 97, 1, hw, seed=e) for e, loads in enumerate(chosen)]], hw)


@case
def all_tokens_to_the_same_experts(hw: Hardware) -> SyntheticProgram:
    tokens = hw.max_tokens
    return build_program([[moe([tokens] * 3 + [0] * 13, tokens, 3, hw, units=2)]], hw)


@case
def empty_experts(hw: Hardware) -> SyntheticProgram:
    loads = [0] * 31
    loads[0], loads[17], loads[30] = 40, 40, 22
    return build_program([[moe(loads, 51, 2, hw), moe([0] * 15 + [51], 51, 1, hw)]], hw)


@case
def queues_of_every_length(hw: Hardware) -> SyntheticProgram:
    """0, 1, 2, ... around the tile's size, odd ones and full ones."""
    t = hw.tile_tokens
    loads = [0, 1, 2, 3, t - 1, t, t + 1, 2 * t - 1, 2 * t, 2 * t + 1, 4 * t, 5, 7, 9, 11, 13]
    tokens = sum(loads) // 2 + sum(loads) % 2
    loads[-1] += 2 * tokens - sum(loads)
    return build_program(
        [[moe(loads, tokens, 2, hw, seed=int(order), schedule=order) for order in Schedule]], hw
    )


@case
def odd_shapes(hw: Hardware) -> SyntheticProgram:
    """Tokens, inputs and outputs that fill neither tiles nor lines."""
    layers = []
    shapes = ((3, 8, 1), (5, 24, 17), (7, 72, 31), (33, 56, 47), (13, 136, 65))
    for index, (tokens, inputs, outputs) in enumerate(shapes):
        layers += [
            dense(Kind.LINEAR, tokens, inputs, outputs, hw, index),
            dense(Kind.ACCUMULATE, tokens, inputs, outputs, hw, index),
            dense(Kind.MLP, tokens, inputs, outputs, hw, index, hidden=8 * (index + 1), units=1 + index % 2),
            synthetic_layer(Kind.MOE, tokens, inputs, outputs, hw, index, hidden=8 + 16 * (index % 3), experts=5,
                            top_k=1 + index % 5),
        ]  # fmt: skip
    return build_program([layers], hw)


@case
def linear_of_several_units(hw: Hardware) -> SyntheticProgram:
    """Odd widths; the last unit is short, and lines are shared by none."""
    layers = [
        dense(Kind.LINEAR, tokens, inputs, outputs, hw, outputs, units=units, flags=flags)
        for tokens, inputs, outputs, units, flags in (
            (9, 64, 1100, 2, Flag(0)), (5, 8, 513, 8, Flag.NARROW), (2, 16, 1999, 9, Flag(0)),
            (21, 384, 1152, 5, Flag.NARROW), (1, 8, 4096, 64, Flag(0)),
        )
    ]  # fmt: skip
    layers += [dense(Kind.ACCUMULATE, 11, 64, outputs, hw, outputs, units=outputs // 30) for outputs in (383, 97)]
    return build_program([layers], hw)


@case
def widest_linear(hw: Hardware) -> SyntheticProgram:
    """As many outputs as a command can name, and as many units."""
    wide = dense(Kind.LINEAR, 3, 8, 65535, hw)
    lanes = max(64, hw.tile_outputs)
    return build_program([[wide, dense(Kind.LINEAR, 2, 8, 255 * lanes - 5, hw, units=255)]], hw)


@case
def rows_wider_than_the_store(hw: Hardware) -> SyntheticProgram:
    layers = [
        dense(kind, tokens, inputs, outputs, hw, inputs, units=1)
        for kind, tokens, inputs, outputs in (
            (Kind.ACCUMULATE, 64, hw.max_inputs, 64), (Kind.LINEAR, 50, hw.max_width + 8, 47),
            (Kind.ACCUMULATE, hw.max_tokens, 520, 64), (Kind.LINEAR, hw.max_tokens, hw.max_inputs, 33),
        )
    ]  # fmt: skip
    return build_program([layers], hw)


@case
def largest_layers(hw: Hardware) -> SyntheticProgram:
    tokens, width = hw.max_tokens, hw.max_width
    hidden = next(h for h in range(hw.max_hidden, 0, -8) if _fits(Layer("", Kind.MLP, 1, width, width, h, 1, 1, 1, hw)))
    layers = [
        dense(Kind.ACCUMULATE, tokens, width, width, hw),
        dense(Kind.MLP, tokens, width, width, hw, hidden=hidden),
        moe([tokens // 2, 0, tokens, tokens // 2], tokens, 2, hw, width=width, hidden=hidden),
        dense(Kind.LINEAR, tokens, width, 3 * width, hw),
    ]
    return build_program([layers], hw)


def _fits(layer: Layer) -> bool:
    assert layer.first is not None
    rows = layer.first.rows + layer.second.rows
    return rows <= layer.hardware.slot_rows and layer.first.tiles + layer.second.tiles <= layer.hardware.slot_groups


@case
def most_experts(hw: Hardware) -> SyntheticProgram:
    """256 experts, top-8: all used, then a few."""
    tokens = hw.max_tokens
    width = hw.max_experts
    few = [0] * hw.max_experts
    for expert in (0, 1, 2, 100, 200, 253, 254, 255):
        few[expert] = 20
    even = [8 * tokens // hw.max_experts] * hw.max_experts
    return build_program(
        [[
            moe(even, tokens, 8, hw, width=width, hidden=8, schedule=Schedule.LONGEST_FIRST),
            moe(few, 20, 8, hw, width=width, hidden=8),
        ]], hw,
    )  # fmt: skip


@case
def top_eight(hw: Hardware) -> SyntheticProgram:
    layers = [moe([tokens] * 8, tokens, 8, hw, seed=tokens) for tokens in (1, 3, 37)]
    layers += [
        synthetic_layer(Kind.MOE, 45, 64, 64, hw, experts, hidden=16, experts=experts, top_k=8, schedule=order)
        for experts, order in ((9, Schedule.INDEX), (16, Schedule.LONGEST_FIRST), (33, Schedule.RESIDENT_FIRST))
    ]
    return build_program([layers], hw)


@case
def random_logits(hw: Hardware) -> SyntheticProgram:
    """Gates of every shift; many equal weights, many zero ones."""
    layers = []
    for index, shift in enumerate((-16, -8, -1, 0, 1, 4, 6, 8, 10, 12, 16, 31)):
        experts = (1, 2, 3, 7, 8, 16, 17, 40, 64, 5, 12, 256)[index]
        item = synthetic_layer(
            Kind.MOE, 21, max(32, experts), 16, hw, index, hidden=8, experts=experts, top_k=min(experts, 1 + index % 8),
        )  # fmt: skip
        layers.append(random_gate(item, index, shift, bias=(0, 1000, (1 << 31) - (1 << 23))[index % 3]))
    return build_program([layers], hw)


@case
def fourteen_and_fifteen_units(hw: Hardware) -> SyntheticProgram:
    layers = [
        dense(Kind.MLP, 10, 64, 64, hw, hidden=16, units=15),
        moe([6, 0, 6, 4], 8, 2, hw, hidden=16, units=14),
        dense(Kind.MLP, 10, 64, 64, hw, hidden=24, units=14),
    ]
    return build_program([layers], hw)


@case
def end_alone(hw: Hardware) -> SyntheticProgram:
    return build_program([], hw)


@case
def jobs_without_layers(hw: Hardware) -> SyntheticProgram:
    return build_program([[]] * 21, hw)


@case
def jobs_with_and_without_layers(hw: Hardware) -> SyntheticProgram:
    small = dense(Kind.LINEAR, 3, 16, 16, hw)
    return build_program([[], [small], [], [], [small, moe([3, 2, 1], 3, 2, hw)], [small], [], [], []], hw)


@case
def many_jobs(hw: Hardware) -> SyntheticProgram:
    """More than the table of commands holds, and more than tags tell apart."""
    layers = [dense(Kind.LINEAR, 5, 16, 24, hw), moe([3, 2, 1], 3, 2, hw), dense(Kind.ACCUMULATE, 4, 16, 16, hw)]
    return build_program([[layers[job % 3]] for job in range(37)], hw)


@case
def many_layers_in_a_job(hw: Hardware) -> SyntheticProgram:
    """Rings of lines, rows and commands go round many times."""
    layers = [
        dense(Kind.ACCUMULATE, hw.max_tokens - 7, 64, hw.max_width - 16, hw),
        moe([20] * 8, 80, 2, hw, width=128, hidden=16),
        dense(Kind.MLP, 77, hw.max_width, 48, hw, hidden=8),
        dense(Kind.LINEAR, 5, 16, 24, hw),
    ]
    return build_program([layers * 4], hw)


@case
def barriers_everywhere(hw: Hardware) -> SyntheticProgram:
    layers = [dense(Kind.LINEAR, 9, 64, 64, hw), moe([9, 5, 4], 9, 2, hw), dense(Kind.MLP, 6, 32, 32, hw, hidden=16)]
    program = build_program([layers, layers[:1], []], hw)
    barrier = Command(Opcode.BARRIER)
    commands = [barrier, barrier]
    for command in program.commands:
        commands += [command] if command.opcode is Opcode.END else [command, barrier]
    return with_commands(program, commands)


@case
def chained_through_memory(hw: Hardware) -> SyntheticProgram:
    """What a layer writes is the input of the next, behind a BARRIER; residuals are overwritten in place."""
    program = build_program(
        [[
            dense(Kind.LINEAR, 30, 64, 64, hw), dense(Kind.LINEAR, 30, 64, 64, hw, flags=Flag.NARROW),
            dense(Kind.MLP, 30, 64, 64, hw, hidden=32, units=2), moe([30, 10, 20], 30, 2, hw),
        ]], hw,
    )  # fmt: skip
    barrier = Command(Opcode.BARRIER)
    first, second, mlp, experts, *rest = program.commands
    commands = [
        first, barrier, replaced(second, input=first.output), barrier,
        replaced(mlp, input=second.output, output=mlp.residual), barrier,
        replaced(experts, residual=mlp.residual, output=mlp.residual), *rest,
    ]  # fmt: skip
    return with_commands(program, commands)


@case
def nothing_prefetched(hw: Hardware) -> SyntheticProgram:
    layers = [
        dense(Kind.LINEAR, 9, 64, 64, hw), moe([9, 5, 4], 9, 2, hw), moe([9, 5, 4], 9, 2, hw),
        dense(Kind.MLP, 6, 32, 32, hw, hidden=16, units=3),
    ]  # fmt: skip
    program = build_program([layers, layers], hw)
    held = (replaced(c, flags=c.flags | Flag.NO_PREFETCH) if c.opcode in KINDS else c for c in program.commands)
    return with_commands(program, held)


@case
def program_without_end(hw: Hardware) -> SyntheticProgram:
    program = build_program([[dense(Kind.LINEAR, 9, 64, 64, hw)], [moe([9, 5, 4], 9, 2, hw)]], hw)
    return with_commands(program, program.commands[:-1])


@case
def commands_after_end(hw: Hardware) -> SyntheticProgram:
    program = build_program([[dense(Kind.LINEAR, 9, 64, 64, hw)]], hw)
    bad = replaced(program.commands[0], tokens=0)
    return with_commands(program, (*program.commands, bad, program.commands[0]))


@case
def ties(hw: Hardware) -> SyntheticProgram:
    """Tokens with equal logits for all, for pairs and for halves of the experts."""
    layers = []
    for experts, top_k in ((8, 2), (8, 8), (17, 3), (40, 5)):
        item = synthetic_layer(Kind.MOE, 24, 64, 32, hw, experts, hidden=16, experts=experts, top_k=top_k)
        every = np.arange(experts)
        codes = [every * 0, every // 2, -(every // 2), every % 2, every // (experts // 2), every % 3]
        item.x[:, :experts] = np.tile(codes, (4, 1))
        layers.append(item)
    return build_program([layers], hw)


@case
def saturation(hw: Hardware) -> SyntheticProgram:
    """Every rounding and every sum at both ends of its range."""
    largest = (1 << 31) - 1
    shapes = [
        (Kind.LINEAR, 64, 64, 0, 1, 1), (Kind.ACCUMULATE, 64, 64, 0, 1, 1),
        (Kind.ACCUMULATE, hw.max_inputs, 48, 0, 1, 1), (Kind.MLP, 64, 64, 64, 15, 1), (Kind.MOE, 64, 64, 64, 14, 8),
    ]  # fmt: skip
    layers = []
    for kind, inputs, outputs, hidden, units, experts in shapes:
        layer = Layer("", kind, 12, inputs, outputs, hidden, experts, units, experts, hw)
        bias = largest - 128 * 127 * inputs
        if hidden:
            blob = np.concatenate([pack.pack_unit(saturated_unit(layer, bias), layer)] * (units * experts))
            item = extreme_operands(layer, Weights(blob))
            if kind is Kind.MOE:
                item.weights.gates.append(np.zeros(layer.gate_bytes, np.uint8))
                item = random_gate(item, 1, 20, 0)  # all experts about equally
            layers.append(item)
            continue
        for shift in (-8, 0, 31):
            linear = extreme_linear(outputs, inputs, shift, bias)
            layers.append(extreme_operands(layer, Weights(pack.pack_plain(linear, layer))))
    layers[0].flags = Flag.NARROW
    return build_program([layers], hw)


# ---- random programs


def random_layer(draw: random.Random, hw: Hardware, most_tokens: int) -> SyntheticLayer:
    """A layer of any kind and shape; may be one that the engine refuses."""
    kind = draw.choice([Kind.LINEAR, Kind.ACCUMULATE, Kind.MLP, Kind.MOE, Kind.MOE])
    tokens = draw.choice([1, 2, 3, draw.randint(1, 40), draw.randint(1, most_tokens)])
    inputs = 8 * draw.choice([1, 2, 3, 4, 8, draw.randint(1, 24)])
    outputs = draw.choice([1, 7, 16, 33, 48, 64, draw.randint(1, 192)])
    seed = draw.randrange(1 << 30)
    more: dict[str, Any] = {}
    rng = np.random.default_rng(seed)
    if kind in (Kind.MLP, Kind.MOE):
        more |= {"hidden": 8 * draw.choice([1, 2, 4, 6, 8, draw.randint(1, 16)]), "units": draw.choice([1, 1, 2, 3])}
    if kind is Kind.MOE:
        experts = draw.choice([1, 2, 3, 5, 8, 16, 17, draw.randint(1, 40)])
        top_k = draw.randint(1, min(8, experts))
        inputs = max(inputs, -(-experts // 8) * 8)
        chosen = draw.choice([
            None, np.tile(np.arange(top_k), (tokens, 1)),
            np.stack([rng.permutation(experts)[:top_k] for _ in range(tokens)]),
        ])  # fmt: skip
        more |= {"experts": experts, "top_k": top_k, "chosen": chosen, "schedule": draw.choice(list(Schedule))}
    elif kind is Kind.LINEAR:
        outputs = draw.choice([outputs, outputs, draw.randint(200, 1500)])
    if kind in (Kind.LINEAR, Kind.ACCUMULATE) and draw.random() < 0.15:
        inputs, outputs = 8 * draw.randint(hw.max_width // 8 + 1, hw.max_inputs // 8), min(outputs, 64)
        more |= {"units": 1}
    narrow = kind is Kind.LINEAR and draw.random() < 0.5
    flags = (Flag.NARROW if narrow else Flag(0)) | (Flag.NO_PREFETCH if draw.random() < 0.1 else Flag(0))
    item = synthetic_layer(kind, tokens, inputs, outputs, hw, seed, flags=flags, **more)
    if kind is Kind.MOE and draw.random() < 0.4:
        item = random_gate(item, seed, draw.randint(0, 12), draw.choice([0, 1 << 16]))
    return item


def random_program(seed: int, hw: Hardware) -> SyntheticProgram:
    """One to five layers (some twice: with the same weights), in jobs, with barriers here and there."""
    draw = random.Random(seed)
    wanted, most_tokens = draw.randint(1, 5), hw.max_tokens if draw.random() < 0.2 else 60
    layers: list[SyntheticLayer] = []
    while len(layers) < wanted:
        if layers and draw.random() < 0.15:
            layers.append(draw.choice(layers))
            continue
        try:
            item = random_layer(draw, hw, most_tokens)
            program = build_program([[item]], hw)
            Limits(hw).check(program.commands[0], program.arena.bytes)
        except (EngineError, M3vitError):
            continue
        layers.append(item)
    jobs = []
    while layers:
        size = draw.randint(0, len(layers)) if draw.random() < 0.2 else draw.randint(1, len(layers))
        jobs.append(layers[:size])
        layers = layers[size:]
    program = build_program(
        jobs, hw, barrier_between_jobs=draw.random() < 0.2, prefetch_across_jobs=draw.random() < 0.8
    )  # fmt: skip
    commands: list[Command] = []
    for command in program.commands:
        if command.opcode in KINDS and draw.random() < 0.1:
            commands.append(Command(Opcode.BARRIER))
        in_place = command.opcode in KINDS and command.opcode is not Opcode.LINEAR and draw.random() < 0.3
        commands.append(replaced(command, output=command.residual) if in_place else command)
    return with_commands(program, commands)
