"""Closed forms of what a schedule weighs against each other: loading an expert, computing its queue, the gate before.

Cycles, nothing held up: the constants are those of ``sim.latencies``, the rates those of the memory model.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from accel.config import Hardware
from accel.memory_model import MemoryModel
from sim import latencies as c
from sim.optimum import Stage
from sim.shapes import Shape


def stripe_cycles(hardware: Hardware, memory: MemoryModel) -> float:
    """Cycles per stripe of a long read: bytes at the sustained rate, lines of the ports, or latency over what may be
    in flight."""
    in_flight = min(hardware.outstanding, memory.outstanding)
    turn = memory.latency + c.LAND_TO_ISSUE + hardware.burst_beats
    return max(hardware.stripe_bytes / memory.bytes_per_cycle, hardware.burst_beats, turn / in_flight)


def expert_load(shape: Shape, hardware: Hardware, memory: MemoryModel) -> float:
    """Cycles in which memory moves the weights of one expert, all its units."""
    return shape.units * shape.unit_stripes * stripe_cycles(hardware, memory)


def expert_work(shape: Shape, tokens: int, hardware: Hardware) -> int:
    """Cycles of the array for a queue of ``tokens``, all units of the expert."""
    full, rest = divmod(tokens, hardware.tile_tokens)
    return sum(
        full * shape.tile_cycles(unit, hardware.tile_tokens, hardware)
        + (shape.tile_cycles(unit, rest, hardware) if rest else 0)
        for unit in range(shape.units)
    )


def first_row(shape: Shape, hardware: Hardware, memory: MemoryModel) -> float:
    """Cycles from the first line of an expert to the first row that the array may use."""
    return (shape.first_line + 1) / hardware.burst_beats * stripe_cycles(hardware, memory) + c.LINE_TO_ROW


def gate_window(shape: Shape, hardware: Hardware) -> int:
    """Cycles from the first gate beat of a layer until its first expert is known."""
    full, rest = divmod(shape.tokens, hardware.tile_tokens)
    beats = full * shape.tile_cycles(-1, hardware.tile_tokens, hardware)
    beats += shape.tile_cycles(-1, rest, hardware) if rest else 0
    last = rest or hardware.tile_tokens
    return (
        beats + c.BEAT_TO_RESULT + last - 1 + c.RESULT_TO_LOGITS + shape.words + c.START_TO_LAST_WORD
        + c.WORD_TO_CHOSEN + shape.top_k - 1 + c.CHOSEN_TO_ORDER + c.ORDER_TO_FIRST
    )  # fmt: skip


def stages(
    shape: Shape, loads: Sequence[int], hardware: Hardware, memory: MemoryModel, on_chip: Collection[int] = ()
) -> dict[int, Stage]:
    """The non-empty experts of a layer as jobs of a flow shop: expert → its load, lag and work.

    The array follows an expert row by row while it loads, and its first tile ends with the last row: so an expert may
    start ``lag`` cycles after its load did, as if its weights had been there.

    Args:
        loads: tokens of every expert.
        on_chip: experts that need no load.
    """
    load = expert_load(shape, hardware, memory)
    early = first_row(shape, hardware, memory)
    found = {}
    for expert, tokens in enumerate(loads):
        if not tokens:
            continue
        work = float(expert_work(shape, tokens, hardware))
        if expert in on_chip:
            found[expert] = Stage(0.0, 0.0, work)
            continue
        # The last unit ends no earlier than its load and all of its tiles but the first.
        first = shape.tile_cycles(shape.units - 1, min(tokens, hardware.tile_tokens), hardware)
        found[expert] = Stage(load, max(early, load - work + work / shape.units - first), work)
    return found
