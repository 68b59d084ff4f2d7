"""Where the time of a frame goes: wall-clock seconds by phase, nested without counting anything twice."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

PACK, COPY, EXECUTE, UNPACK, HOST = PHASES = ("pack", "copy", "execute", "unpack", "host")
"""``pack`` and ``unpack``: tensors to and from the engine's byte order. ``copy``: into and out of its memory, with
cache maintenance. ``execute``: from writing a program to its end. ``host``: what the engine does not compute."""


class PhaseClock:
    """Adds up the seconds spent in each phase.

    Phases may be nested: the time of an inner one does not count for the outer one, so that their sum is the time
    during which any was active. Time outside of all phases is counted nowhere: whoever compares the sum with a time
    taken around everything finds out.

    Attributes:
        seconds: phase → seconds so far.
    """

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(PHASES, 0.0)
        self._active: list[str] = []
        self._since = 0.0

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Count the time of the block for ``phase``."""
        if phase not in self.seconds:
            raise KeyError(f"phase {phase!r}: expected one of {', '.join(PHASES)}")
        self._switch()
        self._active.append(phase)
        try:
            yield
        finally:
            self._switch()
            self._active.pop()

    def _switch(self) -> None:
        """Book the time since the last switch on the phase that was active."""
        now = time.perf_counter()
        if self._active:
            self.seconds[self._active[-1]] += now - self._since
        self._since = now

    def take(self) -> dict[str, float]:
        """Seconds per phase since the last call, and begin anew."""
        taken, self.seconds = self.seconds, dict.fromkeys(PHASES, 0.0)
        return taken
