"""``m3vit bench``: complete results, phases that add up, energy of one kind, comparisons, one-line errors."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command_line import Outcome

from accel.bundle import open_bundle
from accel.errors import DeviceError
from host.bench import MIXES as BENCH_MIXES
from host.bench import Bench, checks, distribution, order_jobs
from host.phases import PHASES, PhaseClock
from host.runner import EncoderRunner

Command = Callable[..., Outcome]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo network with random weights on the small engine."""
    from cli.main import main

    path = tmp_path_factory.mktemp("bench") / "demo"
    assert main(["export", "--random", "m3vit-demo", str(path), "--hardware", "ci", "--seed", "1", "-q"]) == 0
    return path


def check_result(result: dict[str, Any], bundle: Path, backend: str, jobs: int, repeat: int) -> None:
    """What every result has, whatever the back end."""
    config = open_bundle(bundle).config
    assert (result["benchmark"], result["version"], result["backend"]) == ("m3vit bench", 1, backend)
    assert (result["config_hash"], result["config"]) == (config.hash, config.name)
    assert result["commit"] and result["machine"]["cores"] >= 1 and result["seed"] == 0
    assert result["simulated"] is True and set(result["setup_seconds"]) == {"open", "identify", "load"}
    assert all(entry["ok"] for entry in result["checks"]) and len(result["checks"]) == 6
    live, replay = result["live"], result["replay"]
    assert len(live["samples"]) == jobs * repeat and len(replay["jobs"]) == jobs
    for part in (live, replay):
        assert list(part["phases"]) == list(PHASES)
        assert part["unexplained"] <= 0.02 and part["mismatches"] == 0
        assert sum(entry["share"] for entry in part["phases"].values()) == pytest.approx(1.0, abs=0.02)
        for entry in (*part["phases"].values(), part["total"]):
            assert 0 < entry["min"] <= entry["median"] <= entry["p95"] <= entry["max"]
    for sample in live["samples"]:
        assert sum(sample["phases"].values()) == pytest.approx(sample["seconds"], rel=0.1)
    assert replay["compared"] > 0 and live["jobs_per_second"] > 0
    # The same work, whether live or chained; of every task the same number of pairs.
    assert live["counters"]["macs"] == repeat * replay["counters"]["macs"] > 0
    assert sum(entry["counters"]["pairs"] for entry in live["per_task"].values()) == live["counters"]["pairs"]


def test_golden(m3vit: Command, demo: Path, tmp_path: Path) -> None:
    out = tmp_path / "golden.json"
    outcome = m3vit("bench", demo, "--tasks", "semseg,depth", "--frames", 4, "--repeat", 2, "--json", "--out", out)
    assert outcome.code == 0, outcome.err
    result = outcome.json()
    assert result == json.loads(out.read_text())
    check_result(result, demo, "golden", 4, 2)
    assert [sample["task"] for sample in result["live"]["samples"]] == ["semseg", "depth"] * 4
    assert [sample["frame"] for sample in result["live"]["samples"]] == [0, 1, 2, 3] * 2
    assert result["has_clock"] is False
    for part in ("live", "replay"):
        assert result[part]["engine"] is None and result[part]["energy"] is None, "no clock, no time, no energy"


@pytest.mark.verilator
def test_rtl(m3vit: Command, demo: Path) -> None:
    from host.backends.toolchain import find_toolchain

    try:
        find_toolchain()
    except DeviceError as error:
        pytest.skip(str(error))
    outcome = m3vit("bench", demo, "--backend", "rtl", "--tasks", "semseg,depth", "--frames", 4, "--json", "-q")
    assert outcome.code == 0, outcome.err
    result = outcome.json()
    check_result(result, demo, "rtl", 4, 1)
    live, replay = result["live"], result["replay"]
    assert result["has_clock"] is True
    for part in (live, replay):
        times = part["engine"]["milliseconds"]
        assert list(times) == ["300", "250", "200"]
        cycles = part["engine"]["cycles"]["mean"]
        assert times["300"]["mean"] == pytest.approx(cycles / 300e3) and 20_000 < cycles < 100_000
        assert part["energy"]["kind"] == "estimate" and "rails" not in part["energy"]
        for entry in part["energy"]["per_clock_mhz"].values():
            assert 0 < entry["joules_per_frame"][0] < entry["joules_per_frame"][1]
    assert replay["engine"]["cycles"]["mean"] < live["engine"]["cycles"]["mean"], "chained jobs hide each other's loads"
    assert sum(job["cycles"] for job in replay["jobs"]) == pytest.approx(replay["cycles"], rel=0.01)
    assert 0.5 < replay["utilization"] < 1 and 0.3 < replay["overlap"] <= 1


