"""What is read: choice among sources, bursts in flight, weights into slots, rows (reader.sv, load_decode.sv)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sim import latencies as c
from sim.bus import INFINITY
from sim.scheduling import Scheduling
from sim.state import COMMAND, COMPUTER, FETCHER, FINISHER, LOAD, RESIDUAL, ROWS, Process, Unit


class Reading(Scheduling):
    """And what is read."""

    def _next_take(self) -> float:
        ready = self.ready
        first = ready[LOAD]
        if ready[ROWS] < first:
            first = ready[ROWS]
        if ready[RESIDUAL] < first:
            first = ready[RESIDUAL]
        if first == INFINITY:
            return INFINITY
        number = self.takes
        # The stripe before must have left for the port FIFOs, which needs the issue of the one four before it.
        if number:
            if number - 1 - c.REQUESTS_PER_PORT >= self.issued:
                return INFINITY
            before = self.push_time[(number - 1) & 63]
            if before + 1 > first:
                return before + 1
        return first

    def _take(self, time: float) -> None:
        ready, entry = self.ready, self.source_entry
        load, rows, residual = ready[LOAD] <= time, ready[ROWS] <= time, ready[RESIDUAL] <= time
        if load and rows:
            older = entry[LOAD] - entry[ROWS]
            if older < 0 or (older == 0 and not self.favour_rows):
                rows = False
            else:
                load = False
        if residual and (load or rows):
            if entry[RESIDUAL] >= entry[LOAD if load else ROWS]:
                residual = False
            else:
                load = rows = False
        source = LOAD if load else ROWS if rows else RESIDUAL
        self.favour_rows = source == LOAD
        number = self.takes
        self.takes = number + 1
        here = number & 63
        self.take_time[here] = time
        if number >= c.REQUESTS_PER_PORT:
            # Known by now, or set when it becomes known.
            if number - c.REQUESTS_PER_PORT < self.issued:
                self.push_time[here] = max(time + c.TAKE_TO_PUSH,
                                           self.issue_time[(number - c.REQUESTS_PER_PORT) & 63] + 1)  # fmt: skip
        else:
            self.push_time[here] = time + c.TAKE_TO_PUSH
        if self.issued - self.in_flight < self.served:
            self._issue()
        if source == LOAD:
            unit, stripe = self.load_item
            self.reads.append((LOAD, unit, stripe, number, 0.0))
            self.taken_at = time
            self.load_left -= 1
            self.load_item = (unit, stripe + 1)
            self.ready[LOAD] = time + 1
            if not self.load_left:
                next(self.loader)
        elif source == ROWS:
            self.reads.append((ROWS, self.entries[entry[ROWS]], 0, number, 0.0))
            self.rows_taken = time
            next(self.rower)
        else:
            self.reads.append((RESIDUAL, self.entries[entry[RESIDUAL]], 0, number, 0.0))
            self.residual_taken = time
            next(self.residualer)

    def _issue(self) -> None:
        """Work out the issues of all stripes for which they are certain."""
        number = self.issued
        while number < self.takes and number - self.in_flight < self.served:
            here = number & 63
            if number >= c.REQUESTS_PER_PORT:
                room = self.issue_time[(number - c.REQUESTS_PER_PORT) & 63] + 1
                self.push_time[here] = max(self.take_time[here] + c.TAKE_TO_PUSH, room)
            issue = self.push_time[here] + c.PUSH_TO_ISSUE
            if number >= self.in_flight:
                landed = self.end_ring[(number - self.in_flight) & 63] + c.LAND_TO_ISSUE - 1
                if landed > issue:
                    issue = landed
            before = self.issue_time[(number - 1) & 63]
            if issue <= before:
                issue = before + 1
            self.issue_time[here] = issue
            number += 1
            self.issued = number
            # The stripe that waits for a place in the FIFO.
            waiting = number - 1 + c.REQUESTS_PER_PORT
            if waiting < self.takes:
                self.push_time[waiting & 63] = max(self.take_time[waiting & 63] + c.TAKE_TO_PUSH, issue + 1)
        self.issued = number

    def _read(self, time: float) -> None:
        source, item, stripe, number, _ = self.reads.popleft()
        lines = self.stripe_lines
        if source == COMMAND:
            begin, end = self.budget.move(time, 4.0, 64.0)
            self.bus_free = end
            self.seen[item] = end - 1 + c.COMMAND_BEAT_TO_SEEN
            self._count_reading(time - self.latency + 1, end)
            self.wake |= FETCHER
            return
        begin, end = self.budget.move(time, float(lines), float(self.stripe_bytes))
        self.bus_free = end
        self.end_ring[number & 63] = end
        self.served = number + 1
        self._count_reading(self.issue_time[number & 63] + 1, end + 1)
        if self.issued < self.takes:
            self._issue()
        slope = (end - begin) / lines
        first = begin + slope - 1 + c.MOVE_TO_LINE  # line 0 at the sink
        self._arrived(source, item, stripe, first, slope, end)

    def _arrived(self, source: int, item: Any, stripe: int, first: float, slope: float, end: float) -> None:
        """A stripe is at its sink: its first line then, the others ``slope`` cycles apart."""
        if source == LOAD:
            self._deliver(item, stripe, first, slope)
            return
        if item.job > self.jobs_over:
            self._arrivals(item.job, [end + 2])
        if source == ROWS:
            item.input_times.append((first, slope))
            self.wake |= COMPUTER
        else:
            item.residual_times.append((first, slope))
            self.wake |= FINISHER

    def _deliver(self, unit: Unit, stripe: int, first: float, slope: float) -> None:
        """A stripe of weights reaches the decoder, line by line."""
        lines = self.stripe_lines
        low = stripe * lines
        last = first + (lines - 1) * slope
        if unit.expert >> 20 > self.jobs_over:
            self._arrivals(unit.expert >> 20, [last])
        gelu, row, final = unit.spots
        if not stripe:
            self.decoder_late = 0.0
            if gelu >= 0 and self.table_free > first:
                self.decoder_late = self.table_free  # the table before is still being written
            unit.begin = first
        late = self.decoder_late  # line 0 is taken then, and the others follow, one per cycle
        if low <= gelu < low + lines:
            unit.gelu = max(first + (gelu - low) * slope, late + gelu) + c.GELU_WRITE
            self.table_free = unit.gelu
        if low <= row < low + lines:
            unit.first = max(first + (row - low) * slope, late + row) + c.LINE_TO_ROW
            if gelu >= 0 and unit.gelu > unit.first:
                unit.first = unit.gelu
            self.wake |= COMPUTER
        if low <= final < low + lines:
            unit.last = max(first + (final - low) * slope, late + final) + c.LINE_TO_ROW
            unit.end = last
            self.wake |= COMPUTER

    def _arrivals(self, job: int, times: Iterable[float]) -> None:
        """Stripes of a job arrive. Of interest is only what comes before the end of the job before."""
        if job > self.jobs_over:
            self.job_arrivals.setdefault(job, []).extend(times)

    def _count_reading(self, begin: float, end: float) -> None:
        last = self.reading[-1] if self.reading else None
        if last is not None and begin <= last[1]:
            if end > last[1]:
                last[1] = end
        else:
            self.reading.append([begin, end])

    def _rows(self, source: int) -> Process:
        index, advanced = 0, 0.0
        requested = self.requested
        capacity = self.line_capacity if source == ROWS else c.RESIDUAL_LINES
        frees = self.line_frees if source == ROWS else self.residual_frees
        freed, freed_at = 0, 0.0
        lines = self.stripe_lines
        while True:
            while index >= len(self.entries):
                self.ready[source] = INFINITY
                yield
            entry = self.entries[index]
            time = max(entry.pushed, advanced) + c.PUSH_TO_VIEW
            index += 1
            shape = entry.shape
            if shape is None or (source == RESIDUAL and shape.linear):
                advanced = time
                continue
            self.source_entry[source] = entry.index
            time += c.VIEW_TO_ROWS
            remaining = self.remaining
            remaining[source] = shape.tokens * (shape.input_lines if source == ROWS else shape.output_lines)
            while remaining[source]:
                useful = min(remaining[source], lines)
                while freed < requested[source] + useful - capacity:
                    while not frees:
                        self.ready[source] = INFINITY
                        yield
                    freed_at, freed = frees.popleft()
                self.ready[source] = max(time, freed_at) if freed_at > time else time
                if source == ROWS:
                    self.rows_taken = -1.0
                    while self.rows_taken < 0:
                        yield
                    time = self.rows_taken + 1
                else:
                    self.residual_taken = -1.0
                    while self.residual_taken < 0:
                        yield
                    time = self.residual_taken + 1
                requested[source] += useful
                remaining[source] -= useful
            self.ready[source] = INFINITY
            advanced = time - 1
