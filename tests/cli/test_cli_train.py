"""``m3vit train``: both stages, kills, several processes, runs that must not be mixed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import Outcome, environment, finish, start

pytest.importorskip("torch")
pytest.importorskip("brevitas")

from accel.bundle import open_bundle  # noqa: E402
from model.checkpoint import load_checkpoint  # noqa: E402
from model.logs import read_log  # noqa: E402

Run = Callable[..., Outcome]
SMALL = ("--steps", 30, "--qat-steps", 10, "--batch", 4, "--scenes", 24, "--val-scenes", 6, "--no-tensorboard")
FREQUENT = ("--checkpoint-every", 5)


def arguments(tiny_json: Path, out: Path, data: Path, *more: object) -> tuple[object, ...]:
    return ("train", "--network", tiny_json, "--out", out, "--data-dir", data, *SMALL, *more)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, tiny_json: Path, data: Path) -> tuple[Path, dict]:
    """A run without interruption, and what it printed."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    outcome = finish(start(*arguments(tiny_json, out, data, "--json")))
    assert outcome.code == 0, outcome.err
    return out, outcome.json()


def weights_equal(a: Path, b: Path) -> bool:
    import torch

    one, two = load_checkpoint(a).weights, load_checkpoint(b).weights
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_run_folder(whole: tuple[Path, dict]) -> None:
    out, printed = whole
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["metrics"] == printed["metrics"]
    assert set(printed["metrics"]) == {"trivial", "float", "qat"}
    for stage, steps in (("float", 30), ("qat", 40)):
        saved = load_checkpoint(out / f"{stage}.safetensors")
        assert (saved.stage, saved.step, saved.optimizer) == (stage, steps, {})
        assert saved.metrics == printed["metrics"][stage]
        assert set(saved.metrics) == {"semseg", "depth"}
        assert saved.options["seed"] == 0
    assert [row["step"] for row in read_log(out / "float.csv")] == [10, 20, 30]
    assert [row["step"] for row in read_log(out / "qat.csv")] == [10]


def test_again_at_once(whole: tuple[Path, dict], m3vit: Run, tiny_json: Path, data: Path) -> None:
    out, printed = whole
    before = {path.name: path.stat().st_mtime_ns for path in out.glob("*.safetensors")}
    outcome = m3vit(*arguments(tiny_json, out, data, "--json"))
    assert outcome.code == 0, outcome.err
    again = outcome.json()
    assert again["metrics"] == printed["metrics"]
    assert again["resumed"] == {"float": 30, "qat": 10}
    assert {path.name: path.stat().st_mtime_ns for path in out.glob("*.safetensors")} == before


def test_table(whole: tuple[Path, dict], m3vit: Run, tiny_json: Path, data: Path) -> None:
    out, printed = whole
    outcome = m3vit(*arguments(tiny_json, out, data))
    assert outcome.code == 0, outcome.err
    lines = outcome.out.splitlines()
    assert lines[0].split() == ["task", "metric", "unit", "trivial", "float", "qat"]
    assert [line.split()[:2] for line in lines[2:5]] == [["semseg", "miou"], ["depth", "rmse"], ["depth", "absrel"]]
    assert f"{printed['metrics']['qat']['depth']['rmse']:.3f}" in lines[3]
    assert f"m3vit export {out / 'qat.safetensors'}" in outcome.out
    assert "30 steps were done already" in outcome.err


