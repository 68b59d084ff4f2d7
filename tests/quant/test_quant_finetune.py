"""The QAT stage end to end on a few images, and QAT checkpoints."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from quant_cases import random_images, random_model, small_network

from accel.config import Formats
from accel.errors import CheckpointError, ConfigError
from model.checkpoint import load_checkpoint, save_checkpoint
from model.data import Dataset
from quant.checkpoint import load_float, load_qat, save_qat
from quant.export import export_encoder
from quant.finetune import finetune, qat_options


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    network = small_network()
    rng = np.random.default_rng(0)
    shape = (12, network.image_height, network.image_width)
    targets = {
        "semseg": rng.integers(0, 3, shape, dtype=np.uint8),
        "depth": rng.uniform(1, 5, shape).astype(np.float32),
    }
    return Dataset(random_images(network, 12).numpy(), targets, "random")


def options(steps: int):
    return qat_options(steps, batch_size=4, log_every=1, quiet=True, tensorboard=False)


def same_weights(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    return all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items())


def test_recipe():
    recipe = qat_options(100)
    assert recipe.learning_rate(20) == pytest.approx(3e-4, rel=0.11)
    assert recipe.learning_rate(99) < 1e-6 and recipe.gate_noise == 0


@pytest.mark.parametrize("formats", [Formats(), Formats(4, 4)])
def test_fine_tuning_lowers_the_loss_and_exports(dataset, tmp_path, routing, formats):
    model = random_model(small_network(routing))
    recipe = dataclasses.replace(options(12), lr=2e-3)
    result = finetune(model, dataset, tmp_path, recipe, formats, calibration_images=4)
    losses = list(result.fit.losses.values())
    assert np.mean(losses[-3:]) < np.mean(losses[:3])
    assert not result.model.training
    loaded = load_qat(result.checkpoint)
    assert loaded.formats == formats and loaded.network == model.network
    assert same_weights(loaded, result.model)
    encoder = export_encoder(loaded)
    largest = max(int(np.abs(unit.first.weight.astype(int)).max()) for *_, unit in encoder.units())
    assert largest == formats.weight_max


def test_exponents_stay_frozen(dataset, tmp_path):
    model = random_model(small_network())
    tuned = finetune(model, dataset, tmp_path / "qat", options(3), calibration_images=4)
    plain = finetune(model, dataset, tmp_path / "ptq", None, calibration_images=4)
    assert plain.fit is None and load_checkpoint(plain.checkpoint).step == 0
    exponents = [{n: p.value for n, p in m.formats_in_use()} for m in (tuned.model, plain.model)]
    assert exponents[0] == exponents[1]
    assert not same_weights(tuned.model, plain.model)
    assert same_weights(plain.model, load_qat(plain.checkpoint))


def test_resumes_to_the_same_bits_and_refuses_another_run(dataset, tmp_path):
    model = random_model(small_network())
    whole = finetune(model, dataset, tmp_path / "a", options(4), calibration_images=4)

    class Killed(Exception):
        pass

    def kill(step: int) -> None:
        if step == 2:
            raise Killed

    recipe = dataclasses.replace(options(4), checkpoint_every=1)
    with pytest.raises(Killed):
        finetune(model, dataset, tmp_path / "b", recipe, calibration_images=4, on_step=kill)
    resumed = finetune(model, dataset, tmp_path / "b", recipe, calibration_images=4)
    assert resumed.fit.resumed_at == 2
    assert same_weights(whole.model, resumed.model)
    with pytest.raises(ConfigError, match="formats: made with"):
        finetune(model, dataset, tmp_path / "b", recipe, Formats(4, 8), calibration_images=4)
    other = random_model(small_network(), seed=1)
    with pytest.raises(ConfigError, match="source: made with"):
        finetune(other, dataset, tmp_path / "b", recipe, calibration_images=4)


def test_stages_are_not_confused(dataset, tmp_path, make_quantized):
    model = make_quantized()
    save_qat(tmp_path / "qat.safetensors", model)
    with pytest.raises(CheckpointError, match="stage: expected float weights, found 'qat'"):
        load_float(tmp_path / "qat.safetensors")
    checkpoint = load_checkpoint(tmp_path / "qat.safetensors")
    save_checkpoint(tmp_path / "other.safetensors", dataclasses.replace(checkpoint, stage="float"))
    with pytest.raises(CheckpointError, match="stage: expected 'qat', found 'float'"):
        load_qat(tmp_path / "other.safetensors")
    save_checkpoint(tmp_path / "none.safetensors", dataclasses.replace(checkpoint, extra={}))
    with pytest.raises(CheckpointError, match="formats"):
        load_qat(tmp_path / "none.safetensors")
    wrong = {**checkpoint.network, "embed_dim": 32}
    save_checkpoint(tmp_path / "wrong.safetensors", dataclasses.replace(checkpoint, network=wrong))
    with pytest.raises(CheckpointError, match="expected shape"):
        load_qat(tmp_path / "wrong.safetensors")
