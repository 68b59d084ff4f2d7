"""What leaves the accumulators: finished and packed lines, segments, bursts (finish.sv, linear_pack.sv, store.sv)."""

from __future__ import annotations

from sim import latencies as c
from sim.bus import INFINITY
from sim.fetching import Fetching
from sim.state import COMPUTER, FINISHER, PACKER, RESIDUALER, Process

GROUP, GROUP_SLACK = 4, 8
"""Segments of a LINEAR tile that are written as one event, where a tile computes for at least so many cycles per line,
four times what the write ports need. They are as many as the ports have in flight."""


class Writing(Fetching):
    """And what is written."""

    def _wide_freed(self, rows: int, look: bool = False) -> float:
        """When this many accumulator rows in all have been given back; infinity if that is not known yet.

        They become more from call to call, unless the caller only wants to ``look``.
        """
        row = rows - 1
        pointer = self.wide_pointer
        while True:
            entry = self.wide_layers[pointer]
            shape = entry.shape
            assert shape is not None
            if row < entry.wide_before + shape.wide_rows:
                break
            if not look:
                entry.finished = []
                self.wide_pointer += 1
            pointer += 1
        # Rows are fetched ahead: a row leaves when the one so many before it is used up.
        local = max(0, row - entry.wide_before - c.ROWS_AHEAD)
        token, part = divmod(local, shape.output_tiles)
        line = token * shape.output_lines + min(
            shape.output_lines - 1, ((part + 1) * self.hw.tile_outputs * 2 - 1) // self.hw.line_bytes
        )
        group, within = divmod(line, self.stripe_lines)
        if len(entry.finished) <= group:
            return INFINITY
        size = min(self.stripe_lines, shape.tokens * shape.output_lines - group * self.stripe_lines)
        return entry.finished[group] - c.FINISH_STEPS * (size - 1 - within) + 2

    def _finish(self) -> Process:
        index, advanced = 0, 0.0
        before = 0.0  # last step of the lines before
        groups = 0
        lines = self.stripe_lines
        steps = c.FINISH_STEPS
        while True:
            while index >= len(self.entries):
                yield
            entry = self.entries[index]
            view = max(entry.pushed, advanced) + c.PUSH_TO_VIEW
            index += 1
            shape = entry.shape
            if shape is None or shape.linear:
                advanced = view
                continue
            total = shape.tokens * shape.output_lines
            per_tile = self.hw.tile_tokens * shape.output_lines
            gated = shape.gated
            before = max(before, view)
            self.finish_entry, self.finish_group = entry.index, 0
            while self.finish_group * lines < total:
                while True:
                    group = self.finish_group  # again after a pause: a leap may have moved it
                    low = group * lines
                    n = min(lines, total - low)
                    tile = 0 if gated else (low + n - 1) // per_tile
                    if len(entry.completes) > tile and len(entry.residual_times) > group:
                        if self.finish_filled > groups - 2:
                            break
                    yield
                start, slope = entry.residual_times[group]
                end = max(before + steps * n, start + 1 + steps * n, start + (n - 1) * slope + steps)
                mine = n if gated else low + n - max(low, tile * per_tile)
                end = max(end, entry.completes[tile] + c.ROW_FETCH + steps * mine)
                if mine < n:
                    end = max(end, entry.completes[tile - 1] + c.ROW_FETCH + steps * n)
                if groups >= 2:
                    end = max(end, self.finish_fills[(groups - 2) & 63] + steps * n)
                before = end
                groups += 1
                self.finish_group = group + 1
                entry.finished.append(end)
                self.residuals_freed += n
                self.residual_frees.append((end + c.POPPED_TO_ROOM, self.residuals_freed))
                final = low + n == total
                self.finish_lines.append(
                    (end - steps * (n - 1) + c.FINISH_TO_LINE, end + c.FINISH_TO_LINE, n, entry, final, 1)
                )
                self.wake |= RESIDUALER | COMPUTER
            advanced = before

    def _pack(self) -> Process:
        end = -10.0
        segments = 0
        sizes: list[int] = []
        lines = self.stripe_lines
        while True:
            while not self.pack_queue:
                yield
            ready, entry, unit, token, count, final = self.pack_queue.popleft()
            shape = entry.shape
            assert shape is not None
            start = max(ready, end + 4)
            share, begin = shape.store_share[unit]
            pieces: list[int] = []
            if share == shape.output_lines:
                spans = [(token * share, count * share)]
            else:
                spans = [((token + lane) * shape.output_lines + begin, share) for lane in range(count)]
            for low, size in spans:
                while size:
                    piece = min(size, lines - low % lines)
                    pieces.append(piece)
                    low += piece
                    size -= piece
            parts = [(piece, 1) for piece in pieces]
            roomy = self.held is None and self.in_flight >= GROUP * self.blocks
            if roomy and shape.tile_cycles(unit, count, self.hw) >= GROUP_SLACK * sum(pieces):
                parts = [
                    (sum(pieces[at : at + GROUP]), len(pieces[at : at + GROUP])) for at in range(0, len(pieces), GROUP)
                ]
            read = start
            for position, (piece, grouped) in enumerate(parts):
                first = read
                last = first + piece - 1
                # The queue behind holds 16 lines: what was read 16 lines earlier must have been taken.
                back, ahead = segments - 1, c.PACK_LINES - piece
                while back >= 0 and sizes[back % 64] <= ahead:
                    ahead -= sizes[back % 64]
                    back -= 1
                if back >= 0:
                    while self.linear_closed <= back:
                        yield
                    last = max(last, self.linear_closes[back & 63] - ahead + 1)
                if len(sizes) < 64:
                    sizes.append(piece)
                else:
                    sizes[segments % 64] = piece
                segments += 1
                read = last + 1
                is_final = final and position == len(parts) - 1
                self.linear_lines.append(
                    (first + c.PACK_TO_LINE, last + c.PACK_TO_LINE, piece, entry, is_final, grouped)
                )
            end = read - 1
            self.pack_ends[self.packed & 63] = end
            self.packed += 1
            self.wake |= COMPUTER

    def _plan_store(self) -> None:
        """When the store unit takes its next segment; again whenever lines or buffers have changed."""
        linear, finish = self.linear_lines, self.finish_lines
        if not linear and not finish or len(self.buffer_free) < 2:
            self.store_at = INFINITY
            return
        first = linear[0][0] if linear else INFINITY
        if finish and finish[0][0] < first:
            first = finish[0][0]
        if self.store_free > first:
            first = self.store_free
        self.store_at = self.buffer_free[0] if self.buffer_free[0] > first else first

    def _store(self, time: float) -> None:
        self.buffer_free.popleft()
        from_linear = bool(self.linear_lines) and self.linear_lines[0][0] <= time
        queue = self.linear_lines if from_linear else self.finish_lines
        _, last, lines, entry, final, grouped = queue.popleft()
        padding = 0
        if final:
            shape = entry.shape
            assert shape is not None
            rest = shape.tokens * shape.output_lines % self.stripe_lines
            padding = self.stripe_lines - rest if rest else 0
        fill = time + c.CHOOSE
        close = max(fill + lines - 1 + (c.CHOOSE + 1) * (grouped - 1), last) + padding
        self.store_free = close + 1
        if from_linear:
            self.linear_closes[self.linear_closed & 63] = close
            self.linear_closed += 1
        else:
            self.finish_fills[self.finish_filled & 63] = fill
            self.finish_filled += 1
        self.unlaunched.append((close, lines + padding, entry, final, grouped))
        if entry.store_first < 0:
            entry.store_first = fill
        self.wake |= PACKER if from_linear else FINISHER
        self._launch()
        self._plan_store()

    def _launch(self) -> None:
        """Hand closed segments to the write ports, as far as their bursts have room in flight."""
        blocks = self.blocks
        flight = max(self.in_flight, blocks)
        landed, held = self.landed, self.held
        while self.unlaunched:
            close, lines, entry, final, grouped = self.unlaunched[0]
            bursts = blocks * grouped
            beats = lines / grouped
            number = self.bursts
            if number + bursts - 1 - flight > self.last_landed:
                return
            self.unlaunched.popleft()
            launch = max(close + c.CLOSE_TO_LAUNCH, self.launch_before + 1)
            complete = 0.0
            for block in range(bursts):
                if block:
                    launch += 1
                if number >= flight:
                    room = landed[(number - flight) & 31] + c.LANDED_TO_LAUNCH
                    if room > launch:
                        launch = room
                begin = launch + c.LAUNCH_TO_BEAT
                if self.sent_before > begin:
                    begin = self.sent_before
                if held is None:
                    end = begin + beats
                else:
                    end = max(channel.end(begin, lines) for channel in held["w"][: self.hw.write_ports])
                self.sent_before = end
                if not block:
                    complete = end + c.SENT_TO_COMPLETE
                number += 1
            self.launch_before = launch
            self.writes.append((complete, self.sent_before + c.SENT_TO_COMPLETE, beats, number - 1, bursts))
            self.buffer_free.append(self.sent_before - 1 + c.SENT_TO_FREE)
            if final:
                self.final_burst[number - 1] = entry
            if self.timeline:
                self.stores.append((close, self.sent_before, entry.index))
            self.bursts = number

    def _write(self, time: float) -> None:
        _, complete, beats, number, blocks = self.writes.popleft()
        size = beats * blocks
        _, end = self.budget.move(time, float(size), float(size * self.hw.write_ports * self.hw.port_bytes))
        if end < complete + beats:
            end = complete + beats
        if self.memory.turnaround:
            self.bus_free = end
        else:
            self.write_free = end
        self.batch += blocks * self.hw.write_ports
        time = end + self.memory.write_latency - 1
        for block in range(blocks - 1, 0, -1):
            self.landed[(number - block) & 31] = time - block * beats
        self._answered(number, time)

    def _answered(self, number: int, time: float) -> None:
        """Both ports have the responses to the bursts up to this one."""
        self.landed[number & 31] = time
        self.last_landed = number
        entry = self.final_burst.pop(number, None)
        if entry is not None:
            entry.written = time
            self._retire()
        if self.unlaunched:
            self._launch()
            self._plan_store()
