"""Memory and units around the command path (sequencer), played by the bench, and the record that follows from what they
did and from accel/layers.py."""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import cocotb
from cocotb.triggers import FallingEdge

from accel.commands import COMMAND_BYTES, Command, Opcode
from accel.config import Formats, build_hash, engine_hash
from accel.layers import Kind, Layer
from accel.limits import KINDS, Limits
from accel.record import COUNTERS, ErrorCode, Record
from host.backends.golden import DONE, START
from host.device import Reg
from rtl_tb import structs
from rtl_tb.axi_lite import Bus
from rtl_tb.command_cases import HARDWARE

VIEWS = structs.load().VIEWS
LOAD, DISPATCH, ROUTE, FINISH, PACK = (
    getattr(structs.load(), f"VIEW_{name}") for name in ("LOAD", "DISPATCH", "ROUTE", "FINISH", "PACK")
)
COUNTER_NAMES = [slot.name for slot in COUNTERS]
STALLS = [name for name in COUNTER_NAMES if name.startswith("stall_")]  # bit 0 first


@dataclass
class Entry:
    """A command in flight, as the bench follows it."""

    index: int
    entry: int
    job: int  # JOB_ENDs before it
    layer: Layer | None
    stripes: deque = field(default_factory=deque)  # to request: is it weights
    answers: int = 0  # stripes requested and not received
    beats: int = 0  # still to come
    gate_beats: int = 0
    first: bool = True
    experts: int | None = None
    crc: int | None = None
    passed: int = 0  # units that are past it
    computed: bool = False
    written_at: int | None = None
    failing: str = ""  # "read" or "write"


