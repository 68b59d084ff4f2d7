"""Layers as the engine's output side sees them, with golden outputs, for test_store.py and test_combine.py."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from accel import numerics, pack
from accel.config import Hardware
from accel.functional import Array

LINEAR, ACCUMULATE, MLP, MOE = range(4)
ROW_DISTANCE = 6  # cycles after which an accumulator row may come again


@dataclass(eq=False)
class LayerCase:
    """A layer as the output side sees it: what the drain will send, and the bytes that must end up in memory.

    Contributions are (local accumulator row, weight, fresh, values, rows complete after it); LINEAR tiles are (first
    tile, tiles, first token, values of its tokens).
    """

    kind: int
    tokens: int
    outputs: int
    hardware: Hardware
    offset: int = 0
    job_end: bool = False
    residual: Array = field(default_factory=lambda: np.zeros(0, np.int16))
    expected: Array = field(default_factory=lambda: np.zeros(0, np.uint8))
    contributions: list[tuple[int, int, bool, Array, int]] = field(default_factory=list)
    linear_tiles: list[tuple[int, int, int, Array]] = field(default_factory=list)
    base: int = 0  # first accumulator row, not yet modulo

    @property
    def output_tiles(self) -> int:
        return -(-self.outputs // self.hardware.tile_outputs)

    @property
    def output_lines(self) -> int:
        return -(-self.outputs * (1 if self.kind == LINEAR else 2) // self.hardware.line_bytes)


def job_end(hardware: Hardware) -> LayerCase:
    return LayerCase(LINEAR, 0, 0, hardware, job_end=True)


def linear_layer(hardware: Hardware, rng: np.random.Generator, tokens: int, outputs: int, units: int = 1) -> LayerCase:
    """LINEAR in ``units`` units; lanes past the last output carry garbage, as they may."""
    case = LayerCase(LINEAR, tokens, outputs, hardware)
    lanes, per_tile = hardware.tile_tokens, hardware.tile_outputs
    step = math.lcm(per_tile, hardware.line_bytes) // per_tile
    per_unit = case.output_tiles if units == 1 else -(-math.ceil(case.output_tiles / units) // step) * step
    values = rng.integers(-128, 128, (tokens, case.output_tiles * per_tile), np.int8)
    for first in range(0, case.output_tiles, per_unit):
        tiles = min(per_unit, case.output_tiles - first)
        assert tiles <= hardware.slot_groups
        for token in range(0, tokens, lanes):
            part = values[token : token + lanes, first * per_tile : (first + tiles) * per_tile]
            case.linear_tiles.append((first, tiles, token, part))
    case.expected = pack.pack_tokens(values[:, :outputs], hardware)
    return case


def wide_layer(
    hardware: Hardware, rng: np.random.Generator, kind: int, tokens: int, outputs: int, passes: int = 1, top_k: int = 2
) -> LayerCase:
    """ACCUMULATE (one pass), MLP (``passes`` units) or MOE (``top_k`` weighted contributions per token and unit)."""
    case = LayerCase(kind, tokens, outputs, hardware)
    lanes, per_tile, tiles = hardware.tile_tokens, hardware.tile_outputs, case.output_tiles
    case.residual = _residual(rng, tokens, outputs)
    wide = np.zeros((tokens, tiles * per_tile), np.int64)
    started = set()

    def add(entries: list[tuple[int, int]], completes: int) -> None:
        for tile in range(tiles):
            for position, (token, weight) in enumerate(entries):
                values = _contribution(rng, per_tile)
                wide[token, tile * per_tile : (tile + 1) * per_tile] += weight * values.astype(np.int64)
                last = tile == tiles - 1 and position == len(entries) - 1
                fresh = token not in started
                case.contributions.append((token * tiles + tile, weight, fresh, values, completes if last else 0))
        started.update(token for token, _ in entries)

    if kind == MOE:
        experts = max(4, top_k)
        queues: list[list[tuple[int, int]]] = [[] for _ in range(experts)]
        for token in range(tokens):
            chosen = rng.permutation(experts)[:top_k]
            for expert in chosen:
                weight = int(rng.integers(0, numerics.COMBINE_ONE // top_k)) if rng.random() < 0.9 else 0
                queues[expert].append((token, weight))
        batches = [q[i : i + lanes] for q in queues for _ in range(passes) for i in range(0, len(q), lanes)]
        for index, batch in enumerate(batches):
            add(batch, tokens * tiles if index == len(batches) - 1 else 0)
    else:
        for number in range(passes):
            for token in range(0, tokens, lanes):
                batch = [(t, numerics.COMBINE_ONE) for t in range(token, min(tokens, token + lanes))]
                add(batch, len(batch) * tiles if number == passes - 1 else 0)
    total = (case.residual.astype(np.int64) << numerics.COMBINE_FRACTION) + wide[:, :outputs]
    assert np.abs(total).max() < 1 << numerics.COMBINE_BITS - 1
    output = numerics.requantize(total, numerics.COMBINE_FRACTION, numerics.RESIDUAL_BITS).astype(np.int16)
    case.expected = pack.pack_tokens(output, hardware)
    return case


def _residual(rng: np.random.Generator, tokens: int, outputs: int) -> Array:
    extremes = rng.choice(np.array([-32768, 32767, 0, -1, 1], np.int16), (tokens, outputs))
    plain = rng.integers(-32768, 32768, (tokens, outputs), np.int16)
    return np.where(rng.random((tokens, outputs)) < 0.2, extremes, plain).astype(np.int16)


def _contribution(rng: np.random.Generator, lanes: int) -> Array:
    """s16, with extremes, and powers of two that make ties with weights such as 32768."""
    plain = rng.integers(-32768, 32768, lanes, np.int16)
    extremes = rng.choice(np.array([-32768, 32767, 1, -1, 0, 3, -3], np.int16), lanes)
    return np.where(rng.random(lanes) < 0.3, extremes, plain).astype(np.int16)


def as_int(values: Array) -> int:
    """Lane 0 lowest."""
    return int.from_bytes(np.ascontiguousarray(values).tobytes(), "little")


def hw_rows(hardware: Hardware) -> int:
    return hardware.max_tokens * -(-hardware.max_width // hardware.tile_outputs)
