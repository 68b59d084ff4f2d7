"""Data sets that are read from disk while training: the same interface as `model.data.Dataset`, nothing held in memory.

Which images form a batch, and how each is augmented, is a pure function of (seed, step, position in the global batch),
so a resumed run and a run on any number of processes see the same batches. Threads read ahead: decoding and resampling
release Python's lock.
"""

from __future__ import annotations

import dataclasses
import os
import weakref
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from accel.errors import ConfigError, DataError
from model.conventions import Sample
from model.data import BatchOrder
from model.transforms import Augmentation, Geometry, prepare

_AUGMENT = 2  # third member of the seeds (seed, kind, step ...): 0 is the order, 1 the mirroring of model.data
MAX_WORKERS = 8


class SampleSource(Protocol):
    """Images with targets, read one at a time; see `model.datasets.common.SourceBase`.

    ids: name of each image; tasks: what `load` returns by default; key: identifies the content; normals_y_down:
    direction of the normals' y axis.
    """

    ids: Sequence[str]
    tasks: tuple[str, ...]
    normals_y_down: bool

    @property
    def key(self) -> str: ...

    def __len__(self) -> int: ...

    def load(self, index: int, tasks: Sequence[str] | None = None) -> Sample:
        """``image`` uint8 [H, W, 3] and one target per task; may be called by several threads at once."""


class FolderDataset:
    """A source at one image size, with or without augmentation; use it as a `model.data.Dataset`.

    Args:
        source: where samples come from.
        height, width: what every sample is resized to.
        augmentation: what training batches go through; None for none. Evaluation never augments.
        count: only the first ``count`` samples.
        workers: threads that read ahead; as many as CPUs, at most 8, by default.
    """

    def __init__(
        self,
        source: SampleSource,
        height: int,
        width: int,
        augmentation: Augmentation | None = None,
        *,
        count: int | None = None,
        workers: int | None = None,
    ) -> None:
        if height < 1 or width < 1:
            raise ConfigError(f"data set: size = {height}×{width}: expected positive numbers")
        self.source, self.height, self.width, self.augmentation = source, height, width, augmentation
        self.count = len(source) if count is None else min(count, len(source))
        if self.count < 1:
            raise DataError(f"data set {source.key}: expected at least one image, found none")
        self.workers = workers or min(MAX_WORKERS, os.cpu_count() or 1)

    def __len__(self) -> int:
        return self.count

    @property
    def task_names(self) -> tuple[str, ...]:
        """Tasks with targets."""
        return self.source.tasks

    @property
    def key(self) -> str:
        """Identifies the source, the size and the augmentation, but not the content of the files."""
        recipe = "plain" if self.augmentation is None else repr(dataclasses.astuple(self.augmentation))
        return f"{self.source.key}:{self.height}x{self.width}:{recipe}:{self.count}"

    def subset(self, count: int) -> FolderDataset:
        """The first ``count`` samples."""
        return FolderDataset(self.source, self.height, self.width, self.augmentation, count=count, workers=self.workers)

    def sample(self, index: int, tasks: Sequence[str] | None = None, geometry: Geometry | None = None) -> Sample:
        """Sample ``index`` at the data set's size."""
        raw = self.source.load(index, tasks)
        return prepare(raw, self.height, self.width, geometry, self.source.normals_y_down)

    def first_images(self, count: int) -> NDArray[np.uint8]:
        """The first ``count`` images, not augmented, uint8 [count, H, W, 3]."""
        return np.stack([self.sample(index, ())["image"] for index in range(min(count, self.count))])

    def batches(
        self, batch_size: int, seed: int = 0, mirror: bool = True, rank: int = 0, world: int = 1
    ) -> FolderBatches:
        """Training batches; ``mirror`` = False turns the augmentation's mirroring off."""
        return FolderBatches(self, BatchOrder(len(self), batch_size, seed, rank, world), mirror)

    def chunks(
        self, size: int, tasks: Sequence[str] | None = None
    ) -> Iterator[tuple[NDArray[np.uint8], dict[str, NDArray]]]:
        """All samples in order, not augmented, ``size`` at a time: images and targets. Reads one chunk ahead."""
        names = self.task_names if tasks is None else tuple(tasks)
        starts = range(0, self.count, size)
        with ThreadPoolExecutor(self.workers) as pool:

            def begin(start: int) -> list[Future[Sample]]:
                stop = min(start + size, self.count)
                return [pool.submit(self.sample, index, names) for index in range(start, stop)]

            ahead = begin(0)
            try:
                for start in starts:
                    current, ahead = ahead, begin(start + size) if start + size < self.count else []
                    samples = [future.result() for future in current]
                    yield (
                        np.stack([sample["image"] for sample in samples]),
                        {name: np.stack([sample[name] for sample in samples]) for name in names},
                    )
            finally:
                for future in ahead:
                    future.cancel()


class FolderBatches:
    """Shuffled, augmented batches of a `FolderDataset`, as `model.data.Batches` of a `model.data.Dataset`.

    Args:
        ahead: batches that threads prepare while the current one is used.
    """

    def __init__(self, dataset: FolderDataset, order: BatchOrder, mirror: bool = True, ahead: int = 2) -> None:
        self.dataset, self.order, self.ahead = dataset, order, ahead
        augmentation = dataset.augmentation
        if augmentation is not None and not mirror:
            augmentation = dataclasses.replace(augmentation, mirror=0.0)
        self.augmentation = augmentation
        self._pool = ThreadPoolExecutor(dataset.workers, thread_name_prefix="m3vit-data")
        self._pending: dict[int, list[Future[Sample]]] = {}
        self._finalizer = weakref.finalize(self, self._pool.shutdown, wait=False, cancel_futures=True)

    def close(self) -> None:
        """Stop reading ahead. Happens by itself when the batches are no longer used."""
        self._finalizer()

    def indices(self, step: int) -> NDArray[np.int64]:
        """Images of the global batch ``step`` (from 0). Every epoch visits every image once."""
        return self.order.indices(step)

    def geometry(self, step: int, position: int) -> Geometry | None:
        """How the image at ``position`` of the global batch ``step`` is augmented."""
        if self.augmentation is None:
            return None
        return self.augmentation.draw(np.random.default_rng((self.order.seed, _AUGMENT, step, position)))

    def batch(self, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """This process' share of batch ``step``: images and targets, as in `model.data.Dataset`."""
        futures = self._pending.pop(step, None) or self._begin(step)
        wanted = range(step + 1, step + 1 + self.ahead)
        for other in [number for number in self._pending if number not in wanted]:
            for future in self._pending.pop(other):
                future.cancel()
        for number in wanted:
            if number not in self._pending:
                self._pending[number] = self._begin(number)
        samples = [future.result() for future in futures]
        targets = {
            name: torch.from_numpy(np.stack([sample[name] for sample in samples])) for name in self.dataset.task_names
        }
        return torch.from_numpy(np.stack([sample["image"] for sample in samples])), targets

    def _begin(self, step: int) -> list[Future[Sample]]:
        positions = range(self.order.batch_size)[self.order.mine]
        indices = self.order.indices(step)[self.order.mine]
        # The dataset's own method, not one of this object: a waiting job must not keep the batches alive.
        return [
            self._pool.submit(self.dataset.sample, int(index), None, self.geometry(step, position))
            for position, index in zip(positions, indices, strict=True)
        ]
