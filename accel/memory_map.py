"""The arena: one contiguous piece of memory that the engine reads and writes through offsets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from accel.layers import round_up

REGIONS: tuple[tuple[str, str], ...] = (
    ("weights", "engine blobs of the bundle, from offset 0, experts of a layer side by side"),
    ("activations", "input, residual and output rows of the layers in flight"),
    ("record", "identity, error, counters and job entries, written by the engine"),
    ("program", "commands"),
)
"""Regions of an arena, in the order they are placed."""

ARENA_ALIGNMENT = 4096
"""Arenas and their regions start at multiples of this, so that no burst crosses a 4 KiB boundary."""


@dataclass(frozen=True)
class ArenaMap:
    """Offsets and sizes of the regions of an arena, bytes."""

    offsets: Mapping[str, int]
    sizes: Mapping[str, int]

    @classmethod
    def layout(cls, **sizes: int) -> ArenaMap:
        """Place the regions one after the other; unnamed ones are empty."""
        offsets, end = {}, 0
        for name, _ in REGIONS:
            offsets[name] = end
            end += round_up(sizes.get(name, 0), ARENA_ALIGNMENT)
        return cls(offsets, {name: sizes.get(name, 0) for name, _ in REGIONS})

    @property
    def bytes(self) -> int:
        last = REGIONS[-1][0]
        return round_up(self.offsets[last] + self.sizes[last], ARENA_ALIGNMENT)
