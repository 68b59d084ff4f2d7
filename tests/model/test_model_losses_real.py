"""Losses of the real data sets against sums written from their definitions; optimizer and schedule options."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from accel.config import Network, Task
from accel.errors import ConfigError
from model.data import Dataset
from model.losses import LOSS_NAMES, LOSS_WEIGHTS, LOSSES, loss_sum, multi_task_loss
from model.train import TrainOptions, fit
from model.vit import MultiTaskViT


def binary_case(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(seed)
    target = rng.choice(np.array([0, 1, 255], dtype=np.uint8), size=(3, 5, 7), p=[0.6, 0.3, 0.1])
    return torch.from_numpy(rng.normal(size=(3, 1, 5, 7)).astype(np.float32)), torch.from_numpy(target)


def weighted(logits: np.ndarray, target: np.ndarray, positive: float, negative: float) -> float:
    """Mean over known pixels of the weighted cross entropy, pixel by pixel."""
    total, count = 0.0, 0
    for x, y in zip(logits.ravel().tolist(), target.ravel().tolist(), strict=True):
        if y == 255:
            continue
        p = 1 / (1 + math.exp(-x))
        total += -positive * math.log(p) if y else -negative * math.log(1 - p)
        count += 1
    return total / count


@pytest.mark.parametrize("name", ["class_balanced", "balanced"])
def test_balanced_cross_entropy(name: str) -> None:
    output, target = binary_case()
    labels = target.numpy()
    known = labels != 255
    negatives = float((labels[known] == 0).mean())
    positive, negative = (negatives, 1 - negatives) if name == "class_balanced" else (0.95, 0.05)
    total, count = loss_sum(name, output, target)
    assert count.item() == known.sum()
    assert (total / count).item() == pytest.approx(weighted(output.numpy(), labels, positive, negative), rel=1e-6)


def test_class_balance_is_that_of_the_batch() -> None:
    output, target = torch.zeros(2, 1, 1, 2), torch.tensor([[[1, 1]], [[0, 255]]], dtype=torch.uint8)
    total, count = loss_sum("class_balanced", output, target)
    # 2 of 3 are positive: they weigh 1/3 each, the negative 2/3.
    assert (total / count).item() == pytest.approx(math.log(2) * (1 / 3 + 1 / 3 + 2 / 3) / 3)


def test_normals_mean_over_valid_elements() -> None:
    rng = np.random.default_rng(1)
    output = rng.normal(size=(2, 3, 4, 5)).astype(np.float32)
    target = rng.normal(size=(2, 4, 5, 3)).astype(np.float32)
    target /= np.linalg.norm(target, axis=-1, keepdims=True)
    target[0, :2] = 0
    expected = []
    for b, y, x in np.ndindex(2, 4, 5):
        if target[b, y, x].any():
            unit = output[b, :, y, x] / np.linalg.norm(output[b, :, y, x])
            expected += np.abs(unit - target[b, y, x]).tolist()
    total, count = loss_sum("normals", torch.from_numpy(output), torch.from_numpy(target))
    assert count.item() == len(expected) == 3 * (40 - 10)
    assert (total / count).item() == pytest.approx(np.mean(expected), rel=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_nothing_valid_is_zero_with_a_zero_gradient(name: str) -> None:
    channels = {"labels": 4, "normals": 3}.get(name, 1)
    output = torch.randn(2, channels, 3, 3, generator=torch.Generator().manual_seed(0), requires_grad=True)
    if name == "normals":
        target = torch.zeros(2, 3, 3, 3)
    elif "depth" in name:
        target = torch.zeros(2, 3, 3)
    else:
        target = torch.full((2, 3, 3), 255, dtype=torch.uint8)
    kind = "binary" if "balanced" in name else name
    loss, _ = multi_task_loss({"t": output}, {"t": target}, [Task("t", channels, kind)], {}, {"t": name})
    loss.backward()
    assert loss.item() == 0
    assert output.grad is not None and torch.equal(output.grad, torch.zeros_like(output))


def test_named_losses_and_weights_are_used() -> None:
    output, target = binary_case()
    task = Task("edge", 1, "binary")
    loss, parts = multi_task_loss({"edge": output}, {"edge": target}, [task], {"edge": 50}, {"edge": "balanced"})
    expected = weighted(output.numpy(), target.numpy(), 0.95, 0.05)
    assert parts["edge"].item() == pytest.approx(expected, rel=1e-6)
    assert loss.item() == pytest.approx(50 * expected, rel=1e-6)
    plain, _ = multi_task_loss({"edge": output}, {"edge": target}, [task], {})
    assert plain.item() == pytest.approx(weighted(output.numpy(), target.numpy(), 3, 1), rel=1e-6)


def test_tables_name_the_same_tasks_and_known_losses() -> None:
    assert LOSS_NAMES.keys() == LOSS_WEIGHTS.keys()
    for dataset, names in LOSS_NAMES.items():
        assert set(names) <= set(LOSS_WEIGHTS[dataset])
        assert set(names.values()) <= set(LOSSES)


def test_poly_schedule_falls_per_epoch() -> None:
    options = TrainOptions(steps=30, epoch_steps=3, lr=0.002, warmup=0, optimizer="sgd", schedule="poly", power=0.9)
    rates = [options.learning_rate(step) for step in range(30)]
    assert rates == [pytest.approx(0.002 * (1 - step // 3 / 10) ** 0.9) for step in range(30)]
    assert rates[0] == rates[2] > rates[3]


def test_sgd_steps_as_torch_defines_it(tmp_path: Path, tiny: Network, scenes_train: Dataset) -> None:
    """Two steps of SGD with momentum and weight decay, written out, from the gradients of the same batches."""
    options = TrainOptions(
        steps=2, batch_size=4, lr=0.05, warmup=0, weight_decay=0.01, clip=0, optimizer="sgd", momentum=0.9,
        schedule="poly", power=1.0, epoch_steps=1, gate_noise=0, quiet=True, tensorboard=False,
    )  # fmt: skip
    trained = MultiTaskViT(tiny, 3)
    fit(trained, scenes_train, options, tmp_path)

    model, buffers = MultiTaskViT(tiny, 3), {}
    batches = scenes_train.batches(4)
    for step in range(2):
        images, targets = batches.batch(step)
        model.zero_grad()
        result = model(images)
        loss, _ = multi_task_loss(result.outputs, targets, tiny.tasks, options.loss_weights)
        (loss + options.balance_weight * result.balance_loss).backward()
        rate = 0.05 * (1 - step / 2)
        with torch.no_grad():
            for name, weight in model.named_parameters():
                assert weight.grad is not None, name
                change = weight.grad + 0.01 * weight
                buffers[name] = change if step == 0 else 0.9 * buffers[name] + change
                weight -= rate * buffers[name]
    for (name, one), two in zip(trained.named_parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-6, msg=name)


def test_sgd_resumes_with_its_momentum(tmp_path: Path, tiny: Network, scenes_train: Dataset) -> None:
    options = TrainOptions(
        steps=4, batch_size=4, lr=0.02, warmup=0, optimizer="sgd", schedule="poly", checkpoint_every=2, quiet=True,
        tensorboard=False,
    )  # fmt: skip
    whole, again = MultiTaskViT(tiny), MultiTaskViT(tiny)
    fit(whole, scenes_train, options, tmp_path / "whole")

    class Stop(Exception):
        pass

    def stop(done: int) -> None:
        if done == 3:
            raise Stop

    with pytest.raises(Stop):
        fit(MultiTaskViT(tiny), scenes_train, options, tmp_path / "again", on_step=stop)
    result = fit(again, scenes_train, options, tmp_path / "again")
    assert result.resumed_at == 2
    for (name, one), two in zip(whole.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(one, two), name
    with pytest.raises(ConfigError, match="optimizer: made with 'sgd', asked for 'adamw'"):
        fit(MultiTaskViT(tiny), scenes_train, dataclasses.replace(options, optimizer="adamw"), tmp_path / "again")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"optimizer": "adam"}, "optimizer = 'adam': expected adamw or sgd"),
        ({"schedule": "step"}, "schedule = 'step': expected cosine or poly"),
        ({"epoch_steps": 0}, "epoch_steps = 0: expected at least 1"),
        ({"momentum": -1}, "momentum = -1: expected at least 0"),
    ],
)
def test_bad_options(change: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TrainOptions(**change)