def test_text(m3vit: Command, demo: Path) -> None:
    outcome = m3vit("bench", demo, "--frames", 2, "--mix", "random", "--seed", 5, "--no-replay")
    assert outcome.code == 0, outcome.err
    for word in (*PHASES, "total", "no clock", "energy: nothing measured", "checks: 3 of 3 hold", "random"):
        assert word in outcome.out
    assert "replay" not in outcome.out


def test_orders() -> None:
    from cli.commands.bench import MIXES

    assert MIXES == BENCH_MIXES, "the command line names them without importing the benchmark"
    tasks = ("a", "b", "c")
    assert [job.task for job in order_jobs(tasks, 5, "alternating", 0)] == ["a", "b", "c", "a", "b"]
    assert [tuple(job) for job in order_jobs(("b", "a"), 3, "grouped", 0)] == [("b", 0), ("b", 2), ("a", 1)]
    random = [job.task for job in order_jobs(tasks, 40, "random", 3)]
    assert set(random) == set(tasks) and random == [job.task for job in order_jobs(tasks, 40, "random", 3)]
    assert random != [job.task for job in order_jobs(tasks, 40, "random", 4)]


def test_distribution() -> None:
    found = distribution(range(101))
    assert found == {"min": 0, "median": 50, "p95": 95, "max": 100, "mean": 50}


