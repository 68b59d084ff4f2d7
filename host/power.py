"""Energy: measured on the board's power rails, or estimated from an engine's record. One never stands for the other.

A measurement comes from the sensors that PYNQ finds on a ZCU104 (``pynq.get_rails``). Where there is no board, an
estimate adds up what an engine of this size would draw: a share that flows whether it works or not, and a share per
multiply-accumulate and per byte of DDR traffic. Every constant is a range, says where it comes from, and the result is
a range too. Both kinds carry their name in ``kind``, so that nothing downstream can mix them.
"""

from __future__ import annotations

import importlib
import threading
import time
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from accel.errors import DeviceError
from host.device import Closing, Device

MEASURED, ESTIMATE = "measured", "estimate"


@dataclass(frozen=True)
class Constant:
    """A figure of the model.

    Attributes:
        low, high: its range.
        unit: of both.
        assumed: nobody measured it for this engine.
        source: where the range comes from.
    """

    low: float
    high: float
    unit: str
    assumed: bool
    source: str


STATIC = Constant(
    3.5, 6.7, "W", False,
    "readings of an idle ZCU104 in PYNQ's notebook zcu104_pmbus: rail INT alone, and all secondary rails together",
)  # fmt: skip
MAC = Constant(
    2.0, 8.0, "pJ per 8-bit multiply-accumulate", True,
    "assumed, stores, clocks and wiring included: a busy array of 0.92 TMAC/s lies on both sides of published engines",
)  # fmt: skip
DDR = Constant(
    120.0, 320.0, "pJ per byte", True, "assumed: 15 to 40 pJ per bit of DDR4, controller and pins included",
)  # fmt: skip
MODEL: Mapping[str, Constant] = {"static": STATIC, "mac": MAC, "ddr": DDR}
PUBLISHED_WATTS = (9.9, 14.5)
"""Power of engines of this class: CoQMoE 0.064 J in 6.47 ms, M3ViT's estimate of 10 W, UbiMoE 0.296 J in 25.76 ms,
Edge-MoE 14.5 W. A fully busy engine of the size ``zcu104`` must lie in the model's range with all of them."""

TOTAL_RAIL, CORE_RAIL = "12V", "INT"
"""Rails of a ZCU104: what the board draws, and the core supply of the chip."""


def estimate_joules(counters: Mapping[str, int], seconds: float) -> dict[str, tuple[float, float]]:
    """Energy of a run by part, as (low, high), from the engine's counters and the time it took."""
    moved = counters["bytes_read"] + counters["bytes_written"]
    amounts = {"static": seconds, "mac": counters["macs"] * 1e-12, "ddr": moved * 1e-12}
    return {name: (item.low * amounts[name], item.high * amounts[name]) for name, item in MODEL.items()}


def estimate(counters: Mapping[str, int], jobs: int, clocks_mhz: Sequence[int]) -> dict[str, Any] | None:
    """Estimated energy of ``jobs`` frames, ready for JSON; None without a cycle count, and so without a time.

    Only the engine's programs count: what the host draws while it computes is in no model here.
    """
    if not counters.get("cycles") or jobs < 1:
        return None
    clocks = {}
    for clock in clocks_mhz:
        seconds = counters["cycles"] / clock / 1e6
        parts = estimate_joules(counters, seconds)
        low, high = (sum(part[end] for part in parts.values()) for end in (0, 1))
        clocks[str(clock)] = {
            "joules_per_frame": [low / jobs, high / jobs],
            "watts": [low / seconds, high / seconds],
            "parts": {name: [value / jobs for value in part] for name, part in parts.items()},
        }
    return {
        "kind": ESTIMATE,
        "covers": "the engine's programs and its DDR traffic; not the processor",
        "constants": {name: asdict(item) for name, item in MODEL.items()},
        "per_clock_mhz": clocks,
    }


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
