"""Predictions as files, one per task and image, all at the network's image size.

They are what the metrics were taken of, not resized to the photo. Class numbers, maps and normals are 8-bit PNG as the
field's tools have them; depth is a NumPy file, where those of M³ViT read a .mat file with the variable ``depth``.

| kind | file | content |
|---|---|---|
| labels | PNG, 8 bit | class number |
| binary | PNG, 8 bit | 255 × probability, rounded |
| normals | PNG, RGB | 127.5 × (unit vector + 1), rounded |
| depth, log_depth | .npy, float32 [H, W] | metres |
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from accel.atomic import atomic_write
from accel.errors import M3vitError
from model.metrics_tasks import sigmoid

if TYPE_CHECKING:
    from accel.config import Network, Task


def prediction(task: Task, output: NDArray) -> NDArray:
    """What the file of one image holds, from its output [C, H, W]."""
    if task.kind == "labels":
        return output.argmax(0).astype(np.uint8)
    if task.kind == "binary":
        return np.rint(255 * sigmoid(output[0])).astype(np.uint8)
    if task.kind == "normals":
        vectors = np.moveaxis(output, 0, -1).astype(np.float64)
        length = np.linalg.norm(vectors, axis=-1, keepdims=True)
        return np.rint(127.5 * (vectors / np.maximum(length, 1e-12) + 1)).astype(np.uint8)
    metres = np.exp(output[0]) if task.kind == "log_depth" else output[0]
    return metres.astype(np.float32)


class PredictionWriter:
    """Writes ``<folder>/<task>/<image>.png`` or ``.npy``; its ``write`` is for `model.evaluate.evaluate`.

    Args:
        names: of the images, in the order of the data set.
    """

    def __init__(self, folder: str | os.PathLike[str], network: Network, names: Sequence[str]) -> None:
        self.folder, self.network, self.names = Path(folder), network, names
        self.files = 0

    def write(self, first: int, outputs: Mapping[str, NDArray]) -> None:
        """Write the predictions of a batch that begins with image ``first``: task → [B, C, H, W]."""
        for name, maps in outputs.items():
            task = self.network.task(name)
            for offset, output in enumerate(maps):
                self._save(self.folder / name / self.names[first + offset], prediction(task, output))

    def _save(self, stem: Path, values: NDArray) -> None:
        from PIL import Image

        # Not with_suffix: the name of an image may contain a dot.
        path = stem.with_name(stem.name + (".npy" if values.dtype == np.float32 else ".png"))
        try:
            with atomic_write(path) as temporary, temporary.open("wb") as file:
                if values.dtype == np.float32:
                    np.save(file, values)
                else:
                    Image.fromarray(values).save(file, format="png")
        except OSError as error:
            raise M3vitError(f"{path}: cannot write the prediction: {error.strerror or error}") from error
        self.files += 1
