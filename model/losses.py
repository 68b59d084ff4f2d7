"""Losses by kind of task, and the weights with which they are added.

Each loss is a sum over valid elements divided by their number in the *global* batch, so that
training on several processes minimizes the same function as on one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from accel.errors import ConfigError
from model import distributed
from model.moe import full_precision

if TYPE_CHECKING:
    from accel.config import Task

IGNORE = 255
EDGE_POSITIVE_WEIGHT = 3.0

LOSS_WEIGHTS: dict[str, dict[str, float]] = {
    "scenes": {"semseg": 1, "depth": 1, "normals": 2, "edge": 2},
    # The weights of M3ViT's configurations.
    "pascal": {"semseg": 1, "human_parts": 2, "sal": 5, "edge": 50, "normals": 10},
    "nyud": {"semseg": 1, "depth": 1, "normals": 10, "edge": 50},
    "cityscapes": {"semseg": 1, "depth": 1},
}


def loss_sum(kind: str, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Sum of the loss over valid elements, and their number (both scalars).

    Args:
        kind: ``labels``: cross entropy of [B, C, H, W] logits; ``depth``: L1 in metres;
            ``log_depth``: L1 of natural logarithms; ``normals``: L1 on the L2-normalized
            prediction; ``binary``: cross entropy of one logit with positives weighted by 3.
        target: as described in `model.data.Dataset`.
    """
    output = full_precision(output)
    if kind == "labels":
        total = F.cross_entropy(output, target.long(), ignore_index=IGNORE, reduction="sum")
        return total, (target != IGNORE).sum().float()
    if kind == "normals":
        wanted = target.float().permute(0, 3, 1, 2)  # [B, 3, H, W]
        valid = (wanted.abs().sum(1, keepdim=True) > 0) & (wanted != IGNORE).all(1, keepdim=True)
        error = (F.normalize(output, dim=1) - wanted).abs() * valid
        return error.sum(), 3 * valid.sum().float()
    value = output[:, 0]
    if kind in ("depth", "log_depth"):
        metres = target.float()
        valid = (metres > 0) & (metres != IGNORE) & torch.isfinite(metres)
        metres = torch.where(valid, metres, torch.ones_like(metres))
        wanted = metres.log() if kind == "log_depth" else metres
        return ((value - wanted).abs() * valid).sum(), valid.sum().float()
    if kind == "binary":
        valid = target != IGNORE
        positive = torch.full((), EDGE_POSITIVE_WEIGHT, device=value.device)
        wanted = (target * valid).to(value.dtype)
        error = F.binary_cross_entropy_with_logits(
            value, wanted, pos_weight=positive, reduction="none"
        )
        return (error * valid).sum(), valid.sum().float()
    kinds = "labels, depth, log_depth, normals or binary"
    raise ConfigError(f"loss: kind = {kind!r}: expected {kinds}")


def multi_task_loss(
    outputs: Mapping[str, Tensor],
    targets: Mapping[str, Tensor],
    tasks: Iterable[Task],
    weights: Mapping[str, float],
) -> tuple[Tensor, dict[str, Tensor]]:
    """Weighted sum of the losses of the tasks in ``outputs``, and each loss (unweighted, detached).

    With several processes every value is this process' share: the *mean* over processes is the loss
    of the global batch, which is what DistributedDataParallel's averaged gradients belong to. Tasks
    absent from ``weights`` have weight 1.
    """
    chosen = [task for task in tasks if task.name in outputs]
    missing = [task.name for task in chosen if task.name not in targets]
    if missing:
        raise ConfigError(f"loss: task {missing[0]!r}: the data set has {', '.join(targets)} only")
    pairs = [loss_sum(task.kind, outputs[task.name], targets[task.name]) for task in chosen]
    world = distributed.world_size()
    counts = distributed.all_reduce_sum(torch.stack([count for _, count in pairs])) / world
    losses = {
        task.name: total / count.clamp(min=1)
        for task, (total, _), count in zip(chosen, pairs, counts.unbind(), strict=True)
    }
    total = torch.stack([weights.get(name, 1.0) * loss for name, loss in losses.items()]).sum()
    return total, {name: loss.detach() for name, loss in losses.items()}
