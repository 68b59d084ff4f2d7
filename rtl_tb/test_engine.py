"""The whole engine under passive monitors, with functional coverage.

Monitors see registers being written and what moves on the memory ports, nothing else. The golden model runs on the
bytes that the engine was seen to read, with noise wherever it has not looked; what it writes goes to a scoreboard, from
which every beat seen on the write ports is taken off, and which must end empty. Coverage bins are in engine_bench.sv;
the last test writes them to ``functional-<preset>.json`` in the folder of the builds and fails if one was not hit.
"""

from __future__ import annotations

import json
import logging
import os
import random
import re
from collections import Counter, defaultdict, deque

import cocotb
import numpy as np
from cocotb.clock import Clock
from cocotb.triggers import ClockCycles, FallingEdge, RisingEdge, with_timeout
from cocotbext.axi import AxiLiteBus, AxiLiteMaster

from accel import pack
from accel.commands import COMMAND_BYTES, Command, Flag
from accel.config import hardware
from accel.functional import FunctionalEngine
from accel.layers import Kind
from accel.limits import KINDS, Limits
from accel.memory_model import MemoryModel
from accel.record import COUNTERS, ErrorCode, Record
from accel.registers import mask
from accel.routing import Schedule
from accel.synthetic import SyntheticProgram, build_program
from host.backends.rtl_library import SimulatedMemory
from host.device import Reg
from rtl_tb.engine_cases import CASES, dense, moe, random_program, replaced, with_commands
from rtl_tb.runner import BUILD, HERE

TOPLEVEL = "engine_bench"
SOURCES = ("board/memory_model.cpp", "board/memory_dpi.cpp")

PRESET = os.environ["M3VIT_HARDWARE"]
HW = hardware(PRESET)
BASE, SIZE = 0x1000_0000, 16 << 20
START, DONE, IDLE = (mask("AP_CTRL", name) for name in ("start", "done", "idle"))
RESTART = mask("AP_CTRL", "auto_restart")
PORT = HW.port_bytes
FUNCTIONAL = [slot.name for slot in COUNTERS if not slot.name.endswith("cycles")]

_BIN = re.compile(r"now\[(\d+)\] = [^/]*;\s*// (.+)")
BINS = {int(index): name for index, name in _BIN.findall((HERE / "engine_bench.sv").read_text(encoding="utf-8"))}
COMPARED = Counter()


