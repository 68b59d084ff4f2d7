"""NYUD-v2 with four tasks, in the layout ``NYUD_MT``.

| task | file |
|---|---|
| (image) | images/ID.jpg |
| semseg | segmentation/ID.png: 0 = void, 1 to 40 |
| depth | depth/ID.npy: metres, 0 = unknown |
| normals | normals/ID.npy: [H, W, 3], zero vector = unknown |
| edge | edge/ID.npy: 0 / 1 |

``gt_sets/{train,val}.txt`` lists the IDs. The one-file release ``nyu_depth_v2_labeled.mat`` is read by
`model.datasets.nyu_mat`.
"""

from __future__ import annotations

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
    as_binary,
    as_depth,
    as_normals,
    check_size,
    read_gray,
    read_lines,
    read_npy,
)

SEMSEG_CLASSES = 40

NYUD = DatasetSpec(
    name="nyud",
    folder="NYUD_MT",
    variable="M3VIT_NYUD_ROOT",
    tasks=(
        TaskSpec("semseg", SEMSEG_CLASSES, ("labels",)),
        TaskSpec("depth", 1, ("depth", "log_depth")),
        TaskSpec("normals", 3, ("normals",)),
        TaskSpec("edge", 1, ("binary",)),
    ),
    height=480,
    width=640,
    marks=("gt_sets", "segmentation"),
    one_file="nyu_depth_v2_labeled.mat",
    edge_tolerance=0.011,  # the field's practice for NYUD-v2: ATRC and its successors
)

_FILES = {"semseg": ("segmentation", "png"), "depth": ("depth", "npy"), "normals": ("normals", "npy"),
          "edge": ("edge", "npy")}  # fmt: skip


class Nyud(FolderSource):
    """One split of NYUD-v2 in the folder layout."""

    spec = NYUD

    def split_file(self) -> Path:
        return self.root / "gt_sets" / f"{self.split}.txt"

    def read_ids(self) -> list[str]:
        return read_lines(self.split_file(), f"split {self.split!r}")

    def image_file(self, name: str) -> Path:
        return self.root / "images" / f"{name}.jpg"

    def needed(self, task: str, name: str) -> tuple[Needed, ...]:
        folder, suffix = _FILES[task]
        return (Needed((self.root / folder / f"{name}.{suffix}",)),)

    def load_target(self, index: int, task: str, size: tuple[int, ...]) -> NDArray:
        path = self.path(task, index)
        values = read_gray(path, task) if task == "semseg" else read_npy(path, task)
        check_size(path, task, values, size)
        if task == "semseg":
            return void_first(path, task, values)
        if task == "depth":
            return as_depth(path, task, values)
        if task == "normals":
            return as_normals(path, task, values)
        if values.ndim == 3 and values.shape[2] == 1:
            values = values[:, :, 0]
        if values.ndim != 2:
            raise DataError(f"{path}: {task}: expected one channel, found shape {values.shape}")
        return as_binary(path, task, values)


def void_first(path: Path, field: str, values: NDArray) -> NDArray[np.uint8]:
    """Labels stored as 0 = void, 1 to 40 -> 0 to 39 and 255 = ignore."""
    if values.size and not (0 <= values.min() and values.max() <= SEMSEG_CLASSES):
        found = values.max() if values.max() > SEMSEG_CLASSES else values.min()
        raise DataError(f"{path}: {field}: expected labels 0 (void) to {SEMSEG_CLASSES}, found {found}")
    return np.where(values == 0, IGNORE, values.astype(np.int64) - 1).astype(np.uint8)
