"""``m3vit bench`` and the other commands on the back end ``board``, and power as PYNQ's own library reads it."""

from __future__ import annotations

import json
from typing import Any

import pytest

pynq = pytest.importorskip("pynq", reason="pynq is not installed; see `make test-pynq`")

from board_programs import CI, FORMATS  # noqa: E402
from pynq import pmbus  # noqa: E402

from accel.record import COUNTERS  # noqa: E402
from cli.main import main  # noqa: E402
from host.phases import PHASES  # noqa: E402
from host.power import open_meter  # noqa: E402

TASKS = ["semseg", "depth"]
POWER, VOLTAGE, CURRENT, TEMPERATURE = 3, 0, 5, 2
"""Kinds of features, as libsensors numbers them."""


@pytest.fixture
def named(monkeypatch, tmp_path):
    """Makes ``open_device("board", …)`` find a simulated board, as it finds a real one."""

    def name(board: Any) -> None:
        monkeypatch.setenv("M3VIT_OVERLAY", str(board.bit))
        monkeypatch.setattr("host.backends.board.lock_file", lambda: tmp_path / "lock")

    return name


def bench(capsys, bundle, *arguments: object) -> dict[str, Any]:
    fixed = ("bench", bundle.path, "--backend", "board", "--tasks", ",".join(TASKS), "--frames", 4, "--json", "-q")
    code = main([str(item) for item in (*fixed, *arguments)])
    captured = capsys.readouterr()
    assert code == 0, captured.err
    return json.loads(captured.out)


def test_bench(rtl_board, named, bundle, capsys):
    named(rtl_board)
    result = bench(capsys, bundle, "--repeat", 2)
    assert result["backend"] == "board" and result["simulated"] and result["has_clock"]
    assert len(result["checks"]) == 6 and all(entry["ok"] for entry in result["checks"])
    live, replay = result["live"], result["replay"]
    assert [sample["task"] for sample in live["samples"]] == TASKS * 4
    for part in (live, replay):
        assert list(part["phases"]) == list(PHASES) and part["mismatches"] == 0
        phases = sum(entry["share"] for entry in part["phases"].values())
        assert part["unexplained"] <= 0.02 and phases == pytest.approx(1.0, abs=0.02)
        assert set(part["counters"]) == {slot.name for slot in COUNTERS} and part["counters"]["cycles"] > 0
        assert part["energy"]["kind"] == "estimate", "no board, no measurement"
    assert [job["task"] for job in replay["jobs"]] == TASKS * 2 and replay["compared"] > 0
    assert rtl_board.allocated == 0


def test_run_and_verify(rtl_board, named, bundle, tmp_path, capsys):
    from PIL import Image

    named(rtl_board)
    photograph = tmp_path / "street.png"
    Image.new("RGB", (40, 30), (90, 120, 60)).save(photograph)
    out = tmp_path / "pictures"
    assert main(["run", str(bundle.path), "--image", str(photograph), "--backend", "board", "--out", str(out)]) == 0
    assert len(list(out.glob("*.png"))) == len(TASKS) + 1
    assert main(["verify", str(bundle.path), "--backends", "board", "--images", str(tmp_path), "-q"]) == 0
    assert "all equal" in capsys.readouterr().out
    assert rtl_board.allocated == 0


class Sensors:
    """libsensors as PYNQ calls it, with the chips of a made-up board: (label, kind of feature, value)."""

    SENSORS_FEATURE_POWER, SENSORS_FEATURE_IN, SENSORS_FEATURE_CURR = POWER, VOLTAGE, CURRENT
    SENSORS_SUBFEATURE_POWER_INPUT = SENSORS_SUBFEATURE_IN_INPUT = SENSORS_SUBFEATURE_CURR_INPUT = 0

    def __init__(self, *chips: list[tuple[str, int, float]]) -> None:
        ffi = pmbus._ffi
        self.chips = chips
        self._names = [ffi.new("sensors_chip_name *", {"addr": index}) for index in range(len(chips))]
        self._features = [
            [ffi.new("sensors_feature *", {"number": index, "type": kind}) for index, (_, kind, _) in enumerate(chip)]
            for chip in chips
        ]
        self._numbers = [
            [ffi.new("sensors_subfeature *", {"number": index}) for index in range(len(chip))] for chip in chips
        ]
        self._labels = [[ffi.new("char []", label.encode()) for label, _, _ in chip] for chip in chips]

    def sensors_init(self, file):
        return 0

    def _next(self, items, position):
        index, position[0] = position[0], position[0] + 1
        return items[index] if index < len(items) else pmbus._ffi.NULL

    def sensors_get_detected_chips(self, match, position):
        return self._next(self._names, position)

    def sensors_get_features(self, chip, position):
        if position[0] >= len(self._features[chip.addr]):
            position[0] = 0  # libsensors begins anew with the next chip
            return pmbus._ffi.NULL
        return self._next(self._features[chip.addr], position)

    def sensors_get_label(self, chip, feature):
        return self._labels[chip.addr][feature.number]

    def sensors_get_subfeature(self, chip, feature, kind):
        return self._numbers[chip.addr][feature.number]

    def sensors_get_value(self, chip, number, value):
        value[0] = self.chips[chip.addr][number][2]
        return 0


ZCU104 = (
    [("12V", POWER, 14.5)],
    [("INT", VOLTAGE, 0.85), ("INT", CURRENT, 4.0), ("temperature", TEMPERATURE, 45.0)],
    [("1V2", POWER, 1.25), ("1V2", VOLTAGE, 1.2)],
)


@pytest.fixture
def real(board, monkeypatch):
    """A simulated board that passes for a real one, so that its rails count."""
    board.device.simulated = False
    monkeypatch.setattr("host.bench.IDLE_SECONDS", 0.05)
    return board


def test_bench_measures_on_pynqs_rails(real, named, bundle, capsys, monkeypatch):
    monkeypatch.setattr(pmbus, "_lib", Sensors(*ZCU104))
    named(real)
    result = bench(capsys, bundle)
    assert result["simulated"] is False
    watts = {"12V": 14.5, "INT": 0.85 * 4.0, "1V2": 1.25}
    for part in (result["live"], result["replay"]):
        energy = part["energy"]
        assert energy["kind"] == "measured" and "per_clock_mhz" not in energy and energy["samples"] >= 2
        assert {name: rail["watts"] for name, rail in energy["rails"].items()} == pytest.approx(watts)
        for name, rail in energy["rails"].items():
            assert rail["idle_watts"] == pytest.approx(watts[name])
            assert rail["joules_per_frame"] == pytest.approx(watts[name] * energy["seconds"] / 4)


@pytest.mark.parametrize("sensors", [None, Sensors(ZCU104[0]), Sensors(*ZCU104[1:])], ids=["none", "12V", "no 12V"])
@pytest.mark.filterwarnings("ignore:Could not initialise libsensors")
def test_rails_of_another_board_do_not_count(real, monkeypatch, sensors):
    monkeypatch.setattr(pmbus, "_lib", sensors)
    with real.open() as device:
        assert not device.simulated and open_meter(device) is None
    assert (real.hardware, real.formats) == (CI, FORMATS)
