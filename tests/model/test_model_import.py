"""Checkpoints of the M³ViT training code: every key used, outputs as the original's formulas, one-line errors."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import import_original as original
import numpy as np
import pytest
import torch

from accel.errors import CheckpointError, ConfigError
from model.checkpoint import load_checkpoint, load_weights
from model.importing import import_checkpoint, save_imported
from model.vit import MultiTaskViT

ROUTINGS = ("multi_gate", "task_conditioned")


def save_file(directory: Path, state: dict[str, torch.Tensor], **options: object) -> Path:
    path = directory / "best_model.pth.tar"
    torch.save(original.checkpoint(state, **options), path)  # type: ignore[arg-type]
    return path


def save_shards(directory: Path, state: dict[str, torch.Tensor], ranks: int = 4) -> Path:
    """Rank 0 holds everything but the others' experts; they hold nothing else."""
    folder = directory / "checkpoint.pth.tar"
    folder.mkdir()
    for rank in range(ranks):
        share = slice(rank * original.E // ranks, (rank + 1) * original.E // ranks)
        part = {}
        for key, value in state.items():
            if ".mlp.experts." in key:
                part[key] = value[share].clone()
            elif rank == 0:
                part[key] = value
        content = original.checkpoint(part)
        torch.save(content if rank == 0 else {"state_dict": content["state_dict"]}, folder / f"{rank}.pth")
    return folder


@pytest.fixture(scope="module", params=ROUTINGS)
def routing(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def expected(routing: str) -> dict[str, np.ndarray]:
    """Task → output of the original's formulas, token by token."""
    state, pixels = original.state_dict(routing), original.image()
    return {task: original.output(state, pixels, task) for task in original.CHANNELS}


def check_outputs(model: MultiTaskViT, expected: dict[str, np.ndarray]) -> None:
    pixels = torch.from_numpy(original.image())[None]
    with torch.no_grad():
        outputs = model(pixels).outputs
        for task, values in expected.items():
            alone = model(pixels, [task]).outputs[task]
            for found in (outputs[task], alone):
                assert found.shape[1:] == values.shape
                assert np.abs(values).max() > 0.1
                np.testing.assert_allclose(found[0].numpy(), values, rtol=0, atol=1e-5)
    assert len({values.tobytes() for values in expected.values()}) == len(expected)


@pytest.mark.parametrize("layout", ["file", "file without module.", "legacy file", "4 shards"])
def test_original_checkpoint_equals_the_formulas(
    tmp_path: Path, routing: str, expected: dict[str, np.ndarray], layout: str
) -> None:
    state = original.state_dict(routing)
    if layout == "4 shards":
        path = save_shards(tmp_path, state)
    elif layout == "legacy file":
        path = tmp_path / "checkpoint.pth.tar"
        torch.save(original.checkpoint(state), path, _use_new_zipfile_serialization=False)
    else:
        path = save_file(tmp_path, state, prefix="" if "without" in layout else "module.")
    model, report = import_checkpoint(path, original.NETWORK, normalization="imagenet")
    # Every key of the file is used, and every weight of the model comes from it.
    assert set(report.used.values()) == set(state)
    assert set(report.used) == set(model.state_dict())
    assert not (report.initialized or report.missing or report.dropped or report.unexpected or report.warnings)
    assert (report.kind, report.routing, report.head) == ("m3vit", routing, "pup")
    assert report.facts == {"epoch": 99, "backbone": "VisionTransformer_moe"} or layout == "4 shards"
    assert len(report.files) == (4 if layout == "4 shards" else 1)
    check_outputs(model, expected)


def test_saved_import_is_an_ordinary_checkpoint(tmp_path: Path, routing: str, expected: dict[str, np.ndarray]) -> None:
    from quant.checkpoint import load_float

    model, report = import_checkpoint(save_file(tmp_path, original.state_dict(routing)), original.NETWORK)
    out = tmp_path / "out.safetensors"
    save_imported(out, model, report)
    checkpoint = load_checkpoint(out)
    assert checkpoint.stage == "float" and checkpoint.extra["imported"]["used"] == report.used
    check_outputs(load_float(out), expected)


def test_formulas_tell_tasks_and_routings_apart(expected: dict[str, np.ndarray], routing: str) -> None:
    """The comparison above can fail: another task's gates change the output by far more than its tolerance."""
    state, pixels = original.state_dict(routing), original.image()
    normalized = (pixels / 255 - original.MEAN) / original.STD
    wrong = original.head(state, original.encoder(state, normalized, "edge"), "depth")
    assert np.abs(wrong - expected["depth"]).max() > 1e-2


@pytest.mark.parametrize("rank", [0, 1, 3])
def test_missing_shard(tmp_path: Path, rank: int) -> None:
    folder = save_shards(tmp_path, original.state_dict("multi_gate"))
    (folder / f"{rank}.pth").unlink()
    with pytest.raises(CheckpointError, match=rf"checkpoint\.pth\.tar/{rank}\.pth: shard missing") as error:
        import_checkpoint(folder, original.NETWORK)
    assert "\n" not in str(error.value)


def test_shards_that_disagree(tmp_path: Path) -> None:
    folder = save_shards(tmp_path, original.state_dict("multi_gate"))
    shard = torch.load(folder / "2.pth", weights_only=True)
    key = "module.backbone.blocks.1.mlp.experts.htoh4.weight"
    shard["state_dict"]["module.backbone.cls_token"] = torch.zeros(1, 1, original.D)
    torch.save(shard, folder / "2.pth")
    with pytest.raises(CheckpointError, match=r"2\.pth: backbone\.cls_token: differs from shard 0"):
        import_checkpoint(folder, original.NETWORK)
    del shard["state_dict"]["module.backbone.cls_token"], shard["state_dict"][key]
    torch.save(shard, folder / "2.pth")
    with pytest.raises(CheckpointError, match=r"2\.pth: .*htoh4\.weight: missing"):
        import_checkpoint(folder, original.NETWORK)


def refused(path: Path, pattern: str, **options: object) -> None:
    network = options.pop("network", original.NETWORK)
    with pytest.raises(CheckpointError, match=pattern) as error:
        import_checkpoint(path, network, **options)  # type: ignore[arg-type]
    assert "\n" not in str(error.value) and str(path) in str(error.value)


def test_shape_mismatch_names_the_key(tmp_path: Path) -> None:
    state = original.state_dict("multi_gate")
    state["decoders.semseg.conv_4.weight"] = torch.zeros(9, 256, 1, 1)
    message = r"semseg\.conv_4\.weight: expected shape \(5, 256, 1, 1\), found \(9, 256, 1, 1\)"
    refused(save_file(tmp_path, state), message)


def test_pickled_code_is_never_run(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(tmp_path / "trapped"),)

    content = original.checkpoint(original.state_dict("multi_gate"))
    for number, zipped in enumerate((True, False)):
        path = tmp_path / f"{number}.pth"
        torch.save({**content, "best_result": Trap()}, path, _use_new_zipfile_serialization=zipped)
        refused(path, r"found the pickled object \w+\.mkdir: refused")
    assert not (tmp_path / "trapped").exists()


@pytest.mark.parametrize("zipped", [True, False])
def test_truncated_file(tmp_path: Path, zipped: bool) -> None:
    whole, cut = tmp_path / "whole.pth", tmp_path / "cut.pth"
    torch.save({"a": torch.arange(1000.0)}, whole, _use_new_zipfile_serialization=zipped)
    data = whole.read_bytes()
    for size in (0, 1, 9, len(data) // 2, len(data) - 3):
        cut.write_bytes(data[:size])
        refused(cut, "damaged")


def test_other_bad_files(tmp_path: Path) -> None:
    refused(tmp_path / "none.pth", "no such checkpoint")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "shards 0.pth, 1.pth, … of a sharded checkpoint, found none")
    torch.save([1, 2], tmp_path / "list.pth")
    refused(tmp_path / "list.pth", "expected a dictionary of tensors, found list")
    torch.save({"state_dict": {"a": 3}}, tmp_path / "number.pth")
    refused(tmp_path / "number.pth", r"state_dict\['a'\]: expected a tensor, found int")
    torch.save({"a.b": torch.ones(2)}, tmp_path / "other.pth")
    refused(tmp_path / "other.pth", "expected keys of M3ViT")
    state = original.state_dict("multi_gate")
    state["backbone.blocks.0.norm1.bias"][3] = float("nan")
    refused(save_file(tmp_path, state), r"norm1\.bias: expected finite values, found nan")


def test_keys_missing_and_unexpected(tmp_path: Path) -> None:
    state = original.state_dict("multi_gate")
    kept = state.pop("backbone.blocks.2.attn.proj.bias")
    state["backbone.blocks.1.mlp.gate.0.w_noise"] = torch.zeros(original.D, original.E)
    path = save_file(tmp_path, state)
    refused(path, r"1 keys missing: backbone\.blocks\.2\.attn\.proj\.bias; --allow-missing")
    refused(path, r"1 unexpected keys: .*w_noise \(learned gate noise", allow_missing=True)
    model, report = import_checkpoint(path, original.NETWORK, allow_missing=True, allow_unexpected=True)
    assert report.missing == ["backbone.blocks.2.attn.proj.bias"]
    assert list(report.unexpected) == ["backbone.blocks.1.mlp.gate.0.w_noise"]
    found = model.state_dict()["backbone.blocks.2.attn.proj.bias"]
    assert torch.equal(found, torch.zeros_like(kept))  # the initial value


def test_training_only_keys_are_dropped_with_a_reason(tmp_path: Path) -> None:
    state = original.state_dict("multi_gate")
    state["tam_model0.conv.weight"] = torch.zeros(2)
    _, report = import_checkpoint(save_file(tmp_path, state), original.NETWORK)
    assert list(report.dropped) == ["tam_model0.conv.weight"] and "training" in report.dropped["tam_model0.conv.weight"]


def test_routing_that_the_checkpoint_does_not_have(tmp_path: Path) -> None:
    path = save_file(tmp_path, original.state_dict("multi_gate"))
    refused(path, "routing: asked for task_conditioned, found the gates of multi_gate", routing="task_conditioned")
    for name, value in (("kind", "onnx"), ("normalization", "mine")):
        with pytest.raises(ConfigError, match=f"{name} = '{value}'"):
            import_checkpoint(path, original.NETWORK, **{name: value})  # type: ignore[arg-type]


def test_subset_of_the_tasks(tmp_path: Path, expected: dict[str, np.ndarray], routing: str) -> None:
    """The checkpoint's other tasks are named; allowed, the remaining one is the same function."""
    path = save_file(tmp_path, original.state_dict(routing))
    network = dataclasses.replace(original.NETWORK, tasks=(original.NETWORK.task("depth"),))
    if routing == "task_conditioned":  # the embedding's one-hot input has a place for every task
        refused(path, r"fc1\.weight: expected shape \(5, 1\)", network=network, allow_unexpected=True)
        return
    refused(path, r"the network has no task 'semseg'", network=network)
    model, report = import_checkpoint(path, network, allow_unexpected=True)
    assert any(key.endswith("gate.0.w_gate") for key in report.unexpected)
    assert report.used["backbone.blocks.1.mlp.gate.0.w_gate"] == "backbone.blocks.1.mlp.gate.3.w_gate"
    check_outputs(model, {"depth": expected["depth"]})


def test_pretrained_backbone_with_one_gate(tmp_path: Path) -> None:
    """ImageNet pre-training: no ``backbone.``, a classifier, one gate, which is copied to every task."""
    state = {}
    for key, value in original.state_dict("multi_gate").items():
        if key.startswith("backbone.") and ".gate." not in key:
            state[key.removeprefix("backbone.")] = value
        elif key.endswith("gate.0.w_gate"):
            state[key.removeprefix("backbone.").replace("gate.0.", "gate.")] = value
    state.update({"head.weight": torch.zeros(10, original.D), "norm.weight": torch.zeros(original.D)})
    path = save_file(tmp_path, state)
    model, report = import_checkpoint(path, original.NETWORK)
    assert set(report.dropped) == {"head.weight", "norm.weight"} and not report.missing
    assert report.initialized and all(key.startswith("decoders.") for key in report.initialized)
    gates = [model.state_dict()[f"backbone.blocks.3.mlp.gate.{t}.w_gate"] for t in range(4)]
    assert all(torch.equal(gate, state["blocks.3.mlp.gate.w_gate"]) for gate in gates)


def test_half_precision_and_load_weights(tmp_path: Path) -> None:
    state = {k: v.half() if v.is_floating_point() else v for k, v in original.state_dict("multi_gate").items()}
    model, report = import_checkpoint(save_file(tmp_path, state), original.NETWORK)
    assert all(v.dtype == torch.float32 for v in model.state_dict().values() if v.is_floating_point())
    save_imported(tmp_path / "x.safetensors", model, report)
    load_weights(MultiTaskViT(model.network), load_checkpoint(tmp_path / "x.safetensors"))
    refused(tmp_path / "x.safetensors", "already a m3vit-checkpoint")


def test_normalization_is_asked_for_or_said(tmp_path: Path) -> None:
    path = save_file(tmp_path, original.state_dict("multi_gate"))
    _, report = import_checkpoint(path, original.NETWORK)
    assert report.normalization == "imagenet" and report.warnings[0].startswith("normalization: none given: assumed")
    city = dataclasses.replace(original.NETWORK, image_height=128, image_width=256)
    with pytest.raises(ConfigError, match="normalization: expected imagenet, unit, half, none, found none: a network"):
        import_checkpoint(path, city)
