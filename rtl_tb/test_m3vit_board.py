"""The whole engine with its memory under cocotb: registers over a bus with pauses, programs, interrupt, reset."""

from __future__ import annotations

import itertools
import logging
import os
import random

import cocotb
import numpy as np
from cocotb.clock import Clock
from cocotb.triggers import ClockCycles, RisingEdge, with_timeout
from cocotbext.axi import AxiLiteBus, AxiLiteMaster

from accel.compiler import identify_program
from accel.config import Formats, engine_hash, hardware
from accel.functional import FunctionalEngine
from accel.layers import Kind
from accel.memory_model import MemoryModel
from accel.record import ErrorCode, Record
from accel.registers import REGISTERS, UNMAPPED, mask
from accel.synthetic import SyntheticProgram, build_program, synthetic_layer
from host.backends.rtl_library import SimulatedMemory
from host.device import Reg

TOPLEVEL = "m3vit_board"
SOURCES = ("board/memory_model.cpp", "board/memory_dpi.cpp")

HARDWARE = hardware(os.environ["M3VIT_HARDWARE"])
BASE, SIZE = 0x1000_0000, 16 << 20
START, DONE, IDLE = (mask("AP_CTRL", name) for name in ("start", "done", "idle"))


class Board:
    """Registers through AXI4-Lite, memory as an array."""

    def __init__(self, dut, model: MemoryModel) -> None:
        logging.getLogger(f"cocotb.{dut._name}.s_axi_control").setLevel(logging.WARNING)
        self.dut, self.memory = dut, SimulatedMemory.of_running_program(model, BASE, SIZE)
        self.bus = AxiLiteMaster(
            AxiLiteBus.from_prefix(dut, "s_axi_control"), dut.ap_clk, dut.ap_rst_n, reset_active_level=False
        )

    def pause(self, share: float) -> None:
        """Make every channel of the bus wait at random."""
        channels = (
            self.bus.write_if.aw_channel, self.bus.write_if.w_channel, self.bus.write_if.b_channel,
            self.bus.read_if.ar_channel, self.bus.read_if.r_channel,
        )  # fmt: skip
        for channel in channels:
            channel.set_pause_generator(random.random() < share for _ in itertools.count())

    async def reset(self) -> None:
        self.dut.ap_rst_n.value = 0
        await ClockCycles(self.dut.ap_clk, 20)
        self.dut.ap_rst_n.value = 1
        await ClockCycles(self.dut.ap_clk, 2)

    async def write(self, offset: int, value: int) -> None:
        await self.bus.write_dword(offset, value)

    async def read(self, offset: int) -> int:
        return await self.bus.read_dword(offset)

    async def start(self, program: int, commands: int, record: int) -> None:
        for port in range(4):
            await self.write(Reg.ARENA0_LO + 16 * port, BASE)
            await self.write(Reg.ARENA0_HI + 16 * port, 0)
        for register, value in ((Reg.PROGRAM, program), (Reg.COMMANDS, commands), (Reg.RECORD, record)):
            await self.write(register, value)
        await self.write(Reg.GIER, 1)
        await self.write(Reg.IER, 1)
        await self.write(Reg.AP_CTRL, START)

    async def finish(self) -> None:
        if not int(self.dut.interrupt.value):
            await with_timeout(RisingEdge(self.dut.interrupt), 5, "ms")
        assert await self.read(Reg.AP_CTRL) & (DONE | IDLE) == DONE | IDLE
        assert await self.read(Reg.ISR) == 1
        await self.write(Reg.ISR, 1)
        await ClockCycles(self.dut.ap_clk, 2)
        assert not int(self.dut.interrupt.value)
        assert self.memory.violation() == ""

    async def run(self, synthetic: SyntheticProgram) -> Record:
        """Run a program; all of its memory but the record must be as the functional engine leaves it."""
        size, offset = synthetic.arena.bytes, synthetic.record_offset
        self.memory.array[:size] = synthetic.memory
        await self.start(synthetic.program_offset, len(synthetic.commands), offset)
        await self.finish()
        expected = synthetic.memory.copy()
        FunctionalEngine(HARDWARE).execute(expected, synthetic.program_offset, len(synthetic.commands), offset)
        end = offset + synthetic.arena.sizes["record"]
        different = np.flatnonzero(self.memory.array[:size] != expected)
        assert not ((different < offset) | (different >= end)).any(), f"first difference at {different[0]:#x}"
        assert not self.memory.array[size:].any(), "nothing beyond the arena was written"
        return Record.decode(self.memory.array[offset:end].tobytes())


