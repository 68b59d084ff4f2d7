"""Energy: the meter on rails that a test makes up, the estimate, and that neither passes for the other."""

from __future__ import annotations

import sys
import time
import types
from typing import Any

import pytest

from accel.config import Config, Formats, hardware, network
from accel.energy import CONSTANTS, ESTIMATE
from accel.errors import DeviceError
from host.backends.golden import GoldenDevice
from host.phases import PHASES, PhaseClock
from host.power import (
    MEASURED,
    RailMeter,
    Reading,
    estimate,
    measured,
    open_meter,
)


def test_meter_integrates_its_samples() -> None:
    began = time.perf_counter()
    with RailMeter({"a": lambda: 3.0, "ramp": lambda: 10.0 * (time.perf_counter() - began)}, 0.002) as meter:
        meter.start()
        time.sleep(0.1)
        reading = meter.stop()
    assert reading.samples > 5 and reading.seconds >= 0.1
    assert reading.joules["a"] == pytest.approx(3.0 * reading.seconds)
    assert reading.joules["ramp"] == pytest.approx(5.0 * reading.seconds**2, rel=0.1), "the trapezoid rule"
    assert reading.watts["a"] == pytest.approx(3.0)


def test_meter_is_used_in_order() -> None:
    meter = RailMeter({"a": lambda: 1.0})
    with pytest.raises(DeviceError, match="expected a running measurement"):
        meter.stop()
    meter.start()
    with pytest.raises(DeviceError, match="found it measuring"):
        meter.start()
    meter.close()
    meter.close()
    meter.start()  # a closed meter is one at rest
    assert meter.stop().samples >= 2
    with pytest.raises(DeviceError, match="at least one rail"):
        RailMeter({})


def test_a_sensor_that_fails_is_reported() -> None:
    values = iter([1.0])

    def read() -> float:
        return next(values)  # the second time: StopIteration

    meter = RailMeter({"a": read}, 0.001)
    meter.start()
    time.sleep(0.05)
    with pytest.raises(DeviceError, match="a sensor failed"):
        meter.stop()


class Sensor:
    def __init__(self, value: float) -> None:
        self.value = value


def rail(power: float | None = None, voltage: float | None = None, current: float | None = None) -> Any:
    made = (None if value is None else Sensor(value) for value in (power, voltage, current))
    return types.SimpleNamespace(**dict(zip(("power", "voltage", "current"), made, strict=True)))


class Board(GoldenDevice):
    name = "board"
    simulated = False


@pytest.fixture
def rails(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the pynq of this test finds."""
    found = {"12V": rail(14.0), "INT": rail(None, 0.85, 4.0), "odd": rail(None, 1.0, None)}
    module = types.ModuleType("pynq.pmbus")
    module.get_rails = lambda: found  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pynq", types.ModuleType("pynq"))
    monkeypatch.setitem(sys.modules, "pynq.pmbus", module)
    return found


def test_meter_of_a_board(rails: dict[str, Any]) -> None:
    with Board(hardware("ci"), Formats()) as board:
        meter = open_meter(board)
        assert meter is not None
        meter.start()
        reading = meter.stop()
    assert reading.watts == {"12V": pytest.approx(14.0), "INT": pytest.approx(3.4)}, "the third rail cannot be read"


def test_no_meter_without_a_board(rails: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the rails of the computer that simulates, nor those of some other board, are the engine's."""
    with GoldenDevice(hardware("ci"), Formats()) as device:
        assert device.simulated and open_meter(device) is None
    with Board(hardware("ci"), Formats()) as board:
        del rails["INT"]
        assert open_meter(board) is None
        monkeypatch.setitem(sys.modules, "pynq.pmbus", None)
        assert open_meter(board) is None


COUNTERS = {
    "cycles": 300_000, "array_cycles": 250_000, "macs": 900_000_000, "bytes_read": 14_000_000,
    "weight_bytes": 9_000_000, "bytes_written": 400_000,
}  # fmt: skip


def test_estimate_is_a_range_with_sources() -> None:
    config = Config(network("m3vit-demo"))
    found = estimate(COUNTERS, config, 2, (300, 200))
    assert found is not None and found["kind"] == ESTIMATE and set(found["constants"]) == set(CONSTANTS)
    fast, slow = (found["per_clock_mhz"][clock] for clock in ("300", "200"))
    for entry in (fast, slow):
        low, high = entry["joules_per_frame"]
        assert 0 < low < high
        assert low == pytest.approx(sum(part[0] for part in entry["parts"].values()))
        assert high == pytest.approx(sum(part[1] for part in entry["parts"].values()))
    assert slow["joules_per_frame"][0] > fast["joules_per_frame"][0], "more time, more static energy"
    assert slow["watts"][1] < fast["watts"][1], "the same work in more time"
    assert slow["parts"]["mac"] == fast["parts"]["mac"]
    assert estimate({**COUNTERS, "cycles": 0}, config, 2, (300,)) is None


def test_measurement_as_json() -> None:
    idle, busy = Reading(1.0, {"12V": 11.0}, 20), Reading(2.0, {"12V": 28.0}, 40)
    found = measured(idle, busy, 4)
    assert found["kind"] == MEASURED and "per_clock_mhz" not in found
    assert found["rails"] == {"12V": {"joules_per_frame": 7.0, "watts": 14.0, "idle_watts": 11.0}}


def test_phases_nest_without_counting_twice() -> None:
    clock = PhaseClock()
    began = time.perf_counter()
    with clock("host"):
        time.sleep(0.01)
        with clock("execute"):
            time.sleep(0.02)
            with clock("copy"):
                time.sleep(0.01)
        time.sleep(0.01)
    total = time.perf_counter() - began
    time.sleep(0.01)  # in no phase
    with pytest.raises(ValueError), clock("pack"):
        raise ValueError
    taken = clock.take()
    assert list(taken) == list(PHASES) and taken["unpack"] == 0 < taken["pack"]
    assert taken["execute"] >= 0.02 and taken["copy"] >= 0.01 and taken["host"] >= 0.02
    assert sum(taken.values()) - taken["pack"] == pytest.approx(total, rel=0.02)
    assert not any(clock.take().values())
    with pytest.raises(KeyError, match="expected one of pack"), clock("lunch"):
        pass
