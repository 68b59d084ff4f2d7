"""What surrounds the engine's output side in test_store.py: entry table, drain, source of residual rows, record, and
AXI4 memory behind the write ports. Every part drives the pins of one clock cycle, then looks at the answers.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import cocotb
import numpy as np
from cocotb.clock import Clock
from cocotb.triggers import ReadOnly, RisingEdge
from output_layers import LINEAR, ROW_DISTANCE, LayerCase, as_int, hw_rows

from accel import pack
from accel.config import Hardware
from accel.functional import Array
from rtl_tb import structs

ENTRIES = structs.load().ENTRIES
RESIDUAL_LINES = structs.load().RESIDUAL_LINES
GUARD = 0xA5


@dataclass
class Pace:
    """Chance per cycle that each part does something."""

    drain: float = 0.7
    residual: float = 0.7
    address: float = 0.6
    data: float = 0.7
    answer: float = 0.6
    record: float = 0.02

    def roll(self, name: str) -> bool:
        chance: float = getattr(self, name)
        return chance >= 1 or random.random() < chance


class Bench:
    """The output side with everything around it.

    Args:
        dut: store_bench.
        hardware: what it was built for.
        layers: in order; offsets are given out here.
        pace: who is how fast.
        bad: arena ranges whose writes are answered with an error.
    """

    def __init__(self, dut: Any, hardware: Hardware, layers: list[LayerCase], pace: Pace, bad: range | None = None):
        self.dut, self.hardware, self.layers, self.pace = dut, hardware, layers, pace
        self.bad = bad or range(0)
        self.bases = [0x40_0000_0000 + (q << 34) + 0xF000_0000 for q in range(hardware.write_ports)]
        self.records: deque[tuple[int, bytes]] = deque()
        self.cycle = 0
        self.comparisons = 0
        self.errors: list[tuple[int, int]] = []
        self.retire_allowed = True
        offset = hardware.stripe_bytes
        for case in layers:
            case.offset = offset
            offset += len(case.expected) + hardware.stripe_bytes  # a guard stripe between tensors
        self.record_offset = offset
        self.memory = np.full(offset + (1 << 16), GUARD, np.uint8)
        base = 0
        for case in layers:
            case.base = base
            if case.kind != LINEAR:
                base += case.tokens * case.output_tiles
        self.parts = [
            LayerFeed(self), Drain(self), LinearDrain(self), ResidualSource(self), Records(self),
            *(WritePort(self, q) for q in range(hardware.write_ports)),
        ]  # fmt: skip
        self.ports = [part for part in self.parts if isinstance(part, WritePort)]
        self.feed = self.parts[0]

    async def start(self) -> None:
        dut = self.dut
        dut.rst.value = 1
        quiet = (
            "layer_push combine_valid combine_completes residual_valid linear_reserve halt linear_write linear_done "
            "rec_valid entry_retire awready wready bvalid"
        )
        for name in quiet.split():
            getattr(dut, name).value = 0
        dut.arena.value = sum(base << 64 * q for q, base in enumerate(self.bases))
        cocotb.start_soon(Clock(dut.clk, 10, "ns").start(start_high=False))
        for _ in range(3):
            await RisingEdge(dut.clk)
        dut.rst.value = 0

    async def step(self) -> None:
        for part in self.parts:
            part.drive()
        await ReadOnly()
        for part in self.parts:
            part.sample()
        await RisingEdge(self.dut.clk)
        self.cycle += 1

    async def run(self, until: Callable[[], bool], limit: int) -> None:
        start = self.cycle
        while not until():
            assert self.cycle - start < limit, f"not finished after {limit} cycles: {self.feed.state()}"
            await self.step()

    async def run_all(self, limit: int) -> None:
        """Everything written, every byte of the memory as it should be."""
        await self.run(lambda: self.feed.retired == len(self.layers) and not self.records, limit)
        for _ in range(20):
            await self.step()
        assert int(self.dut.writes_idle.value)
        expected = np.full_like(self.memory, GUARD)
        for case in self.layers:
            expected[case.offset : case.offset + len(case.expected)] = case.expected
        record_part = slice(self.record_offset, None)
        expected[record_part] = self.memory[record_part]
        assert np.array_equal(self.memory, expected)
        assert self.comparisons == sum(not case.job_end for case in self.layers)


class Part:
    def __init__(self, bench: Bench) -> None:
        self.bench, self.dut, self.hardware = bench, bench.dut, bench.hardware

    def drive(self) -> None:
        """Set the pins of this cycle."""

    def sample(self) -> None:
        """Look at the pins of this cycle, before the clock edge that ends it."""


class LayerFeed(Part):
    """Entry table: at most ENTRIES in flight, retired in order when written, compared at that moment."""

    def __init__(self, bench: Bench) -> None:
        super().__init__(bench)
        self.pushed = self.retired = 0

    def state(self) -> str:
        return f"{self.retired} of {self.pushed} layers retired"

    def drive(self) -> None:
        dut = self.dut
        self.push = self.pushed < len(self.bench.layers) and self.pushed - self.retired < ENTRIES
        dut.layer_push.value = self.push
        if self.push:
            case = self.bench.layers[self.pushed]
            dut.push_job_end.value, dut.push_kind.value, dut.push_tokens.value = case.job_end, case.kind, case.tokens
            dut.push_outputs.value, dut.push_output_tiles.value = case.outputs, case.output_tiles
            dut.push_output_lines.value, dut.push_output_rows.value = case.output_lines, case.offset
        self.retire = False
        if self.retired < self.pushed and self.bench.retire_allowed:
            case = self.bench.layers[self.retired]
            if case.job_end:
                self.retired += 1
            elif self.written >> self.retired % ENTRIES & 1:
                self.retire = True
                dut.entry_retire_entry.value = self.retired % ENTRIES
        dut.entry_retire.value = self.retire

    written = 0

    def sample(self) -> None:
        dut, bench = self.dut, self.bench
        if self.push:
            assert int(dut.layer_room.value)
            self.pushed += 1
        self.written = int(dut.entry_written.value)
        if int(dut.error_valid.value):
            bench.errors.append((int(dut.error_entry.value), int(dut.error_port.value)))
        if self.retire:
            case = bench.layers[self.retired]
            found = bench.memory[case.offset : case.offset + len(case.expected)]
            assert np.array_equal(found, case.expected), f"layer {self.retired}: {_difference(found, case)}"
            bench.comparisons += 1
            self.retired += 1
            self.written = 0  # of this cycle; the bit falls with the edge


def _difference(found: Array, case: LayerCase) -> str:
    lines = pack.deinterleave(found, case.hardware), pack.deinterleave(case.expected, case.hardware)
    wrong = np.flatnonzero(lines[0] != lines[1])
    size = case.hardware.line_bytes
    return (
        f"kind {case.kind}, {case.tokens} x {case.outputs}: {len(wrong)} of {len(found)} bytes, first at line "
        f"{wrong[0] // size} byte {wrong[0] % size}: found {lines[0][wrong[0]]}, expected {lines[1][wrong[0]]}"
    )


class Drain(Part):
    """Contributions, in order, as far as the accumulator ring has room and a row is old enough to come again."""

    def __init__(self, bench: Bench) -> None:
        super().__init__(bench)
        width = hw_rows(self.hardware)
        self.rows, self.freed = width, 0
        self.events = self._events()
        self.next = next(self.events, None)
        self.last_seen: dict[int, int] = {}
        self.sent = 0

    def _events(self) -> Iterator[tuple[int, int, bool, int, int, int]]:
        for index, case in enumerate(self.bench.layers):
            for row, weight, fresh, values, completes in case.contributions:
                yield case.base + row, weight, fresh, as_int(values), completes, index

    def drive(self) -> None:
        dut, event = self.dut, self.next
        valid = (
            event is not None
            and event[5] < self.bench.feed.pushed
            and event[0] < self.freed + self.rows
            and self.bench.cycle - self.last_seen.get(event[0], -100) >= ROW_DISTANCE
            and self.bench.pace.roll("drain")
        )
        dut.combine_valid.value = valid
        if valid:
            row, weight, fresh, values, completes, _ = event
            dut.combine_row.value, dut.combine_weight.value = row % self.rows, weight
            dut.combine_fresh.value, dut.combine_values.value = fresh, values
            dut.combine_completes.value = completes
            self.last_seen[row] = self.bench.cycle
            self.next = next(self.events, None)
            self.sent += 1

    def sample(self) -> None:
        self.freed += int(self.dut.wide_freed.value)


class LinearDrain(Part):
    """Rows of LINEAR tiles; a tile begins after its buffer was reserved, output tile by output tile."""

    def __init__(self, bench: Bench) -> None:
        super().__init__(bench)
        tiles = [
            (index, tile, number == len(case.linear_tiles) - 1)
            for index, case in enumerate(bench.layers)
            for number, tile in enumerate(case.linear_tiles)
        ]
        self.unreserved = deque(tiles)
        self.reserved: deque[Any] = deque()
        self.rows: Iterator[Any] | None = None

    def _rows(self, tile: tuple[int, int, int, Array], last: bool) -> Iterator[Any]:
        first, tiles, token, values = tile
        size = self.hardware.tile_outputs
        for o in range(tiles):
            for lane in range(len(values)):
                done = o == tiles - 1 and lane == len(values) - 1
                data = as_int(values[lane, o * size : (o + 1) * size])
                yield lane, o, data, done, (first, tiles, len(values), token, last)

    ready = False

    def drive(self) -> None:
        dut, bench = self.dut, self.bench
        if self.rows is None and self.reserved:
            self.rows = self._rows(*self.reserved.popleft())
        row = next(self.rows, None) if self.rows is not None and bench.pace.roll("drain") else None
        dut.linear_write.value = row is not None
        dut.linear_done.value = 0
        if row is not None:
            lane, o, data, done, info = row
            dut.linear_lane.value, dut.linear_tile.value, dut.linear_data.value = lane, o, data
            dut.linear_done.value = done
            dut.info_first_tile.value, dut.info_tiles.value, dut.info_count.value = info[:3]
            dut.info_token.value, dut.info_last_in_layer.value = info[3:]
            if done:
                self.rows = None
        reserve = bool(
            self.ready and self.unreserved and self.unreserved[0][0] < bench.feed.pushed and bench.pace.roll("drain")
        )
        dut.linear_reserve.value = reserve
        if reserve:
            _, tile, last = self.unreserved.popleft()
            self.reserved.append((tile, last))
        self.reserving = reserve

    def sample(self) -> None:
        # Only buffers that are free without this cycle's reservation count for the next.
        self.ready = bool(int(self.dut.linear_ready.value)) and not self.reserving


class ResidualSource(Part):
    """Residual rows as lines, without the padding of the last stripe; never more than the FIFO holds."""

    def __init__(self, bench: Bench) -> None:
        super().__init__(bench)
        self.lines = self._lines()
        self.next = next(self.lines, None)
        self.held = 0

    def _lines(self) -> Iterator[tuple[int, int]]:
        for index, case in enumerate(self.bench.layers):
            if case.kind != LINEAR:
                row = np.zeros((case.tokens, case.output_lines * self.hardware.line_bytes // 2), np.int16)
                row[:, : case.outputs] = case.residual
                # The engine ignores what lies past the last value.
                row[:, case.outputs :] = 0x5A5A
                for line in row.reshape(-1, self.hardware.line_bytes // 2):
                    yield index, as_int(line)

    def drive(self) -> None:
        ready = self.next is not None and self.next[0] < self.bench.feed.pushed and self.held < RESIDUAL_LINES
        self.valid = ready and self.bench.pace.roll("residual")
        self.dut.residual_valid.value = self.valid
        if self.valid:
            self.dut.residual_line.value = self.next[1]
            self.next = next(self.lines, None)
            self.held += 1

    def sample(self) -> None:
        assert not self.valid or int(self.dut.residual_ready.value)
        self.held -= int(self.dut.residual_popped.value)


class Records(Part):
    """64-byte record writes, one at a time, each compared when it is acknowledged."""

    def __init__(self, bench: Bench) -> None:
        super().__init__(bench)
        self.waiting: tuple[int, bytes] | None = None
        self.offered = False
        self.written = 0

    def drive(self) -> None:
        if not self.offered and self.waiting is None and self.bench.records and self.bench.pace.roll("record"):
            self.offered = True
            offset, data = self.bench.records[0]
            self.dut.rec_address.value = offset
            self.dut.rec_data.value = int.from_bytes(data, "little")
        self.dut.rec_valid.value = self.offered

    def sample(self) -> None:
        if self.offered and int(self.dut.rec_ready.value):
            self.offered, self.waiting = False, self.bench.records[0]
        elif int(self.dut.rec_done.value):
            assert self.waiting is not None
            offset, data = self.waiting
            assert self.bench.memory[offset : offset + 64].tobytes() == data
            self.bench.records.popleft()
            self.waiting = None
            self.written += 1


class WritePort(Part):
    """AXI4 write slave: takes addresses and data at random times, commits a burst when it answers it, in order."""

    def __init__(self, bench: Bench, index: int) -> None:
        super().__init__(bench)
        self.index = index
        self.addresses: deque[tuple[int, int]] = deque()
        self.beats: deque[tuple[bytes, bool]] = deque()
        self.address_count = self.burst_count = self.flight = self.beat_count = 0
        self.first_beat = self.last_beat = 0
        self.answering = False
        self.held: dict[str, Any] = {}

    def _pin(self, name: str, value: int) -> None:
        # Ports share a vector; each part rewrites only its bit.
        pins = self.bench.__dict__.setdefault("pins", {})
        width = 2 if name == "bresp" else 1
        mask = (1 << width) - 1 << width * self.index
        pins[name] = pins.get(name, 0) & ~mask | value << width * self.index
        getattr(self.dut, name).value = pins[name]

    def drive(self) -> None:
        pace, hw = self.bench.pace, self.hardware
        self.awready, self.wready = pace.roll("address"), pace.roll("data")
        self._pin("awready", self.awready)
        self._pin("wready", self.wready)
        response = 0
        self.answering = False
        if self.addresses and self.burst_ready() and pace.roll("answer"):
            offset, beats = self.addresses.popleft()
            data = b"".join(self.beats.popleft()[0] for _ in range(beats))
            response = 2 if offset in self.bench.bad else 0
            self.bench.memory[offset : offset + len(data)] = np.frombuffer(data, np.uint8)
            self.answering = True
            if len(data) != 64 or offset < self.bench.record_offset:
                assert offset // hw.burst_bytes % hw.ports % hw.write_ports == self.index
        self._pin("bvalid", self.answering)
        self._pin("bresp", response)

    def burst_ready(self) -> bool:
        beats = self.addresses[0][1]
        if len(self.beats) < beats:
            return False
        lasts = [self.beats[i][1] for i in range(beats)]
        assert lasts == [False] * (beats - 1) + [True], "wlast does not agree with awlen"
        return True

    def sample(self) -> None:
        dut, hw, q = self.dut, self.hardware, self.index
        if int(dut.awvalid.value) >> q & 1 and self.awready:
            address = int(dut.awaddr.value) >> 64 * q & (1 << 64) - 1
            beats = (int(dut.awlen.value) >> 8 * q & 255) + 1
            offset = address - self.bench.bases[q]
            assert 0 <= offset <= len(self.bench.memory) - beats * hw.port_bytes, f"address {address:#x}"
            assert beats <= 16 and offset // 256 == (offset + beats * hw.port_bytes - 1) // 256
            self.addresses.append((offset, beats))
            self.flight += 1
            self.address_count += 1
            assert self.flight <= hw.outstanding
        if int(dut.wvalid.value) >> q & 1 and self.wready:
            width = hw.port_bytes
            data = int(dut.wdata.value) >> 8 * width * q & (1 << 8 * width) - 1
            last = bool(int(dut.wlast.value) >> q & 1)
            self.beats.append((data.to_bytes(width, "little"), last))
            self.first_beat = self.first_beat or self.bench.cycle
            self.last_beat, self.beat_count = self.bench.cycle, self.beat_count + 1
            self.burst_count += last
            assert self.burst_count <= self.address_count + 1 or not last, "data far ahead of its address"
        if self.answering:
            assert int(dut.bready.value) >> q & 1
            self.flight -= 1
