"""Expert windows after float training: quantized, exported, in the golden model and in ONNX they are the same."""

from __future__ import annotations

import copy
import dataclasses
import functools
from pathlib import Path

import numpy as np
import pytest
import torch
from quant_cases import calibrated, random_images, random_model, small_network

from accel import numerics
from accel.config import Formats
from accel.errors import CheckpointError, ConfigError, ExportError
from accel.golden import GoldenEngine, run_frame
from model.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from model.data import Dataset
from model.train import TrainOptions, fit
from model.windows import WINDOWS, expert_windows, restore_windows, restrict, windows_metadata
from quant.checkpoint import load_float, load_qat, save_qat
from quant.export import export_encoder
from quant.finetune import finetune, qat_options
from quant.layers import FORBIDDEN
from quant.onnx_integer import OnnxReferee
from quant.qat import QuantMultiTaskViT

PER_TASK = 3
ALLOWED = {"semseg": {0, 1, 2}, "depth": {2, 3, 4}}


@functools.cache
def _restricted(routing: str) -> QuantMultiTaskViT:
    network = small_network(routing)
    source = random_model(network)
    restrict(source, expert_windows(2, network.experts, PER_TASK))
    model = QuantMultiTaskViT.from_float(source).eval()
    model.calibrate(random_images(network, 8))
    return model


def restricted(routing: str) -> QuantMultiTaskViT:
    """A calibrated network in which both tasks have windows; without them they would leave them (checked below)."""
    return copy.deepcopy(_restricted(routing))


def test_float_mode_is_the_restricted_float_network(routing: str) -> None:
    network = small_network(routing)
    source = random_model(network)
    restrict(source, expert_windows(2, network.experts, PER_TASK))
    model = QuantMultiTaskViT.from_float(source).eval()
    images = random_images(network, 4, seed=1)
    with torch.no_grad(), model.float_mode():
        expected, found = source(images), model(images)
    for task in network.task_names:
        torch.testing.assert_close(found.outputs[task], expected.outputs[task], rtol=1e-4, atol=1e-4)
    assert all(torch.equal(found.routing[b].indices, s.indices) for b, s in expected.routing.items())
    torch.testing.assert_close(found.balance_loss, expected.balance_loss)


def test_torch_golden_and_onnx_agree_at_every_boundary(routing: str) -> None:
    model = restricted(routing)
    network, images = model.network, random_images(model.network, 3, seed=2)
    encoder = export_encoder(model)
    traces = model.integer_mode().trace(images)
    referee, engine, compared = OnnxReferee(encoder, network.task_names, threads=1), GoldenEngine(encoder), 0
    for task in network.task_names:
        onnx = referee.run(images.numpy(), task)
        for index, image in enumerate(images.numpy()):
            golden = run_frame(encoder, image, task, engine, record=True).trace
            assert set(golden) == set(onnx) == set(traces[task])
            for name, values in golden.items():
                assert np.array_equal(values, onnx[name][index]), (task, name)
                assert np.array_equal(values, traces[task][name][index]), (task, name)
                compared += values.size
            for block in network.moe_blocks:
                assert set(np.unique(golden[f"blocks.{block}.topk"])) <= ALLOWED[task]
    assert compared > 10_000


def test_windows_bind_and_forbidden_experts_get_nothing(routing: str) -> None:
    """Free gates choose outside the windows; restricted ones give every forbidden expert exactly 0."""
    free = export_encoder(calibrated(small_network(routing), Formats()))
    bound = export_encoder(restricted(routing))
    network = free.network
    rng = np.random.default_rng(0)
    x = rng.integers(-128, 128, (500, network.embed_dim), dtype=np.int8)
    left = 0
    for block in network.moe_blocks:
        for task, allowed in ALLOWED.items():
            outside = sorted(set(range(network.experts)) - allowed)
            gate = bound.blocks[block].gates[task]
            assert (gate.bias[outside] == FORBIDDEN).all() and (gate.bias[sorted(allowed)] > FORBIDDEN).all()
            logits = numerics.linear(x, gate.weight, gate.bias)
            everyone = np.broadcast_to(np.arange(network.experts), logits.shape)
            weights = numerics.gate_weights(logits, everyone, gate.shift)
            assert not weights[:, outside].any() and weights[:, sorted(allowed)].any()
            gate = free.blocks[block].gates[task]
            chosen = numerics.top_k(numerics.linear(x, gate.weight, gate.bias), network.top_k)
            left += int(np.isin(chosen, outside).sum())
    assert left > 0


def test_without_windows_nothing_changes(routing: str) -> None:
    """No bias, no entry in the header; and lifted windows leave what was there before."""
    model = copy.deepcopy(calibrated(small_network(routing), Formats()))
    assert windows_metadata(model) == {}
    before = export_encoder(model).blocks[1].gates["depth"]
    restrict(model, expert_windows(2, 5, PER_TASK))
    assert not np.array_equal(export_encoder(model).blocks[1].gates["depth"].bias, before.bias)
    restrict(model, None)
    after = export_encoder(model).blocks[1].gates["depth"]
    assert np.array_equal(after.bias, before.bias) and np.array_equal(after.weight, before.weight)
    if routing == "multi_gate":
        assert not after.bias.any()


