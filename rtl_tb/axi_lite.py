"""AXI4-Lite master for benches of the control registers."""

from __future__ import annotations

import random
from typing import Any

import cocotb
from cocotb.clock import Clock
from cocotb.triggers import FallingEdge, gather


class Bus:
    """AXI4-Lite master; address and data of a write come in any order, answers are taken late."""

    def __init__(self, dut: Any) -> None:
        self.dut = dut

    async def begin(self, *others: str) -> None:
        dut = self.dut
        cocotb.start_soon(Clock(dut.clk, 10, "ns").start(start_high=False))
        for name in ("awvalid", "wvalid", "bready", "arvalid", "rready", *others):
            getattr(dut, name).value = 0
        dut.rst.value = 1
        for _ in range(3):
            await FallingEdge(dut.clk)
        dut.rst.value = 0

    async def cycles(self, count: int) -> None:
        for _ in range(count):
            await FallingEdge(self.dut.clk)

    async def _offer(self, valid: str, ready: str, delay: int) -> None:
        await self.cycles(delay)
        getattr(self.dut, valid).value = 1
        while True:
            taken = bool(getattr(self.dut, ready).value)
            await FallingEdge(self.dut.clk)
            if taken:
                break
        getattr(self.dut, valid).value = 0

    async def write(self, offset: int, value: int, strobe: int = 15) -> None:
        dut, late = self.dut, random.choice((0, 0, 1, 3))
        dut.awaddr.value, dut.wdata.value, dut.wstrb.value = offset, value, strobe
        first = random.randrange(2)
        await gather(
            self._offer("awvalid", "awready", late * first), self._offer("wvalid", "wready", late * (1 - first))
        )
        await self._answer("bvalid", "bready", "bresp")

    async def read(self, offset: int) -> int:
        self.dut.araddr.value = offset
        await self._offer("arvalid", "arready", random.choice((0, 0, 2)))
        return await self._answer("rvalid", "rready", "rresp", "rdata")

    async def _answer(self, valid: str, ready: str, response: str, data: str = "") -> int:
        dut = self.dut
        while not getattr(dut, valid).value:
            await FallingEdge(dut.clk)
        value = int(getattr(dut, data).value) if data else 0
        for _ in range(random.choice((0, 0, 1, 4))):
            await FallingEdge(dut.clk)
            assert getattr(dut, valid).value, "an answer was withdrawn"
            assert not data or int(getattr(dut, data).value) == value, "an answer changed"
        assert int(getattr(dut, response).value) == 0
        getattr(dut, ready).value = 1
        await FallingEdge(dut.clk)
        getattr(dut, ready).value = 0
        return value

    async def pulse(self, name: str) -> None:
        getattr(self.dut, name).value = 1
        await FallingEdge(self.dut.clk)
        getattr(self.dut, name).value = 0
