"""FIFO: order, full and empty, every cycle both ways, against a queue."""

from __future__ import annotations

import random
from collections import deque

import cocotb
from cocotb.clock import Clock
from cocotb.triggers import ReadOnly, RisingEdge

PARAMETERS = ({"WIDTH": 8, "DEPTH": 2}, {"WIDTH": 40, "DEPTH": 16})


@cocotb.test()
async def random_traffic(dut):
    cocotb.start_soon(Clock(dut.clk, 10, "ns").start(start_high=False))
    width, depth = len(dut.in_data), int(dut.DEPTH.value)
    dut.rst.value, dut.in_valid.value, dut.out_ready.value = 1, 0, 0
    for _ in range(2):
        await RisingEdge(dut.clk)
    dut.rst.value = 0
    model: deque[int] = deque()
    moved = 0
    for cycle in range(3000):
        # Phases in which the FIFO fills, empties and flows.
        phase = cycle // 500 % 3
        push, pop = random.random() < (0.9, 0.2, 1.0)[phase], random.random() < (0.2, 0.9, 1.0)[phase]
        data = random.getrandbits(width)
        dut.in_valid.value, dut.in_data.value, dut.out_ready.value = push, data, pop
        await ReadOnly()
        assert bool(dut.in_ready.value) == (len(model) < depth)
        assert bool(dut.out_valid.value) == bool(model)
        if model:
            assert int(dut.out_data.value) == model[0]
        accepted, taken = push and len(model) < depth, pop and bool(model)
        await RisingEdge(dut.clk)
        if taken:
            model.popleft()
            moved += 1
        if accepted:
            model.append(data)
    assert moved > 1000