class Engine:
    """Memory and units around the command path, a step per cycle; keeps a log of what it did."""

    def __init__(self, dut: Any) -> None:
        self.dut, self.structs = dut, structs.load()
        self.limits = Limits(HARDWARE)
        self.bus = Bus(dut)
        self.layer_bits = self.structs.widths["layer_t"]
        self.entries: list[Entry] = []
        self.retired = 0
        self.lively = 0.5
        self.reset()

    def reset(self) -> None:
        self.entries.clear()
        self.retired = self.written = 0
        self.pushed_total = 0

    async def begin(self) -> None:
        await self.bus.begin(
            "command_request_ready", "command_data_valid", "command_data_error", "layer_advance", "entry_written",
            "read_error", "write_error", "reads_idle", "writes_idle", "beat", "beat_gate", "layer_first_beat",
            "layer_last_beat", "stall", "reading", "stripe_requested", "stripe_is_weight", "stripe_done",
            "layer_experts_valid", "job_crc_valid", "rec_ready", "rec_done",
        )  # fmt: skip

    def place(self, program: list[bytes], offset: int, record: int, errors: set[int], failing: dict[int, str]) -> None:
        """What the next program is: images of its commands, and what goes wrong."""
        self.program, self.offset, self.record, self.errors = program, offset, record, errors
        self.failing = failing  # command index: read or write
        self.memory: dict[int, bytes] = {}
        self.log: list[dict[str, Any]] = []
        self.requests: deque = deque()
        self.rec_due: int | None = None
        self.entries.clear()
        self.retired = 0
        self.view = [0] * VIEWS
        self.retirements: list[int] = []
        self.cycle = 0
        self.barriers: list[int] = [i for i, image in enumerate(program) if image[0] == Opcode.BARRIER]
        self.halted = 0

    # ---- one cycle ----

    def step(self) -> None:
        dut, now = self.dut, self.cycle
        chance = random.random
        event: dict[str, Any] = {"running": bool(dut.running.value)}
        # Commands
        offered, ready = bool(dut.command_request_valid.value), chance() < 0.7
        halted = bool(dut.halt.value)
        dut.command_request_ready.value = int(ready and not halted)
        if offered and ready and not halted:
            wanted = int(dut.command_request_offset.value)
            slow = 300 if (wanted - self.offset) // COMMAND_BYTES in self.errors else 0
            self.requests.append((now + random.randint(1, 30) + slow, wanted))
        answer = bool(self.requests) and self.requests[0][0] <= now
        dut.command_data_valid.value = int(answer)
        if answer:
            index, rest = divmod(self.requests.popleft()[1] - self.offset, COMMAND_BYTES)
            assert rest == 0 and 0 <= index < len(self.program), "a command that does not exist"
            dut.command_data.value = int.from_bytes(self.program[index], "little")
            dut.command_data_error.value = int(index in self.errors)
        # Record
        ready = chance() < 0.5
        dut.rec_ready.value = int(ready)
        dut.rec_done.value = int(self.rec_due == now)
        if self.rec_due == now:
            self.rec_due = None
        if dut.rec_valid.value and ready:
            assert self.rec_due is None, "one piece at a time"
            address = int(dut.rec_address.value)
            self.memory[address] = int(dut.rec_data.value).to_bytes(64, "little")
            self.rec_due = now + random.randint(2, 20)
        # Retirement of the oldest entry
        if dut.retire.value:
            item = self.entries[self.retired]
            assert int(dut.oldest.value) == item.entry
            assert item.passed == VIEWS and not item.failing
            assert item.layer is None or (item.written_at is not None and item.written_at <= now)
            self.retired += 1
            self.retirements.append(now)
            self.written &= ~(1 << item.entry)
        self._views()
        self._array(event, now)
        self._stripes(event)
        self._routing(event)
        self._writes(now)
        reading = int(chance() < 0.6)
        dut.reading.value = reading
        event["reading"] = reading
        self.halted = self.halted + 1 if halted else 0
        quiet = self.halted > 12
        dut.reads_idle.value, dut.writes_idle.value = int(quiet and not self.requests), int(quiet)
        self.log.append(event)
        self.cycle += 1

    def _views(self) -> None:
        dut = self.dut
        valid, raw, at = int(dut.layer_valid.value), dut.layer.value, int(dut.entry.value)
        advance = 0
        for unit in range(VIEWS):
            if not valid >> unit & 1:
                continue
            position = self.view[unit]
            if position == len(self.entries):
                bits = int(raw) >> (unit * self.layer_bits) & ((1 << self.layer_bits) - 1)
                self._seen(bits, at >> (unit * self.structs.ENTRY_BITS) & (self.structs.ENTRIES - 1))
            item = self.entries[position]
            held = (
                (unit == DISPATCH and item.layer is not None and not item.computed)
                or (unit == LOAD and bool(item.stripes))
                or (unit == ROUTE and (item.crc is None if item.layer is None else item.experts is None))
                or (unit in (FINISH, PACK) and item.layer is not None and not item.computed)
            )
            if not held and random.random() < self.lively:
                advance |= 1 << unit
                item.passed += 1
                self.view[unit] += 1
        dut.layer_advance.value = advance

    def _seen(self, bits: int, entry: int) -> None:
        """The first unit sees a new entry."""
        fields = self.structs.unpack("layer_t", bits)
        index = fields["index"]
        job = sum(item.layer is None for item in self.entries)
        command = Command.decode(self.program[index])
        assert fields["job_tag"] == job % self.structs.ENTRIES and fields["job"] == command.job
        assert entry == self.pushed_total % self.structs.ENTRIES
        self.pushed_total += 1
        before = [barrier for barrier in self.barriers if barrier < index]
        if before:  # everything before the barrier is complete
            assert all(item.index > before[-1] for item in self.entries[self.retired :])
        layer = self.limits.check(command, 1 << 32) if command.opcode in KINDS else None
        assert bool(fields["job_end"]) == (layer is None)
        item = Entry(index, entry, job, layer)
        if layer is not None:
            item.beats = random.choice((1, 2, random.randint(1, 30)))
            item.gate_beats = random.randint(0, item.beats) if layer.kind is Kind.MOE else 0
            item.stripes.extend(random.random() < 0.7 for _ in range(random.randint(1, 12)))
            item.failing = self.failing.get(index, "")
        self.entries.append(item)

    def _array(self, event: dict[str, Any], now: int) -> None:
        dut = self.dut
        item = next((item for item in self.entries if item.beats), None)
        event["beat"] = item is not None and random.random() < 0.8 and (not item.first or random.random() < 0.2)
        dut.beat.value = int(event["beat"])
        stall = random.choice((0, 1, 2, 4, 8, 16))
        dut.stall.value = stall
        event["stall"] = 0 if event["beat"] else stall  # a busy array does not stall
        dut.layer_first_beat.value = dut.layer_last_beat.value = 0
        if not event["beat"]:
            return
        item.beats -= 1
        event |= {"job": item.job, "first": item.first, "gate": item.gate_beats > 0, "last": not item.beats}
        dut.beat_job_tag.value = item.job % self.structs.ENTRIES
        dut.beat_gate.value, dut.layer_first_beat.value = int(event["gate"]), int(item.first)
        dut.layer_last_beat.value = int(event["last"])
        item.gate_beats -= item.gate_beats > 0
        item.first = False
        if not item.beats:
            item.computed = True

    def _stripes(self, event: dict[str, Any]) -> None:
        dut = self.dut
        item = next((item for item in self.entries if item.stripes), None)
        asked = item is not None and random.random() < 0.6
        dut.stripe_requested.value = event["asked"] = int(asked)
        if asked:
            item.answers += 1
            event["weight"] = item.stripes.popleft()
            dut.stripe_is_weight.value = int(event["weight"])
        waiting = [item for item in self.entries if item.answers]
        came = bool(waiting) and random.random() < 0.5
        dut.stripe_done.value = int(came)
        if came:
            item = random.choice(waiting)
            item.answers -= 1
            dut.stripe_job_tag.value = item.job % self.structs.ENTRIES
            event["came"] = item.job

    def _routing(self, event: dict[str, Any]) -> None:
        dut = self.dut
        dut.layer_experts_valid.value = dut.job_crc_valid.value = 0
        if self.view[ROUTE] == len(self.entries):
            return
        item = self.entries[self.view[ROUTE]]
        if random.random() < 0.5:
            return
        if item.layer is None and item.crc is None:
            item.crc = random.getrandbits(32)
            dut.job_crc_valid.value, dut.job_crc_entry.value, dut.job_crc.value = 1, item.entry, item.crc
        elif item.layer is not None and item.experts is None:
            item.experts = random.randint(1, item.layer.experts) if item.layer.kind is Kind.MOE else 1
            if item.layer.kind is Kind.MOE:
                dut.layer_experts_valid.value, dut.layer_experts_entry.value = 1, item.entry
                dut.layer_experts.value = item.experts

    def _writes(self, now: int) -> None:
        dut = self.dut
        dut.read_error.value = dut.write_error.value = 0
        for item in self.entries[self.retired :]:
            if item.layer is None or not item.computed or item.stripes or item.answers or item.passed < VIEWS:
                continue
            if item.written_at is None:
                item.written_at = now + random.choice((0, 0, 5, 60))
            if item.written_at == now:
                if item.failing:
                    kind = getattr(dut, f"{item.failing}_error")
                    kind.value = 1
                    getattr(dut, f"{item.failing}_error_entry").value = item.entry
                    getattr(dut, f"{item.failing}_error_port").value = item.index % HARDWARE.ports
                    if item.failing == "read":  # its garbage is written
                        self.written |= 1 << item.entry
                else:
                    self.written |= 1 << item.entry
        dut.entry_written.value = self.written

    # ---- one program ----

    async def run(self) -> None:
        """Start the program and work until it is done."""
        dut = self.dut
        working = True

        async def work() -> None:
            while working:
                await FallingEdge(dut.clk)
                self.step()

        task = cocotb.start_soon(work())
        await self.bus.write(Reg.AP_CTRL, START)
        for _ in range(20000):
            await FallingEdge(dut.clk)
            if await self.bus.read(Reg.AP_CTRL) & DONE:
                break
        else:
            raise AssertionError("the program did not end")
        working = False
        await task
        assert not self.requests, "the program ended before all that it asked for had come"

    async def point(self) -> None:
        """Arguments of the program; arena registers do not matter here."""
        await self.bus.write(Reg.PROGRAM, self.offset)
        await self.bus.write(Reg.COMMANDS, len(self.program))
        await self.bus.write(Reg.RECORD, self.record)

    # ---- what the record has to hold ----

    def expected(self, error: ErrorCode, command: int, detail: int, executed: int) -> Record:
        """The record, from the log; ``executed`` commands were decoded."""
        on = [event for event in self.log if event["running"]]
        start = next(i for i, event in enumerate(self.log) if event["running"])
        counters = dict.fromkeys(COUNTER_NAMES, 0)
        counters["cycles"] = len(on)
        for event in on:
            beat, reading = event["beat"], event["reading"]
            name = {(0, 1): "load_only", (1, 0): "compute_only", (1, 1): "overlap", (0, 0): "idle"}[int(beat), reading]
            counters[f"{name}_cycles"] += 1
            counters["array_cycles"] += beat
            counters["gate_cycles"] += event.get("gate", 0)
            counters["bytes_read"] += event["asked"] * HARDWARE.stripe_bytes
            counters["weight_bytes"] += event.get("weight", 0) * HARDWARE.stripe_bytes
            if event["stall"]:
                counters[STALLS[event["stall"].bit_length() - 1]] += 1
        counters["bytes_read"] += COMMAND_BYTES * executed
        jobs: list[dict[str, int]] = []
        job = dict.fromkeys(("pairs", "experts", "macs"), 0)
        before = start
        for item, at in zip(self.entries, self.retirements, strict=False):
            if item.layer is None:
                name = Command.decode(self.program[item.index]).job
                jobs.append(self.array_of(item.job) | job | {"job": name, "cycles": at - before, "queue_crc": item.crc})
                before = at
                job = dict.fromkeys(job, 0)
                continue
            layer = item.layer
            pairs = layer.tokens * layer.top_k
            gate = layer.tokens * layer.inputs * layer.experts if layer.kind is Kind.MOE else 0
            new = {"pairs": pairs, "experts": item.experts, "macs": pairs * layer.macs_per_pair + gate}
            for name, value in new.items():
                job[name] += value
                counters[name] += value
            counters["units"] += layer.units * item.experts
            fields = self.structs.STRIPE_BYTES
            lines = -(-layer.outputs * layer.output_bytes_per_value // HARDWARE.line_bytes)
            counters["bytes_written"] += -(-layer.tokens * lines * HARDWARE.line_bytes // fields) * fields
        identity = {
            "engine_hash": engine_hash(Formats(), HARDWARE), "build_hash": build_hash(Formats(), HARDWARE),
            "error": error, "error_command": command if error else 0, "error_detail": detail,
            "commands": command if error else command + 1,
        }  # fmt: skip
        return Record(identity, counters, jobs)

    def array_of(self, job: int) -> dict[str, int]:
        """What the array and the loads did for a job."""
        beats = [(i, event) for i, event in enumerate(self.log) if event["running"] and event["beat"]]
        own = [(i, event) for i, event in beats if event["job"] == job]
        result = dict.fromkeys(("boundary_idle", "bytes_ahead", "layer_idle", "layer_idle_max"), 0)
        result["array_cycles"], result["gate_cycles"] = len(own), sum(event["gate"] for _, event in own)
        if not own:
            return result
        last = own[-1][0]
        for (former, _), (i, event) in zip(own, own[1:], strict=False):
            if event["first"]:
                result["layer_idle"] += i - former - 1
                result["layer_idle_max"] = max(result["layer_idle_max"], i - former - 1)
        later = [(i, event) for i, event in beats if i > last]
        if later and later[0][1]["job"] == job + 1:
            result["boundary_idle"] = later[0][0] - last - 1
        result["bytes_ahead"] = HARDWARE.stripe_bytes * sum(
            event.get("came") == job + 1 for event in self.log[:last] if event["running"]
        )
        return result

    def compare(self, record: Record) -> None:
        """Every byte in memory; the header came last."""
        image = record.encode()
        wanted = {self.record + at: image[at : at + 64] for at in range(0, len(image), 64)}
        if self.memory != wanted:
            data = b"".join(self.memory.get(self.record + at, bytes(64)) for at in range(0, len(image), 64))
            found = Record.decode(data)
            assert found.header == Record.decode(image).header
            assert found.counters == Record.decode(image).counters
            assert found.jobs == Record.decode(image).jobs
        assert self.memory == wanted
        assert list(self.memory)[-1] == self.record, "the header is written last"
