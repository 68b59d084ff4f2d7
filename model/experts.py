"""What tasks do with experts: keep each to a window of its own, prune the idle ones, count who uses which.

Windows are in `model.windows`. Expert usage leaves here as JSON (`accel.usage`), the form in which schedules and
simulators read it; the schema is in ``docs/checkpoints.md``.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from accel.errors import CheckpointError, ConfigError, DataError
from accel.usage import ExpertUsage, load_usage, save_usage
from model.checkpoint import Checkpoint
from model.data import Dataset
from model.evaluate import expert_load
from model.moe import MoE
from model.samples import FolderDataset
from model.windows import WINDOWS, expert_windows, restrict

if TYPE_CHECKING:
    from accel.config import Network

__all__ = [
    "Activity", "ExpertUsage", "PruningPlan", "expert_windows", "gate_activity", "load_usage", "measure_usage",
    "moe_layers", "plan_pruning", "prune_checkpoint", "restrict", "save_usage",
]  # fmt: skip

Activity = dict[str, dict[int, list[float]]]
"""task → MoE block → mean gate probability of each expert, summing to 1."""


def moe_layers(model: nn.Module) -> dict[int, MoE]:
    """Block index → its MoE layer, in order."""
    return {module.block: module for module in model.modules() if isinstance(module, MoE)}


def gate_activity(model: nn.Module, dataset: Dataset | FolderDataset, batch: int = 64) -> Activity:
    """Mean gate probability (softmax over all experts, before top-k) per task, MoE block and expert."""
    network = model.network
    assert not isinstance(network, nn.Module | Tensor)
    if not len(dataset):
        raise DataError("gate activity: expected at least one image, found an empty data set")
    sums: dict[int, Tensor] = {}
    with _gate_probabilities(model, sums):
        expert_load(model, dataset, batch)
    rows = {block: (value / value.sum(-1, keepdim=True)).tolist() for block, value in sums.items()}
    return {name: {block: rows[block][i] for block in rows} for i, name in enumerate(network.task_names)}


@contextmanager
def _gate_probabilities(model: nn.Module, sums: dict[int, Tensor]) -> Any:
    """While open, every forward pass over all tasks adds its gate probabilities [T, E] to ``sums``."""

    def add(layer: MoE, inputs: tuple[Any, ...]) -> None:
        x, gate_ids, vectors = inputs[0], inputs[1], inputs[2]
        logits = layer.logits(x.reshape(x.shape[0], -1, x.shape[-1]), gate_ids, vectors)
        if layer.allowed is not None:
            logits = logits.masked_fill(~layer.allowed[list(gate_ids)].unsqueeze(1), -torch.inf)
        share = logits.softmax(-1).double().sum(1).cpu()
        sums[layer.block] = sums.get(layer.block, 0) + share

    hooks = [layer.register_forward_pre_hook(add) for layer in moe_layers(model).values()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@dataclass(frozen=True)
class PruningPlan:
    """Which experts stay.

    Attributes:
        keep: experts asked for per gate.
        wanted: task → MoE block → the ``keep`` most active experts of that gate, best first.
        kept: MoE block → experts that stay, ascending; new expert i of the block is old expert ``kept[block][i]``.
        activity_kept: task → MoE block → share of the gate's probability that the kept experts had.
    """

    keep: int
    wanted: dict[str, dict[int, list[int]]]
    kept: dict[int, list[int]]
    activity_kept: dict[str, dict[int, float]]

    @property
    def experts(self) -> int:
        """Experts per block afterwards."""
        return len(next(iter(self.kept.values())))

    def index_map(self, block: int) -> dict[int, int]:
        """Old expert → new expert of a MoE block; pruned experts are absent."""
        return {old: new for new, old in enumerate(self.kept[block])}


def plan_pruning(activity: Activity, keep: int) -> PruningPlan:
    """Choose experts by gate activity.

    Union rule: tasks share the experts of a block, so a block keeps every expert that is among the ``keep`` most
    active of *any* task's gate. A network has the same number of experts in every block, so blocks whose union is
    smaller than the largest are filled up with the experts of the highest activity summed over tasks. Ties go to the
    lower index; kept experts stay in their order, so that ties between equal logits still go the same way.

    Raises:
        ConfigError: ``keep`` out of range, or no activity.
    """
    blocks = sorted({block for rows in activity.values() for block in rows})
    if not blocks:
        raise ConfigError("expert pruning: expected the activity of at least one MoE block, found none")
    experts = len(next(iter(activity.values()))[blocks[0]])
    if not 1 <= keep <= experts:
        raise ConfigError(f"expert pruning: keep = {keep}: expected 1 to {experts} experts per gate")
    wanted = {
        task: {block: _most_active(rows[block], range(experts))[:keep] for block in blocks}
        for task, rows in activity.items()
    }
    unions = {block: {expert for rows in wanted.values() for expert in rows[block]} for block in blocks}
    size = max(len(union) for union in unions.values())
    kept = {}
    for block, union in unions.items():
        summed = [sum(rows[block][expert] for rows in activity.values()) for expert in range(experts)]
        spare = _most_active(summed, set(range(experts)) - union)
        kept[block] = sorted(union | set(spare[: size - len(union)]))
    shares = {
        task: {block: sum(rows[block][expert] for expert in kept[block]) / sum(rows[block]) for block in blocks}
        for task, rows in activity.items()
    }
    return PruningPlan(keep, wanted, kept, shares)


def _most_active(values: Sequence[float], candidates: Iterable[int]) -> list[int]:
    return sorted(candidates, key=lambda expert: (-values[expert], expert))


def prune_checkpoint(checkpoint: Checkpoint, plan: PruningPlan) -> Checkpoint:
    """The smaller network: experts of each block and the columns of all its gates, re-indexed; no optimizer state.

    A gate's softmax then runs over the kept experts only, so scores grow by the probability that the pruned ones had.
    ``extra["pruned"]`` records, per block, the indices in the *original* network, also after several prunings. Expert
    windows keep what is left of them.

    Raises:
        CheckpointError: not a float checkpoint, or its blocks or experts are not the plan's.
        ConfigError: fewer experts than top-k would remain, in a block or in a task's window.
    """
    where, network = checkpoint.path or "checkpoint", dict(checkpoint.network)
    if checkpoint.stage == "qat":
        raise CheckpointError(f"{where}: stage: expected float weights, found 'qat'")
    if plan.experts < network["top_k"]:
        raise ConfigError(f"expert pruning: {plan.experts} experts left: expected at least top_k = {network['top_k']}")
    weights = dict(checkpoint.weights)
    found = {int(key.split(".")[2]) for key in weights if ".mlp.experts." in key}
    if found != set(plan.kept):
        raise CheckpointError(f"{where}: expected MoE blocks {sorted(plan.kept)}, found {sorted(found)}")
    for key, value in weights.items():
        axis = 0 if ".mlp.experts." in key else 1 if key.endswith(".w_gate") else None
        if axis is None:
            continue
        index = torch.tensor(plan.kept[int(key.split(".")[2])])
        if int(index.max()) >= value.shape[axis]:
            found_here = value.shape[axis]
            raise CheckpointError(f"{where}: {key}: expected over {int(index.max())} experts, found {found_here}")
        weights[key] = value.index_select(axis, index)
    before = checkpoint.extra.get("pruned", {}).get("experts", {})
    original = {
        str(block): [before[str(block)][i] for i in kept] if str(block) in before else list(kept)
        for block, kept in plan.kept.items()
    }
    extra = dict(checkpoint.extra)
    if WINDOWS in extra:
        extra[WINDOWS] = _pruned_windows(extra[WINDOWS], plan, network["top_k"])
    record = {"keep": plan.keep, "experts": original, "activity_kept": plan.activity_kept}
    return dataclasses.replace(
        checkpoint,
        weights=weights,
        network={**network, "experts": plan.experts},
        metrics={},
        extra={**extra, "pruned": json.loads(json.dumps(record))},
        optimizer={},
        path=None,
    )


def _pruned_windows(windows: Mapping[str, Mapping[str, list[int]]], plan: PruningPlan, top_k: int) -> dict[str, Any]:
    """Windows of the original network in the indices of the pruned one."""
    result: dict[str, Any] = {}
    for block in plan.kept:
        new = plan.index_map(block)
        rows = {
            task: [new[expert] for expert in allowed if expert in new] for task, allowed in windows[str(block)].items()
        }
        for task, left in rows.items():
            if len(left) < top_k:
                raise ConfigError(f"expert pruning: block {block}: {len(left)} experts left in the window of {task!r}: "
                                  f"expected at least top_k = {top_k}")  # fmt: skip
        result[str(block)] = rows
    return result


def measure_usage(model: nn.Module, dataset: Dataset | FolderDataset, batch: int = 64) -> ExpertUsage:
    """Count tokens per expert over a data set, for all tasks."""
    network: Network = model.network  # type: ignore[assignment]
    load = expert_load(model, dataset, batch)
    return ExpertUsage(network.name, len(dataset), network.tokens, network.top_k, network.experts, load)