def test_lost_time_and_wrong_results_fail(
    m3vit: Command, demo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checks can fail: a clock that forgets a phase, and an engine that computes something else."""
    take = PhaseClock.take

    def forgetful(self: PhaseClock) -> dict[str, float]:
        return {**take(self), "execute": 0.0}

    with monkeypatch.context() as patch:
        patch.setattr(PhaseClock, "take", forgetful)
        outcome = m3vit("bench", demo, "--frames", 1, "--json", "--no-replay")
    assert outcome.code == 1 and "check fails: live: time that no phase explains" in outcome.err
    run = EncoderRunner.run

    def wrong(self: EncoderRunner, *arguments: Any, **options: Any) -> Any:
        results = run(self, *arguments, **options)
        results[0].residual[3, 5] += 1
        return results

    monkeypatch.setattr(EncoderRunner, "run", wrong)
    outcome = m3vit("bench", demo, "--frames", 2, "--json", "--no-replay")
    assert outcome.code == 1 and outcome.json()["live"]["mismatches"] == 2
    assert "check fails: live: integers that differ from golden: 2" in outcome.err


def test_cycles_in_no_class_are_noticed() -> None:
    names = ("load_only_cycles", "compute_only_cycles", "overlap_cycles", "idle_cycles")
    counters = {"cycles": 10, **dict.fromkeys(names, 2)}
    part = {"unexplained": 0.0, "mismatches": 0, "counters": counters}
    found = checks({"live": part, "replay": None})
    assert [(entry["value"], entry["ok"]) for entry in found] == [(0.0, True), (0, True), (2, False)]


def test_device_is_given_back(demo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from host.backends.golden import GoldenDevice

    closed = []
    close = GoldenDevice.close
    monkeypatch.setattr(GoldenDevice, "close", lambda self: (closed.append(True), close(self)))
    bundle = open_bundle(demo)

    def stop(jobs: int) -> None:
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError):
        shape = (bundle.config.network.image_height, bundle.config.network.image_width, 3)
        import numpy as np

        image = np.zeros(shape, np.uint8)
        Bench(bundle, [image], order_jobs(["depth"], 1, "alternating", 0), progress=stop).run()
    assert closed


def test_baselines(m3vit: Command, checkpoint: Path, tmp_path: Path) -> None:
    """PyTorch and onnxruntime beside the engine, of the checkpoint that the bundle comes from."""
    pytest.importorskip("brevitas")
    pytest.importorskip("onnxruntime")
    bundle = tmp_path / "bundle"
    assert m3vit("export", checkpoint, bundle, "--hardware", "ci", "--onnx", "-q").code == 0
    arguments = ("--frames", 2, "--checkpoint", checkpoint, "--onnx", tmp_path / "bundle.onnx")
    outcome = m3vit("bench", bundle, *arguments, "--json", "--no-replay")
    assert outcome.code == 0, outcome.err
    baselines = outcome.json()["baselines"]
    assert {"torch cpu", "onnxruntime integer"} <= set(baselines)
    assert all(entry["total"]["min"] > 0 and entry["same_weights"] for entry in baselines.values())
    assert baselines["onnxruntime integer"]["mismatches"] == 0
    outcome = m3vit("bench", bundle, *arguments, "--no-replay")
    assert "torch cpu" in outcome.out and "golden live" in outcome.out


def test_baselines_of_another_network(m3vit: Command, demo: Path, checkpoint: Path, tmp_path: Path) -> None:
    pytest.importorskip("brevitas")
    pytest.importorskip("onnxruntime")
    fast = ("bench", demo, "--frames", 1, "--no-replay", "--tasks", "depth", "--json")
    assert "network: expected the one of" in m3vit(*fast, "--checkpoint", checkpoint).error()
    assert "expected a folder with ONNX files" in m3vit(*fast, "--onnx", tmp_path / "none").error()
    assert "depth.onnx: no such file" in m3vit(*fast, "--onnx", tmp_path).error()
    (tmp_path / "depth.onnx").write_text("no graph")
    assert "onnxruntime cannot load it" in m3vit(*fast, "--onnx", tmp_path).error()
    assert m3vit("export", checkpoint, tmp_path / "b", "--hardware", "ci", "--onnx", "-q").code == 0
    assert "inputs: expected" in m3vit(*fast, "--onnx", tmp_path / "b.onnx").error()


def test_bad_input(m3vit: Command, demo: Path, tmp_path: Path) -> None:
    assert "'taste': expected one of" in m3vit("bench", demo, "--tasks", "taste").error()
    assert "'abacus': expected one of golden" in m3vit("bench", demo, "--backend", "abacus").error()
    assert "found nothing" in m3vit("bench", tmp_path / "none").error()
    assert "expected a directory with images" in m3vit("bench", demo, "--images", tmp_path / "none").error()
    blocked = tmp_path / "file"
    blocked.write_text("")
    line = m3vit("bench", demo, "--frames", 1, "--no-replay", "--out", blocked / "x.json").error()
    assert "cannot write" in line
    for arguments in ((), (demo, demo), (demo, "--mix", "shaken"), (demo, "--frames", 0), (demo, "--compare")):
        assert m3vit("bench", *arguments).code == 2


def test_compare(m3vit: Command, demo: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "a.json", tmp_path / "b.json"
    assert m3vit("bench", demo, "--frames", 1, "--no-replay", "--tasks", "depth", "--out", first, "-q").code == 0
    result = json.loads(first.read_text())
    result["commit"], result["mix"] = "other", "random"
    result["live"]["total"]["median"] *= 2
    second.write_text(json.dumps(result))
    outcome = m3vit("bench", "--compare", first, second, "--json")
    assert outcome.code == 0, outcome.err
    found = outcome.json()
    ratios = {row["metric"]: row["ratio"] for row in found["metrics"]}
    assert ratios["live total"] == pytest.approx(2) and ratios["live host"] == pytest.approx(1)
    assert found["differences"] == {"mix": ["alternating", "random"]} and found["commits"][1] == "other"
    assert "differs: mix: alternating against random" in m3vit("bench", "--compare", first, second).out


def test_measured_and_estimated_energy_never_meet(m3vit: Command, demo: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "a.json", tmp_path / "b.json"
    assert m3vit("bench", demo, "--frames", 1, "--no-replay", "--out", first, "-q").code == 0
    result = json.loads(first.read_text())
    rails = {"12V": {"joules_per_frame": 0.5, "watts": 12.0, "idle_watts": 11.0}}
    result["live"]["energy"] = {"kind": "measured", "rails": rails}
    first.write_text(json.dumps(result))
    clocks = {"300": {"joules_per_frame": [0.1, 0.2], "watts": [5, 9]}}
    result["live"]["energy"] = {"kind": "estimate", "per_clock_mhz": clocks}
    second.write_text(json.dumps(result))
    rows = m3vit("bench", "--compare", first, second, "--json").json()["metrics"]
    energy = [row for row in rows if "energy" in row["metric"]]
    assert len(energy) == 3 and all(row["ratio"] is None for row in energy)
    assert "energy is not compared: measured against estimate" in m3vit("bench", "--compare", first, second).out


def test_compare_bad_input(m3vit: Command, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    assert "cannot read result" in m3vit("bench", "--compare", path, path).error()
    for text, message in (
        ("{", "not valid JSON"),
        ("[]", "benchmark: expected 'm3vit bench', found 'list'"),
        ('{"benchmark": "golden_speed"}', "found 'golden_speed'"),
        ('{"benchmark": "m3vit bench", "version": 9}', "version: expected 1, found 9"),
        ('{"benchmark": "m3vit bench", "version": 1}', "missing field 'live'"),
        ('{"benchmark": "m3vit bench", "version": 1, "live": 3}', "damaged result"),
    ):
        path.write_text(text)
        assert message in m3vit("bench", "--compare", path, path).error()
    outcome = m3vit("bench", "--compare", path, path, "--frames", 3)
    assert outcome.code == 2 and "--compare takes no --frames" in outcome.err
