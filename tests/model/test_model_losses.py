"""Losses on values worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from accel.config import Network, Task
from accel.errors import ConfigError
from model.losses import loss_sum, multi_task_loss


def check(kind: str, output: torch.Tensor, target: torch.Tensor, mean: float, count: int) -> None:
    total, number = loss_sum(kind, output, target)
    assert number.item() == count
    assert (total / number).item() == pytest.approx(mean, rel=1e-5)


def test_labels_ignore_255() -> None:
    output = torch.zeros(1, 4, 1, 3)
    output[0, 2, 0, 1] = 100.0
    check("labels", output, torch.tensor([[[1, 2, 255]]], dtype=torch.uint8), math.log(4) / 2, 2)


def test_depth_counts_known_pixels_only() -> None:
    output, target = torch.tensor([[[[1.0, 5.0, 9.0]]]]), torch.tensor([[[2.0, 0.0, 6.0]]])
    check("depth", output, target, 2.0, 2)
    check("log_depth", output, target.clamp(max=1), 5.0, 2)  # ln 1 = 0: |1| and |9|


def test_255_metres_are_a_depth_and_what_is_not_finite_is_unknown() -> None:
    target = torch.tensor([[[255.0, math.nan, math.inf]]])
    check("depth", torch.full((1, 1, 1, 3), 254.0), target, 1.0, 1)
    normals = torch.tensor([[[[0.0, 0, 1], [math.nan, 0, 0], [math.inf, 0, 0]]]])
    check("normals", torch.tensor([1.0, 0, 0]).view(1, 3, 1, 1).repeat(1, 1, 1, 3), normals, 2 / 3, 3)


def test_normals_compare_directions() -> None:
    output = torch.tensor([0.0, 0.0, -7.0]).view(1, 3, 1, 1).repeat(1, 1, 1, 3)
    target = torch.tensor([[[[0.0, 0, -1], [0, 1, 0], [0, 0, 0]]]])
    check("normals", output, target, 2 / 6, 6)


def test_binary_weights_positives() -> None:
    output, target = torch.zeros(1, 1, 1, 3), torch.tensor([[[1, 0, 255]]], dtype=torch.uint8)
    check("binary", output, target, (3 + 1) * math.log(2) / 2, 2)


def test_nothing_valid_gives_zero_and_a_gradient() -> None:
    output = torch.randn(1, 4, 2, 2, requires_grad=True)
    targets = {"semseg": torch.full((1, 2, 2), 255, dtype=torch.uint8)}
    loss, _ = multi_task_loss({"semseg": output}, targets, [Task("semseg", 4, "labels")], {})
    loss.backward()
    assert loss.item() == 0 and output.grad is not None and output.grad.abs().max() == 0


def test_weights_and_missing_targets(tiny: Network) -> None:
    outputs = {"depth": torch.zeros(1, 1, 1, 1), "edge": torch.zeros(1, 1, 1, 1)}
    targets = {"depth": torch.full((1, 1, 1), math.e), "edge": torch.zeros(1, 1, 1)}
    loss, parts = multi_task_loss(outputs, targets, tiny.tasks, {"depth": 5, "edge": 2})
    assert parts["depth"].item() == pytest.approx(1)
    assert loss.item() == pytest.approx(5 + 2 * math.log(2))
    with pytest.raises(ConfigError, match="edge"):
        multi_task_loss(outputs, {"depth": targets["depth"]}, tiny.tasks, {})
    with pytest.raises(ConfigError, match="kind"):
        loss_sum("flow", outputs["depth"], targets["depth"])
