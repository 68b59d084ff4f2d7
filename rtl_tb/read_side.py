"""What surrounds the reading side in test_reader.py: layers that want weights, input rows and residual rows, commands,
and AXI4 memory behind the read ports. Monitors follow every request to its lines and predict every event of the reader.
"""

from __future__ import annotations

import random
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import cocotb
import numpy as np
from cocotb.clock import Clock
from cocotb.triggers import ReadOnly, RisingEdge
from load_side import stripe

from accel import pack
from accel.commands import COMMAND_BYTES
from rtl_tb import structs
from rtl_tb.command_cases import HARDWARE as HW
from rtl_tb.pins import Pins

E = structs.load()
WEIGHTS, INPUT, RESIDUAL = range(3)
INPUT_RING = 96  # of reader_bench.sv
CAPACITY = {INPUT: INPUT_RING, RESIDUAL: E.RESIDUAL_LINES}
COMMANDS_IN_FLIGHT = 4
OKAY, SLVERR, DECERR = 0, 2, 3


def anywhere(stripes: int) -> int:
    return random.randrange((1 << 32) // HW.stripe_bytes - stripes) * HW.stripe_bytes


@cache
def stripe_lines(offset: int) -> list[int]:
    data = np.asarray(pack.deinterleave(stripe(offset), HW)).reshape(-1, HW.line_bytes)
    return [int.from_bytes(line.tobytes(), "little") for line in data]


def lines_of(offset: int, count: int) -> list[int]:
    """The first lines of a tensor."""
    stripes = range(offset, offset + -(-count // HW.burst_beats) * HW.stripe_bytes, HW.stripe_bytes)
    return [line for at in stripes for line in stripe_lines(at)][:count]


@dataclass(eq=False)
class Work:
    """What a layer reads: stripes of weights, and rows (tokens, lines per row) or None for none of them."""

    weights: int = 0
    input: tuple[int, int] | None = None
    residual: tuple[int, int] | None = None
    job_tag: int = 0

    def __post_init__(self) -> None:
        self.offsets = [anywhere(max(1, self.weights)), *(anywhere(self.stripes(rows)) for rows in self.rows)]

    @property
    def rows(self) -> tuple[tuple[int, int] | None, ...]:
        return self.input, self.residual

    def lines(self, source: int) -> int:
        rows = self.rows[source - 1]
        return rows[0] * rows[1] if rows else 0

    @staticmethod
    def stripes(rows: tuple[int, int] | None) -> int:
        return -(-rows[0] * rows[1] // HW.burst_beats) if rows else 1


@dataclass(eq=False)
class Stripe:
    """A stripe on its way: ``useful`` lines of it are rows (or weights)."""

    source: int
    offset: int
    entry: int
    job_tag: int
    useful: int


@dataclass
class Pace:
    """Chance per cycle that each part does something, cycles until a burst's first beat, and which port is slow."""

    layer: float = 0.6
    weights: float = 0.6
    command: float = 0.03
    address: float = 0.6
    data: float = 0.8
    line: float = 0.8
    free: float = 0.6
    latency: tuple[int, int] = (3, 40)
    slow_port: int | None = None

    def roll(self, name: str) -> bool:
        chance: float = getattr(self, name)
        return chance >= 1 or random.random() < chance


class Port:
    """AXI4 read slave: bursts in order, each after its latency."""

    def __init__(self, bench: Bench, index: int) -> None:
        self.bench, self.index = bench, index
        self.bursts: deque[tuple[int, list[tuple[int, int, bool]]]] = deque()  # earliest cycle, beats
        self.stripes: deque[int] = deque()  # offsets, as requested from the reader
        self.commands: deque[int] = deque()
        self.presented = self.ready = False
        self.held: tuple[int, int] | None = None  # address and length not yet accepted
        self.flight = self.beats = self.waited = 0

    def choose(self) -> None:
        """What this port does in this cycle."""
        bench = self.bench
        factor = 0.3 if bench.pace.slow_port == self.index else 1.0
        self.ready = bench.pace.roll("address") and random.random() < factor
        if not self.presented and self.bursts and self.bursts[0][0] <= bench.cycle:
            self.presented = bench.pace.roll("data") and random.random() <= factor
        self.beat = self.bursts[0][1][0] if self.presented else (0, 0, False)

    def sample(self, valid: bool, address: int, length: int, accepted: bool) -> None:
        """The handshakes that end with this cycle."""
        bench, hw = self.bench, HW
        if self.held is not None:
            assert valid and (address, length) == self.held, "a request that changes before it is accepted"
        self.held = (address, length) if valid and not self.ready else None
        landed = False
        if self.presented:
            if accepted:
                self.presented = False
                self.beats += 1
                beats = self.bursts[0][1]
                landed = beats.pop(0)[2]
                if landed:
                    self.bursts.popleft()
            else:
                self.waited += 1
        if valid and self.ready:
            offset, size = address - bench.arena[self.index], (length + 1) * hw.port_bytes
            if size == COMMAND_BYTES:
                assert self.index == 0 and offset == self.commands.popleft(), "a command nobody asked for"
            else:
                assert size == hw.burst_bytes and offset == self.stripes.popleft() + self.index * hw.burst_bytes
            assert address // 4096 == (address + size - 1) // 4096
            data = stripe(offset - offset % hw.stripe_bytes)[offset % hw.stripe_bytes :][:size]
            beats = [
                (int.from_bytes(data[at : at + hw.port_bytes], "little"),
                 bench.bad.get((self.index, offset + at), OKAY), at + hw.port_bytes == size)
                for at in range(0, size, hw.port_bytes)
            ]  # fmt: skip
            earliest = max(self.bursts[-1][0] if self.bursts else 0, bench.cycle + random.randint(*bench.pace.latency))
            self.bursts.append((earliest, beats))
        self.flight += (valid and self.ready) - landed
        assert self.flight <= HW.outstanding, "too many bursts in flight"


class Bench:
    """The reading side with everything around it; :meth:`step` is a cycle."""

    def __init__(self, dut: Any) -> None:
        self.dut, self.pins = dut, Pins(dut)
        self.counts: Counter[str] = Counter()
        self.reset()

    def reset(self) -> None:
        self.pace = Pace()
        self.arena = [0x40_0000_0000 + (p << 36) + random.randrange(1 << 20) * 4096 for p in range(HW.ports)]
        self.bad: dict[tuple[int, int], int] = {}  # port, offset of a beat: answer
        self.works: list[Work] = []
        self.at = [0, 0, 0]  # work that each source is at
        self.shown = [False, False, False]
        self.asked = [0, 0, 0]  # stripes of it that were requested
        self.missing: list[int] = []  # lines of each work still to come
        self.oldest = 0
        self.ports = [Port(self, p) for p in range(HW.ports)]
        self.coming: deque[Stripe] = deque()
        self.line = 0  # of the first of these
        self.waiting_line = False
        self.expected: dict[int, deque[int]] = {INPUT: deque(), RESIDUAL: deque()}
        self.used, self.held = {INPUT: 0, RESIDUAL: 0}, {INPUT: 0, RESIDUAL: 0}
        self.open = [0] * E.ENTRIES
        self.favour_input = False
        self.stripes_open = self.commands_open = 0
        self.commands: deque[int] = deque()  # in flight
        self.command_offered: int | None = None
        self.halt = self.hold_lines = self.hold_free = False
        self.errors: list[tuple[int, int]] = []
        self.command_errors = 0
        self.cycle = 0
        self.entry = 0  # of the first work

    async def start(self) -> None:
        self.pins.drive(command_request_valid=0, halt=0, oldest=0)
        cocotb.start_soon(Clock(self.dut.clk, 10, "ns").start(start_high=False))
        await self.reset_unit()

    async def reset_unit(self) -> None:
        self.reset()
        self.pins.drive(rst=1, halt=0, weights_valid=0, layer_valid=0, input_freed=0, residual_freed=0, line_ready=0,
                        command_request_valid=0, arready=0, rvalid=0,
                        arena=sum(base << 64 * p for p, base in enumerate(self.arena)))  # fmt: skip
        for _ in range(3):
            await RisingEdge(self.dut.clk)
        self.pins.drive(rst=0)

    def add(self, *works: Work) -> None:
        for work in works:
            self.works.append(work)
            self.missing.append(work.weights * HW.burst_beats + sum(work.lines(s) for s in (INPUT, RESIDUAL)))

    def done(self) -> bool:
        return self.oldest == len(self.works)

    def quiet(self) -> bool:
        """Nothing is on its way."""
        return not (self.stripes_open or self.commands_open)

    async def run(self, until: Callable[[], bool] | None = None, limit: int = 60000) -> None:
        """Until everything that was added has been read and nothing is expected any more."""
        start = self.cycle
        while not (until or self.done)():
            assert self.cycle - start < limit, f"not finished: {self.oldest} of {len(self.works)}, sources at {self.at}"
            await self.step()
        if until is None:
            pace, self.pace = self.pace, Pace(command=0, data=1)
            while self.command_offered is not None or not self.quiet():  # padding, commands
                await self.step()
            for _ in range(4):
                await self.step()
            self.pace = pace
            assert not any(self.expected.values()) and not any(self.open) and not self.coming and not self.commands
            assert not any(port.bursts or port.stripes or port.commands or port.flight for port in self.ports)
            assert self.pins["idle"] and not self.pins["reading"]

    # ---- one cycle ----

    async def step(self) -> None:
        self._sources()
        self._commands()
        self._rings()
        self._memory()
        self.pins.drive(halt=self.halt)
        await ReadOnly()
        self._observe()
        await RisingEdge(self.dut.clk)
        self.cycle += 1

    def _tag(self, at: int) -> int:
        return (self.entry + at) % E.ENTRIES

    def _sources(self) -> None:
        """Each source's layer, as the entry table shows it: eight in flight."""
        pins = self.pins
        while self.oldest < len(self.works) and not self.missing[self.oldest] and min(self.at) > self.oldest:
            self.oldest += 1
        for source in (WEIGHTS, INPUT, RESIDUAL):
            there = self.at[source] < min(len(self.works), self.oldest + E.ENTRIES)
            name = "weights" if source == WEIGHTS else "layer"
            if not self.shown[source] and there and self.pace.roll(name):
                work = self.works[self.at[source]]
                self.shown[source] = True
                if source != WEIGHTS and work.rows[source - 1]:
                    self.expected[source].extend(lines_of(work.offsets[source], work.lines(source)))
        values = {"tokens": 0, "rows": 0, "entry": 0, "job_tag": 0, "valid": 0, "skip": 0}
        widths = {"tokens": E.TOKEN_BITS, "rows": 32, "entry": E.ENTRY_BITS, "job_tag": E.JOB_TAG_BITS, "valid": 1,
                  "skip": 1}  # fmt: skip
        for source in (INPUT, RESIDUAL):
            if not self.shown[source]:
                continue
            work = self.works[self.at[source]]
            rows = work.rows[source - 1]
            fields = {"tokens": rows[0] if rows else 0, "rows": work.offsets[source], "skip": rows is None,
                      "entry": self._tag(self.at[source]), "job_tag": work.job_tag, "valid": 1}  # fmt: skip
            for name, value in fields.items():
                values[name] |= int(value) << widths[name] * (source - 1)
            pins.drive(**{("input", "residual")[source - 1] + "_row_lines": rows[1] if rows else 0})
        pins.drive(**{f"layer_{name}": value for name, value in values.items()}, oldest=self._tag(self.oldest))
        if self.shown[WEIGHTS]:
            work = self.works[self.at[WEIGHTS]]
            if not work.weights:
                self.at[WEIGHTS], self.shown[WEIGHTS] = self.at[WEIGHTS] + 1, False
            else:
                pins.drive(weights_offset=work.offsets[0] + self.asked[WEIGHTS] * HW.stripe_bytes,
                           weights_entry=self._tag(self.at[WEIGHTS]), weights_job_tag=work.job_tag)  # fmt: skip
        pins.drive(weights_valid=self.shown[WEIGHTS])

    def _commands(self) -> None:
        if self.command_offered is None and len(self.commands) < COMMANDS_IN_FLIGHT and self.pace.roll("command"):
            self.command_offered = anywhere(1) + random.randrange(HW.stripe_bytes // COMMAND_BYTES) * COMMAND_BYTES
            if random.random() < 0.2:
                beat = random.randrange(COMMAND_BYTES // HW.port_bytes) * HW.port_bytes
                self.bad[0, self.command_offered + beat] = random.choice((SLVERR, DECERR))
        self.pins.drive(command_request_valid=self.command_offered is not None)
        if self.command_offered is not None:
            self.pins.drive(command_request_offset=self.command_offered)

    def _rings(self) -> None:
        """Readers of the rings give lines back; the weight decoder may let lines wait."""
        self.freed = {INPUT: 0, RESIDUAL: 0}
        if not self.hold_free:
            if self.held[INPUT] and self.pace.roll("free"):
                self.freed[INPUT] = random.choice((1, self.held[INPUT], random.randint(1, self.held[INPUT])))
            self.freed[RESIDUAL] = int(self.held[RESIDUAL] > 0 and self.pace.roll("free"))
        self.line_ready = not self.hold_lines and self.pace.roll("line")
        self.pins.drive(input_freed=self.freed[INPUT], residual_freed=self.freed[RESIDUAL], line_ready=self.line_ready)

    def _memory(self) -> None:
        for port in self.ports:
            port.choose()
        width = 8 * HW.port_bytes
        vector = {"arready": 0, "rvalid": 0, "rlast": 0, "rresp": 0, "rdata": 0}
        for p, port in enumerate(self.ports):
            data, answer, last = port.beat
            vector["arready"] |= port.ready << p
            vector["rvalid"] |= port.presented << p
            vector["rlast"] |= last << p
            vector["rresp"] |= answer << 2 * p
            vector["rdata"] |= data << width * p
        self.pins.drive(**vector)

    # ---- monitors ----

    def _observe(self) -> None:
        pins = self.pins
        found = {name: pins[name] for name in ("idle", "reading", "entry_reading")}
        wanted = {
            "idle": self.stripes_open == 0 and self.commands_open == 0,
            "reading": any(port.flight for port in self.ports),
            "entry_reading": sum((count > 0) << e for e, count in enumerate(self.open)),
        }
        assert found == wanted, f"cycle {self.cycle}: {found}, expected {wanted}"
        self._requests(bool(found["idle"]))
        self._lines()
        self._command_data()
        valid, ready = pins["arvalid"], pins["rready"]
        addresses, lengths = pins.slices("araddr", 64), pins.slices("arlen", 8)
        for p, port in enumerate(self.ports):
            port.sample(bool(valid >> p & 1), addresses[p], lengths[p], bool(ready >> p & 1))
        for source in (INPUT, RESIDUAL):
            self.used[source] -= self.freed[source]
            self.held[source] -= self.freed[source]

    def _requests(self, idle: bool) -> None:
        """Who is served: the oldest entry; then weights and input rows by turns; residual rows last."""
        pins = self.pins
        valid, ready = pins["request_valid"], pins["request_ready"]
        advanced = pins["layer_advance"]
        taken = ready & valid
        assert taken == ready and taken & taken - 1 == 0 and not (self.halt and ready)
        assert pins["stripe_requested"] == (taken != 0)
        if taken:
            source = taken.bit_length() - 1
            offsets, entries = pins.slices("request_offset", 32), pins.slices("request_entry", E.ENTRY_BITS)
            tags = pins.slices("request_job_tag", E.JOB_TAG_BITS)
            oldest = self._tag(self.oldest)
            ages = [(entries[s] - oldest) % E.ENTRIES for s in range(3)]
            turn = {WEIGHTS: self.favour_input, INPUT: not self.favour_input, RESIDUAL: 2}
            order = sorted((s for s in range(3) if valid >> s & 1), key=lambda s: (ages[s], turn[s]))
            assert source == order[0], f"source {source} served, expected {order[0]} of ages {ages}"
            self.counts["choices"] += len(order) > 1
            assert pins["stripe_is_weight"] == (source == WEIGHTS)
            work = self.works[self.at[source]]
            number = self.asked[source]
            total = work.weights if source == WEIGHTS else work.stripes(work.rows[source - 1])
            useful = HW.burst_beats
            if source != WEIGHTS:
                useful = min(useful, work.lines(source) - number * HW.burst_beats)
                self.used[source] += useful
                assert self.used[source] <= CAPACITY[source], "more lines than the ring holds"
            item = Stripe(source, work.offsets[source] + number * HW.stripe_bytes, self._tag(self.at[source]),
                          work.job_tag, useful)  # fmt: skip
            assert (item.offset, item.entry, item.job_tag) == (offsets[source], entries[source], tags[source])
            self.coming.append(item)
            for port in self.ports:
                port.stripes.append(item.offset)
            self.open[item.entry] += 1
            self.stripes_open += 1
            self.asked[source] += 1
            if self.asked[source] == total:
                assert source == WEIGHTS or advanced >> source - 1 & 1
                self._next(source)
            self.counts[("weights", "input", "residual")[source]] += 1
            self.favour_input = source == WEIGHTS
        elif idle:
            self.favour_input = False
        for source in (INPUT, RESIDUAL):
            if self.shown[source] and self.works[self.at[source]].rows[source - 1] is None:
                assert advanced >> source - 1 & 1
                self._next(source)

    def _next(self, source: int) -> None:
        self.at[source] += 1
        self.shown[source], self.asked[source] = False, 0

    def _lines(self) -> None:
        """Lines in the order of the stripes, with the events that a new one brings."""
        pins = self.pins
        valid, kept = pins["line_valid"], pins["line_keep"]
        events = {"stripe_done": 0, "error_valid": 0}
        if valid:
            item, index = self.coming[0], self.line
            assert valid == 1 << item.source, f"a line for {valid:03b}, expected source {item.source}"
            data = stripe_lines(item.offset)[index]
            assert pins["line_data"] == data, f"line {index} of stripe {item.offset:#x}"
            assert pins["line_last"] == (index == HW.burst_beats - 1)
            wanted = item.source != WEIGHTS and index < item.useful
            assert kept == (wanted << item.source - 1 if wanted else 0)
            if not self.waiting_line:
                beats = [(p, item.offset + p * HW.burst_bytes + index * HW.port_bytes) for p in range(HW.ports)]
                bad = [p for p, offset in beats if self.bad.get((p, offset), OKAY) != OKAY]
                events = {"stripe_done": int(index == HW.burst_beats - 1), "error_valid": int(bool(bad))}
                if bad:
                    assert (pins["error_entry"], pins["error_port"]) == (item.entry, bad[0])
                    self.errors.append((item.entry, bad[0]))
                self.counts["lines"] += 1
            self.waiting_line = item.source == WEIGHTS and not self.line_ready
            if not self.waiting_line:
                self._taken(item, index, data)
        else:
            assert kept == 0
        assert {name: pins[name] for name in events} == events, f"cycle {self.cycle}: expected {events}"
        if events["stripe_done"]:
            item = self.done_stripe if not self.waiting_line else self.coming[0]
            assert pins["stripe_job_tag"] == item.job_tag
            self.open[item.entry] -= 1
            self.stripes_open -= 1

    def _taken(self, item: Stripe, index: int, data: int) -> None:
        if index < item.useful:
            at = self.oldest + (item.entry - self._tag(self.oldest)) % E.ENTRIES
            self.missing[at] -= 1
            if item.source != WEIGHTS:
                assert data == self.expected[item.source].popleft()
                self.held[item.source] += 1
                self.counts["rows kept"] += 1
        self.line = (index + 1) % HW.burst_beats
        if not self.line:
            self.done_stripe = self.coming.popleft()

    def _command_data(self) -> None:
        pins = self.pins
        if pins["command_data_valid"]:
            offset = self.commands.popleft()
            inside = offset % HW.stripe_bytes
            data = stripe(offset - inside)[inside : inside + COMMAND_BYTES]
            assert pins["command_data"] == int.from_bytes(data, "little")
            bad = any((0, offset + at) in self.bad for at in range(0, COMMAND_BYTES, HW.port_bytes))
            assert pins["command_data_error"] == bad
            self.command_errors += bad
            self.commands_open -= 1
            self.counts["commands"] += 1
        if self.command_offered is not None and pins["command_request_ready"]:
            assert not self.halt
            self.commands.append(self.command_offered)
            self.ports[0].commands.append(self.command_offered)
            self.commands_open += 1
            self.command_offered = None
