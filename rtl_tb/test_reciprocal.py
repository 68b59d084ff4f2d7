"""Reciprocal: every normalized divisor, every exponent, back to back and with gaps."""

from __future__ import annotations

import random

import cocotb
import numpy as np
from cocotb.clock import Clock
from cocotb.triggers import FallingEdge

from accel import numerics


@cocotb.test()
async def every_divisor(dut):
    cocotb.start_soon(Clock(dut.clk, 10, "ns").start(start_high=False))
    divisors = np.arange(1 << 15, 1 << 16)
    random.shuffle(divisors)
    shifts = np.array([random.randrange(9) for _ in divisors])
    values = (divisors << shifts) + np.array([random.getrandbits(8) & (1 << int(shift)) - 1 for shift in shifts])
    values = np.concatenate([values, [1 << 15, (1 << 16) - 1, 1 << 16, 1 << 23, (1 << 23) - 1]])
    factors, exponents = numerics.reciprocal(values)
    expected = list(zip(factors.tolist(), exponents.tolist(), strict=True))
    dut.rst.value, dut.in_valid.value = 1, 0
    for _ in range(3):
        await FallingEdge(dut.clk)
    dut.rst.value = 0
    sent, found = 0, []
    while len(found) < len(expected):
        await FallingEdge(dut.clk)
        if int(dut.out_valid.value):
            found.append((int(dut.factor.value), int(dut.exponent.value)))
        valid = sent < len(values) and random.random() < 0.9
        dut.in_valid.value = valid
        if valid:
            dut.value.value = int(values[sent])
            sent += 1
    assert found == expected
