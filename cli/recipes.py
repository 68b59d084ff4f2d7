"""Recipes on the command line: their networks, their data sets, and checkpoints measured on them."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accel.config import NETWORKS, Network, network, network_from_dict, to_dict
from accel.errors import CheckpointError, ConfigError, M3vitError
from cli.console import bars_hidden

if TYPE_CHECKING:
    from torch import nn

    from model.data import Dataset
    from model.metrics import Meter, Metrics
    from model.recipes.loader import Recipe
    from model.samples import FolderDataset

MAX_EDGE_WORKERS = 8
_PARALLEL_FROM = 64  # images from which matching edges in other processes pays


def recipe_network(recipe: Recipe) -> Network:
    """The network of a recipe, named after it; ConfigError names the recipe's file."""
    fields = dict(recipe.network)
    preset = fields.pop("preset", None)
    if preset is not None:
        if preset not in NETWORKS:
            expected = ", ".join(NETWORKS)
            raise ConfigError(f"{recipe.where}: network.preset = {preset!r}: expected one of {expected}")
        fields = {**to_dict(network(preset)), **fields}
    fields |= {"name": recipe.name, "tasks": recipe.task_fields()}
    try:
        return network_from_dict(fields, "network")
    except ConfigError as error:
        raise ConfigError(f"{recipe.where}: {error}") from error


def restrict_to_windows(recipe: Recipe, model: nn.Module) -> None:
    """Keep every task of a new model to the recipe's window of experts, if it has one."""
    from model.windows import expert_windows, restrict

    if not recipe.expert_windows:
        return
    net: Network = model.network  # type: ignore[assignment]
    try:
        restrict(model, expert_windows(len(net.tasks), net.experts, recipe.expert_windows))
    except ConfigError as error:
        raise ConfigError(f"{recipe.where}: expert_windows = {recipe.expert_windows}: {error}") from error


def open_split(
    recipe: Recipe,
    net: Network,
    split: str,
    *,
    tasks: Sequence[str] | None = None,
    data_root: Path | None = None,
    cache: Path | None = None,
    quiet: bool = False,
) -> Dataset | FolderDataset:
    """A split of the recipe's data set at the network's size.

    Args:
        tasks: with targets for these, perhaps none; all of the network's by default.
        data_root: of a data set on disk; from the environment by default.
        cache: where rendered scenes are kept.
    """
    if recipe.dataset == "scenes":
        from cli.training import check_scene_tasks
        from model.data import scene_dataset

        check_scene_tasks(net)
        if data_root is not None:
            raise ConfigError(f"{recipe.where}: dataset = 'scenes': expected no data root, found {data_root}: "
                              "the scenes are rendered")  # fmt: skip
        return scene_dataset(
            split, recipe.scenes[split], net.image_height, net.image_width, recipe.seed,
            cache_dir=cache, quiet=bars_hidden(quiet),
        )  # fmt: skip
    from model.datasets import open_dataset

    return open_dataset(recipe.dataset, split, net, net.task_names if tasks is None else tasks, data_root)


def image_names(dataset: Dataset | FolderDataset) -> list[str]:
    """A name per image, safe in a file name."""
    source = getattr(dataset, "source", None)
    if source is None:
        return [f"{index:05d}" for index in range(len(dataset))]
    return [str(name).replace(os.sep, "_") for name in source.ids[: len(dataset)]]


def measure(
    recipe: Recipe,
    model: nn.Module,
    dataset: Dataset | FolderDataset,
    tasks: Sequence[str] | None = None,
    on_outputs: Callable[[int, Mapping[str, Any]], None] | None = None,
) -> Metrics:
    """Metrics that belong to the recipe's data set."""
    from model.evaluate import evaluate
    from model.metrics_tasks import benchmark_meters

    net: Network = model.network  # type: ignore[assignment]
    names = tuple(tasks or net.task_names)
    meters: dict[str, Meter] | None = None
    if recipe.dataset != "scenes":
        from model.datasets import dataset_spec

        workers = min(MAX_EDGE_WORKERS, os.cpu_count() or 1) if len(dataset) >= _PARALLEL_FROM else 1
        meters = benchmark_meters(net, names, workers, dataset_spec(recipe.dataset).edge_tolerance)
    batch = 64 if recipe.dataset == "scenes" else recipe.batch
    return evaluate(model, dataset, batch, names, meters=meters, on_outputs=on_outputs)


@dataclass(frozen=True)
class Trained:
    """A network from a checkpoint: the model in evaluation mode, and the stage that made it."""

    model: nn.Module
    stage: str
    step: int

    @property
    def network(self) -> Network:
        return self.model.network  # type: ignore[return-value]


def load_trained(path: Path) -> Trained:
    """The float or quantized model in ``path``, of whatever network it is.

    Raises:
        CheckpointError: not a checkpoint, or damaged.
    """
    from cli.checkpoint_header import read_header
    from quant.checkpoint import STAGE, load_float, load_qat

    header = read_header(path)
    model = load_qat(path) if header["stage"] == STAGE else load_float(path)
    return Trained(model, header["stage"], header["step"])


def check_image_size(path: Path, found: Network, recipe: Recipe, net: Network) -> None:
    """CheckpointError unless the network in ``path`` takes images of the size of ``net``, the recipe's network."""
    for name in ("image_height", "image_width"):
        value, expected = getattr(found, name), getattr(net, name)
        if value != expected:
            raise CheckpointError(f"{path}: network.{name}: expected {expected} as in {recipe.where}, found {value}")


def shared_tasks(path: Path, found: Network, recipe: Recipe, wanted: Sequence[str] = ()) -> tuple[str, ...]:
    """Tasks that the checkpoint ``path`` of network ``found`` can be measured on with the recipe's data set.

    Args:
        wanted: these, in this order; all that checkpoint and recipe share by default.

    Raises:
        ConfigError: a wanted task is not the recipe's. CheckpointError: it is not the checkpoint's; nothing is shared;
            a task means something else in the data set (channels, kind).
    """
    for name in wanted:
        if name not in recipe.tasks:
            raise ConfigError(f"{recipe.where}: task {name!r}: expected one of {', '.join(recipe.tasks)}")
        if name not in found.task_names:
            raise CheckpointError(f"{path}: task {name!r}: expected one of {', '.join(found.task_names)}")
    names = tuple(wanted) or tuple(name for name in found.task_names if name in recipe.tasks)
    if not names:
        raise CheckpointError(f"{path}: network.tasks: expected one of {', '.join(recipe.tasks)} as in {recipe.where}, "
                              f"found {', '.join(found.task_names)}")  # fmt: skip
    try:
        if recipe.dataset == "scenes":
            from cli.training import check_scene_tasks

            check_scene_tasks(found)
        else:
            from model.datasets import check_network, dataset_spec

            check_network(dataset_spec(recipe.dataset), found, names)
    except M3vitError as error:
        raise CheckpointError(f"{path}: {error}") from error
    return names