class Monitors:
    """What was read and written, and which registers were set, by looking only."""

    def __init__(self, dut) -> None:
        self.dut = dut
        self.registers: dict[int, int] = {}
        self._addresses: deque[int] = deque()
        self._values: deque[int] = deque()
        self.forget()
        cocotb.start_soon(self._watch())

    def forget(self) -> None:
        self.read: dict[int, bytes] = {}
        """Beats by address."""
        self.reads: Counter = Counter()
        self.written: list[tuple[int, bytes]] = []
        """Beats in the order in which they moved."""
        self._reading: dict[int, deque[int]] = defaultdict(deque)
        self._bursts: dict[int, deque[tuple[int, int]]] = defaultdict(deque)
        self._data: dict[int, list[bytes]] = defaultdict(list)
        self._complete: dict[int, deque[list[bytes]]] = defaultdict(deque)
        self.responses = self.bursts_written = 0

    async def _watch(self) -> None:
        """At falling edges all is as the next rising edge finds it."""
        dut = self.dut
        edge, reset, fires = FallingEdge(dut.ap_clk), dut.ap_rst_n, dut.any_fire
        while True:
            await edge
            if not int(reset.value):
                self.forget()
            elif int(fires.value):
                self._look_at_registers()
                self._look()

    def _look_at_registers(self) -> None:
        dut = self.dut
        if int(dut.s_axi_control_awvalid.value) and int(dut.s_axi_control_awready.value):
            self._addresses.append(int(dut.s_axi_control_awaddr.value))
        if int(dut.s_axi_control_wvalid.value) and int(dut.s_axi_control_wready.value):
            self._values.append(int(dut.s_axi_control_wdata.value))
        if self._addresses and self._values:
            self.registers[self._addresses.popleft()] = self._values.popleft()

    def _look(self) -> None:
        dut = self.dut
        fires = {name: int(getattr(dut, f"{name}_fire").value) for name in ("ar", "r", "aw", "w", "b")}
        if fires["ar"]:
            addresses, lengths = int(dut.ar_address.value), int(dut.ar_length.value)
            for port in range(HW.ports):
                if fires["ar"] >> port & 1:
                    start = addresses >> 64 * port & (1 << 64) - 1
                    beats = (lengths >> 8 * port & 0xFF) + 1
                    self._reading[port].extend(range(start, start + beats * PORT, PORT))
        if fires["r"]:
            data = int(dut.r_data.value).to_bytes(HW.ports * PORT, "little")
            for port in range(HW.ports):
                if fires["r"] >> port & 1:
                    address = self._reading[port].popleft()
                    self.read[address] = data[port * PORT :][:PORT]
                    self.reads[address] += 1
        if fires["aw"]:
            addresses, lengths = int(dut.aw_address.value), int(dut.aw_length.value)
            for port in range(HW.write_ports):
                if fires["aw"] >> port & 1:
                    start, beats = addresses >> 64 * port & (1 << 64) - 1, (lengths >> 8 * port & 0xFF) + 1
                    self._bursts[port].append((start, beats))
        if fires["w"]:
            data = int(dut.w_data.value).to_bytes(HW.write_ports * PORT, "little")
            strobe, last = int(dut.w_strobe.value), int(dut.w_last.value)
            for port in range(HW.write_ports):
                if fires["w"] >> port & 1:
                    assert strobe >> PORT * port & (1 << PORT) - 1 == (1 << PORT) - 1
                    self._data[port].append(data[port * PORT :][:PORT])
                    if last >> port & 1:
                        self._complete[port].append(self._data.pop(port))
        for port in range(HW.write_ports):
            while self._bursts[port] and self._complete[port]:
                (start, beats), data = self._bursts[port].popleft(), self._complete[port].popleft()
                assert len(data) == beats, "wlast where AWLEN said"
                self.bursts_written += 1
                self.written += [(start + index * PORT, item) for index, item in enumerate(data)]
        self.responses += fires["b"].bit_count()


