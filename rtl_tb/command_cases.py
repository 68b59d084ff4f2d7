"""Layer commands for benches: shapes that an engine takes, operands anywhere, unused fields at random."""

from __future__ import annotations

import dataclasses
import os
import random

from accel import pack
from accel.commands import Command, Flag
from accel.config import hardware
from accel.layers import Kind, Layer
from accel.limits import KINDS, MAX_UNITS, OPCODES, EngineError, Limits

MEMORY = 1 << 32  # arena offsets have 32 bits; where memory ends, the bus answers
HARDWARE = hardware(os.environ["M3VIT_HARDWARE"])
SCHEDULES = 3


def command_of(layer: Layer) -> Command:
    """A command for a layer, operands anywhere in memory, unused fields filled at random."""
    hw, gated = HARDWARE, layer.kind is Kind.MOE

    def anywhere(size: int) -> int:
        return random.randrange((MEMORY - size) // hw.stripe_bytes + 1) * hw.stripe_bytes

    output = pack.token_bytes(layer.tokens, layer.outputs, layer.output_bytes_per_value, hw)
    return Command(
        OPCODES[layer.kind], Flag(random.randrange(4)),
        random.randrange(SCHEDULES if gated else 16), layer.top_k if gated else random.randrange(16),
        random.randint(-16, 31) if gated else random.randint(-128, 127), random.getrandbits(16),
        random.getrandbits(16), layer.tokens, layer.experts if gated else random.getrandbits(16), layer.inputs,
        layer.outputs, layer.hidden, layer.units, min(255, layer.tiles_per_unit), layer.unit_bytes,
        anywhere(layer.experts * layer.expert_bytes), anywhere(layer.gate_bytes) if gated else random.getrandbits(32),
        anywhere(pack.token_bytes(layer.tokens, layer.inputs, 1, hw)),
        anywhere(output) if layer.kind is not Kind.LINEAR else random.getrandbits(32), anywhere(output),
    )  # fmt: skip


def entry_fields(command: Command, layer: Layer) -> dict[str, int]:
    """Fields of layer_t as accel/layers.py derives them; index and job_tag are the table's."""
    hw, kind = HARDWARE, layer.kind
    gated, hidden = kind is Kind.MOE, layer.first is not None
    stripe, line = hw.stripe_bytes, hw.line_bytes
    output = pack.token_bytes(layer.tokens, layer.outputs, layer.output_bytes_per_value, hw) // stripe
    tiles = -(-layer.outputs // hw.tile_outputs)
    pairs = layer.tokens * layer.top_k
    return {
        "job_end": 0, "kind": list(KINDS).index(command.opcode),
        "narrow": int(bool(command.flags & Flag.NARROW) and kind is Kind.LINEAR),
        "no_prefetch": int(bool(command.flags & Flag.NO_PREFETCH)),
        "job": command.job, "tokens": layer.tokens,
        "input_beats": layer.inputs // hw.tile_inputs, "input_lines": -(-layer.inputs // line),
        "hidden_beats": layer.hidden // hw.tile_inputs, "hidden_tiles": layer.first.tiles if layer.first else 0,
        "unit_tiles": layer.tiles_per_unit,
        "last_tiles": tiles if hidden else tiles - (layer.units - 1) * layer.tiles_per_unit,
        "output_tiles": tiles, "outputs": layer.outputs, "units": layer.units, "experts": layer.experts,
        "top_k": layer.top_k, "schedule": command.schedule if gated else 0,
        "gate_shift": command.gate_shift & 0xFF if gated else 0,
        "gate_tiles": layer.gate.tiles if layer.gate else 0,
        "unit_stripes": layer.unit_bytes // stripe, "gate_stripes": layer.gate_bytes // stripe,
        "input_stripes": pack.token_bytes(layer.tokens, layer.inputs, 1, hw) // stripe,
        "residual_stripes": 0 if kind is Kind.LINEAR else output, "output_stripes": output,
        "output_lines": -(-layer.outputs * layer.output_bytes_per_value // line),
        "wide_rows": 0 if kind is Kind.LINEAR else layer.tokens * tiles,
        "weights": command.weights, "gate": command.gate, "input_rows": command.input,
        "residual": command.residual, "output_rows": command.output,
        "pairs": pairs,
        "macs": pairs * layer.macs_per_pair + (layer.tokens * layer.inputs * layer.experts if gated else 0),
    }  # fmt: skip


def upto(most: int) -> int:
    """Mostly small, sometimes at the limit."""
    return random.choice((most, random.randint(1, most), random.randint(1, max(1, most // 8))))


def some_layer() -> Layer:
    """A layer that often fits."""
    hw, kind = HARDWARE, random.choice(list(Kind))
    tokens, step = upto(hw.max_tokens), hw.tile_inputs
    if kind in (Kind.MLP, Kind.MOE):
        experts = upto(hw.max_experts) if kind is Kind.MOE else 1
        return Layer(
            "", kind, tokens, step * upto(hw.max_width // step), upto(hw.max_width), step * upto(hw.max_hidden // step),
            experts, upto(MAX_UNITS[kind]), upto(min(hw.max_top_k, experts)) if kind is Kind.MOE else 1, hw,
        )  # fmt: skip
    units = random.choice((1, 1, 2, 3, upto(20)))
    inputs = step * upto((hw.max_inputs if units == 1 else hw.max_width) // step)
    rows = hw.slot_rows // (inputs // step)
    outputs = max(1, min(65535, units * hw.tile_outputs * min(rows, hw.slot_groups)) - random.randrange(200))
    outputs = outputs if kind is Kind.LINEAR else min(outputs, hw.max_width)
    return Layer("", kind, tokens, inputs, outputs, 0, 1, units, 1, hw)


def small_layer(kind: Kind, **shape: int) -> tuple[Layer, Command]:
    """A layer of small units that the engine takes, without flags; ``shape`` sets fields of accel.layers.Layer."""
    hidden, gated = kind in (Kind.MLP, Kind.MOE), kind is Kind.MOE
    step = HARDWARE.tile_inputs
    for _ in range(1000):
        experts = random.randint(1, 6) if gated else 1
        values = {
            "tokens": random.randint(1, 9), "inputs": step * random.randint(1, 12), "outputs": random.randint(1, 200),
            "hidden": step * random.randint(1, 8) if hidden else 0, "experts": experts,
            "units": random.choice((1, 2, 3)), "top_k": random.randint(1, experts),
        } | shape  # fmt: skip
        layer = Layer("", kind, **values, hardware=HARDWARE)
        command = dataclasses.replace(command_of(layer), flags=Flag(0))
        try:
            Limits(HARDWARE).check(command, MEMORY)
        except EngineError:
            continue
        return layer, command
    raise AssertionError(f"{kind}: no layer of {shape} that the engine takes")
