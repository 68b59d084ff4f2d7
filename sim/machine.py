"""The engine, event by event: a stripe read, a tile computed, a segment of lines written.

Who shares something (reader, bus, store unit) is an *agent* that acts at a known time; the earliest acts next. What
follows from events that are known (tiles, finished lines, packed lines) is worked out as far ahead as it is certain, by
generators that pause where they depend on something that has not happened yet. Nothing is simulated cycle by cycle.
Times are floats in cycles since the one that takes start; docs/simulator.md explains the model, sim/latencies.py has
the constants.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

from accel.commands import Command
from accel.config import Hardware
from accel.memory_model import MemoryModel
from sim import latencies as c
from sim.bus import INFINITY
from sim.computing import Computing
from sim.state import (
    BULK,
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
    STREAM_MARGIN,
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
            take, store, ask = self._next_take(), self._next_store(), self.next_ask
            other = store if store < ask else ask
            bus = self._next_bus()
            if take < other and take < bus:
                self._take(take)
            elif ask <= store and ask <= bus and ask < INFINITY:
                self._ask(ask)
            elif bus <= store and bus < INFINITY:
                limit = take if take < other else other
                while True:
                    launched, served = self.bursts, self.issued
                    self._bus(bus)
                    # What others may do has not changed unless a burst could be issued or launched.
                    if self.wake or self.bursts != launched or self.issued != served:
                        break
                    bus = self._next_bus()
                    if bus >= limit:
                        break
            elif store < INFINITY:
                self._store(store)
            else:
                raise AssertionError("simulation: nothing can happen and the program has not ended")
            if self.wake:
                self._settle()
            if self.load_left > BULK:
                self._stream()

    def _settle(self) -> None:
        """Let everything that is certain happen: resume whatever may go on."""
        while self.wake:
            wake, self.wake = self.wake, 0
            if wake & FETCHER:
                next(self.fetcher, None)
            if wake & LOADER:
                next(self.loader)
            if wake & COMPUTER:
                next(self.computer, None)
            if wake & FINISHER:
                next(self.finisher, None)
            if wake & PACKER:
                next(self.packer, None)
            if wake & ROWER:
                next(self.rower)
            if wake & RESIDUALER:
                next(self.residualer)

    def _stream(self) -> None:
        """Read the rest of a unit at once while nobody else wants anything for a while.

        Nothing but the stripes before a stripe then decides when it is read.
        """
        if self.writes or self.unlaunched or self.linear_lines or self.finish_lines:
            return
        if self.ready[LOAD] == INFINITY or self.writing:
            return
        horizon = min(self.ready[ROWS], self.ready[RESIDUAL], self.next_ask) - STREAM_MARGIN
        if self.ready[LOAD] >= horizon:
            return
        while self.load_left > 1 and not self.wake:
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

    def _next_bus(self) -> float:
        read = self._read_due()
        write = self.writes[0][0] if self.writes else INFINITY
        if self.memory.turnaround:
            first = read if read < write else write
            return first if first > self.bus_free else self.bus_free if first < INFINITY else INFINITY
        read = max(read, self.bus_free)
        write = max(write, self.write_free)
        return min(read, write)

    def _bus(self, time: float) -> None:
        due = self._read_due()
        writes, memory = self.writes, self.memory
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
