"""Tiles: cut, gathered, computed; order of experts; why the array waits (dispatch.sv, gather.sv, issue.sv)."""

from __future__ import annotations

from collections import deque

import numpy as np

from sim import latencies as c
from sim.bus import INFINITY
from sim.leaping import Leaping
from sim.shapes import Shape
from sim.state import DRAIN, FINISHER, INPUT, LOADER, PACKER, ROUTE, ROWER, STORE, WEIGHTS, Entry, Process, Timed

STEADY = 8
"""Tiles after which a pass counts as periodic: more than are on their way between dispatch and issue."""


class Computing(Leaping):
    """And what is computed."""

    def _compute(self) -> Process:
        self.over = -1.0  # last beat of the tile before
        self.overs: deque[float] = deque([-INFINITY] * c.TILES_AHEAD)
        self.gather_over = -1.0
        self.groups = 0
        self.group_ends: deque[tuple[int, float, int]] = deque()  # groups up to here, end of the phase, its lines
        self.emitted = -1.0
        self.run_lines = 0
        self.gate_rooms: deque[float] = deque([0.0] * c.GATE_BUFFERS)
        self.linear_tiles = 0
        index, advanced = 0, 0.0
        while True:
            while index >= len(self.entries):
                if self.end_time != INFINITY:
                    return
                yield
            entry = self.entries[index]
            view = max(entry.pushed, advanced) + c.PUSH_TO_VIEW
            index += 1
            shape = entry.shape
            if shape is None:
                advanced = view
                continue
            item = view + c.VIEW_TO_ITEM
            self.idle_until = item
            unit = 0
            if shape.gated:
                starts: list[float] = []
                item = yield from self._pass(entry, 0, -1, shape.tokens, item, 0.0, True, False, starts)
                self._order(entry, starts, view)
                while not entry.orders_known:
                    yield
                for position, (_, load, known, _) in enumerate(entry.orders):
                    settles = starts if position == 0 else None
                    for number in range(shape.units):
                        unit += 1
                        final = position == len(entry.orders) - 1 and number == shape.units - 1
                        item = yield from self._pass(
                            entry, unit, number, load, item, known if not number else 0.0, False, final, settles
                        )
            else:
                for number in range(shape.units):
                    final = number == shape.units - 1
                    item = yield from self._pass(
                        entry, number, number, shape.tokens, item, 0.0, number == 0, final, None
                    )
            entry.computed = self.over + 1
            entry.last_beat = self.over
            self.job_last_beat[entry.job] = self.over
            advanced = self.emitted + c.EMIT_TO_ADVANCE
            self.wake |= LOADER

    def _pass(
        self, entry: Entry, position: int, number: int, tokens: int, item: float, known: float, first_pass: bool,
        final: bool, route: list[float] | None,
    ) -> Timed:  # fmt: skip
        """All tiles of a unit. ``number`` −1 is the gate. Returns when dispatch looks for the next unit.

        Args:
            position: of the unit among those of the entry, in the order of use.
            known: when its expert was known.
            first_pass: its tiles wait for input rows.
            final: the last of the layer: completes rows, frees input lines.
            route: of the gate, receives the starts of the last tokens of its tiles; of the first expert, those.
        """
        shape, hw = entry.shape, self.hw
        assert shape is not None
        T = hw.tile_tokens
        while len(entry.units) <= position:
            yield
        unit = entry.units[position]
        slot_there = unit.acquired + c.ACQUIRE_TO_SLOT
        begin = max(item, slot_there, known)
        gate = number < 0
        queued = shape.gated and not gate
        lines, beats = shape.input_lines, shape.input_beats
        line_beats = self.line_beats
        linear, moe = shape.linear, shape.gated
        combine = not linear and not gate
        cycles_full = shape.tile_cycles(number, T, hw)
        work = shape.tile_beats(number, hw)
        phase = shape.hidden_tiles * max(beats, T) if shape.hidden_tiles and not gate else 0
        rest = cycles_full - phase if phase else 0
        wide_base = entry.wide_before
        done = 0
        accepted = begin + c.WALK_FIRST
        emitted = begin  # COLLECT begins one cycle later
        first = True
        pass_begin = -1.0
        overs = self.overs
        freed = 0  # tokens whose lines have been given back
        even = False
        steady = 0  # full tiles in a row that nothing but the tile before held up
        may_skip = not gate and not linear and route is None and (moe or not final)
        paced = not may_skip and self._paced(entry, tokens)
        self.history.clear()
        while done < tokens:
            if paced:
                yield from self._pace(max(self.gather_over, overs[0]))
                if not even:
                    self.history.clear()
                tiles = self._leap(entry, done, final, first_pass, cycles_full, work)
                done += tiles * T
                freed += tiles * T if final else 0
            if steady >= STEADY and may_skip and tokens - done >= (STEADY + 2) * T:
                done += self._skip(entry, shape, (tokens - done) // T - STEADY, cycles_full, work, first_pass)
                emitted, accepted, overs = self.emitted, accepted + self.skipped, self.overs
                steady = 0
            count = T if tokens - done >= T else tokens - done
            last = done + count == tokens
            # ---- dispatch
            if queued:
                if first:
                    accepted = begin + c.WALK_FIRST + c.WALK_EVERY * (count - 1)
                else:
                    accepted = max(accepted + c.WALK_EVERY * count,
                                   emitted + (1 if count == 1 else 2 + c.WALK_EVERY * (count - 2)))  # fmt: skip
                if route is not None:
                    # Combine weights of the tile's last token.
                    accepted = max(accepted, self._weights_there(entry, route, done + count - 1))
                collected = accepted + c.COLLECTED_TO_EMIT
            else:
                collected = emitted + count + c.COLLECTED_TO_EMIT
            input_there = wide_there = 0.0
            if first_pass:
                stripe, line = divmod((done + count) * lines - 1, self.stripe_lines)
                while len(entry.input_times) <= stripe:
                    yield
                start, slope = entry.input_times[stripe]
                input_there = start + line * slope + c.LINE_TO_WRITTEN
            if combine:
                rows = shape.wide_rows if moe or not first_pass else (done + count) * shape.output_tiles
                if wide_base + rows > self.wide_capacity:
                    while True:
                        wide_there = self._wide_freed(wide_base + rows - self.wide_capacity)
                        if wide_there < INFINITY:
                            break
                        yield
            wanted = collected if collected > input_there else input_there
            if wide_there > wanted:
                wanted = wide_there
            emit = max(wanted, self.gather_over, overs[0] + 1)
            # ---- gather
            gather = emit + 1
            group0, group1 = self.groups, self.groups + lines - 1
            self.groups += lines
            there = gather + count - 1
            gather_end = gather + count * lines - 1
            if group1 >= self.group_capacity:
                free = self._group_freed(group0 - self.group_capacity) + c.FREED_SEEN + count - 1
                if free > there:
                    there = free
                free = self._group_freed(group1 - self.group_capacity) + c.FREED_SEEN + count - 1
                if free > gather_end:
                    gather_end = free
            self.gather_over = gather_end
            there = max(there, gather_end - line_beats * (lines - 1)) + c.GATHER_TO_FILLED
            # ---- issue
            over_before = self.over
            valid = emit + 1
            start = over_before + 1
            if valid > start:
                start = valid
            room = 0.0
            if first:
                while unit.first == INFINITY:
                    yield
            weights_there = unit.first
            if linear and not gate:
                wanted_tile = self.linear_tiles - c.LINEAR_BUFFERS
                while self.packed <= wanted_tile:
                    yield
                if wanted_tile >= 0:
                    room = self.pack_ends[wanted_tile & 63] + c.FREED_SEEN
                self.linear_tiles += 1
            elif gate:
                room = self.gate_rooms.popleft()
            begin_beat = max(start, there, room)
            if first and weights_there > begin_beat:
                begin_beat = weights_there
            cycles = cycles_full if count == T else shape.tile_cycles(number, count, hw)
            over = begin_beat + cycles - 1
            stretched = False
            if first:
                while unit.last == INFINITY:
                    yield
                if unit.last > over:
                    over = unit.last
                    stretched = True
            # ---- why the array was idle
            gap = begin_beat - over_before - 1
            even = gap <= 0 and not stretched
            steady = steady + 1 if even and emit == overs[0] + 1 else 0
            if gap > 0:
                self._explain(
                    entry, over_before + 1, begin_beat, valid, weights_there if first else 0.0, there,
                    room if gate else 0.0, room if linear else 0.0, item if first else emitted,
                    slot_there if first else 0.0, known if first else 0.0, begin if first else 0.0, queued, collected,
                    input_there, wide_there,
                )  # fmt: skip
            waits = over - begin_beat + 1 - work
            if waits > 0:
                locked = cycles - work
                entry.stalls[DRAIN] += min(waits, locked)
                entry.stalls[WEIGHTS] += waits - min(waits, locked)
            # ---- the array's record
            if pass_begin < 0:
                pass_begin = begin_beat
            if entry.first_beat < 0:
                entry.first_beat = begin_beat
                self._first_beat(entry, begin_beat, gap)
            busy = self.busy
            if gap <= 0 and not stretched and not waits and busy and busy[-1][2] >= busy[-1][1] - busy[-1][0]:
                busy[-1][1] = over + 1
                busy[-1][2] += work
            else:
                busy.append([begin_beat, over + 1, work])
            entry.array_beats += work
            if gate:
                entry.gate_beats += work
            phase_end = over
            if phase:  # over the inputs, before the output tiles
                phase_end = over - rest if stretched else min(begin_beat + phase - 1, over - rest)
            self.group_ends.append((self.groups, phase_end, lines))
            overs.popleft()
            overs.append(over)
            self.over = over
            self.emitted = emitted = emit
            # ---- behind the array
            result = over + c.BEAT_TO_RESULT + count - 1
            if gate:
                assert route is not None
                token = max(over + c.BEAT_TO_RESULT + c.RESULT_TO_LOGITS, entry.pushed + c.PUSH_TO_VIEW + c.ROUTE_OPENS)
                if route:
                    token = max(token, route[-1] + shape.step)
                token = max(token + shape.step * (count - 1), result + c.RESULT_TO_LOGITS)
                route.append(token)
                self.gate_rooms.append(token + shape.words + c.FREED_SEEN)
            elif linear:
                self.pack_queue.append((result + c.RESULT_TO_PACK, entry, number, done, count, last and final))
                self.wake |= PACKER
            elif final and (not moe or last):
                entry.completes.append(result + c.RESULT_TO_COMPLETE)
                self.wake |= FINISHER
            if final and (last or not moe) and freed <= done:
                self.lines_freed += shape.tokens * lines if moe else count * lines
                self.line_frees.append((self.gather_over + c.FREED_SEEN, self.lines_freed))
                self.wake |= ROWER
                freed = done + count
            if final and linear and steady:
                # The next tiles leave dispatch when those in the queue are computed: their lines are free before the
                # array, which waits for the packing of earlier tiles, is known to reach them.
                for ahead, leaves in enumerate(overs):
                    size = min(T, tokens - done - count - ahead * T)
                    if size > 0 and freed == done + count + ahead * T:
                        freed += size
                        self.lines_freed += size * lines
                        self.line_frees.append((leaves + 1 + size * lines + c.FREED_SEEN, self.lines_freed))
                        self.wake |= ROWER
            if last:
                slot = self.slots[unit.slot]
                slot.users -= 1
                slot.free = max(slot.free, result + c.RESULT_TO_FREE)
                self.wake |= LOADER
            done += count
            first = False
        if self.timeline:
            expert = -1 if gate else unit.expert & 0xFFFFF
            self.passes.append((pass_begin, self.over + 1, entry.index, expert, number))
        return self.emitted + c.EMIT_TO_ITEM

    def _skip(self, entry: Entry, shape: Shape, tiles: int, cycles: int, work: int, first_pass: bool) -> int:
        """Pass over ``tiles`` full tiles that run like the ones before; returns their tokens, 0 if they may not.

        From a tile to the next, everything that dispatch, gather and issue know moves by the cycles of a tile.
        """
        self.skipped = 0.0
        if first_pass:
            # All rows must be there, and room for all results.
            if len(entry.input_times) < shape.input_stripes:
                return 0
            begin, slope = entry.input_times[-1]
            if begin + slope * self.stripe_lines > self.emitted:
                return 0
            rows = entry.wide_before + shape.wide_rows - self.wide_capacity
            if rows > 0 and self._wide_freed(rows) > self.emitted:
                return 0
        shift = float(tiles * cycles)
        self.skipped = shift
        groups = tiles * shape.input_lines
        locked = cycles - work
        if locked:
            entry.stalls[DRAIN] += tiles * locked
            self.busy.append([self.over + 1, self.over + 1 + shift, tiles * work])
        else:
            self.busy[-1][1] += shift
            self.busy[-1][2] += tiles * work
        entry.array_beats += tiles * work
        self.over += shift
        self.emitted += shift
        self.gather_over += shift
        self.overs = deque([over + shift for over in self.overs])
        self.groups += groups
        self.group_ends = deque([(upto + groups, end + shift, lines) for upto, end, lines in self.group_ends])
        return tiles * self.hw.tile_tokens

    def _group_freed(self, group: int) -> float:
        """When an operand group was given back."""
        ends = self.group_ends
        while ends and ends[0][0] <= group:
            ends.popleft()
        if not ends:
            return 0.0
        upto, end, _ = ends[0]
        return end - (upto - 1 - group) * self.line_beats

    def _weights_there(self, entry: Entry, starts: list[float], position: int) -> float:
        """When the combine weight of an entry of the first expert's queue may be read."""
        shape = entry.shape
        assert shape is not None
        expert, load = entry.orders[0][0], entry.orders[0][1]
        if entry.chosen is not None:
            if self.first_queue[0] is not entry:
                self.first_queue = (entry, np.flatnonzero((entry.chosen == expert).any(axis=1)).tolist())
            token = self.first_queue[1][position]
        else:
            token = (position + 1) * shape.tokens // load - 1
        tile, lane = divmod(token, self.hw.tile_tokens)
        count = min(self.hw.tile_tokens, shape.tokens - tile * self.hw.tile_tokens)
        start = starts[tile] - (count - 1 - lane) * shape.step
        chosen = start + shape.words + c.START_TO_LAST_WORD + c.WORD_TO_CHOSEN
        return chosen + c.CHOSEN_TO_WEIGHT + shape.words + shape.top_k - c.WALK_EVERY

    def _first_beat(self, entry: Entry, time: float, gap: float) -> None:
        job = entry.job
        if job not in self.job_first_beat:
            self.job_first_beat[job] = time
            self.job_idle[job] = []
        else:
            self.job_idle[job].append(gap)

    def _explain(
        self, entry: Entry, begin: float, end: float, valid: float, weights: float, there: float, gate: float,
        linear: float, item: float, slot: float, known: float, begun: float, queued: bool, collected: float,
        input_there: float, wide: float,
    ) -> None:  # fmt: skip
        """Attribute the idle cycles [begin, end) to causes, as issue.sv does from the state of dispatch."""
        stalls = entry.stalls
        at = max(begin, self.idle_until)
        self.idle_until = 0.0

        def until(time: float, cause: int) -> None:
            nonlocal at
            stop = time if time < end else end
            if stop > at:
                stalls[cause] += stop - at
                at = stop

        until(item, INPUT)
        if begun:
            until(known, ROUTE)
            until(max(slot, begun), WEIGHTS)
        until(collected - 2 if queued else collected, ROUTE if queued else INPUT)
        until(input_there, INPUT)
        until(wide, STORE)
        until(valid, INPUT)
        until(weights, WEIGHTS)
        until(there, INPUT)
        until(gate, ROUTE)
        until(linear, STORE)
        until(end, INPUT)
