"""The memory's data bus, burst by burst: budget, refresh, direction and recorded stalls (accel.memory_model).

Beats are not simulated one by one: a burst takes as long as its bytes need at the rate that is left. A cycle in which a
beat *moves* is a cycle of the memory; the engine sees it one cycle later.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import Any

import numpy as np
from numpy.typing import NDArray

from accel.memory_model import MAX_PORTS, MemoryModel
from sim import latencies as c

INFINITY = float("inf")
EMPTY = 1e-6
"""Bytes in the bucket that are none but for rounding."""


class Held:
    """When a channel of a port may pass a handshake, under a recorded pattern of stalls."""

    def __init__(self, free: np.ndarray) -> None:
        """``free``: per cycle of the period, whether nothing is held back."""
        self.period = len(free)
        self.slots: list[int] = np.flatnonzero(free).tolist()
        self.per_period = len(self.slots)

    def index(self, time: float) -> int:
        """Number of free cycles before ``time``."""
        periods, rest = divmod(time + c.MEMORY_CLOCK_LEAD, self.period)
        return int(periods) * self.per_period + bisect_left(self.slots, rest)

    def time(self, index: int) -> float:
        """Free cycle number ``index``, counted from 0."""
        periods, rest = divmod(index, self.per_period)
        return periods * self.period + self.slots[rest] - c.MEMORY_CLOCK_LEAD

    def after(self, time: float) -> float:
        """First free cycle from ``time`` on."""
        return self.time(self.index(time))

    def end(self, time: float, beats: int) -> float:
        """End (one past the last) of ``beats`` handshakes, one per free cycle from ``time`` on."""
        return self.time(self.index(time) + beats - 1) + 1


def held_channels(model: MemoryModel, ports: int) -> dict[str, list[Held]] | None:
    """Per channel, the ports' patterns; None if nothing is ever held back."""
    if not model.stall_percent:
        return None
    pattern = model.stalls()
    found = {}
    for number, name in enumerate(("ar", "r", "aw", "w", "b")):
        bits = [(pattern >> np.uint32(MAX_PORTS * number + port)) & 1 for port in range(ports)]
        found[name] = [Held(bit == 0) for bit in bits]
    return found


class Budget:
    """Bytes that may move: a bucket that fills at a rate, and refreshes during which nothing moves."""

    def __init__(self, model: MemoryModel) -> None:
        self.refresh = model.refresh_cycles
        self.period = model.refresh_period
        open_cycles = self.period - self.refresh
        self.rate = model.bytes_per_cycle * self.period / open_cycles
        """Bytes per cycle outside refreshes."""
        self.size = float(model.bucket_bytes)
        self.level, self.at = self.size, 0.0
        self.closes = open_cycles - c.MEMORY_CLOCK_LEAD if self.refresh else INFINITY
        """Next refresh that has not been passed."""

    def ends(self, count: int, size: int) -> NDArray[Any]:
        """When each of ``count`` moves of ``size`` bytes ends that follow at once, from an empty bucket."""
        found: NDArray[Any] = self.at + np.arange(1, count + 1) * (size / self.rate)
        if self.closes < INFINITY:
            passed = np.ceil(np.maximum(found - self.closes, 0.0) / (self.period - self.refresh))
            found = found + passed * self.refresh
        return found

    def drained(self, time: float) -> None:
        """Such moves have gone on until ``time``."""
        self.level, self.at = 0.0, time
        while self.closes < time:
            self.closes += self.period

    def leap(self, cycles: float) -> None:
        """Refreshes come ``cycles`` earlier by the machine's own clock; the bucket is as full as it was."""
        self.closes -= cycles
        while self.closes + self.refresh <= self.at:
            self.closes += self.period

    def move(self, time: float, cycles: float, size: float) -> tuple[float, float]:
        """Move ``size`` bytes, which takes ``cycles`` at least, from ``time`` on: begin and end."""
        closes = self.closes
        if time >= closes:
            while time >= closes + self.refresh:
                closes += self.period
            if time >= closes:
                time = closes + self.refresh
                closes += self.period
            self.closes = closes
        level = self.level + (time - self.at) * self.rate
        if level > self.size:
            level = self.size
        needed = (size - level) / self.rate
        if needed > cycles:
            cycles = needed
        end = time + cycles
        self.level = level + cycles * self.rate - size
        self.at = end
        if end > closes:
            end += self.refresh
            self.at = end
            self.closes = closes + self.period
        return time, end
