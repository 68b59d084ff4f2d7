"""Run a model over a data set and measure every task."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from numpy.typing import NDArray
from torch import nn

from model.data import Dataset
from model.metrics import Meter, Metrics, make_meter
from model.samples import FolderDataset


def evaluate(
    model: nn.Module,
    dataset: Dataset | FolderDataset,
    batch: int = 64,
    tasks: Sequence[str] | None = None,
    gate_override: Mapping[str, str] | None = None,
    *,
    meters: Mapping[str, Meter] | None = None,
    on_outputs: Callable[[int, Mapping[str, NDArray]], None] | None = None,
) -> Metrics:
    """Metrics of ``model`` (which has ``network`` and returns a ForwardResult) on ``dataset``.

    Args:
        tasks: which to evaluate; all that the data set has targets for by default.
        gate_override: task -> task whose gates it uses instead of its own.
        meters: task -> new meter; by default those of the rendered scenes (`model.metrics`).
        on_outputs: called after each batch with the number of its first image and the outputs, task -> [B, C, H, W].

    The model is left in the mode (training or evaluation) it was in.
    """
    network = model.network
    assert not isinstance(network, nn.Module | torch.Tensor)
    names = [n for n in (tasks or network.task_names) if n in dataset.task_names]
    if meters is None:
        meters = {name: make_meter(network.task(name)) for name in names}
    device = next(model.parameters()).device
    options = {"gate_override": gate_override} if gate_override else {}
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            done = 0
            for images, targets in dataset.chunks(batch, names):
                result = model(torch.from_numpy(images).to(device), names, **options).outputs
                outputs = {name: result[name].float().cpu().numpy() for name in names}
                for name in names:
                    meters[name].update(outputs[name], targets[name])
                if on_outputs is not None:
                    on_outputs(done, outputs)
                done += len(images)
    finally:
        model.train(was_training)
    return {name: meter.result() for name, meter in meters.items()}


def swapped_gates(first: str, second: str) -> dict[str, str]:
    """``gate_override`` that lets two tasks use each other's gates."""
    return {first: second, second: first}


def evaluate_swapped(
    model: nn.Module, dataset: Dataset | FolderDataset, first: str, second: str, batch: int = 64
) -> Metrics:
    """Metrics of two tasks when each uses the other's gates: what their own routing is worth."""
    return evaluate(model, dataset, batch, [first, second], swapped_gates(first, second))


def expert_load(
    model: nn.Module, dataset: Dataset | FolderDataset, batch: int = 64
) -> dict[str, dict[int, list[int]]]:
    """task -> MoE block -> tokens that each expert got over the data set."""
    network = model.network
    assert not isinstance(network, nn.Module | torch.Tensor)
    device = next(model.parameters()).device
    total: dict[int, torch.Tensor] = {}
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            for images, _ in dataset.chunks(batch, ()):
                for block, stats in model(torch.from_numpy(images).to(device)).routing.items():
                    total[block] = total.get(block, 0) + stats.load.double().cpu()
    finally:
        model.train(was_training)
    return {
        name: {block: [round(v) for v in load[i].tolist()] for block, load in total.items()}
        for i, name in enumerate(network.task_names)
    }
