"""Commands: asked for, checked, in flight, retired (fetch.sv, check.sv, entry_table.sv)."""

from __future__ import annotations

import numpy as np

from accel.commands import Opcode
from sim import latencies as c
from sim.bus import INFINITY
from sim.shapes import shape_of
from sim.state import COMMAND, EVERYBODY, FETCHER, Entry, Process, State


class Fetching(State):
    """The state, and the commands that come into it."""

    def _ask(self, time: float) -> None:
        index = self.asked
        self.asked += 1
        self.reads.append((COMMAND, index, 0, -1, time + c.ASK_TO_ISSUE))
        self._plan_ask(time)

    def _plan_ask(self, time: float) -> None:
        index = self.asked
        if index >= len(self.commands):
            self.next_ask = INFINITY
        elif index < c.COMMANDS_AHEAD:
            self.next_ask = time + c.ASK_EVERY
        elif index - c.COMMANDS_AHEAD < len(self.pops):
            self.next_ask = max(time + c.ASK_EVERY, self.pops[index - c.COMMANDS_AHEAD] + 1)
        else:
            self.next_ask = INFINITY

    def _fetch(self) -> Process:
        ready = float(c.START_TO_FETCH)
        job = 0
        for index, command in enumerate(self.commands):
            while index not in self.seen:
                yield
            pop = max(ready, self.seen.pop(index))
            self.pops.append(pop)
            if self.next_ask == INFINITY:
                self._plan_ask(pop)
            decode = pop + c.SEEN_TO_DECODE
            if command.opcode is Opcode.END:
                while self._empty_at() == INFINITY:
                    yield
                self.end_time = max(decode + 1, self._empty_at() + c.RETIRE_TO_END)
                return
            if command.opcode is Opcode.BARRIER:
                while self._empty_at() == INFINITY:
                    yield
                ready = max(decode + 1, self._empty_at() + 1) + 1
                continue
            if command.opcode is Opcode.JOB_END:
                entry = Entry(len(self.entries), command, None, job)
                push = decode + c.DECODE_TO_PUSH_JOB_END
            else:
                entry = Entry(len(self.entries), command, shape_of(command, self.hw), job)
                push = decode + c.DECODE_TO_PUSH
                self._route_of(entry)
            if entry.index >= c.ENTRIES:
                before = self.entries[entry.index - c.ENTRIES]
                while before.retired == INFINITY:
                    yield
                push = max(push, before.retired + c.RETIRE_TO_PUSH)
            entry.pushed = push
            self.entries.append(entry)
            if entry.shape is not None and entry.shape.wide_rows:
                entry.wide_before = self.wide_rows
                self.wide_rows += entry.shape.wide_rows
                self.wide_layers.append(entry)
            ready = push + c.PUSH_TO_NEXT
            self.wake |= EVERYBODY
            if command.opcode is Opcode.JOB_END:
                job += 1
            self._retire()

    def _route_of(self, entry: Entry) -> None:
        shape, command = entry.shape, entry.command
        assert shape is not None
        if not shape.gated:
            return
        chosen = self.routing[command.job, command.layer]
        if chosen.ndim == 2:
            entry.chosen = chosen
            entry.loads = np.bincount(chosen.reshape(-1), minlength=shape.experts).tolist()
        else:
            entry.loads = chosen.tolist()
        entry.experts = sum(1 for load in entry.loads if load)

    def _empty_at(self) -> float:
        return self.entries[-1].retired if self.entries else 0.0

    def _retire(self) -> None:
        """Retire what is complete, in order."""
        index = self.retired
        while index < len(self.entries):
            entry = self.entries[index]
            before = self.entries[index - 1].retired if index else -INFINITY
            if entry.is_job_end:
                entry.retired = max(entry.pushed + c.PUSH_TO_VIEW + 2, before + c.RETIRE_TO_RETIRE)
                last = self.job_last_beat.get(entry.job, -1.0)
                self.ahead[entry.job] = sum(1 for time in self.job_arrivals.get(entry.job + 1, ()) if time <= last)
                self.job_arrivals.pop(entry.job + 1, None)
                self.jobs_over = entry.job + 1
            elif entry.written == INFINITY:
                break
            else:
                entry.retired = max(entry.written + c.ANSWER_TO_RETIRE, before + c.RETIRE_TO_RETIRE)
            if not entry.is_job_end and entry.computed < INFINITY:
                entry.input_times, entry.residual_times, entry.units = [], [], []
            index += 1
            self.wake |= FETCHER
        self.retired = index
