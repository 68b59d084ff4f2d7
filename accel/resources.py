"""What an engine takes of an UltraScale+ device, computed from its configuration.

DSPs, block RAM and UltraRAM follow from the organisation of the array and of the memories (``docs/engine.md``). LUTs
are a fit, unit by unit, to what ``make synth`` counts for five engines: memories in LUTs, multiplexers and adders
by their size, the rest by what a unit's logic is proportional to. ``docs/exploring.md`` has how well that foretells
others.
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
COUNT_DSP, COUNT_TOKENS = 2, 16
"""Two more multiply by the tokens of a tile; up to 8 they fit into LUTs."""
URAM_ROWS, URAM_BITS = 4096, 72
_MODES = (
    (1, 129, ((1, 16384), (2, 8192), (4, 4096), (9, 2048), (18, 1024), (36, 512))),
    (2, 257, ((1, 32768), (2, 16384), (4, 8192), (9, 4096), (18, 2048), (36, 1024), (72, 512))),
)
"""RAMB18 and RAMB36: halves of a RAMB36, price in Yosys' choice, width × depth of every organisation."""

CASCADE_BITS = 36
"""Width of a DSP's sum: a product of 27 × 8 bits, and one bit more."""
GROUP_BITS = 38
"""Of an output's bias and shift, as the drain keeps them."""


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


def _distributed(width: int, depth: int) -> int:
    """LUTs of a memory in LUTs: RAM64M8 (7 bits, 64 deep) and RAM32M16 (14 bits, 32 deep), eight LUTs each."""
    deep, rest = divmod(depth, 64)
    blocks = (deep + (rest > 32)) * _ceil(width, 7)
    return 8 * (blocks + (_ceil(width, 14) if 0 < rest <= 32 else 0))


def _multiplexer(inputs: int) -> float:
    """LUTs per bit of one that chooses among so many: four fit one LUT."""
    return 0.0 if inputs < 2 else max(1.0, (inputs - 1) / 2)


@dataclass(frozen=True)
class _Wide:
    """The wide accumulators: whole multiples of an UltraRAM's depth there, the rest in block RAM.

    Attributes:
        bits: of a row. ultra: UltraRAMs behind each other. halves, deep: of the tail in block RAM, see ``_block``.
    """

    bits: int
    ultra: int
    halves: int
    deep: int


def _wide(hw: Hardware) -> _Wide:
    bits = hw.tile_outputs * COMBINE_BITS
    rows = hw.max_tokens * _ceil(hw.max_width, hw.tile_outputs)
    ultra, rest = divmod(rows, URAM_ROWS)
    return _Wide(bits, ultra, *(_block(bits, max(2, rest)) if rest else (0, 0)))


def _lines(hw: Hardware) -> int:
    """Lines of the input ring."""
    return hw.max_tokens * _ceil(hw.max_width, hw.line_bytes)


def luts(hw: Hardware) -> dict[str, float]:
    """LUTs by unit of the engine; ``engine`` stands for the small ones that are the same in every engine."""
    tokens, outputs, inputs, line = hw.tile_tokens, hw.tile_outputs, hw.tile_inputs, hw.line_bytes
    sum_bits = _bits(hw.max_inputs * 128 * 127 + 1) + 1
    cells = tokens // 2 * outputs
    operand_lines = 1 << _bits(2 * _ceil(hw.max_inputs, line) + 1)
    hidden_rows = 1 << _bits(_ceil(hw.max_hidden, outputs))
    groups = hw.weight_slots * hw.slot_groups
    wide = _wide(hw)
    return {
        "sequencer": 6790,
        "reader": 199 + 20.1 * line,
        "load": 2470 + 137 * hw.weight_slots,
        "weights": 8 * hw.row_bytes * _multiplexer(_ceil(hw.weight_slots * hw.slot_rows, URAM_ROWS)),
        "input_store": 8 * line * _multiplexer(_block(8 * line, _lines(hw))[1]),
        "dispatch": 560 + 84 * tokens,  # and tiles, gather
        "operand": tokens * (
            _distributed(8 * line, operand_lines) + _distributed(8 * outputs, hidden_rows) + 3.4 * (line + outputs)
        ),
        # Adders behind every product but a cascade's first, accumulators, registers in LUTs that skew what comes in.
        "array": CASCADE_BITS * cells * (inputs - 1) + 2 * cells * sum_bits
        + max(0, inputs - 2) * (8 * outputs + 8.5 * tokens),
        "drain": _distributed(GROUP_BITS * outputs, groups) + GROUP_BITS * outputs * _multiplexer(_ceil(groups, 64))
        + outputs * (182 + sum_bits * _multiplexer(tokens)) + 62 * tokens,
        "route": 2588 + hw.topk_lanes * (85 * hw.max_top_k + 183) + 14.4 * outputs + 4.76 * hw.max_experts,
        "combine": COMBINE_BITS * outputs,
        "wide": wide.bits * (_multiplexer(wide.ultra) + _multiplexer(wide.deep) + bool(wide.ultra and wide.deep)),
        "finish": _distributed(8 * line, 2 * line) + _distributed(8 * line + 30, 32)
        + _distributed(COMBINE_BITS * outputs, 8) + 260 + 6.25 * line + 35 * min(outputs, line // 2),
        "linear_pack": 265 + 15 * line + 5 * outputs,
        "store": 307 + 27.7 * line,
        "engine": 620,
    }  # fmt: skip


def resources(hw: Hardware) -> Resources:
    """What an engine takes."""
    pairs, outputs = hw.tile_tokens // 2, hw.tile_outputs
    slots, wide = hw.weight_slots, _wide(hw)
    # Of UltraRAM there is one organisation. Where several lie behind each other Yosys folds a narrow last column and
    # takes up to that many less, with multiplexers.
    uram = _ceil(8 * hw.row_bytes, URAM_BITS) * _ceil(slots * hw.slot_rows, URAM_ROWS)
    uram += _ceil(wide.bits, URAM_BITS) * wide.ultra

    # Input ring; queues of nodes; logits of two tiles of tokens; a GELU table per output; the double buffer of LINEAR.
    node_bits = _bits(hw.max_tokens + 1) + _bits(hw.max_top_k)
    gate_rows = 1 << _bits(2 * hw.tile_tokens) + max(1, _bits(_ceil(hw.max_experts, outputs)))
    unit_lines = _ceil(hw.slot_groups * outputs, hw.line_bytes)
    pack_rows = 1 << 1 + _bits(hw.tile_tokens) + max(1, _bits(unit_lines))
    memories = [
        (1, 8 * hw.line_bytes, _lines(hw)),
        (1, 16, 1 << node_bits),
        (1, node_bits, 1 << node_bits),
        (1, 32 * outputs, gate_rows),
        (outputs, 8, 256 * slots),
        (hw.ports, 8 * hw.port_bytes, pack_rows),
    ]
    halves = wide.halves + sum(copies * _block(width, depth)[0] for copies, width, depth in memories)
    in_dsp = CASCADE_BITS * pairs * outputs * (hw.tile_inputs - 1) + COMBINE_BITS * outputs
    dsp = pairs * outputs * hw.tile_inputs + outputs + ADDRESS_DSP + COUNT_DSP * (hw.tile_tokens >= COUNT_TOKENS)
    return Resources(dsp, halves / 2, uram, round(sum(luts(hw).values())), in_dsp)


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
