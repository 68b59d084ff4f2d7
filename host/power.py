"""Energy: measured on the board's power rails, or estimated from an engine's record. One never stands for the other.

A measurement comes from the sensors that PYNQ finds on a ZCU104 (``pynq.get_rails``). Where there is no board, the
model of ``accel/energy.py`` says what an engine that did so much in so many cycles would draw, as a range. Both kinds
carry their name in ``kind``, so that nothing downstream can mix them.
"""

from __future__ import annotations

import importlib
import threading
import time
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from accel.config import Config
from accel.energy import COVERS, ESTIMATE, constants_dict, estimate_energy
from accel.errors import DeviceError
from accel.layers import engine_layers
from host.device import Closing, Device

MEASURED = "measured"
TOTAL_RAIL, CORE_RAIL = "12V", "INT"
"""Rails of a ZCU104: what the board draws, and the core supply of the chip."""


def estimate(
    counters: Mapping[str, int], config: Config, jobs: int, clocks_mhz: Sequence[int]
) -> dict[str, Any] | None:
    """Estimated energy of ``jobs`` frames of ``config``, ready for JSON; None without a cycle count, and so a time.

    The model is that of ``accel/energy.py``. Only the engine's programs count, whatever lay between them.
    """
    layers = engine_layers(config) * jobs
    found = {clock: estimate_energy(counters, layers, config.hardware, jobs, clock) for clock in clocks_mhz}
    entries = {str(clock): item.per_frame() for clock, item in found.items() if item is not None}
    if not entries:
        return None
    return {"kind": ESTIMATE, "covers": COVERS, "constants": constants_dict(), "per_clock_mhz": entries}


@dataclass(frozen=True)
class Reading:
    """What a meter saw between two moments.

    Attributes:
        seconds: between them.
        joules: rail → energy, the trapezoid rule over its samples.
        samples: readings of each rail.
    """

    seconds: float
    joules: Mapping[str, float]
    samples: int

    @property
    def watts(self) -> dict[str, float]:
        """Rail → mean power."""
        return {rail: value / self.seconds for rail, value in self.joules.items()}


class PowerMeter(Closing):
    """Measures energy between :meth:`start` and :meth:`stop`."""

    @abstractmethod
    def start(self) -> None:
        """Begin a measurement."""

    @abstractmethod
    def stop(self) -> Reading:
        """End it; raises DeviceError if a sensor failed."""


class RailMeter(PowerMeter):
    """Samples power rails in a thread of its own.

    Args:
        rails: name → function that reads watts.
        interval: seconds between two samples. Work much shorter than that is not resolved: repeat it.
    """

    def __init__(self, rails: Mapping[str, Callable[[], float]], interval: float = 0.05) -> None:
        if not rails:
            raise DeviceError("power: expected at least one rail, found none")
        self._rails, self._interval = dict(rails), interval
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._samples: list[tuple[float, list[float]]] = []
        self._failure: Exception | None = None

    def start(self) -> None:
        if self._thread is not None:
            raise DeviceError("power: expected a meter at rest, found it measuring")
        self._samples, self._failure = [], None
        self._stop.clear()
        self._sample()
        self._thread = threading.Thread(target=self._work, name="power meter", daemon=True)
        self._thread.start()

    def _sample(self) -> None:
        self._samples.append((time.perf_counter(), [read() for read in self._rails.values()]))

    def _work(self) -> None:
        try:
            while not self._stop.wait(self._interval):
                self._sample()
        except Exception as error:  # a sensor's library may raise anything; it must surface in stop()
            self._failure = error

    def stop(self) -> Reading:
        thread, self._thread = self._thread, None
        if thread is None:
            raise DeviceError("power: expected a running measurement, found none")
        self._stop.set()
        thread.join()
        if self._failure is not None:
            raise DeviceError(f"power: a sensor failed: {self._failure}") from self._failure
        self._sample()
        joules = dict.fromkeys(self._rails, 0.0)
        for (begin, first), (end, second) in zip(self._samples, self._samples[1:], strict=False):
            for rail, left, right in zip(self._rails, first, second, strict=True):
                joules[rail] += (left + right) / 2 * (end - begin)
        return Reading(self._samples[-1][0] - self._samples[0][0], joules, len(self._samples))

    def close(self) -> None:
        """Stop measuring, if it still does."""
        if self._thread is not None:
            self._stop.set()
            self._thread.join()
            self._thread = None


def _power(rail: Any) -> Callable[[], float] | None:
    """How to read a rail's watts: its power sensor, or voltage times current."""
    if rail.power is not None:
        return lambda: float(rail.power.value)
    if rail.voltage is not None and rail.current is not None:
        return lambda: float(rail.voltage.value) * float(rail.current.value)
    return None


def open_meter(device: Device) -> PowerMeter | None:
    """A meter for the board that ``device`` is on; None where there is none.

    The sensors of some other computer do not count, even if PYNQ is installed on it: a simulated device has no meter,
    and a real one only if the rails of a ZCU104 are there.
    """
    if device.simulated:
        return None
    try:
        rails = importlib.import_module("pynq.pmbus").get_rails()
    except ImportError:
        return None
    if not {TOTAL_RAIL, CORE_RAIL} <= set(rails):
        return None
    readers = {name: _power(rail) for name, rail in rails.items()}
    return RailMeter({name: reader for name, reader in readers.items() if reader is not None})


def measured(idle: Reading, busy: Reading, jobs: int) -> dict[str, Any]:
    """A measurement of ``jobs`` frames, ready for JSON: per rail, with what the board draws at rest beside it."""
    return {
        "kind": MEASURED,
        "covers": f"the whole board while frames ran, processor included; rail {TOTAL_RAIL} contains the others",
        "seconds": busy.seconds,
        "samples": busy.samples,
        "rails": {
            rail: {
                "joules_per_frame": busy.joules[rail] / jobs,
                "watts": busy.watts[rail],
                "idle_watts": idle.watts[rail],
            }
            for rail in busy.joules
        },
    }
