"""Training: it learns, resumes to the same bits after a kill, and agrees across processes."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torchrun_worker import CASES, train

from accel.config import Network
from accel.errors import ConfigError, M3vitError
from model.checkpoint import load_checkpoint
from model.data import Dataset
from model.logs import TrainingLog, read_log
from model.train import TrainOptions, checkpoint_path, fit
from model.vit import MultiTaskViT

WORKER = Path(__file__).with_name("torchrun_worker.py")
QUIET = {"quiet": True, "tensorboard": False, "log_every": 1, "batch_size": 8, "warmup": 2}


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


def tensors(path: Path) -> dict[str, torch.Tensor]:
    loaded = load_checkpoint(path)
    moments = {f"{s}/{k}": v for s, d in loaded.optimizer.items() for k, v in d.items()}
    return {**loaded.weights, **moments}


def flat(weights: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """All weights in one vector, in the order of their names."""
    return torch.cat([weights[name].flatten().double() for name in sorted(weights)])


def test_it_learns(tmp_path: Path, routed: Network, scenes_train: Dataset) -> None:
    options = TrainOptions(steps=60, lr=3e-3, **QUIET)
    result = fit(MultiTaskViT(routed), scenes_train, options, tmp_path)
    losses = list(result.losses.values())
    assert sum(losses[-5:]) < 0.85 * sum(losses[:5])
    log = read_log(result.log)
    assert [row["step"] for row in log] == list(range(1, 61))
    assert set(log[0]) == {"step", "loss", "balance", "lr", *(f"loss_{t}" for t in
                           routed.task_names)}  # fmt: skip
    assert load_checkpoint(result.checkpoint).step == 60


def test_killed_run_resumes_to_the_same_bits(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    train(whole / "light", "light", 10)
    died = run(WORKER, killed, "light", 10, 8)
    assert died.returncode == -signal.SIGKILL
    path = checkpoint_path(killed / "light", "float")
    assert load_checkpoint(path).step == 6
    assert len(read_log(killed / "light" / "float.csv")) == 8
    train(killed / "light", "light", 10)
    expected = tensors(checkpoint_path(whole / "light", "float"))
    found = tensors(path)
    assert set(found) == set(expected)
    assert all(torch.equal(found[key], value) for key, value in expected.items())
    logs = [(folder / "light" / "float.csv").read_text() for folder in (whole, killed)]
    assert logs[0] == logs[1]


def test_two_processes_equal_one(tmp_path: Path) -> None:
    """Tiny networks in float64, where rounding hides nothing, and the demo's network in float32, as it is trained.

    Its losses are equal to float32's rounding. Its weights are compared by how far training moved them: Adam divides a
    gradient by its size, so where one is zero but for rounding, the step goes anywhere.
    """
    cases, steps = {"light64": 1e-9, "pup64": 1e-9, "demo": 1e-5}, 3
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 2)
    both = run(*torchrun, WORKER, tmp_path / "two", ",".join(cases), steps)
    assert both.returncode == 0, both.stderr
    for case, tolerance in cases.items():
        train(tmp_path / "one" / case, case, steps)
        one, two = (read_log(tmp_path / n / case / "float.csv") for n in ("one", "two"))
        assert len(one) == len(two) == steps
        for a, b in zip(one, two, strict=True):
            assert b == pytest.approx(a, rel=tolerance), case
    files = [checkpoint_path(tmp_path / n / "demo", "float") for n in ("one", "two")]
    alone, shared = (flat(load_checkpoint(path).weights) for path in files)
    moved = alone - flat(MultiTaskViT(CASES["demo"][0]).state_dict())
    assert moved.norm() > 1 and (shared - alone).norm() < 1e-3 * moved.norm()


def test_finished_run_is_returned_as_it_is(
    tmp_path: Path, tiny: Network, scenes_train: Dataset
) -> None:
    options = TrainOptions(steps=3, **QUIET)
    first = fit(MultiTaskViT(tiny), scenes_train, options, tmp_path)
    before = first.checkpoint.read_bytes()
    model = MultiTaskViT(tiny, seed=9)
    again = fit(model, scenes_train, options, tmp_path)
    assert again.resumed_at == 3 and again.losses == {}
    assert first.checkpoint.read_bytes() == before and len(read_log(first.log)) == 3
    weights = load_checkpoint(first.checkpoint).weights
    assert all(torch.equal(v, weights[k]) for k, v in model.state_dict().items())


def test_resuming_something_else_is_refused(
    tmp_path: Path, tiny: Network, scenes_train: Dataset
) -> None:
    options = TrainOptions(steps=2, **QUIET)
    fit(MultiTaskViT(tiny), scenes_train, options, tmp_path)
    with pytest.raises(ConfigError, match="lr: made with 0.0015, asked for 0.5"):
        fit(MultiTaskViT(tiny), scenes_train, dataclasses.replace(options, lr=0.5), tmp_path)
    with pytest.raises(ConfigError, match="data"):
        fit(MultiTaskViT(tiny), scenes_train.subset(20), options, tmp_path)
    deeper = dataclasses.replace(tiny, depth=6)
    with pytest.raises(ConfigError, match="network depth: made with 4, asked for 6"):
        fit(MultiTaskViT(deeper), scenes_train, options, tmp_path)
    anew = fit(MultiTaskViT(deeper), scenes_train, options, tmp_path, resume=False)
    assert anew.resumed_at == 0


def test_stages_and_partial_targets(tmp_path: Path, tiny: Network, scenes_train: Dataset) -> None:
    some = Dataset(scenes_train.images, {"depth": scenes_train.targets["depth"]}, "depth only")
    result = fit(
        MultiTaskViT(tiny), some, TrainOptions(steps=2, **QUIET), tmp_path, "qat", extra={"a": [1]}
    )
    loaded = load_checkpoint(result.checkpoint)
    assert (loaded.stage, loaded.extra) == ("qat", {"a": [1]})
    assert not checkpoint_path(tmp_path, "float").exists()
    with pytest.raises(ConfigError, match="none of the tasks"):
        fit(MultiTaskViT(tiny), Dataset(some.images, {}), TrainOptions(**QUIET), tmp_path)


def test_divergence_is_an_error(tmp_path: Path, tiny: Network, scenes_train: Dataset) -> None:
    model = MultiTaskViT(tiny)
    with torch.no_grad():
        model.decoders["depth"].fc2.bias.fill_(float("inf"))
    with pytest.raises(M3vitError, match="step 1: loss = .* expected a finite loss"):
        fit(model, scenes_train, TrainOptions(steps=3, **QUIET), tmp_path)
    assert not checkpoint_path(tmp_path, "float").exists()


def test_learning_rate_and_options() -> None:
    options = TrainOptions(steps=100, warmup=10, lr=1.0, final_lr=0.1)
    assert options.learning_rate(0) == pytest.approx(0.1)
    assert options.learning_rate(50) == pytest.approx(0.55)
    assert options.learning_rate(100) == pytest.approx(0.1)
    with pytest.raises(ConfigError, match="steps = 0"):
        TrainOptions(steps=0)
    with pytest.raises(ConfigError, match="lr = 0"):
        TrainOptions(lr=0)


def test_tensorboard_events(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    with TrainingLog(tmp_path / "a.csv", ["loss"]) as log:
        log.write(1, {"loss": 2.5})
    assert list((tmp_path / "tensorboard" / "float").glob("events.*"))
    assert read_log(tmp_path / "a.csv") == [{"step": 1, "loss": 2.5}]
