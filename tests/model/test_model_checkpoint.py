"""Checkpoints: round trip, atomicity and one clear line for everything that is wrong."""

from __future__ import annotations

import dataclasses
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from accel.config import Network
from accel.errors import CheckpointError, M3vitError
from model import checkpoint as module
from model.checkpoint import Checkpoint, load_checkpoint, load_weights, save_checkpoint
from model.vit import MultiTaskViT


def make(network: Network, **changes: object) -> Checkpoint:
    weights = MultiTaskViT(network, seed=2).state_dict()
    parts = {"stage": "float", "step": 7, "network": dataclasses.asdict(network), **changes}
    return Checkpoint(weights=weights, **parts)


@pytest.fixture
def path(tmp_path: Path, tiny: Network) -> Path:
    target = tmp_path / "model.safetensors"
    save_checkpoint(target, make(tiny))
    return target


def one_line(info: pytest.ExceptionInfo[M3vitError], *parts: object) -> None:
    text = str(info.value)
    assert "\n" not in text
    for part in parts:
        assert str(part) in text


def test_round_trip(tmp_path: Path, tiny: Network) -> None:
    moment = {"exp_avg": {"backbone.cls_token": torch.randn(1, 1, 16)}}
    saved = make(
        tiny,
        options={"lr": 0.1},
        metrics={"depth": {"rmse": 0.5}},
        extra={"note": "é"},
        optimizer=moment,
    )
    save_checkpoint(tmp_path / "a.safetensors", saved)
    loaded = load_checkpoint(tmp_path / "a.safetensors")
    assert (loaded.stage, loaded.step, loaded.options) == ("float", 7, {"lr": 0.1})
    assert loaded.metrics == saved.metrics and loaded.extra == saved.extra
    assert loaded.network["tasks"][1]["kind"] == "log_depth"
    assert torch.equal(
        loaded.optimizer["exp_avg"]["backbone.cls_token"], moment["exp_avg"]["backbone.cls_token"]
    )
    model = MultiTaskViT(tiny, seed=3)
    load_weights(model, loaded)
    assert all(torch.equal(v, saved.weights[k]) for k, v in model.state_dict().items())


class Bomb:
    """Unpickling this would write a file."""

    def __reduce__(self) -> tuple:
        return (open, ("exploded", "w"))


@pytest.mark.parametrize("how", ["zip", "legacy", "pickle"])
def test_pickled_code_is_never_loaded(
    tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "evil.pth"
    if how == "pickle":
        file.write_bytes(pickle.dumps(Bomb()))
    else:
        torch.save({"weights": Bomb()}, file, _use_new_zipfile_serialization=how == "zip")
    with pytest.raises(CheckpointError) as info:
        load_checkpoint(file)
    one_line(info, file, "pickle", "refused")
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("content", [b"", b"hello", b"not a checkpoint, just text", bytes(100)])
def test_not_a_checkpoint(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "x.safetensors"
    file.write_bytes(content)
    with pytest.raises(CheckpointError) as info:
        load_checkpoint(file)
    one_line(info, file, "not a checkpoint")


def test_missing_file_and_directory(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        load_checkpoint(tmp_path / "none.safetensors")
    with pytest.raises(CheckpointError, match="found a directory"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.999])
def test_truncated(path: Path, keep: float) -> None:
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * keep)])
    with pytest.raises(CheckpointError) as info:
        load_checkpoint(path)
    one_line(info, path)


def test_foreign_safetensors_and_version(
    tmp_path: Path, path: Path, tiny: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    foreign = tmp_path / "foreign.safetensors"
    save_file({"a": torch.zeros(1)}, foreign)
    with pytest.raises(CheckpointError, match="format: expected 'm3vit-checkpoint'"):
        load_checkpoint(foreign)
    save_file({"a": torch.zeros(1)}, foreign, {"format": module.FORMAT, "version": "1"})
    with pytest.raises(CheckpointError, match="header"):
        load_checkpoint(foreign)
    monkeypatch.setattr(module, "VERSION", 2)
    with pytest.raises(CheckpointError, match="version: expected 2, found 1"):
        load_checkpoint(path)


def test_missing_unexpected_and_misshapen_weights(path: Path, tiny: Network) -> None:
    key = "backbone.blocks.1.mlp.gate.0.w_gate"
    for change, words in (
        (lambda w: w.pop(key), "missing"),
        (lambda w: w.update({"backbone.extra": torch.zeros(1)}), "backbone.extra: unexpected"),
        (lambda w: w.update({key: torch.zeros(16, 9)}), "expected shape (16, 4), found (16, 9)"),
    ):
        loaded = load_checkpoint(path)
        change(loaded.weights)
        with pytest.raises(CheckpointError) as info:
            load_weights(MultiTaskViT(tiny), loaded)
        one_line(info, path, words)


def test_not_finite(path: Path, tiny: Network) -> None:
    bad = make(tiny)
    bad.weights["decoders.edge.fc1.bias"][3] = float("nan")
    before = path.read_bytes()
    with pytest.raises(CheckpointError) as info:
        save_checkpoint(path, bad)
    one_line(info, path, "decoders.edge.fc1.bias", "nan")
    assert path.read_bytes() == before
    loaded = load_checkpoint(path)
    metadata = {"format": module.FORMAT, "version": "1"}
    save_file({**loaded.weights, "decoders.edge.fc1.bias": torch.full((16,), torch.inf)},
              path, {**metadata, "header": "{}"})  # fmt: skip
    with pytest.raises(CheckpointError):
        load_checkpoint(path)


def test_failed_write_leaves_the_old_file(
    path: Path, tiny: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = path.read_bytes()

    def full(_tensors: object, target: Path, _metadata: object) -> None:
        Path(target).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "save_file", full)
    with pytest.raises(M3vitError) as info:
        save_checkpoint(path, make(tiny))
    one_line(info, path, "No space left")
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]
