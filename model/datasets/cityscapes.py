"""Cityscapes in the preprocessed NumPy layout of 128 x 256 images with seven super-classes.

| task | file |
|---|---|
| (image) | {train,val}/image/I.npy: [H, W, 3], float 0 to 1 (uint8 and float 0 to 255 are read, too) |
| semseg | {train,val}/label_7/I.npy: -1 = ignore, 0 to 6 |
| depth | {train,val}/depth/I.npy: [H, W, 1], 0 = unknown; in the unit of the files |

I counts from 0.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from accel.errors import DataError
from model.conventions import IGNORE
from model.datasets.common import (
    DatasetSpec,
    FolderSource,
    Needed,
    TaskSpec,
    as_depth,
    as_labels,
    check_size,
    read_npy,
)

SEMSEG_CLASSES = 7

CITYSCAPES = DatasetSpec(
    name="cityscapes",
    folder="cityscapes",
    variable="M3VIT_CITYSCAPES_ROOT",
    tasks=(TaskSpec("semseg", SEMSEG_CLASSES, ("labels",)), TaskSpec("depth", 1, ("depth", "log_depth"))),
    height=128,
    width=256,
    marks=("train/image", "val/image", "train/label_7", "val/label_7"),
)

_FOLDERS = {"semseg": "label_7", "depth": "depth"}
_NUMBERED = re.compile(r"(\d+)\.npy")


class Cityscapes(FolderSource):
    """One split of preprocessed Cityscapes; its images are whatever lies in the split's ``image`` folder."""

    spec = CITYSCAPES

    def split_file(self) -> Path:
        return self.root / self.split / "image"

    def read_ids(self) -> list[str]:
        found = (_NUMBERED.fullmatch(name) for name in self.listing.names(self.split_file()))
        return sorted((match[1] for match in found if match), key=int)

    def image_file(self, name: str) -> Path:
        return self.split_file() / f"{name}.npy"

    def needed(self, task: str, name: str) -> tuple[Needed, ...]:
        return (Needed((self.root / self.split / _FOLDERS[task] / f"{name}.npy",)),)

    def load_image(self, index: int) -> NDArray[np.uint8]:
        path = self.image_file(self.ids[index])
        values = read_npy(path, "image")
        if values.ndim != 3 or values.shape[2] != 3:
            raise DataError(f"{path}: image: expected shape H×W×3, found {'×'.join(map(str, values.shape))}")
        if values.dtype == np.uint8:
            return values
        pixels = values.astype(np.float32)
        low, high = float(pixels.min(initial=0)), float(pixels.max(initial=0))
        if not (low >= 0 and high <= 255):
            raise DataError(f"{path}: image: expected values from 0 to 1 or 0 to 255, found {low:g} to {high:g}")
        return np.rint(pixels * (255 if high <= 1 else 1)).astype(np.uint8)

    def load_target(self, index: int, task: str, size: tuple[int, ...]) -> NDArray:
        path = self.path(task, index)
        values = read_npy(path, task)
        check_size(path, task, values, size)
        if task == "depth":
            return as_depth(path, task, values)
        if values.ndim != 2:
            raise DataError(f"{path}: {task}: expected one channel, found shape {values.shape}")
        return as_labels(path, task, np.where(values == -1, IGNORE, values.astype(np.float64)), SEMSEG_CLASSES)
