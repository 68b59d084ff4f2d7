"""MAC array: sums of products of random and extreme operands, tiles of any length back to back or with gaps."""

from __future__ import annotations

import random
from collections import deque
from typing import Any

import cocotb
import numpy as np
from cocotb.clock import Clock
from cocotb.triggers import ReadOnly, RisingEdge, Timer

from rtl_tb import structs

PRESETS = ("ci", "zcu104")

E = structs.load()
TOKENS, OUTPUTS, INPUTS = E.T, E.O, E.I
WEIGHT = E.WEIGHT_MAX


class Bench:
    def __init__(self, dut: Any, seed: int) -> None:
        self.dut, self.rng = dut, np.random.default_rng(seed)
        self.expected: deque[Any] = deque()
        self.ended: deque[int] = deque()
        self.current: int | None = None
        self.cycle = self.tiles = 0
        self.latency: set[int] = set()

    async def tick(self, beat: bool = False, first: bool = False, last: bool = False,
                   operand: Any = None, weights: Any = None) -> None:  # fmt: skip
        dut = self.dut
        dut.beat.value = beat
        # Without a beat these mean nothing.
        dut.beat_first.value = first if beat else int(self.rng.integers(2))
        dut.beat_last.value = last if beat else int(self.rng.integers(2))
        if beat:
            dut.operand.value = int.from_bytes(operand.astype(np.int8).tobytes(), "little")
            dut.weights.value = int.from_bytes(weights.astype(np.int8).tobytes(), "little")
        elif not self.rng.integers(4):
            dut.operand.value = int.from_bytes(self.rng.bytes(TOKENS * INPUTS), "little")
        if beat and last:
            self.ended.append(self.cycle)
        await ReadOnly()
        if int(dut.done.value):
            assert self.expected, "a result that nobody asked for"
            self.current = self.expected.popleft()
            self.latency.add(self.cycle - self.ended.popleft())
            self.tiles += 1
        # The result stays until the next one; looking at it now and then is enough.
        if int(dut.done.value) or not self.rng.integers(7):
            assert self.current is None or int(dut.result.value) == self.current, f"tile {self.tiles - 1}"
        await RisingEdge(dut.clk)
        self.cycle += 1

    async def tile(self, operands: Any, weights: Any, gaps: float = 0.0) -> None:
        """operands [beats, tokens, inputs], weights [beats, outputs, inputs]."""
        sums = np.einsum("bti,boi->to", operands.astype(np.int64), weights.astype(np.int64)).reshape(-1)
        packed = 0
        for value in reversed(sums.tolist()):
            packed = packed << E.PRODUCT_BITS | value & ((1 << E.PRODUCT_BITS) - 1)
        assert abs(sums).max() < 1 << (E.PRODUCT_BITS - 1)
        self.expected.append(packed)
        beats = len(operands)
        for beat in range(beats):
            while self.rng.random() < gaps:
                await self.tick()
                if not self.rng.integers(20):  # long enough for the pipeline to stand still
                    for _ in range(3 * INPUTS):
                        await self.tick()
            await self.tick(True, beat == 0, beat == beats - 1, operands[beat], weights[beat])

    async def finish(self) -> None:
        for _ in range(3 * INPUTS + 8):
            await self.tick()
        assert not self.expected, f"{len(self.expected)} results did not come"
        assert len(self.latency) == 1, f"latencies {self.latency}"
        self.dut._log.info("%d tiles of %d sums, latency %d", self.tiles, TOKENS * OUTPUTS, *self.latency)


async def start(dut: Any) -> Bench:
    dut.beat.value, dut.rst.value = 0, 1
    await Timer(1, "ns")
    cocotb.start_soon(Clock(dut.clk, 10, "ns").start(start_high=False))
    for _ in range(3):
        await RisingEdge(dut.clk)
    dut.rst.value = 0
    return Bench(dut, random.getrandbits(32))


@cocotb.test()
async def random_tiles(dut):
    bench = await start(dut)
    for number in range(60):
        beats = int(bench.rng.choice([1, 2, 3, TOKENS, 24, 48]))
        operands = bench.rng.integers(-128, 128, (beats, TOKENS, INPUTS))
        weights = bench.rng.integers(-WEIGHT, WEIGHT + 1, (beats, OUTPUTS, INPUTS))
        await bench.tile(operands, weights, gaps=(0.0, 0.0, 0.3, 0.8)[number % 4])
    await bench.finish()


@cocotb.test()
async def extremes(dut):
    """The longest tile of the largest products: the sums fill their width, and both halves of the DSP their field."""
    bench = await start(dut)
    for operand in (-128, 127):
        for weight in (-WEIGHT, WEIGHT):
            await bench.tile(
                np.full((E.MAX_BEATS, TOKENS, INPUTS), operand), np.full((E.MAX_BEATS, OUTPUTS, INPUTS), weight)
            )
    await bench.finish()


@cocotb.test()
async def signs_of_a_pair(dut):
    """Low sums that borrow from the high ones: all sign combinations of the two tokens that share a multiplier."""
    bench = await start(dut)
    values = np.array([-128, -127, -1, 0, 1, 127])
    for even in values:
        for odd in values:
            operands = np.zeros((1, TOKENS, INPUTS), np.int64)
            operands[:, 0::2], operands[:, 1::2] = even, odd
            weights = bench.rng.choice([-WEIGHT, -1, 0, 1, WEIGHT], (1, OUTPUTS, 1)) * np.ones((1, 1, INPUTS), np.int64)
            await bench.tile(operands, weights)
    # Low sums around zero and at both ends of their field
    for _ in range(40):
        operands = bench.rng.choice([-128, 127, 0, 1, -1], (2, TOKENS, INPUTS))
        weights = bench.rng.choice([-WEIGHT, WEIGHT, 0, 1, -1], (2, OUTPUTS, INPUTS))
        await bench.tile(operands, weights)
    await bench.finish()


@cocotb.test()
async def one_place_at_a_time(dut):
    """One input of one token against distinct weights: every product lands in its own sum."""
    bench = await start(dut)
    for token in range(TOKENS):
        for i in range(INPUTS):
            operands = np.zeros((1, TOKENS, INPUTS), np.int64)
            operands[0, token, i] = 1 + token * INPUTS + i
            weights = (np.arange(OUTPUTS * INPUTS).reshape(1, OUTPUTS, INPUTS) * 37 + 11) % (2 * WEIGHT + 1) - WEIGHT
            await bench.tile(operands, weights)
    await bench.finish()


@cocotb.test()
async def reset_in_mid_tile(dut):
    """A reset forgets the beats under way; the next tile starts afresh."""
    bench = await start(dut)
    full = np.full((4, TOKENS, INPUTS), 3), np.full((4, OUTPUTS, INPUTS), 5)
    for beat in range(3):
        await bench.tick(True, beat == 0, False, full[0][beat], full[1][beat])
    dut.rst.value = 1
    await bench.tick()
    dut.rst.value = 0
    await bench.tile(*full)
    await bench.finish()
