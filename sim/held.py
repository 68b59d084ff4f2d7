"""The machine on a memory that holds handshakes back by a recorded pattern: the bus moves beat by beat.

Which port is held back in which cycle decides whether the bus turns round, and no average tells that: so this part
alone goes cycle by cycle, as the bench's memory does (rtl_tb/board/memory_model.cpp). It is far slower.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from accel.commands import Command
from accel.config import Hardware
from accel.memory_model import MemoryModel
from sim import latencies as c
from sim.bus import INFINITY, held_channels
from sim.machine import Machine
from sim.state import FETCHER

COMMAND_BEATS = 4


@dataclass
class _Burst:
    number: int  # of the stripe; −1 − index for a command
    due: float
    left: int


class HeldMachine(Machine):
    """:class:`sim.machine.Machine` with recorded stalls."""

    leaps_allowed = False  # the pattern has a period of its own

    def __init__(
        self, commands: Sequence[Command], routing: Mapping[tuple[int, int], NDArray[Any]], hardware: Hardware,
        memory: MemoryModel, timeline: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(commands, routing, hardware, memory, timeline)
        held = held_channels(memory, hardware.ports)
        assert held is not None
        self.held = self.channels = held
        pattern = memory.stalls()
        self.period = memory.stall_period
        self.free = [(((pattern >> (4 + port)) & 1) == 0).tolist() for port in range(hardware.ports)]
        ports = range(hardware.ports)
        self.queues: list[deque[_Burst]] = [deque() for _ in ports]
        self.port_issued = [0 for _ in ports]
        self.port_served = [0 for _ in ports]
        self.port_issues = [[-1.0] * 64 for _ in ports]
        self.port_ends = [[-10.0] * 64 for _ in ports]
        self.pending: dict[int, tuple[int, Any, int]] = {}
        self.firsts: dict[int, float] = {}
        self.port_writes: list[deque[_Burst]] = [deque() for _ in range(hardware.write_ports)]
        self.answers: dict[int, list[float]] = {}
        self.moved = [0 for _ in ports]  # beats of stripes; lines need one of every port
        self.cycle = 0
        open_cycles = memory.refresh_period - memory.refresh_cycles
        self.open_cycles = open_cycles
        self.full = memory.bucket_bytes * open_cycles
        self.tokens = self.full
        self.share = memory.bytes_per_cycle * memory.refresh_period
        self.cost = hardware.port_bytes * open_cycles
        self.turning = 0
        self.first_reader = self.first_writer = 0

    def _ask(self, time: float) -> None:
        issue = self.channels["ar"][0].after(time + c.ASK_TO_ISSUE)
        self.queues[0].append(_Burst(-1 - self.asked, issue + self.latency, COMMAND_BEATS))
        self.asked += 1
        self._plan_ask(time)

    def _stream(self) -> None:
        """Nothing is uniform here."""

    # ---- reads

    def _issue(self) -> None:
        """Work out the issues of every port for which they are certain."""
        while self.reads:
            source, item, stripe, number, _ = self.reads.popleft()
            self.pending[number] = (source, item, stripe)
        depth = c.REQUESTS_PER_PORT
        moved = True
        while moved:
            moved = False
            self.issued = min(self.port_issued)
            for number in range(self.issued, self.takes):
                if number >= depth and number - depth >= self.issued:
                    break
                push = self.take_time[number & 63] + c.TAKE_TO_PUSH
                if number >= depth:
                    push = max(push, 1 + max(issues[(number - depth) & 63] for issues in self.port_issues))
                if number:
                    push = max(push, self.push_time[(number - 1) & 63] + 1)
                self.push_time[number & 63] = push
                for port, issues in enumerate(self.port_issues):
                    if self.port_issued[port] != number or self.port_served[port] <= number - self.in_flight:
                        continue
                    issue = max(push + c.PUSH_TO_ISSUE, issues[(number - 1) & 63] + 1)
                    if number >= self.in_flight:
                        issue = max(issue, self.port_ends[port][(number - self.in_flight) & 63] + c.LAND_TO_ISSUE - 1)
                    issue = self.channels["ar"][port].after(issue)
                    issues[number & 63] = issue
                    self.queues[port].append(_Burst(number, issue + self.latency, self.stripe_lines))
                    self.port_issued[port] = number + 1
                    moved = True

    def _landed(self, port: int, number: int, end: float) -> None:
        """A port has read its burst of a stripe."""
        self.port_ends[port][number & 63] = end
        self.port_served[port] = number + 1
        self._issue()
        if min(self.port_served) <= number or number not in self.pending:
            return
        source, item, stripe = self.pending.pop(number)
        last = max(ends[number & 63] for ends in self.port_ends)
        slope = (last - 1 - self.firsts.pop(number)) / (self.stripe_lines - 1)
        self.served = number + 1
        self._count_reading(min(issues[number & 63] for issues in self.port_issues) + 1, last + 1)
        line = last - 1 - (self.stripe_lines - 1) * slope + c.MOVE_TO_LINE
        self._arrived(source, item, stripe, line, slope, last)

    # ---- bus

    def _next_bus(self) -> float:
        first = INFINITY
        for queue in self.queues:
            if queue and queue[0].due < first:
                first = queue[0].due
        if self.writes:
            self._to_ports()
        for queue in self.port_writes:
            if queue and queue[0].due < first:
                first = queue[0].due
        return max(math.ceil(first), self.cycle) if first < INFINITY else INFINITY

    def _to_ports(self) -> None:
        while self.writes:
            first, last, beats, number, _ = self.writes.popleft()
            for block in range(self.blocks):
                due = first if not block else last
                for queue in self.port_writes:
                    queue.append(_Burst(number - (self.blocks - 1 - block), due, round(beats)))

    def _bus(self, time: float) -> None:
        limit = min(self._next_take(), self.store_at, self.next_ask)
        cycle = int(time)
        skipped = cycle - self.cycle
        if skipped > 0:
            self.tokens = min(self.full, self.tokens + skipped * self.share)
            self.turning = max(0, self.turning - skipped)
        while True:
            happened = self._tick(cycle)
            cycle += 1
            if happened or cycle >= limit:
                break
            if not any(queue and queue[0].due <= cycle for queue in (*self.queues, *self.port_writes)):
                break
        self.cycle = cycle

    def _tick(self, cycle: int) -> bool:
        """One cycle of the memory; whether a burst ended."""
        at = cycle + c.MEMORY_CLOCK_LEAD
        memory = self.memory
        if memory.refresh_cycles and at % memory.refresh_period >= self.open_cycles:
            return False
        self.tokens = min(self.full, self.tokens + self.share)
        phase = at % self.period
        most = min(self.moved) + c.PORT_BEATS
        waiting = [
            bool(queue) and queue[0].due <= cycle and self.free[port][phase] and self.moved[port] <= most
            for port, queue in enumerate(self.queues)
        ]
        reads_wait = any(waiting)
        if not memory.turnaround:
            ended = reads_wait and self._move_reads(cycle, waiting)
            return self._move_writes(cycle) or ended
        if not self.turning:
            self._turn(cycle, reads_wait)
        if self.turning:
            self.turning -= 1
            return False
        if self.writing:
            return self._move_writes(cycle)
        return reads_wait and self._move_reads(cycle, waiting)

    def _turn(self, cycle: int, reads_wait: bool) -> None:
        complete, oldest = 0, float(cycle)
        for queue in self.port_writes:
            for burst in queue:
                if burst.due > cycle:
                    break
                complete += 1
            if queue and queue[0].due < oldest:
                oldest = queue[0].due
        memory = self.memory
        if self.writing:
            other = reads_wait and (not complete or self.batch >= memory.write_batch)
        else:
            worth = complete >= memory.write_batch or cycle - oldest >= memory.write_wait
            other = bool(complete) and (not reads_wait or worth)
        if other:
            self.writing = not self.writing
            self.batch = 0
            self.turning = memory.turnaround

    def _move_reads(self, cycle: int, waiting: list[bool]) -> bool:
        ended = False
        count = len(self.queues)
        first = self.first_reader
        for step in range(count):
            port = (first + step) % count
            if self.tokens < self.cost:
                break
            if not waiting[port]:
                continue
            self.tokens -= self.cost
            self.first_reader = (port + 1) % count
            burst = self.queues[port][0]
            if burst.left == self.stripe_lines and burst.number >= 0:
                self.firsts[burst.number] = max(self.firsts.get(burst.number, 0.0), float(cycle))
            burst.left -= 1
            if burst.number >= 0:
                self.moved[port] += 1
            if burst.left:
                continue
            self.queues[port].popleft()
            ended = True
            if burst.number < 0:
                self.seen[-1 - burst.number] = cycle + c.COMMAND_BEAT_TO_SEEN
                self._count_reading(cycle - self.latency - COMMAND_BEATS + 1, cycle + 1.0)
                self.wake |= FETCHER
            else:
                self._landed(port, burst.number, cycle + 1.0)
        return ended

    def _move_writes(self, cycle: int) -> bool:
        ended = False
        count = len(self.port_writes)
        first = self.first_writer
        for step in range(count):
            port = (first + step) % count
            queue = self.port_writes[port]
            if self.tokens < self.cost:
                break
            if not queue or queue[0].due > cycle:
                continue
            self.tokens -= self.cost
            self.first_writer = (port + 1) % count
            burst = queue[0]
            burst.left -= 1
            if burst.left:
                continue
            queue.popleft()
            ended = True
            self.batch += 1
            answers = self.answers.setdefault(burst.number, [])
            answers.append(self.channels["b"][port].after(cycle + self.memory.write_latency))
            if len(answers) == count:
                del self.answers[burst.number]
                self._answered(burst.number, max(answers))
        return ended
