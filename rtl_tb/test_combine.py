"""combine and wide store: every lane of every row against integers, rows as close to each other as they may come."""

from __future__ import annotations

import os
import random

import cocotb
import numpy as np
from cocotb.clock import Clock
from cocotb.triggers import ReadOnly, RisingEdge
from output_layers import ROW_DISTANCE, as_int, hw_rows

from accel import numerics
from accel.config import hardware

TOPLEVEL = "combine_bench"
SOURCES = ("combine_bench.sv",)
PRESETS = ("ci", "zcu104")

HARDWARE = hardware(os.environ.get("M3VIT_HARDWARE", "ci"))
LANES, ROWS = HARDWARE.tile_outputs, hw_rows(HARDWARE)
LIMIT = 1 << numerics.COMBINE_BITS - 1


def lanes(word: int) -> list[int]:
    values = [word >> numerics.COMBINE_BITS * o & 2 * LIMIT - 1 for o in range(LANES)]
    return [v - 2 * LIMIT if v >= LIMIT else v for v in values]


async def start(dut):
    dut.rst.value, dut.combine_valid.value, dut.finish_read.value, dut.combine_completes.value = 1, 0, 0, 0
    cocotb.start_soon(Clock(dut.clk, 10, "ns").start(start_high=False))
    for _ in range(3):
        await RisingEdge(dut.clk)
    dut.rst.value = 0


def contribution(dut, row, weight, fresh, values, completes=0):
    dut.combine_valid.value, dut.combine_row.value, dut.combine_weight.value = 1, row, weight
    dut.combine_fresh.value, dut.combine_values.value = fresh, as_int(values)
    dut.combine_completes.value = completes


@cocotb.test()
async def random_rows(dut):
    """A contribution nearly every cycle to few rows on both sides of every memory's edge, and reads in between."""
    await start(dut)
    rng = np.random.default_rng(random.getrandbits(32))
    edges = [0, 1, ROWS - 1, ROWS - 2, ROWS // 2, *(row + step for row in range(4096, ROWS, 4096) for step in (-1, 0))]
    model: dict[int, np.ndarray] = {}
    pending: dict[int, int] = {}  # row -> cycle of its last contribution
    reads: list[tuple[int, np.ndarray]] = []  # cycle in which the data comes, what it must be
    completes, announced, compared, busy = 0, [], 0, 0
    for cycle in range(6000):
        free = [row for row in edges if cycle - pending.get(row, -100) >= ROW_DISTANCE]
        valid = bool(free) and random.random() < 0.9
        dut.combine_valid.value = 0
        if valid:
            row = random.choice(free)
            weight = random.choice((0, 1, 32768, 65535, 65536, random.randrange(65537)))
            values = rng.choice(np.array([-32768, 32767, -1, 0, 1], np.int16), LANES)
            if random.random() < 0.7:
                values = rng.integers(-32768, 32768, LANES, np.int16)
            product = weight * values.astype(np.int64)
            total = model.get(row, 0) + product
            fresh = bool(row not in model or random.random() < 0.1 or np.abs(total).max() >= LIMIT)
            model[row] = product if fresh else total
            count = random.choice((0, 0, 0, 1, random.randrange(ROWS)))
            contribution(dut, row, weight, fresh, values, count)
            pending[row] = cycle
            if count:
                announced.append((cycle + ROW_DISTANCE, count))
        settled = [row for row in model if cycle - pending[row] > ROW_DISTANCE]
        read = bool(settled) and random.random() < 0.8
        dut.finish_read.value = read
        if read:
            wanted = random.choice(settled)
            dut.finish_read_address.value = wanted
        await ReadOnly()
        if reads and reads[0][0] == cycle:
            assert lanes(int(dut.read_data.value)) == reads.pop(0)[1].tolist()
            compared += 1
        if read:
            if int(dut.finish_read_ready.value):
                reads.append((cycle + 2, model[wanted].copy()))
            else:
                busy += 1
        count = int(dut.completed.value)
        if count:
            assert announced.pop(0) == (cycle, count)
            completes += 1
        await RisingEdge(dut.clk)
    assert compared > 100 and busy > 100 and completes > 100


@cocotb.test()
async def extremes(dut):
    """Fifteen dense units of -32768 over the smallest residual's share reach the smallest s36, and no lane spills."""
    await start(dut)
    values = np.where(np.arange(LANES) % 2, 32767, -32768).astype(np.int16)
    for unit in range(15):
        contribution(dut, ROWS - 1, 65536, unit == 0, values)
        for _ in range(ROW_DISTANCE):
            await RisingEdge(dut.clk)
            dut.combine_valid.value = 0
    await RisingEdge(dut.clk)
    dut.finish_read.value, dut.finish_read_address.value = 1, ROWS - 1
    await RisingEdge(dut.clk)
    dut.finish_read.value = 0
    await RisingEdge(dut.clk)
    await ReadOnly()
    assert lanes(int(dut.read_data.value)) == [15 * 65536 * int(v) for v in values]
