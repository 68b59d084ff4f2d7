"""Data sets on disk: PASCAL-Context, NYUD-v2 and Cityscapes, in the layouts that M³ViT's users have."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from accel.errors import ConfigError
from model.datasets.cityscapes import CITYSCAPES, Cityscapes
from model.datasets.common import DatasetSpec, FolderSource, SourceBase
from model.datasets.location import locate
from model.datasets.nyu_mat import NyuMat
from model.datasets.nyud import NYUD, Nyud
from model.datasets.pascal import PASCAL, PascalContext
from model.transforms import RECIPES

if TYPE_CHECKING:
    from accel.config import Network
    from model.samples import FolderDataset

FOLDERS: Mapping[str, type[FolderSource]] = {"pascal": PascalContext, "nyud": Nyud, "cityscapes": Cityscapes}
"""Name -> reader of its folder layout."""
DATASETS: Mapping[str, DatasetSpec] = {spec.name: spec for spec in (PASCAL, NYUD, CITYSCAPES)}
"""Name -> what it holds."""


def dataset_spec(name: str) -> DatasetSpec:
    """The data set called ``name``."""
    if name not in DATASETS:
        raise ConfigError(f"data set {name!r}: expected one of {', '.join(DATASETS)}")
    return DATASETS[name]


def open_source(
    name: str, split: str, tasks: Sequence[str] | None = None, root: str | os.PathLike[str] | None = None
) -> SourceBase:
    """A split at the size it has on disk; every file that the tasks need is known to exist.

    Args:
        tasks: all of the data set's by default. A task that is not asked for needs no files.
        root: where to look, by default in the environment, see `model.datasets.location.locate`.

    Raises:
        ConfigError: unknown data set, split or task. DataError: something is missing or cannot be read.
    """
    spec = dataset_spec(name)
    place = locate(spec, root)
    return NyuMat(place, split, tasks) if place.is_file() else FOLDERS[name](place, split, tasks)


def check_network(spec: DatasetSpec, network: Network, tasks: Sequence[str] | None = None) -> tuple[str, ...]:
    """The tasks that network and data set share (or ``tasks``, perhaps none), after checking that they mean the same in
    both."""
    names = tuple(tasks) if tasks is not None else tuple(n for n in network.task_names if n in spec.task_names)
    if tasks is None and not names:
        raise ConfigError(f"network {network.name!r}: tasks: expected one of {', '.join(spec.task_names)} for data set "
                          f"{spec.name!r}, found {', '.join(network.task_names)}")  # fmt: skip
    for name in names:
        offered, wanted = spec.task(name), network.task(name)
        where = f"network {network.name!r}: task {name!r}"
        if wanted.kind not in offered.kinds:
            raise ConfigError(f"{where}: kind: expected {' or '.join(offered.kinds)} for data set {spec.name!r}, "
                              f"found {wanted.kind!r}")  # fmt: skip
        if wanted.channels != offered.channels:
            raise ConfigError(f"{where}: channels: expected {offered.channels} for data set {spec.name!r}, "
                              f"found {wanted.channels}")  # fmt: skip
    return names


def open_dataset(
    name: str,
    split: str,
    network: Network,
    tasks: Sequence[str] | None = None,
    root: str | os.PathLike[str] | None = None,
) -> FolderDataset:
    """A split at a network's image size, ready for `model.train.fit` and `model.evaluate.evaluate`.

    The training split is augmented by the data set's recipe (`model.transforms.RECIPES`), the others are resized only.
    """
    from model.samples import FolderDataset

    names = check_network(dataset_spec(name), network, tasks)
    source = open_source(name, split, names, root)
    recipe = RECIPES[name] if split == "train" else None
    return FolderDataset(source, network.image_height, network.image_width, recipe)
