"""Expert windows: keep each task to some of the experts, in training and everywhere after it.

A window is not a weight: checkpoints hold it in their header, ``extra.expert_windows``, and every reader of checkpoints
applies it again. The quantized network expresses it in the bias of its gates (``quant.layers.Gates``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from accel.errors import CheckpointError, ConfigError
from model.checkpoint import Checkpoint
from model.moe import ExpertChoice

if TYPE_CHECKING:
    from accel.config import Network

WINDOWS = "expert_windows"
"""Entry of a checkpoint's ``extra``: MoE block → task → experts that it may use."""


def expert_windows(tasks: int, experts: int, per_task: int) -> Tensor:
    """Contiguous windows of ``per_task`` experts, spread evenly: bool [tasks, experts].

    Task t may use experts start, …, start + per_task − 1 with start = ⌊t · (experts − per_task) / (tasks − 1)⌋, so
    the first window begins at expert 0 and the last one ends at the last expert, for any number of tasks; windows
    overlap where there are not enough experts. (M³ViT adds these starts up and leaves the table above two tasks.)
    """
    if tasks < 1:
        raise ConfigError(f"expert windows: tasks = {tasks}: expected at least 1")
    if not 1 <= per_task <= experts:
        raise ConfigError(f"expert windows: per_task = {per_task}: expected 1 to {experts} experts")
    spread = experts - per_task
    starts = [task * spread // (tasks - 1) if tasks > 1 else 0 for task in range(tasks)]
    index = torch.arange(experts)
    return torch.stack([(index >= start) & (index < start + per_task) for start in starts])


def restrict(model: nn.Module, windows: Tensor | Mapping[int, Tensor] | None) -> None:
    """Keep tasks to the experts that ``windows`` [tasks, E] allows, in training and in evaluation; None lifts it.

    The others get no token, no score and no gradient, and the scores are a softmax over the allowed experts: float
    gates set their logits to −∞ before the softmax, quantized ones give them a bias that does the same. Not part of
    the state dict. The balance loss still counts all experts, the forbidden ones as empty: a constant more, and the
    same optimum among the allowed.

    Args:
        model: float or quantized network.
        windows: one table for all blocks, or MoE block → table.

    Raises:
        ConfigError: a table of the wrong shape, or a task with fewer experts than it must choose (top-k).
    """
    network: Network = model.network  # type: ignore[assignment]
    tables: dict[int, Tensor | None] = {}
    layers = _choices(model)
    for block, layer in layers.items():
        table = tables[block] = windows[block] if isinstance(windows, Mapping) else windows
        if table is None:
            continue
        expected = (len(network.tasks), layer.num_experts)
        if tuple(table.shape) != expected:
            raise ConfigError(f"block {block}: expert windows: expected shape {expected}, found {tuple(table.shape)}")
        for task, count in zip(network.task_names, table.sum(-1).tolist(), strict=True):
            if count < layer.k:
                raise ConfigError(f"block {block}: task {task!r}: expected at least {layer.k} experts, found {count}")
    for block, layer in layers.items():
        table = tables[block]
        layer.allowed = None if table is None else table.to(next(layer.parameters()).device, torch.bool)


def _choices(model: nn.Module) -> dict[int, ExpertChoice]:
    return {module.block: module for module in model.modules() if isinstance(module, ExpertChoice)}


def windows_metadata(model: nn.Module) -> dict[str, Any]:
    """What a checkpoint's ``extra`` says about the windows of ``model``; empty without windows."""
    network: Network = model.network  # type: ignore[assignment]
    tables = {block: layer.allowed for block, layer in _choices(model).items() if layer.allowed is not None}
    if not tables:
        return {}
    return {
        WINDOWS: {
            str(block): {
                task: row.nonzero().flatten().tolist() for task, row in zip(network.task_names, table, strict=True)
            }
            for block, table in tables.items()
        }
    }


def restore_windows(model: nn.Module, checkpoint: Checkpoint) -> None:
    """Restrict ``model`` as the checkpoint says; without windows in it nothing happens.

    Raises:
        CheckpointError: windows that do not fit the network; the message names file and field.
    """
    if WINDOWS not in checkpoint.extra:
        return
    network: Network = model.network  # type: ignore[assignment]
    where = f"{checkpoint.path or 'checkpoint'}: extra.{WINDOWS}"
    blocks = _fields(where, checkpoint.extra[WINDOWS], [str(block) for block in _choices(model)])
    tables = {}
    for block, rows in blocks.items():
        inside = f"{where}.{block}"
        table = torch.zeros(len(network.tasks), network.experts, dtype=torch.bool)
        for index, experts in enumerate(_fields(inside, rows, network.task_names).values()):
            good = isinstance(experts, list) and all(type(e) is int and 0 <= e < network.experts for e in experts)
            if not good or len(set(experts)) != len(experts):
                task = network.task_names[index]
                expected = f"different experts from 0 to {network.experts - 1}"
                raise CheckpointError(f"{inside}.{task}: expected {expected}, found {experts!r}")
            table[index, experts] = True
        tables[int(block)] = table
    try:
        restrict(model, tables)
    except ConfigError as error:
        raise CheckpointError(f"{where}: {error}") from error


def _fields(where: str, value: object, names: Any) -> dict[str, Any]:
    """A table with exactly these fields, in this order."""
    if not isinstance(value, Mapping) or set(value) != set(names):
        found = ", ".join(map(str, value)) if isinstance(value, Mapping) else repr(value)
        raise CheckpointError(f"{where}: expected a table of {', '.join(names)}, found {found or 'an empty one'}")
    return {name: value[name] for name in names}