async def board(dut, model: MemoryModel | None = None) -> Board:
    cocotb.start_soon(Clock(dut.ap_clk, 10, "ns").start())
    made = Board(dut, model or MemoryModel())
    await made.reset()
    return made


def program(seed: int) -> SyntheticProgram:
    """Two jobs with every kind of layer."""
    hw = HARDWARE
    jobs = [
        [
            synthetic_layer(Kind.LINEAR, 9, 64, 100, hw, seed),
            synthetic_layer(Kind.MOE, 19, 64, 64, hw, seed + 1, hidden=48, experts=6, top_k=2),
        ],
        [
            synthetic_layer(Kind.ACCUMULATE, 11, 96, 64, hw, seed + 2),
            synthetic_layer(Kind.MLP, 7, 32, 48, hw, seed + 3, hidden=64, units=2),
        ],
    ]
    return build_program(jobs, hw)


@cocotb.test()
async def registers(dut):
    made = await board(dut)
    made.pause(0.3)
    known = {item.offset for item in REGISTERS}
    for offset in range(0, 0x100, 4):
        if offset not in known:
            assert await made.read(offset) == UNMAPPED
    assert await made.read(Reg.AP_CTRL) == IDLE
    values = {item.offset: random.getrandbits(32) for item in REGISTERS if item.offset >= 0x20}
    for offset in random.sample(sorted(values), len(values)):
        await made.write(offset, values[offset])
    for offset in random.sample(sorted(values), len(values)):
        assert await made.read(offset) == values[offset]
    # Byte strobes.
    await made.bus.write(Reg.PROGRAM + 1, b"\x5a")
    assert await made.read(Reg.PROGRAM) == values[Reg.PROGRAM] & ~0xFF00 | 0x5A00


@cocotb.test()
async def identity(dut):
    made = await board(dut)
    program_ = identify_program()
    made.memory.array[program_.arena.offsets["program"] :][:64] = list(program_.image)
    await made.start(program_.arena.offsets["program"], 1, program_.arena.offsets["record"])
    await made.finish()
    record = Record.decode(made.memory.array[program_.arena.offsets["record"] :][:256].tobytes())
    assert record.header["engine_hash"] == engine_hash(Formats(), HARDWARE) and record.error is ErrorCode.NONE


@cocotb.test()
async def programs_under_back_pressure(dut):
    for model in (
        MemoryModel(),
        MemoryModel(stall_percent=30, stall_run=3, stall_seed=random.getrandbits(31)),
        MemoryModel(latency=160, outstanding=2, stall_percent=60, stall_seed=random.getrandbits(31)),
    ):
        made = await board(dut, model)
        made.pause(0.5)
        for _ in range(2):
            record = await made.run(program(random.getrandbits(31)))
            assert record.error is ErrorCode.NONE and len(record.jobs) == 2


@cocotb.test()
async def reset_in_the_middle(dut):
    made = await board(dut)
    synthetic = program(random.getrandbits(31))
    for _ in range(6):
        made.memory.array[: synthetic.arena.bytes] = synthetic.memory
        await made.start(synthetic.program_offset, len(synthetic.commands), synthetic.record_offset)
        await ClockCycles(dut.ap_clk, random.randrange(10, 6000))
        await made.reset()
        assert await made.read(Reg.AP_CTRL) == IDLE and await made.read(Reg.PROGRAM) == 0
        record = await made.run(synthetic)
        assert record.error is ErrorCode.NONE
