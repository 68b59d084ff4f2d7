"""Layer commands for benches: shapes that an engine takes, operands anywhere, unused fields at random."""

from __future__ import annotations

import os
import random

from accel import pack
from accel.commands import Command, Flag
from accel.config import hardware
from accel.layers import Kind, Layer
from accel.limits import MAX_UNITS, OPCODES

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