class Golden:
    """What an engine must write that was told and given what the monitors saw."""

    def __init__(self, monitors: Monitors, seed: int) -> None:
        registers = monitors.registers
        self.base = registers[Reg.ARENA0_LO]
        offsets = [address - self.base for address in (*monitors.read, *(address for address, _ in monitors.written))]
        size = -(-(max(offsets, default=0) + PORT) // 4096) * 4096 + 4096
        image = np.random.default_rng(seed).integers(0, 256, size, np.uint8)
        for address, data in monitors.read.items():
            image[address - self.base :][:PORT] = list(data)
        before = image.copy()
        self.record_offset = registers[Reg.RECORD]
        program, count = registers[Reg.PROGRAM], registers[Reg.COMMANDS]
        self.record = FunctionalEngine(HW).execute(image, program, count, self.record_offset)
        self.scoreboard: dict[int, bytes] = {}
        for index in range(self.record.header["commands"]):
            command = Command.decode(before[program + COMMAND_BYTES * index :][:COMMAND_BYTES].tobytes())
            if command.opcode in KINDS:
                layer = Limits(HW).check(command, size)
                span = pack.token_bytes(layer.tokens, layer.outputs, layer.output_bytes_per_value, HW)
                for offset in range(command.output, command.output + span, PORT):
                    assert offset not in self.scoreboard, "programs of this bench write every place once"
                    self.scoreboard[offset] = image[offset : offset + PORT].tobytes()
                COMPARED["integers"] += layer.tokens * layer.outputs


class Bench:
    def __init__(self, dut, model: MemoryModel) -> None:
        logging.getLogger(f"cocotb.{dut._name}.s_axi_control").setLevel(logging.WARNING)
        self.dut, self.memory = dut, SimulatedMemory.of_running_program(model, BASE, SIZE)
        self.bus = AxiLiteMaster(
            AxiLiteBus.from_prefix(dut, "s_axi_control"), dut.ap_clk, dut.ap_rst_n, reset_active_level=False
        )
        self.monitors = Monitors(dut)

    async def reset(self) -> None:
        self.dut.ap_rst_n.value = 0
        await ClockCycles(self.dut.ap_clk, 20)
        self.dut.ap_rst_n.value = 1
        await ClockCycles(self.dut.ap_clk, 2)

    async def start(self, program: SyntheticProgram, control: int = START) -> None:
        """Place and start a program; ports see the arena at one address."""
        self.memory.array[: program.arena.bytes] = program.memory
        for port in range(HW.ports):
            await self.bus.write_dword(Reg.ARENA0_LO + 16 * port, BASE)
            await self.bus.write_dword(Reg.ARENA0_HI + 16 * port, 0)
        for register, value in (
            (Reg.PROGRAM, program.program_offset), (Reg.COMMANDS, len(program.commands)),
            (Reg.RECORD, program.record_offset), (Reg.GIER, 1), (Reg.IER, 1),
        ):  # fmt: skip
            await self.bus.write_dword(register, value)
        self.monitors.forget()
        await self.bus.write_dword(Reg.AP_CTRL, control)

    async def finish(self) -> None:
        if not int(self.dut.interrupt.value):
            await with_timeout(RisingEdge(self.dut.interrupt), 20, "ms")
        assert self.memory.violation() == ""

    async def acknowledge(self) -> None:
        assert await self.bus.read_dword(Reg.AP_CTRL) & DONE
        await self.bus.write_dword(Reg.ISR, 1)
        await ClockCycles(self.dut.ap_clk, 2)
        assert not int(self.dut.interrupt.value)

    async def run(self, program: SyntheticProgram) -> Record:
        """Run a program and check it by what the monitors saw."""
        await self.start(program)
        await self.finish()
        record = self.check()
        await self.acknowledge()
        return record

    def check(self) -> Record:
        """Take everything that was written off the scoreboard; the record is what is left, once."""
        golden = Golden(self.monitors, random.getrandbits(31))
        record_bytes: dict[int, bytes] = {}
        for address, data in self.monitors.written:
            offset = address - golden.base
            if offset in golden.scoreboard:
                assert golden.scoreboard.pop(offset) == data, f"written at {offset:#x}"
            else:
                assert offset >= golden.record_offset and offset not in record_bytes, f"stray write at {offset:#x}"
                record_bytes[offset] = data
        assert not golden.scoreboard, f"{len(golden.scoreboard)} beats were never written"
        assert self.monitors.responses == self.monitors.bursts_written, "every burst was answered before the interrupt"
        image = b"".join(record_bytes[offset] for offset in sorted(record_bytes))
        record = Record.decode(image)
        assert len(image) == 256 + 128 * len(record.jobs), "the record was written once, and nothing behind it"
        names = ("engine_hash", "build_hash", "error", "error_command", "commands")
        wanted = {"error": 0, "error_command": 0} | golden.record.header
        assert {name: record.header[name] for name in names} == {name: wanted[name] for name in names}
        resident = any(record.counters[name] != golden.record.counters[name] for name in ("bytes_read", "weight_bytes"))
        for name in FUNCTIONAL:
            if not (resident and name in ("bytes_read", "weight_bytes")):
                assert record.counters[name] == golden.record.counters[name], name
        # Whatever was counted was seen: stripes, and 64 bytes per command (a few more may have been read ahead).
        program = self.monitors.registers[Reg.PROGRAM] + golden.base
        commands = {address for address in self.monitors.reads if address >= program}
        beats = sum(count for address, count in self.monitors.reads.items() if address not in commands)
        executed = record.counters["bytes_read"] - beats * PORT
        assert executed % COMMAND_BYTES == 0 and 0 <= executed // COMMAND_BYTES - record.header["commands"] <= 1
        assert sum(self.monitors.reads[address] for address in commands) * PORT >= executed
        COMPARED["programs"] += 1
        return record


async def bench(dut, model: MemoryModel | None = None) -> Bench:
    cocotb.start_soon(Clock(dut.ap_clk, 10, "ns").start())
    made = Bench(dut, model or MemoryModel())
    await made.reset()
    return made


CHOPPY = MemoryModel(stall_percent=60, stall_run=4, latency=60, outstanding=2, stall_seed=3)
SLOW_WRITES = MemoryModel(write_latency=900, outstanding=8, turnaround=40)


def jobs_of_two_tasks() -> SyntheticProgram:
    """Jobs A A B A of layers with units and experts, weights of A shared."""
    first = [
        dense(Kind.LINEAR, 18, 64, 192, HW, 1, units=2, flags=Flag.NARROW),
        dense(Kind.MLP, 17, 64, 64, HW, 2, hidden=32, units=2),
        moe([9, 0, 1, 17, 8, 5], 20, 2, HW, units=2, seed=3), dense(Kind.ACCUMULATE, 18, 64, 64, HW, 4),
    ]  # fmt: skip
    second = [dense(Kind.LINEAR, 18, 64, 192, HW, 11), moe([9, 0, 1, 17, 8, 5], 20, 2, HW, seed=12)]
    return build_program([first, first, second, first], HW)


@cocotb.test()
async def named_programs(dut):
    made = await bench(dut)
    for name in (
        "one_token_of_every_kind", "all_tokens_to_one_expert", "empty_experts", "queues_of_every_length", "odd_shapes",
        "top_eight", "nothing_prefetched", "end_alone", "jobs_with_and_without_layers", "many_jobs",
        "barriers_everywhere", "program_without_end", "fourteen_and_fifteen_units",
    ):  # fmt: skip
        await made.run(CASES[name](HW))
    await made.run(jobs_of_two_tasks())


@cocotb.test()
async def same_programs_on_other_memories(dut):
    for model in (CHOPPY, SLOW_WRITES):
        made = await bench(dut, model)
        await made.run(CASES["queues_of_every_length"](HW))
        await made.run(jobs_of_two_tasks())


@cocotb.test()
async def random_programs(dut):
    """The runner's seed chooses them."""
    made = await bench(dut, random.choice([MemoryModel(), CHOPPY, SLOW_WRITES]))
    for _ in range(12):
        program = random_program(random.getrandbits(31), HW)
        await made.run(program)


@cocotb.test()
async def rings_go_round(dut):
    made = await bench(dut)
    tokens, width = HW.max_tokens, HW.max_width
    layers = [
        dense(Kind.ACCUMULATE, tokens - 9, 32, width - 16, HW, 1), dense(Kind.ACCUMULATE, tokens, 16, width, HW, 2),
        dense(Kind.LINEAR, tokens - 3, width, 16, HW, 3), dense(Kind.MLP, tokens, 8, 48, HW, 4, hidden=8),
        dense(Kind.LINEAR, tokens, HW.max_inputs, 16, HW, 5, units=1),
    ]  # fmt: skip
    await made.run(build_program([layers, layers[:2]], HW))


@cocotb.test()
async def most_experts(dut):
    made = await bench(dut)
    loads = [0] * HW.max_experts
    for expert in (0, 1, 77, 128, 200, 253, 254, 255):
        loads[expert] = 12
    program = build_program([[moe(loads, 12, 8, HW, width=HW.max_experts, hidden=8)]], HW)
    record = await made.run(program)
    assert record.counters["experts"] == 8


@cocotb.test()
async def weights_on_chip_are_not_read_again(dut):
    made = await bench(dut)
    layers = [moe([9, 9], 9, 2, HW, seed=seed, schedule=Schedule.RESIDENT_FIRST) for seed in range(3)]
    for item in layers:
        item.weights = layers[0].weights
    await made.run(build_program([layers], HW))
    # The first layer reads both experts, every further one only the expert that the layer before did not end with.
    size = layers[0].weights.units.size
    beats = sum(made.monitors.reads[address] for address in range(BASE, BASE + size, PORT))
    assert beats * PORT == 2 * size


@cocotb.test()
async def waiting_in_every_order(dut):
    """Layers and memories so unlike that every pair of causes meets in one gap of the array."""
    wide = [
        dense(Kind.ACCUMULATE, HW.max_tokens, 8, HW.max_width, HW, 1),
        moe([40, 3, 40, 37], 60, 2, HW, width=HW.max_width, hidden=8, seed=2),
        dense(Kind.LINEAR, 90, 8, 700, HW, 4), moe([9] * 8, 36, 2, HW, hidden=8, seed=6),
        dense(Kind.MLP, 30, 8, 16, HW, 7, hidden=8, units=3), moe([4] * 40, 20, 8, HW, hidden=8, seed=8),
    ]  # fmt: skip
    # Tiles of a beat per output tile, whose rows come just in time, or just not.
    short = [dense(Kind.LINEAR, HW.max_tokens, 8, 64, HW, 9)]
    for layers, model in (
        (wide, MemoryModel(latency=400, outstanding=1, stall_percent=50, stall_run=30)),
        (wide, MemoryModel(write_latency=500, outstanding=1)),
        *((short, MemoryModel(bytes_per_cycle=rate, stall_percent=30)) for rate in (10, 12, 14, 16)),
    ):  # fmt: skip
        made = await bench(dut, model)
        await made.run(build_program([layers], HW))


@cocotb.test()
async def refused_commands(dut):
    made = await bench(dut)
    jobs = [[dense(Kind.LINEAR, 9, 64, 64, HW, 1)], [dense(Kind.MLP, 9, 64, 64, HW, 2, hidden=16)]]
    program = build_program(jobs, HW)
    first, end, second, *rest = program.commands
    for fields, code in (
        ({"weight_source": 1}, ErrorCode.OPCODE), ({"tokens": 0}, ErrorCode.SHAPE), ({"input": 64}, ErrorCode.ADDRESS),
        ({"weights": 0xFFFF_FC00}, ErrorCode.READ), ({"output": 0xFFFF_FC00}, ErrorCode.WRITE),
    ):  # fmt: skip
        bad = with_commands(program, (first, end, replaced(second, **fields), *rest))
        record = await made.run(bad)
        assert (record.error, record.header["error_command"], len(record.jobs)) == (code, 2, 1)
        await made.reset()


@cocotb.test()
async def bus_errors(dut):
    """All that is written is right, whether it belongs to a command before the error or to the one that failed."""
    made = await bench(dut, SLOW_WRITES)
    program = jobs_of_two_tasks()
    layers = [index for index, command in enumerate(program.commands) if command.opcode in KINDS]
    for index in layers[1:7:2]:
        for name in ("weights", "input", "output"):
            address = BASE + getattr(program.commands[index], name)
            faults = [(address, address + 1)]
            made.memory.inject(*(([], faults) if name == "output" else (faults, [])))
            await made.start(program)
            await made.finish()
            written = dict(made.monitors.written)
            record_at = BASE + program.record_offset
            image = b"".join(data for address, data in sorted(written.items()) if address >= record_at)
            record = Record.decode(image)
            places = {place: getattr(program.commands[place], name) for place in layers}
            expected = next(place for place, value in places.items() if value == places[index])
            assert record.error is (ErrorCode.WRITE if name == "output" else ErrorCode.READ)
            assert record.header["error_command"] == expected
            bursts = made.monitors.bursts_written
            await ClockCycles(dut.ap_clk, 500)
            assert made.monitors.bursts_written == bursts, "nothing is written after done"
            made.memory.inject()
            await made.reset()
    await made.run(program)


@cocotb.test()
async def reset_at_any_moment(dut):
    made = await bench(dut, SLOW_WRITES)
    program, draw = jobs_of_two_tasks(), random.Random(5)  # the same moments with every seed, for the bins' sake
    for _ in range(12):
        await made.start(program)
        await ClockCycles(dut.ap_clk, draw.randrange(10, 9000))
        await made.reset()
    await made.run(program)


@cocotb.test()
async def restarts_by_itself(dut):
    made = await bench(dut)
    program = CASES["one_token_of_every_kind"](HW)
    await made.start(program, START | RESTART)
    for turn in range(3):
        await made.finish()
        if turn == 1:
            await made.bus.write_dword(Reg.AP_CTRL, 0)
        await made.bus.write_dword(Reg.ISR, 1)
        await ClockCycles(dut.ap_clk, 4)
    assert await made.bus.read_dword(Reg.AP_CTRL) & IDLE


@cocotb.test()
async def coverage(dut):
    """Last: every bin has been hit by the tests before."""
    hits = int(dut.hit.value)
    found = {name: bool(hits >> index & 1) for index, name in BINS.items()}
    assert COMPARED["programs"] > 40 and COMPARED["integers"] > 100_000, COMPARED
    report = {"bins": found, "hit": sum(found.values()), "of": len(found), **COMPARED}
    (BUILD / f"functional-{PRESET}.json").write_text(json.dumps(report, indent=1) + "\n")
    missed = [name for name, hit in found.items() if not hit]
    dut._log.info("%d of %d bins hit, %s", report["hit"], report["of"], dict(COMPARED))
    assert not missed, f"never seen: {'; '.join(missed)}"
