"""Data sets held in memory, the rendered scenes' train and validation splits, and batches.

Which images form the batch of a step, and which are mirrored, is a pure function of (seed, step).
A resumed run and a run on any number of processes therefore see the same global batches.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from accel.atomic import atomic_write
from accel.errors import ConfigError, DataError
from model import scenes
from model.scenes import split_seed

_CHUNK = 64  # scenes per job of the process pool
_RENDERER = 1  # part of the cache key: raise it when scenes.py changes what it draws
SCENE_TASKS = ("semseg", "depth", "normals", "edge")
_MIRROR_NORMAL_X = np.array([-1, 1, 1], dtype=np.float16)


@dataclass(frozen=True)
class Dataset:
    """Images uint8 [N, H, W, 3] and, per task, targets [N, H, W] or [N, H, W, 3] (normals).

    Targets: class numbers (255 = ignore), depth in metres (0 = unknown), unit normals in the camera
    frame (0 = unknown), edges 0 / 1 (255 = ignore). ``key`` identifies the content.
    """

    images: NDArray[np.uint8]
    targets: Mapping[str, NDArray]
    key: str = ""

    def __post_init__(self) -> None:
        if self.images.ndim != 4 or self.images.shape[3] != 3 or self.images.dtype != np.uint8:
            found = f"{self.images.dtype} {self.images.shape}"
            raise DataError(f"data set: images: expected uint8 (N, H, W, 3), found {found}")
        for name, target in self.targets.items():
            if target.shape[:3] != self.images.shape[:3]:
                raise DataError(
                    f"data set: {name}: expected shape {self.images.shape[:3]}, "
                    f"found {target.shape[:3]}"
                )

    def __len__(self) -> int:
        return len(self.images)

    @property
    def task_names(self) -> tuple[str, ...]:
        """Tasks with targets."""
        return tuple(self.targets)

    def subset(self, count: int) -> Dataset:
        """The first ``count`` images."""
        targets = {name: target[:count] for name, target in self.targets.items()}
        return Dataset(self.images[:count], targets, f"{self.key}[:{count}]")

    def first_images(self, count: int) -> NDArray[np.uint8]:
        """The first ``count`` images."""
        return self.images[:count]

    def batches(
        self, batch_size: int, seed: int = 0, mirror: bool = True, rank: int = 0, world: int = 1
    ) -> Batches:
        """Training batches, see `Batches`."""
        return Batches(self, batch_size, seed, mirror, rank, world)

    def chunks(
        self, size: int, tasks: Sequence[str] | None = None
    ) -> Iterator[tuple[NDArray[np.uint8], dict[str, NDArray]]]:
        """All images in order, ``size`` at a time, with the targets of ``tasks`` (all by default)."""
        names = self.task_names if tasks is None else tasks
        for start in range(0, len(self), size):
            part = slice(start, start + size)
            yield self.images[part], {name: self.targets[name][part] for name in names}


def _render(count: int, seed: int, height: int, width: int, workers: int, quiet: bool) -> dict:
    """Render scenes 0 .. count - 1 in chunks, in parallel when that pays."""
    from tqdm import tqdm

    starts = range(0, count, _CHUNK)
    jobs = [(seed, start, min(start + _CHUNK, count), height, width) for start in starts]
    parts = []
    with tqdm(total=count, desc="rendering scenes", unit="img", disable=quiet) as bar:
        if workers <= 1 or len(jobs) == 1:
            for job in jobs:
                parts.append(scenes.render_range(*job))
                bar.update(job[2] - job[1])
        else:
            # spawn: a forked child would inherit torch's thread pools in an unknown state.
            context = multiprocessing.get_context("spawn")
            with ProcessPoolExecutor(min(workers, len(jobs)), context) as pool:
                results = pool.map(scenes.render_range, *zip(*jobs, strict=True))
                for job, part in zip(jobs, results, strict=True):
                    parts.append(part)
                    bar.update(job[2] - job[1])
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _load_cache(path: Path, count: int) -> dict[str, NDArray] | None:
    """Arrays of a cache file; None if there is none or it is damaged (it is then made anew)."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in ("image", *SCENE_TASKS)}
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile):
        return None
    return arrays if all(len(array) == count for array in arrays.values()) else None


