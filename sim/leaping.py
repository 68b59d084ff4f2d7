"""Leaps: where the machine repeats itself tile after tile, many tiles pass as one step.

In a long pass of a dense layer the array soon does the same for every tile, and reading and writing go on at a rate of
their own: in pace with it, or as fast as the memory lets them. Such a stretch is passed over by a leap of whole tiles:
*work* that is left becomes less, *times* stay as they are, for all that is known of them is how they lie to each other,
and results are set forward in the end (:meth:`Leaping._absolute`). Refreshes keep their true times.

The last tiles stand for all that are passed over. So the array may not have waited in them, and every flow (weights,
rows, residual rows, finished lines) must be steady: exactly in pace with the array over :data:`WINDOW` tiles, or moving
as far in one window as in the one before, up to :data:`JITTER`, in windows longer than the time between refreshes. A
leap ends before a flow does, or catches up with what it follows. Cycles of the array are exact, for it has nothing to
wait for; flows that are not in pace are as exact as their rate.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from itertools import accumulate
from typing import NamedTuple

from sim.reading import Reading
from sim.shapes import Shape
from sim.state import DRAIN, RESIDUAL, ROWER, ROWS, Entry, Leap, Process

WINDOW = 8
"""Tiles over which flows are in pace, at least: more than are on their way between dispatch and the last response."""
PACE = 4
"""Stripes that a flow moves in such a window, at least: fewer do not tell whether it is in pace."""
JITTER = 2
"""Stripes by which two windows may differ, besides a 32nd of them: what turning the bus round and a refresh shift."""
REFRESHES = 1.25
"""Times between refreshes that such a window lasts."""
STRIPES = 96
"""Stripes that memory could read in such a window: a few write batches come between, and jitter is little of it."""
MARGIN = 6
"""Tiles before the end of a pass that are not passed over: more than are on their way."""
SETTLED = 2
"""Tiles of a window after which nothing is under way any more that belongs to the time before it."""
FLOW_MARGIN = 2
"""The same for the end of a flow: more stripes than are in flight."""
LOOKAHEAD = 64.0
"""Cycles by which tiles of a paced pass are worked out before they leave dispatch."""


class Progress(NamedTuple):
    """Stripes that each flow has moved since some time."""

    rows: int
    residual: int
    weights: int
    finished: int


class Leaping(Reading):
    """And what repeats itself."""

    leaps_allowed = True

    def _paced(self, entry: Entry, tokens: int) -> bool:
        """Whether a pass goes along with the events, so that it may leap."""
        return (
            self.leaps_allowed
            and not self.timeline
            and entry.shape is not None
            and not entry.shape.gated
            and tokens >= 4 * WINDOW * self.hw.tile_tokens
        )

    def _pace(self, time: float) -> Process:
        """Wait until the events have come near ``time``."""
        while self.now < time - LOOKAHEAD:
            self.compute_at = time - LOOKAHEAD
            yield

    def _leap(self, entry: Entry, done: int, final: bool, first_pass: bool, cycles: int, work: int) -> int:
        """Tiles of ``entry`` to pass over, 0 if the machine is not steady. All but ``done`` tokens have moved then.

        Args:
            final, first_pass: see ``Computing._pass``.
            cycles, work: of a tile: all, and those in which the array is busy.
        """
        shape, lines = entry.shape, self.stripe_lines
        assert shape is not None
        situation = (self.source_entry[ROWS], self.source_entry[RESIDUAL], self.finish_entry, self.asked,
                     len(self.entries), self.retired, self.weight_stripes)  # fmt: skip
        if situation != self.situation:
            self.situation = situation
            self.history.clear()
        self.history.append((-self.remaining[ROWS], -self.remaining[RESIDUAL], -self.load_left, self.finish_group))
        # Results of this layer that have yet to be finished.
        behind = done * shape.output_lines - self.finish_group * lines if self.finish_entry == entry.index else 1 << 30
        window = self._steady_window(shape, final, cycles, behind)
        if not window:
            return 0
        moved = self._moved(-1 - window, -1)
        T = self.hw.tile_tokens
        tiles = (shape.tokens - done) // T - MARGIN
        for left, rate in (
            (self.remaining[ROWS] // lines, moved.rows),
            (self.remaining[RESIDUAL] // lines, moved.residual),
            (self._weights_left(), moved.weights),
        ):
            if rate:
                tiles = min(tiles, left * window // rate - FLOW_MARGIN)
        # Nor may one catch up with what it follows: rows with the room in their ring, results with the array.
        room = self.line_capacity - self.requested[ROWS] + self.lines_freed
        behind -= MARGIN * T * shape.output_lines
        for left, rate, pace in (
            (room, moved.rows * lines, window * T * shape.input_lines if final else 0),
            (behind, moved.finished * lines, window * T * shape.output_lines),
        ):
            if rate > pace:
                tiles = min(tiles, left * window // (rate - pace))
        tiles -= tiles % self._alignment(shape)
        if tiles < WINDOW // 2:
            return 0
        finished = tiles * moved.finished // window
        moved = Progress(tiles * moved.rows // window, finished, tiles * moved.weights // window, finished)
        if not self._provided(entry, shape, done + (tiles + MARGIN) * T, first_pass, moved):
            return 0
        self._move(entry, tiles, moved, final)
        entry.array_beats += tiles * work
        entry.stalls[DRAIN] += tiles * (cycles - work)
        span = float(tiles * cycles)
        self.leaps.append(Leap(self.now, float((window - SETTLED) * cycles), span, work / cycles))
        self.budget.leap(span)
        self.history.clear()
        return tiles

    def _weights_left(self) -> int:
        """Stripes of the unit at hand up to the next one that completes something, that one included."""
        unit, stripe = self.load_item
        spots = (spot // self.stripe_lines for spot in unit.spots)
        return min([self.load_left, *(spot - stripe + 1 for spot in spots if spot >= stripe)])

    def _moved(self, begin: int, end: int) -> Progress:
        """What moved between two tiles of the history."""
        rows, residual, weights, finished = (
            after - before for before, after in zip(self.history[begin], self.history[end], strict=True)
        )
        return Progress(rows // self.stripe_lines, residual // self.stripe_lines, weights, finished)

    def _steady_window(self, shape: Shape, final: bool, cycles: int, behind: int) -> int:
        """Tiles for which the machine has been steady, 0 if it has not been long enough."""
        if len(self.history) < WINDOW:
            return 0
        window = WINDOW
        while window * self.hw.tile_tokens * min(shape.input_lines, shape.output_lines) < PACE * self.stripe_lines:
            window *= 2
        late = self._moved(-1 - window, -1) if len(self.history) > window else None
        if late and not late.weights:
            rows, results = (window * self.hw.tile_tokens * count // self.stripe_lines if final else 0
                             for count in (shape.input_lines, 0 if shape.linear else shape.output_lines))  # fmt: skip
            level = not results or behind < (MARGIN + 2) * self.hw.tile_tokens * shape.output_lines
            if level and late.rows in (0, rows) and late.residual == late.finished == results:
                return window
        lasts = max(REFRESHES * self.memory.refresh_period, STRIPES * self.stripe_time)
        half = max(WINDOW // 2, math.ceil(lasts / cycles))
        if len(self.history) <= 2 * half:
            return 0
        early, late = self._moved(-1 - 2 * half, -1 - half), self._moved(-1 - half, -1)
        even = all(abs(a - b) <= JITTER + (a + b) // 64 for a, b in zip(early, late, strict=True))
        level = abs(late.residual - late.finished) <= JITTER and self.source_entry[RESIDUAL] == self.finish_entry
        forward = min(*early, *late) >= 0
        return 2 * half if even and forward and (level or not early.finished + late.finished) else 0

    def _alignment(self, shape: Shape) -> int:
        """Tiles whose lines, in and out, are whole stripes."""
        tiles = 1
        while tiles * self.hw.tile_tokens * shape.input_lines % self.stripe_lines or (
            tiles * self.hw.tile_tokens * shape.output_lines % self.stripe_lines
        ):
            tiles *= 2
        return tiles

    def _provided(self, entry: Entry, shape: Shape, tokens: int, first_pass: bool, moved: Progress) -> bool:
        """Whether so many tokens may be computed without waiting for rows or for room for results."""
        if first_pass:
            there = len(entry.input_times) + (moved.rows if self.source_entry[ROWS] == entry.index else 0)
            if there < min(-(-tokens * shape.input_lines // self.stripe_lines), shape.input_stripes):
                return False
        if not shape.linear:
            rows = entry.wide_before + (tokens * shape.output_tiles if first_pass else shape.wide_rows)
            if rows > self.wide_capacity and self._wide_freed(rows - self.wide_capacity, look=True) > self.now:
                return False
        return True

    def _move(self, entry: Entry, tiles: int, moved: Progress, final: bool) -> None:
        """Pass over: less is left to do, and what was done counts as past."""
        now, lines = self.now, self.stripe_lines
        shape = entry.shape
        assert shape is not None
        # Of rings only the difference between what was asked for and what was given back matters.
        self.requested[ROWS] += moved.rows * lines
        if final:
            self.requested[ROWS] -= tiles * self.hw.tile_tokens * shape.input_lines
            self.wake |= ROWER
        if moved.rows:
            self.remaining[ROWS] -= moved.rows * lines
            self._arrive(self.source_entry[ROWS], moved.rows).input_times[:0] = [(now, 0.0)] * moved.rows
        if moved.finished:
            # Rows are read for the layer at hand there, which may be another than the one that is being finished.
            self.remaining[RESIDUAL] -= moved.residual * lines
            self._arrive(self.source_entry[RESIDUAL], moved.residual).residual_times[:0] = [(now, 0.0)] * moved.residual
            self.entries[self.finish_entry].finished[:0] = [now] * moved.finished
            self.finish_group += moved.finished
        if final and not shape.linear:
            entry.completes[:0] = [now] * tiles
        if moved.weights:
            unit, stripe = self.load_item
            self.load_item = unit, stripe + moved.weights
            self.load_left -= moved.weights
            self._arrivals(unit.expert >> 20, [now] * moved.weights)

    def _arrive(self, index: int, stripes: int) -> Entry:
        """Count stripes that were read for an entry."""
        entry = self.entries[index]
        self._arrivals(entry.job, [self.now] * stripes)
        return entry

    def _absolute(self) -> None:
        """Set all times that are results forward by the leaps before them."""
        if not self.leaps:
            return
        times = [leap.time for leap in self.leaps]
        added = [0.0, *accumulate(leap.cycles for leap in self.leaps)]

        def absolute(time: float) -> float:
            return time + added[bisect_left(times, time)]

        for entry in self.entries:
            entry.retired = absolute(entry.retired)
            if entry.shape is not None:
                entry.first_beat, entry.last_beat = absolute(entry.first_beat), absolute(entry.last_beat)
        for beats in (self.job_first_beat, self.job_last_beat):
            for job, time in beats.items():
                beats[job] = absolute(time)
        self.end_time = absolute(self.end_time)
