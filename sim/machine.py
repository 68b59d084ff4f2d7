"""The engine, event by event: a stripe read, a tile computed, a segment of lines written.

Who shares something (reader, bus, store unit) is an *agent* that acts at a known time; the earliest acts next. What
follows from events that are known (tiles, finished lines, packed lines) is worked out as far ahead as it is certain, by
generators that pause where they depend on something that has not happened yet. Nothing is simulated cycle by cycle.
Times are floats in cycles since the one that takes start; docs/simulator.md explains the model, sim/latencies.py has
the constants.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from accel.commands import Command
from accel.config import Hardware
from accel.memory_model import MemoryModel
from sim import latencies as c
from sim.bus import EMPTY, INFINITY
from sim.computing import Computing
from sim.state import (
    BULK,
    COMMAND,
    COMPUTER,
    FETCHER,
    FINISHER,
    LOAD,
    LOADER,
    PACKER,
    RESIDUAL,
    RESIDUALER,
    ROWER,
    ROWS,
    WRITERS,
)


class Machine(Computing):
    """One run of a program. ``sim.results`` reads its attributes after :meth:`run`."""

    def __init__(
        self,
        commands: Sequence[Command],
        routing: Mapping[tuple[int, int], NDArray[Any]],
        hardware: Hardware,
        memory: MemoryModel,
        timeline: bool = False,
    ) -> None:
        super().__init__(commands, routing, hardware, memory, timeline)
        self.fetcher, self.loader = self._fetch(), self._load()
        self.rower, self.residualer = self._rows(ROWS), self._rows(RESIDUAL)
        self.computer, self.finisher, self.packer = self._compute(), self._finish(), self._pack()

    def run(self) -> None:
        """Run the program to its end."""
        self._settle()
        while self.end_time == INFINITY:
            take, bus, store = self._next_take(), self._next_bus(), self.store_at
            array, ask = self.compute_at, self.next_ask
            other = store if store < ask else ask
            if array < other:
                other = array
            if take < other and take < bus:
                self._takes_until(take, other if other < bus else bus)
            elif bus < array and bus < ask and bus <= store:
                self._move_until(bus, take if take < other else other)
            elif array <= other and array < INFINITY:
                self.now, self.compute_at = array, INFINITY
                self.wake |= COMPUTER
            elif ask <= store and ask < INFINITY:
                self.now = ask
                self._ask(ask)
            elif store < INFINITY:
                self.now = store
                self._store(store)
            else:
                raise AssertionError("simulation: nothing can happen and the program has not ended")
            if self.wake:
                self._settle()
            if self.load_left > BULK and not self.finish_lines and not self.linear_lines:
                self._stream()
        self.last_event = self.end_time
        self._absolute()

    def _takes_until(self, take: float, limit: float) -> None:
        """Choose stripes, one after the other, as long as nothing else happens."""
        first = take + c.TAKE_TO_PUSH + c.PUSH_TO_ISSUE + self.latency  # beat of a stripe that is chosen now
        if first < limit:
            limit = first
        while True:
            self.now = take
            self._take(take)
            if self.wake:
                return
            take = self._next_take()
            if take >= limit:
                return

    def _move_until(self, bus: float, limit: float) -> None:
        """Move bursts, one after the other, as long as nothing else happens."""
        while True:
            self.now = bus
            launched, served = self.bursts, self.issued
            self._bus(bus)
            # What others may do has not changed unless a burst could be issued or launched.
            if self.wake or self.bursts != launched or self.issued != served:
                return
            bus = self._next_bus()
            if bus >= limit:
                return

    def _settle(self) -> None:
        """Let everything that is certain happen: resume whatever may go on."""
        while self.wake:
            wake, self.wake = self.wake, 0
            if wake & FETCHER:
                next(self.fetcher, None)
            if wake & LOADER:
                next(self.loader)
            if wake & COMPUTER and self.compute_at == INFINITY:  # else it waits for a time, not for an event
                next(self.computer, None)
            if wake & FINISHER:
                next(self.finisher, None)
            if wake & PACKER:
                next(self.packer, None)
            if wake & WRITERS:
                self._plan_store()
            if wake & ROWER:
                next(self.rower)
            if wake & RESIDUALER:
                next(self.residualer)

    def _stream(self) -> None:
        """Read the rest of a unit at once while nothing is written and nobody else wants anything for a while.

        Nothing but the stripes before a stripe then decides when it is read.
        """
        if self.writes or self.unlaunched or self.ready[LOAD] == INFINITY or self.writing:
            return
        if not self.turnaround:  # reads would take bytes of the bucket before writes that come earlier
            return
        horizon = min(self.ready[ROWS], self.ready[RESIDUAL], self.next_ask, self.compute_at) - self.stream_margin
        if self.ready[LOAD] >= horizon:
            return
        while self.load_left > 1 and not self.wake:
            if self.load_left > BULK and self.budget.level < EMPTY:
                self._rush(horizon)
                if self.load_left == 1:
                    return
            take = self._next_take()
            while take == INFINITY:  # its place in the port FIFOs depends on a stripe that has not come yet
                self._read(self._next_bus())
                take = self._next_take()
            if take >= horizon or self.wake:
                return
            number, here = self.takes, self.takes & 63
            self.takes = number + 1
            self.take_time[here] = take
            push = take + c.TAKE_TO_PUSH
            if number >= c.REQUESTS_PER_PORT:
                room = self.issue_time[(number - c.REQUESTS_PER_PORT) & 63] + 1
                if number - c.REQUESTS_PER_PORT < self.issued and room > push:
                    push = room
            self.push_time[here] = push
            self.favour_rows = True
            unit, stripe = self.load_item
            self.reads.append((LOAD, unit, stripe, number, 0.0))
            self.load_item = (unit, stripe + 1)
            self.load_left -= 1
            self.taken_at = take
            self.ready[LOAD] = take + 1
            self._issue()

    def _rush(self, horizon: float) -> None:
        """Of a unit that is streamed, read all stripes at once that only the memory's rate holds up.

        Each then ends as long after the one before as its bytes need, refreshes apart. It was asked for when the burst
        whose place in flight it takes had ended, and had stood in the FIFO behind as many as that holds.
        """
        flight, depth, land = self.in_flight, c.REQUESTS_PER_PORT, c.LAND_TO_ISSUE - 1
        ends, issues = self.end_ring, self.issue_time
        served, issued, takes = self.served, self.issued, self.takes
        unit, stripe = self.load_item
        under_way = takes - served
        if issued - served != flight or (flight - 1) * self.stripe_bytes < (self.latency + land) * self.budget.rate:
            return
        source, item, oldest, _, _ = self.reads[0]
        if source != LOAD or item is not unit or len(self.reads) != under_way or stripe - oldest != under_way:
            return
        if oldest * self.stripe_lines <= max(unit.spots[:2]):
            return
        for number in range(issued - depth - 1, issued):
            if issues[number & 63] != ends[(number - flight) & 63] + land:
                return
        found = self.budget.ends(self.load_left - 1, self.stripe_bytes)
        count = int(np.searchsorted(found, horizon))
        final = unit.spots[2] // self.stripe_lines  # its row completes the unit, padding apart: it must be seen
        if final >= oldest:
            count = min(count, final - oldest)
        if count < BULK:
            return
        last = float(found[count - 1])
        self.budget.drained(last)
        self.bus_free = last
        self._count_reading(issues[served & 63] + 1, last + 1)
        self._arrivals(unit.expert >> 20, found[:count] + c.MOVE_TO_LINE)
        for number in range(max(served, served + count - 2 * flight), served + count):
            ends[number & 63] = float(found[number - served])
        self.served, self.issued, self.takes = served, issued, takes = served + count, issued + count, takes + count
        for number in range(max(served - 1, issued - count), issued):
            issues[number & 63] = ends[(number - flight) & 63] + land
        for number in range(issued - 1, takes):
            take = issues[(number - depth - 1) & 63] + 1 + c.TAKE_TO_PUSH
            self.take_time[number & 63] = take
            self.push_time[number & 63] = issues[(number - depth) & 63] + 1 if number - depth < issued else take + 1
        self.load_item, self.load_left = (unit, stripe + count), self.load_left - count
        self.taken_at = take
        self.ready[LOAD] = take + 1
        self.reads = deque((LOAD, unit, old + count, number + count, 0.0) for _, _, old, number, _ in self.reads)

    def _next_bus(self) -> float:
        read, bus_free = INFINITY, self.bus_free
        if self.reads:
            source, _, _, number, asked = self.reads[0]
            if source == COMMAND:
                read = asked + self.latency
            elif number < self.issued:
                read = self.issue_time[number & 63] + self.latency
        self.read_due = read  # first beat of the next read
        write = self.writes[0][0] if self.writes else INFINITY
        if self.turnaround:
            first = read if read < write else write
            return first if first > bus_free or first == INFINITY else bus_free
        read = max(read, bus_free)
        write = max(write, self.write_free)
        return min(read, write)

    def _bus(self, time: float) -> None:
        due, writes, memory = self.read_due, self.writes, self.memory
        if not memory.turnaround:
            if due <= time and self.bus_free <= time:
                self._read(time)
            else:
                self._write(time)
            return
        complete = bool(writes) and writes[0][0] <= time
        if self.writing:
            if due <= time and (not complete or self.batch >= memory.write_batch):
                self.writing, self.batch = False, 0
                self.bus_free = time + memory.turnaround
            elif complete:
                self._write(time)
            else:
                # Nothing complete, no read: wait for whichever comes first.
                self.bus_free = min(due, writes[0][0] if writes else INFINITY)
            return
        if complete:
            ready = 0
            for write in writes:
                if write[1] > time:
                    break
                ready += write[4]
            worth = ready * self.hw.write_ports >= memory.write_batch or time - writes[0][0] >= memory.write_wait
            if due > time or worth:
                self.writing, self.batch = True, 0
                self.bus_free = time + memory.turnaround
                return
        self._read(time)
