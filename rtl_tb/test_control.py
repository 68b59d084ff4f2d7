"""control against the registers of host/backends/golden.py: the same value in every read, whatever happened before."""

from __future__ import annotations

import os
import random
from typing import Any

import cocotb

from accel.config import Formats, hardware
from accel.registers import REGISTERS, SPAN, UNMAPPED
from host.backends.golden import AUTO_RESTART, DONE, IDLE, INTERRUPT, READY, START, GoldenDevice
from host.device import Reg
from rtl_tb.axi_lite import Bus

PRESETS = ("ci", "zcu104")

HARDWARE = hardware(os.environ["M3VIT_HARDWARE"])
ARGUMENTS = [item.offset for item in REGISTERS if item.offset >= 0x10]


class Model(GoldenDevice):
    """The golden back end's registers with the engine in the hands of the test."""

    def __init__(self) -> None:
        super().__init__(HARDWARE, Formats())

    def _begin(self) -> None:
        self._start, self._idle = True, False

    @property
    def busy(self) -> bool:
        return not self._idle

    def take(self) -> dict[int, int]:
        self._start = False
        return dict(self._arguments)

    def end(self) -> None:
        with self._changed:
            self._finish()

    @property
    def waits(self) -> bool:
        return self._start

    @property
    def line(self) -> bool:
        return self._line


def sampled(dut: Any) -> dict[int, int]:
    arena, words = int(dut.arena.value), {}
    for port in range(HARDWARE.ports):
        for half in range(2):
            words[Reg.ARENA0_LO + 16 * port + 4 * half] = arena >> (64 * port + 32 * half) & 0xFFFF_FFFF
    return words | {
        Reg.PROGRAM: int(dut.program_offset.value), Reg.COMMANDS: int(dut.commands.value),
        Reg.RECORD: int(dut.record_offset.value),
    }  # fmt: skip


@cocotb.test()
async def as_the_golden_back_end(dut):
    """Random accesses, starts and ends of programs; every read and the interrupt line agree."""
    bus, model = Bus(dut), Model()
    await bus.begin("start_taken", "done")
    running, programs, interrupts = False, 0, 0
    offsets = [item.offset for item in REGISTERS] + [0x10, 0x28, 0x64, SPAN - 4]
    for _ in range(4000):
        action = random.random()
        if action < 0.4:
            offset = random.choice((Reg.AP_CTRL, Reg.ISR, *offsets))
            assert await bus.read(offset) == model.read_register(offset), f"register {offset:#x}"
        elif action < 0.8:
            offset = random.choice((Reg.AP_CTRL, Reg.GIER, Reg.IER, Reg.ISR, *offsets))
            value = random.choice((0, 1, 2, 3, START | AUTO_RESTART, random.getrandbits(32)))
            model.write_register(offset, value)
            await bus.write(offset, value)
        elif running:
            running = False
            programs += 1
            model.end()
            await bus.pulse("done")
        assert bool(dut.start_valid.value) == (model.waits if running else model.busy)
        if not running and model.busy:
            arguments = model.take()
            await bus.pulse("start_taken")
            running = True
            found = sampled(dut)
            assert {offset: arguments[offset] for offset in found} == found
        assert bool(dut.interrupt_line.value) == model.line
        interrupts += model.line
    assert programs > 100 and interrupts > 100


@cocotb.test()
async def only_bytes_with_a_strobe(dut):
    bus = Bus(dut)
    await bus.begin("start_taken", "done")
    for offset in ARGUMENTS:
        expected = 0
        for _ in range(8):
            value, strobe = random.getrandbits(32), random.randrange(16)
            mask = sum(0xFF << 8 * byte for byte in range(4) if strobe >> byte & 1)
            expected = expected & ~mask | value & mask
            await bus.write(offset, value, strobe)
            assert await bus.read(offset) == expected
    for offset in (Reg.GIER, Reg.IER, Reg.ISR, Reg.AP_CTRL):
        await bus.write(offset, 0xFFFF_FFFF, 0b1110)
        assert await bus.read(offset) == (IDLE if offset == Reg.AP_CTRL else 0)


@cocotb.test()
async def ends_between_accesses_are_never_lost(dut):
    """A program that ends in any cycle of a read or write: done is seen once, the interrupt is not toggled away."""
    bus = Bus(dut)
    await bus.begin("start_taken", "done")
    await bus.write(Reg.GIER, 1)
    await bus.write(Reg.IER, 1)
    for delay in range(8):
        await bus.write(Reg.AP_CTRL, START)
        await bus.pulse("start_taken")
        assert await bus.read(Reg.AP_CTRL) == 0

        async def end(cycles: int = delay) -> None:
            await bus.cycles(cycles)
            await bus.pulse("done")

        ending = cocotb.start_soon(end())
        first = await bus.read(Reg.AP_CTRL)
        await ending
        second = await bus.read(Reg.AP_CTRL)
        assert bool(first & DONE) != bool(second & DONE), "seen once"
        assert (first | second) & (IDLE | READY | INTERRUPT) == IDLE | READY | INTERRUPT
        assert await bus.read(Reg.AP_CTRL) == IDLE | INTERRUPT
        await bus.write(Reg.ISR, 1)
        assert not dut.interrupt_line.value
    for delay in range(8):
        await bus.write(Reg.AP_CTRL, START)
        await bus.pulse("start_taken")

        async def again(cycles: int = delay) -> None:
            await bus.cycles(cycles)
            await bus.pulse("done")

        ending = cocotb.start_soon(again())
        await bus.write(Reg.AP_CTRL, START)  # before or after the end: another program either way
        await ending
        assert dut.start_valid.value
        assert not await bus.read(Reg.AP_CTRL) & IDLE
        await bus.pulse("start_taken")
        await bus.pulse("done")
        assert await bus.read(Reg.AP_CTRL) & (DONE | IDLE) == DONE | IDLE
        await bus.write(Reg.ISR, 1)


@cocotb.test()
async def reset_clears_every_register(dut):
    bus = Bus(dut)
    await bus.begin("start_taken", "done")
    for item in REGISTERS[1:]:
        await bus.write(item.offset, 0xFFFF_FFFF)
    await bus.write(Reg.AP_CTRL, START | AUTO_RESTART)
    dut.rst.value = 1
    await bus.cycles(2)
    dut.rst.value = 0
    assert await bus.read(Reg.AP_CTRL) == IDLE
    assert not dut.start_valid.value and not dut.interrupt_line.value
    for item in REGISTERS[1:]:
        assert await bus.read(item.offset) == 0, item.name
    assert await bus.read(0x10) == UNMAPPED