def test_export_refuses_a_shift_that_leaves_forbidden_experts_a_share() -> None:
    model = restricted("multi_gate")
    with torch.no_grad():
        model.blocks[3].mlp.gates.token_part.weight.mul_(2.0**-20)
    with pytest.raises(ExportError, match=r"^blocks\.3\.gates\.semseg: expert window: .* 16 octaves .* found \d"):
        export_encoder(model)


def test_export_refuses_a_window_without_top_k_experts() -> None:
    model = restricted("multi_gate")
    model.blocks[1].mlp.gates.allowed[1, 2:4] = False
    with pytest.raises(ExportError, match=r"blocks\.1\.gates\.depth: expert window: expected at least 2 .* found 1$"):
        export_encoder(model)


def test_checkpoints_keep_windows(tmp_path: Path) -> None:
    model = restricted("multi_gate")
    path = tmp_path / "qat.safetensors"
    save_qat(path, model)
    rows = {"semseg": [0, 1, 2], "depth": [2, 3, 4]}
    checkpoint = load_checkpoint(path)
    assert checkpoint.extra[WINDOWS] == {"1": rows, "3": rows}
    twin = load_qat(path)
    images = random_images(model.network, 2, seed=3)
    with torch.no_grad():
        expected, found = model(images), twin(images)
    assert all(torch.equal(found.outputs[task], expected.outputs[task]) for task in rows)
    damage = [
        ([], r"extra\.expert_windows: expected a table of 1, 3, found \[\]"),
        ({"1": rows}, "expected a table of 1, 3, found 1"),
        ({"1": rows, "3": {"semseg": [0, 1]}}, r"expert_windows\.3: expected a table of semseg, depth, found semseg"),
        ({"1": rows, "3": {**rows, "depth": [0, 5]}}, r"3\.depth: expected different experts from 0 to 4"),
        ({"1": rows, "3": {**rows, "depth": [0, 0]}}, r"3\.depth: expected different experts"),
        ({"1": rows, "3": {**rows, "depth": [True, 0]}}, r"3\.depth: expected different experts"),
        ({"1": rows, "3": {**rows, "depth": [4]}}, "block 3: task 'depth': expected at least 2 experts, found 1"),
    ]
    for value, message in damage:
        with pytest.raises(CheckpointError, match=message) as error:
            restore_windows(twin, dataclasses.replace(checkpoint, extra={WINDOWS: value}))
        assert str(error.value).startswith(str(path)) and "\n" not in str(error.value)
    assert windows_metadata(twin) == windows_metadata(model)  # none of these left a trace


def test_training_keeps_windows_from_float_to_bundle(tmp_path: Path) -> None:
    """Float stage, its checkpoint, quantization from that file, export; and resuming insists on the same windows."""
    network = small_network()
    images = random_images(network, 12).numpy()
    data = Dataset(images, {"semseg": images[..., 0] % 3, "depth": images[..., 1].astype(np.float32) / 64 + 1}, "test")
    source = random_model(network)
    restrict(source, expert_windows(2, network.experts, PER_TASK))
    options = TrainOptions(steps=2, batch_size=4, quiet=True, tensorboard=False)
    fitted = fit(source, data, options, tmp_path, device="cpu")
    assert windows_metadata(load_float(fitted.checkpoint)) == windows_metadata(source)
    tuning = qat_options(2, batch_size=4, quiet=True, tensorboard=False)
    result = finetune(fitted.checkpoint, data, tmp_path, tuning, device="cpu")
    moved = result.model.blocks[1].mlp.gates.token_part.weight
    assert torch.isfinite(moved).all()
    gates = export_encoder(load_qat(result.checkpoint)).blocks[1].gates
    assert (gates["semseg"].bias[3:] == FORBIDDEN).all() and not gates["semseg"].bias[:3].any()

    free = random_model(network)
    with pytest.raises(ConfigError, match=r"expert_windows: made with \{'1'.*asked for None: use another folder"):
        fit(free, data, options, tmp_path, device="cpu")
    restrict(free, expert_windows(2, network.experts, 4))
    with pytest.raises(ConfigError, match="expert_windows: made with"):
        fit(free, data, options, tmp_path, device="cpu")
    with pytest.raises(ConfigError, match="made with"):
        finetune(free, data, tmp_path, tuning, device="cpu")


def test_float_checkpoint_of_another_network_is_refused(tmp_path: Path) -> None:
    network = small_network()
    model = random_model(network)
    path = tmp_path / "float.safetensors"
    extra = {WINDOWS: {"1": {"a": [0, 1]}, "3": {"a": [0, 1]}}}
    fields = dataclasses.asdict(network)
    save_checkpoint(path, Checkpoint(dict(model.state_dict()), "float", 0, fields, extra=extra))
    with pytest.raises(CheckpointError, match=r"float\.safetensors: extra\.expert_windows\.1: .* found a$"):
        load_float(path)