def kill_when(process: subprocess.Popen[str], log: Path, rows: int) -> None:
    """SIGKILL ``process`` as soon as its CSV log has ``rows`` rows."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if log.exists() and len(log.read_text().splitlines()) > rows:
            break
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert finish(process).code == -signal.SIGKILL


def test_killed_twice_resumes_to_the_same_bits(
    whole: tuple[Path, dict], tmp_path: Path, tiny_json: Path, data: Path
) -> None:
    out, (reference, printed) = tmp_path / "killed", whole
    command = arguments(tiny_json, out, data, "--json", *FREQUENT)
    kill_when(start(*command), out / "float.csv", 1)
    assert 5 <= load_checkpoint(out / "checkpoint-float.safetensors").step < 30
    assert not (out / "float.safetensors").exists()
    kill_when(start(*command), out / "qat.csv", 0)
    assert load_checkpoint(out / "checkpoint-float.safetensors").step == 30
    assert not (out / "metrics.json").exists()
    outcome = finish(start(*command))
    assert outcome.code == 0, outcome.err
    assert outcome.json()["metrics"] == printed["metrics"]
    assert outcome.json()["resumed"]["float"] == 30
    for stage in ("float", "qat"):
        assert weights_equal(out / f"{stage}.safetensors", reference / f"{stage}.safetensors")
        assert (out / f"{stage}.csv").read_text() == (reference / f"{stage}.csv").read_text()


def test_two_processes(whole: tuple[Path, dict], tmp_path: Path, tiny_json: Path, data: Path) -> None:
    out, (reference, printed) = tmp_path / "two", whole
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "cli"]
    done = subprocess.run(
        [*torchrun, *map(str, arguments(tiny_json, out, data, "--json"))],
        env=environment(), capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    both = json.loads(done.stdout)  # one process prints, the other is silent
    for row, expected in zip(read_log(out / "float.csv"), read_log(reference / "float.csv"), strict=True):
        assert row == pytest.approx(expected, rel=2e-5)
    # A rounding difference can move a value across a quantization threshold, so this stage is close, not equal.
    for row, expected in zip(read_log(out / "qat.csv"), read_log(reference / "qat.csv"), strict=True):
        assert row["loss"] == pytest.approx(expected["loss"], rel=5e-3)
    assert both["metrics"]["float"]["depth"] == pytest.approx(printed["metrics"]["float"]["depth"], rel=1e-3)


@pytest.mark.parametrize(
    ("option", "value", "field"),
    [
        ("--batch", 8, "batch: this run was made with 4, asked for 8"),
        ("--seed", 1, "seed: this run was made with 0, asked for 1"),
        ("--weight-bits", 4, "formats.weight_bits: this run was made with 8, asked for 4"),
        ("--precision", "float32", "precision: this run was made with None, asked for 'float32'"),
        ("--routing", "task_conditioned", "network.routing: this run was made with 'multi_gate'"),
        ("--network", "m3vit-demo", "network.name: this run was made with 'tiny', asked for 'm3vit-demo'"),
    ],
)
def test_runs_are_not_mixed(
    whole: tuple[Path, dict], m3vit: Run, tiny_json: Path, data: Path, option: str, value: object, field: str
) -> None:
    error = m3vit(*arguments(tiny_json, whole[0], data, option, value)).error()
    assert error.startswith(f"{whole[0] / 'run.json'}: {field}") and "--no-resume" in error


def test_anew(m3vit: Run, tmp_path: Path, tiny_json: Path, data: Path) -> None:
    out = tmp_path / "run"
    quick = ("--steps", 2, "--qat-steps", 0)
    assert m3vit(*arguments(tiny_json, out, data, *quick, "--json")).code == 0
    first = load_checkpoint(out / "float.safetensors")
    outcome = m3vit(*arguments(tiny_json, out, data, *quick, "--seed", 5, "--no-resume", "--json", "--quiet"))
    assert outcome.code == 0 and outcome.err == "" and outcome.json()["resumed"] == {"float": 0, "qat": 0}
    second = load_checkpoint(out / "float.safetensors")
    assert second.options["seed"] == 5
    assert any(not second.weights[name].equal(value) for name, value in first.weights.items())


def test_twin_and_widths_reach_the_bundle(m3vit: Run, tmp_path: Path, tiny_json: Path, data: Path) -> None:
    out = tmp_path / "run"
    outcome = m3vit(
        *arguments(tiny_json, out, data, "--steps", 2, "--qat-steps", 2, "--weight-bits", 4, "--activation-bits", 5),
        "--twin", "--routing", "task_conditioned", "--json",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    assert set(outcome.json()["metrics"]) == {"trivial", "float", "qat", "twin"}
    assert load_checkpoint(out / "twin.safetensors").step == 4
    assert m3vit("export", out / "qat.safetensors", tmp_path / "bundle").code == 0
    bundle = open_bundle(tmp_path / "bundle")
    assert (bundle.config.formats.weight_bits, bundle.config.formats.activation_bits) == (4, 5)
    assert bundle.config.network.routing == "task_conditioned"
    facts = bundle.manifest["provenance"]["checkpoint"]
    assert facts["metrics"] == outcome.json()["metrics"]["qat"] and facts["seed"] == 0


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--steps", 0), "steps = 0: expected at least 1"),
        (("--val-scenes", 0), "val_scenes = 0: expected at least 1"),
        (("--weight-bits", 1), "weight_bits = 1: expected an integer from 2 to 8"),
        (("--lr", 0), "lr = 0.0: expected more than 0"),
        (("--qat-lr", 0), "lr = 0.0: expected more than 0"),
        (("--twin", "--qat-steps", 0), "twin: expected qat_steps of at least 1"),
        (("--network", "m3vit-huge"), "network 'm3vit-huge'"),
        (("--network", "m3vit-tiny-cityscapes"), "task 'semseg': channels: expected at least 8"),
    ],
)
def test_bad_options(m3vit: Run, tmp_path: Path, tiny_json: Path, data: Path, more: tuple, message: str) -> None:
    out = tmp_path / "run"
    assert message in m3vit(*arguments(tiny_json, out, data, *more)).error()
    assert not list(out.glob("*.safetensors"))


def test_bad_folders(m3vit: Run, tmp_path: Path, tiny_json: Path, data: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    assert "file: expected a directory, found a file" in m3vit(*arguments(tiny_json, file, data)).error()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text("{")
    assert "run.json: not valid JSON" in m3vit(*arguments(tiny_json, tmp_path / "run", data)).error()


def test_foreign_checkpoint_in_the_run_folder(m3vit: Run, tmp_path: Path, tiny_json: Path, data: Path) -> None:
    out = tmp_path / "run"
    out.mkdir()
    (out / "checkpoint-float.safetensors").write_bytes(b"PK\x03\x04 not ours")
    assert "refused" in m3vit(*arguments(tiny_json, out, data)).error()


def test_full_disk_is_one_line(whole: tuple[Path, dict], tmp_path: Path, tiny_json: Path, data: Path) -> None:
    """Every file of more than 64 kB fails to be written; the scenes are there already, from the run before."""
    import resource

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (64000, 64000))

    out = tmp_path / "run"
    outcome = finish(start(*arguments(tiny_json, out, data, "--steps", 1, "--qat-steps", 0, "-q"), preexec_fn=limit))
    error = outcome.error()
    assert "checkpoint-float.safetensors" in error and "cannot write" in error
    assert os.listdir(out) and not list(out.glob("*.safetensors")) and not list(out.glob(".*"))
