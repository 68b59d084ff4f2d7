"""Losses by kind of task, and the weights with which they are added.

Each loss is a sum over valid elements divided by their number in the *global* batch, so that
training on several processes minimizes the same function as on one. Without a valid element a loss
is 0, and so is its gradient.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from accel.errors import ConfigError
from model import distributed
from model.conventions import IGNORE
from model.moe import full_precision

if TYPE_CHECKING:
    from accel.config import Task

EDGE_POSITIVE_WEIGHT = 3.0
"""``binary``: of positives, the rendered scenes' recipe."""
BALANCED_POSITIVE_WEIGHT = 0.95
"""``balanced``: of positives, the rest weighs 1 - 0.95 (M³ViT's edge_w)."""

LOSSES = ("labels", "depth", "log_depth", "normals", "binary", "class_balanced", "balanced")
"""Names of losses. The first five are the losses of the task kinds of the same name."""

LOSS_WEIGHTS: dict[str, dict[str, float]] = {
    "scenes": {"semseg": 1, "depth": 1, "normals": 2, "edge": 2},
    # The weights of M3ViT's configurations.
    "pascal": {"semseg": 1, "human_parts": 2, "sal": 5, "edge": 50, "normals": 10},
    "nyud": {"semseg": 1, "depth": 1, "normals": 10, "edge": 50},
    "cityscapes": {"semseg": 1, "depth": 1},
}
"""Data set → task → weight of its loss."""

LOSS_NAMES: dict[str, dict[str, str]] = {
    "scenes": {},
    "pascal": {"sal": "class_balanced", "edge": "balanced"},
    "nyud": {"edge": "balanced"},
    "cityscapes": {},
}
"""Data set → task → loss, where it is not the one of the task's kind."""


def loss_sum(name: str, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Sum of a loss over valid elements, and their number (both scalars).

    Args:
        name: ``labels``: cross entropy of [B, C, H, W] logits; ``depth``: L1 in metres;
            ``log_depth``: L1 of natural logarithms; ``normals``: L1 on the L2-normalized
            prediction, each component an element; ``binary``: cross entropy of one logit with
            positives weighted by 3; ``balanced``: with positives weighted by 0.95 and the others by
            0.05; ``class_balanced``: with positives weighted by the fraction of negatives in the
            global batch and the others by the rest (HED, arXiv:1504.06375, eq. 2).
        target: as `model.conventions` says, with a batch in front.
    """
    output = full_precision(output)
    if name == "labels":
        total = F.cross_entropy(output, target.long(), ignore_index=IGNORE, reduction="sum")
        return total, (target != IGNORE).sum().float()
    if name == "normals":
        wanted = target.float().permute(0, 3, 1, 2)  # [B, 3, H, W]
        length = wanted.abs().sum(1, keepdim=True)
        valid = (length > 0) & torch.isfinite(length)
        error = (F.normalize(output, dim=1) - torch.where(valid, wanted, 0.0)).abs() * valid
        return error.sum(), 3 * valid.sum().float()
    value = output[:, 0]
    if name in ("depth", "log_depth"):
        metres = target.float()
        valid = (metres > 0) & torch.isfinite(metres)
        metres = torch.where(valid, metres, torch.ones_like(metres))
        wanted = metres.log() if name == "log_depth" else metres
        return ((value - wanted).abs() * valid).sum(), valid.sum().float()
    if name in ("binary", "balanced", "class_balanced"):
        valid = target != IGNORE
        wanted = ((target > 0) & valid).to(value.dtype)
        positive, negative = _class_weights(name, wanted, valid)
        error = F.binary_cross_entropy_with_logits(value, wanted, reduction="none")
        return (error * valid * torch.where(wanted > 0, positive, negative)).sum(), valid.sum().float()
    raise ConfigError(f"loss: kind = {name!r}: expected one of {', '.join(LOSSES)}")


def _class_weights(name: str, wanted: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Weights of positives and of negatives."""
    if name == "class_balanced":
        counts = distributed.all_reduce_sum(torch.stack([wanted.sum(), valid.sum().to(wanted.dtype)]))
        positives = counts[0] / counts[1].clamp(min=1)
        return 1 - positives, positives
    if name == "balanced":
        return wanted.new_tensor(BALANCED_POSITIVE_WEIGHT), wanted.new_tensor(1 - BALANCED_POSITIVE_WEIGHT)
    return wanted.new_tensor(EDGE_POSITIVE_WEIGHT), wanted.new_tensor(1.0)


def multi_task_loss(
    outputs: Mapping[str, Tensor],
    targets: Mapping[str, Tensor],
    tasks: Iterable[Task],
    weights: Mapping[str, float],
    names: Mapping[str, str] | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Weighted sum of the losses of the tasks in ``outputs``, and each loss (unweighted, detached).

    With several processes every value is this process' share: the *mean* over processes is the loss
    of the global batch, which is what DistributedDataParallel's averaged gradients belong to. Tasks
    absent from ``weights`` have weight 1; tasks absent from ``names`` have the loss of their kind.
    """
    chosen = [task for task in tasks if task.name in outputs]
    missing = [task.name for task in chosen if task.name not in targets]
    if missing:
        raise ConfigError(f"loss: task {missing[0]!r}: the data set has {', '.join(targets)} only")
    names = names or {}
    pairs = [loss_sum(names.get(task.name, task.kind), outputs[task.name], targets[task.name]) for task in chosen]
    world = distributed.world_size()
    counts = distributed.all_reduce_sum(torch.stack([count for _, count in pairs])) / world
    losses = {
        task.name: total / count.clamp(min=1)
        for task, (total, _), count in zip(chosen, pairs, counts.unbind(), strict=True)
    }
    total = torch.stack([weights.get(name, 1.0) * loss for name, loss in losses.items()]).sum()
    return total, {name: loss.detach() for name, loss in losses.items()}
