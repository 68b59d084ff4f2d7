"""Points of an exploration, what is minimized over them, and those that no other beats."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from accel.config import to_dict
from accel.resources import LIMITS, Resources, resources
from accel.resources import to_dict as resources_to_dict
from sim.explore import Candidate


@dataclass(frozen=True)
class Point:
    """A candidate, simulated.

    Attributes:
        figures: of ``sim.explore.Problem.evaluate``.
        device: what the shares are of.
        rtl_refusal: why the RTL cannot be built so; None if it can.
    """

    candidate: Candidate
    figures: Mapping[str, Any]
    device: Resources
    rtl_refusal: str | None

    @property
    def name(self) -> str:
        return self.candidate.hardware.name

    @cached_property
    def shares(self) -> dict[str, float]:
        """Share of the device, by resource."""
        return resources(self.candidate.hardware).shares(self.device)

    def values(self, objectives: Sequence[str]) -> tuple[float, ...]:
        """What is minimized."""
        return tuple(OBJECTIVES[name].of(self) for name in objectives)

    def to_dict(self) -> dict[str, Any]:
        """Plain dictionary, ready for JSON."""
        return {
            "name": self.name,
            "hardware": to_dict(self.candidate.hardware),
            "schedule": self.candidate.schedule,
            **self.figures,
            "resources": resources_to_dict(resources(self.candidate.hardware)),
            "shares": self.shares,
            "rtl": self.rtl_refusal is None,
            "rtl_refusal": self.rtl_refusal,
        }


@dataclass(frozen=True)
class Objective:
    """Something to minimize: what it is called in tables and plots, and its value."""

    label: str
    of: Callable[[Point], float]


def _share(name: str) -> Objective:
    return Objective(f"{name.upper()}, share of the device", lambda point: point.shares[name])


OBJECTIVES: dict[str, Objective] = {
    "ms": Objective("ms per frame", lambda point: point.figures["milliseconds"]),
    "resources": Objective("largest share of the device", lambda point: max(point.shares.values())),
    **{name: _share(name) for name in LIMITS},
    "energy": Objective("mJ per frame, high end of the estimate", lambda point: point.figures["millijoules"][1]),
    "clock": Objective("MHz", lambda point: point.candidate.hardware.clock_mhz),
}
"""``energy`` takes the high end: the ends of two designs share all constants, so comparing one end of both is fair."""


def non_dominated(values: NDArray[np.float64]) -> NDArray[np.int64]:
    """Rows [points, objectives] that no other row beats: none is as small everywhere and smaller somewhere."""
    front = np.empty((0, values.shape[1]))
    kept = []
    for index in np.lexsort(values.T[::-1]):  # whatever beats a row comes before it
        row = values[index]
        if not ((front <= row).all(axis=1) & (front < row).any(axis=1)).any():
            front = np.vstack([front, row])
            kept.append(index)
    return np.array(sorted(kept), np.int64)


def pareto_front(points: Sequence[Point], objectives: Sequence[str]) -> list[Point]:
    """Points that no other beats, by rising objectives; of points equal in all of them the one that takes least."""
    if not points:
        return []
    values = [point.values(objectives) for point in points]
    best: dict[tuple[float, ...], Point] = {}
    for index in non_dominated(np.array(values, np.float64)):
        point = points[index]
        other = best.get(values[index])
        if other is None or _size(point) < _size(other):
            best[values[index]] = point
    return [best[value] for value in sorted(best)]


def _size(point: Point) -> tuple[float, str]:
    return sum(point.shares.values()), point.candidate.key
