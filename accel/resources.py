"""What an engine takes of an UltraScale+ device, computed from its configuration.

DSPs, block RAM and UltraRAM follow from the organisation of the array and of the memories (``docs/engine.md``) and are
exact: ``make synth`` counts the same. LUTs are a fit to what it counts for the presets ``ci`` and ``zcu104``.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

from accel.config import Hardware
from accel.numerics import COMBINE_BITS


@dataclass(frozen=True)
class Resources:
    """Primitives of a device, or of an engine on it.

    Attributes:
        dsp: DSP48E2.
        bram: RAMB36; a RAMB18 is half of one.
        uram: URAM288.
        lut: all LUTs, those used as memory included. Of an engine: an upper bound, as Yosys counts them.
        lut_in_dsp: of ``lut``, the adders of the array's and the combine unit's sums, which fit into the DSPs.
    """

    dsp: float
    bram: float
    uram: float
    lut: float
    lut_in_dsp: float = 0

    def shares(self, device: Resources) -> dict[str, float]:
        """Share of a device, by name."""
        return {name: getattr(self, name) / getattr(device, name) for name in LIMITS}


ZCU104 = Resources(dsp=1728, bram=312, uram=96, lut=230_400)
"""The XCZU7EV on a ZCU104 (DS891)."""
LIMITS = {"dsp": 0.98, "bram": 0.95, "uram": 0.95, "lut": 0.85}
"""Share of a device that an engine may take."""

ADDRESS_DSP = 11
"""Multipliers that compute addresses and counts."""
URAM_ROWS, URAM_BITS = 4096, 72
_MODES = (
    (1, 129, ((1, 16384), (2, 8192), (4, 4096), (9, 2048), (18, 1024), (36, 512))),
    (2, 257, ((1, 32768), (2, 16384), (4, 8192), (9, 4096), (18, 2048), (36, 1024), (72, 512))),
)
"""RAMB18 and RAMB36: halves of a RAMB36, price in Yosys' choice, width × depth of every organisation."""

CASCADE_BITS = 36
"""Width of a DSP's sum: a product of 27 × 8 bits, and one bit more."""
_FIXED, _PER_OUTPUT = 21_856.0, 658.4
"""LUTs of everything that ``resources`` does not itemize: of any engine, and per output of a tile.

The line through what ``make synth`` finds for ``ci`` and ``zcu104``.
"""


def _bits(count: int) -> int:
    """Bits of an index below ``count``, as $clog2 has it."""
    return (count - 1).bit_length()


def _ceil(a: int, b: int) -> int:
    return -(-a // b)


def _block(width: int, depth: int) -> tuple[int, int]:
    """Halves of a RAMB36 for a memory, and how many lie behind each other: the cheapest organisation.

    The last column may be narrower, and so deeper. A multiplexer behind the columns costs half a bit's price per bit.
    """
    best = (math.inf, 0, 0)
    for halves, price, shapes in _MODES:
        for bits, rows in shapes:
            deep = _ceil(depth, rows)
            rest = width % bits
            last = min(_ceil(depth, r) for b, r in shapes if b >= rest) if rest else 0
            blocks = width // bits * deep + last
            best = min(best, (blocks * price + 0.5 * width * (deep - 1), blocks * halves, deep))
    return best[1], best[2]


def resources(hw: Hardware) -> Resources:
    """What an engine takes."""
    pairs, outputs = hw.tile_tokens // 2, hw.tile_outputs
    slots = hw.weight_slots

    # Wide accumulators: whole multiples of an UltraRAM's depth there, the rest in block RAM.
    wide_bits = outputs * COMBINE_BITS
    wide_rows = hw.max_tokens * _ceil(hw.max_width, outputs)
    ultra_rows = wide_rows // URAM_ROWS * URAM_ROWS
    tail, tail_deep = _block(wide_bits, max(2, wide_rows - ultra_rows)) if wide_rows > ultra_rows else (0, 0)
    uram = _ceil(8 * hw.row_bytes, URAM_BITS) * _ceil(slots * hw.slot_rows, URAM_ROWS)
    uram += _ceil(wide_bits, URAM_BITS) * (ultra_rows // URAM_ROWS)

    # Input ring; queues of nodes; logits of two tiles of tokens; a GELU table per output; the double buffer of LINEAR.
    lines = hw.max_tokens * _ceil(hw.max_width, hw.line_bytes)
    ring, ring_deep = _block(8 * hw.line_bytes, lines)
    node_bits = _bits(hw.max_tokens + 1) + _bits(hw.max_top_k)
    gate_rows = 1 << _bits(2 * hw.tile_tokens) + max(1, _bits(_ceil(hw.max_experts, outputs)))
    unit_lines = _ceil(hw.slot_groups * outputs, hw.line_bytes)
    pack_rows = 1 << 1 + _bits(hw.tile_tokens) + max(1, _bits(unit_lines))
    memories = [
        (1, 16, 1 << node_bits),
        (1, node_bits, 1 << node_bits),
        (1, 32 * outputs, gate_rows),
        (outputs, 8, 256 * slots),
        (hw.ports, 8 * hw.port_bytes, pack_rows),
    ]
    halves = tail + ring + sum(copies * _block(width, depth)[0] for copies, width, depth in memories)

    # Adders behind every product but a cascade's first; behind every one of the combine unit.
    in_dsp = CASCADE_BITS * pairs * outputs * (hw.tile_inputs - 1) + COMBINE_BITS * outputs
    sum_bits = _bits(hw.max_inputs * 128 * 127 + 1) + 1
    lut = _FIXED + _PER_OUTPUT * outputs + in_dsp
    lut += 2 * pairs * outputs * sum_bits  # accumulators
    lut += hw.tile_tokens * 8 * (hw.line_bytes + outputs)  # operand ring and hidden tile, with their multiplexers
    lut += wide_bits * (bool(ultra_rows and tail) + max(0, tail_deep - 1)) + 8 * hw.line_bytes * (ring_deep - 1)
    return Resources(pairs * outputs * hw.tile_inputs + outputs + ADDRESS_DSP, halves / 2, uram, round(lut), in_dsp)


def faults(hw: Hardware, device: Resources = ZCU104) -> list[str]:
    """What an engine would take too much of, a line each."""
    taken = resources(hw)
    shares = taken.shares(device)
    return [
        f"hardware {hw.name!r}: {name} = {getattr(taken, name):,g}: "
        f"expected at most {LIMITS[name]:.0%} of {getattr(device, name):,g}"
        for name in LIMITS
        if shares[name] > LIMITS[name]
    ]


def to_dict(taken: Resources) -> dict[str, float]:
    """Ready for JSON."""
    return dataclasses.asdict(taken)