def scene_dataset(
    split: str,
    count: int,
    height: int = 64,
    width: int = 64,
    seed: int = 0,
    *,
    cache_dir: str | os.PathLike[str] | None = None,
    workers: int | None = None,
    quiet: bool = False,
) -> Dataset:
    """Rendered scenes of a split (``train`` or ``val``) with semseg, depth, normals and edge.

    Args:
        count: number of scenes; a longer set begins with the scenes of a shorter one.
        seed: of the whole data set; the splits never share a scene.
        cache_dir: where to keep the arrays as .npz, named by a hash of the parameters.
        workers: processes that render; all CPUs by default.
    """
    if count < 1:
        raise ConfigError(f"data set: count = {count}: expected at least 1")
    parameters: dict[str, str | int] = {
        "renderer": _RENDERER,
        "split": split,
        "seed": split_seed(seed, split),
        "count": count,
        "height": height,
        "width": width,
    }
    key = hashlib.sha256(json.dumps(parameters, sort_keys=True).encode()).hexdigest()[:16]
    path = None if cache_dir is None else Path(cache_dir) / f"scenes-{split}-{key}.npz"
    arrays = None if path is None else _load_cache(path, count)
    if arrays is None:
        jobs = os.cpu_count() or 1 if workers is None else workers
        arrays = _render(count, split_seed(seed, split), height, width, jobs, quiet)
        if path is not None:
            with atomic_write(path) as temporary, temporary.open("wb") as file:
                np.savez(file, **arrays)  # type: ignore[arg-type]
    return Dataset(arrays["image"], {name: arrays[name] for name in SCENE_TASKS}, key)


@dataclass
class BatchOrder:
    """Which images form which batch: batch ``step`` depends on (seed, step) only.

    Args:
        count: images in the data set.
        batch_size: images in the global batch.
        rank, world: which equal share of every global batch is this process'.
    """

    count: int
    batch_size: int
    seed: int = 0
    rank: int = 0
    world: int = 1
    _orders: dict[int, NDArray[np.int64]] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.batch_size % self.world:
            raise ConfigError(
                f"training: batch_size = {self.batch_size}: expected a positive multiple of the "
                f"{self.world} processes"
            )

    def _order(self, epoch: int) -> NDArray[np.int64]:
        if epoch not in self._orders:
            if len(self._orders) > 1:
                self._orders.pop(min(self._orders))
            rng = np.random.default_rng((self.seed, 0, epoch))
            self._orders[epoch] = rng.permutation(self.count)
        return self._orders[epoch]

    def indices(self, step: int) -> NDArray[np.int64]:
        """Images of the global batch ``step`` (from 0). Every epoch visits every image once."""
        places = np.arange(step * self.batch_size, (step + 1) * self.batch_size)
        return np.array([self._order(int(p) // self.count)[int(p) % self.count] for p in places])

    @property
    def mine(self) -> slice:
        """This process' positions in every global batch."""
        share = self.batch_size // self.world
        return slice(self.rank * share, (self.rank + 1) * share)


@dataclass
class Batches:
    """Shuffled batches of a data set; batch ``step`` depends on (seed, step) only.

    Args:
        batch_size: images in the global batch.
        seed: of the order and of the mirroring.
        mirror: flip each image left to right with probability 1/2; normals' x changes sign.
        rank, world: which equal share of every global batch to return.
    """

    dataset: Dataset
    batch_size: int
    seed: int = 0
    mirror: bool = True
    rank: int = 0
    world: int = 1

    def __post_init__(self) -> None:
        self._order = BatchOrder(len(self.dataset), self.batch_size, self.seed, self.rank, self.world)

    def indices(self, step: int) -> NDArray[np.int64]:
        """Images of the global batch ``step`` (from 0). Every epoch visits every image once."""
        return self._order.indices(step)

    def mirrored(self, step: int) -> NDArray[np.bool_]:
        """Which images of the global batch ``step`` are flipped."""
        rng = np.random.default_rng((self.seed, 1, step))
        return (rng.random(self.batch_size) < 0.5) & self.mirror

    def batch(self, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """This process' share of batch ``step``: images and targets, as in `Dataset`."""
        mine = self._order.mine
        indices, flip = self.indices(step)[mine], self.mirrored(step)[mine]

        def pick(array: NDArray) -> NDArray:
            picked = array[indices]
            picked[flip] = picked[flip, :, ::-1]
            return picked

        targets = {name: pick(target) for name, target in self.dataset.targets.items()}
        for target in targets.values():
            if target.ndim == 4:  # the only vector-valued targets are normals
                target[flip] *= _MIRROR_NORMAL_X.astype(target.dtype)
        images = torch.from_numpy(pick(self.dataset.images))
        return images, {name: torch.from_numpy(target) for name, target in targets.items()}
