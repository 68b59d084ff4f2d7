"""``nyu_depth_v2_labeled.mat``, the one-file release of NYUD-v2 (MATLAB 7.3, that is HDF5).

HDF5 shows MATLAB's arrays with their axes reversed: ``images`` [N, 3, W, H] uint8, ``depths`` [N, W, H] float32 in
metres, ``labels`` [N, W, H] with 894 classes (0 = unlabelled), ``names`` their names. Beside it must lie

* ``splits.mat``: the official split, ``trainNdxs`` and ``testNdxs`` (from 1); ``val`` is the test part;
* for semseg, ``classMapping40.mat`` (``mapClass``) or ``classMapping40.json``: the 40 classes of the 894. The JSON is
  a list of 894 numbers from 0 (void) to 40, or an object, name -> number.

Edges and normals are not in the file and are derived: edges are the thinned boundaries between labelled regions
(instances, if the file has them), normals a plane fitted to the depth around each pixel, see `plane_normals`. They are
not those of the ``NYUD_MT`` layout, so results with the one do not compare with results with the other.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from accel.errors import DataError
from model.datasets.boundaries import region_edges
from model.datasets.common import SourceBase, as_depth, damaged, mat_version, read_mat_numbers, whole_numbers
from model.datasets.nyud import NYUD, SEMSEG_CLASSES, void_first

FILE = str(NYUD.one_file)
SPLITS_FILE = "splits.mat"
MAPPING_FILES = ("classMapping40.mat", "classMapping40.json")
_SPLIT_VARIABLES = {"train": "trainNdxs", "val": "testNdxs"}
# Colour camera of the data set's recorder at 640 x 480: focal lengths and principal point in pixels.
_WIDTH, _FX, _FY, _CX, _CY = 640, 518.857901, 519.469611, 325.582449, 253.736166


class MappingError(DataError):
    """The mapping to the 40 classes, which semseg alone needs, is ``missing`` or wrong."""

    def __init__(self, message: str, missing: bool = False) -> None:
        super().__init__(message)
        self.missing = missing


class NyuMat(SourceBase):
    """One split of NYUD-v2 read from ``nyu_depth_v2_labeled.mat``.

    Args:
        path: the file, or the directory that holds it.
        splits_file, mapping_file: where they are, if not beside it.
    """

    spec = NYUD

    def __init__(
        self,
        path: str | os.PathLike[str],
        split: str,
        tasks: Sequence[str] | None = None,
        *,
        splits_file: str | os.PathLike[str] | None = None,
        mapping_file: str | os.PathLike[str] | None = None,
    ) -> None:
        file = Path(path)
        file = file / FILE if file.is_dir() else file
        super().__init__(file.parent, split, tasks)
        self.file = file
        self._content = self._open()
        self.count = self._content["images"].shape[0]
        self._rows = self._split_rows(Path(splits_file) if splits_file else self.root / SPLITS_FILE)
        self.ids = [f"{row + 1:04d}" for row in self._rows]
        self.mapping = self._read_mapping(mapping_file) if "semseg" in self.tasks else None

    @property
    def key(self) -> str:
        return f"{super().key}:mat"

    def _open(self) -> Any:
        version = mat_version(self.file, "nyu_depth_v2_labeled")
        if version != "7.3":
            raise DataError(f"{self.file}: nyu_depth_v2_labeled: expected a MATLAB file of version 7.3, "
                            f"found version {version}")  # fmt: skip
        import h5py

        wanted = {"images": "[N, 3, W, H]", "depths": "[N, W, H]", "labels": "[N, W, H]"}
        try:
            content = h5py.File(self.file, "r")
            arrays = {name: content[name] if name in content else None for name in wanted}
        except Exception as error:  # h5py raises OSError, KeyError, RuntimeError and others, depending on the damage
            raise damaged(self.file, "nyu_depth_v2_labeled", "cannot read as HDF5", error) from error
        for name, shape in wanted.items():
            array = arrays[name]
            if not isinstance(array, h5py.Dataset):
                raise DataError(f"{self.file}: {name}: expected an array {shape}, found none")
            if array.ndim != shape.count(",") + 1:
                raise DataError(f"{self.file}: {name}: expected an array {shape}, found shape {array.shape}")
            if array.dtype.kind not in "iuf":
                raise DataError(f"{self.file}: {name}: expected an array of numbers, found {array.dtype}")
        images = content["images"].shape
        if images[1] != 3:
            raise DataError(f"{self.file}: images: expected an array [N, 3, W, H], found shape {images}")
        for name in ("depths", "labels"):
            if content[name].shape != (images[0], *images[2:]):
                raise DataError(f"{self.file}: {name}: expected the size of the images, {(images[0], *images[2:])}, "
                                f"found {content[name].shape}")  # fmt: skip
        return content

    def _split_rows(self, path: Path) -> list[int]:
        variable = _SPLIT_VARIABLES[self.split]
        numbers = read_mat_numbers(path, variable)
        if not numbers.size:
            raise DataError(f"{path}: {variable}: split {self.split!r}: expected at least one image, found none")
        if numbers.min() < 1 or numbers.max() > self.count:
            found = numbers.max() if numbers.max() > self.count else numbers.min()
            raise DataError(f"{path}: {variable}: expected image numbers 1 to {self.count}, found {found}")
        return [int(number) - 1 for number in numbers]

    def _read_mapping(self, given: str | os.PathLike[str] | None) -> NDArray[np.uint8]:
        """Table from the file's class (0 = unlabelled) to 0 = void, 1 to 40."""
        choices = [Path(given)] if given else [self.root / name for name in MAPPING_FILES]
        path = next((choice for choice in choices if choice.is_file()), None)
        if path is None:
            raise MappingError(f"{choices[0]}: semseg: expected a mapping of the file's classes to 40 (.mat, mapClass, "
                               "or .json), found none; the other tasks do not need it", missing=True)  # fmt: skip
        try:
            numbers = self._json_mapping(path) if path.suffix == ".json" else read_mat_numbers(path, "mapClass")
        except DataError as error:
            raise MappingError(str(error)) from error
        if numbers.size == 0 or numbers.min() < 0 or numbers.max() > SEMSEG_CLASSES:
            raise MappingError(f"{path}: mapClass: expected numbers 0 (void) to {SEMSEG_CLASSES}, found others")
        return np.concatenate([[0], numbers]).astype(np.uint8)

    def _json_mapping(self, path: Path) -> NDArray[np.int64]:
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise damaged(path, "semseg", "expected JSON, a list of numbers or name to number", error) from error
        if isinstance(content, dict):
            names = self.class_names()
            for name in names:
                if name not in content:
                    raise DataError(f"{path}: semseg: class {name!r}: expected a number, found none")
            content = {name: content[name] for name in names}
        elif isinstance(content, list):
            content = {number: value for number, value in enumerate(content, 1)}
        else:
            raise DataError(f"{path}: semseg: expected a list of numbers or name to number, found {content!r}")
        for name, value in content.items():
            if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= SEMSEG_CLASSES:
                expected = f"a whole number from 0 (void) to {SEMSEG_CLASSES}"
                raise DataError(f"{path}: semseg: class {name!r}: expected {expected}, found {value!r}")
        return np.array(list(content.values()), dtype=np.int64)

    def class_names(self) -> list[str]:
        """Names of the file's classes, in the order of their numbers from 1."""
        import h5py

        names = self._content["names"] if "names" in self._content else None
        if not isinstance(names, h5py.Dataset) or names.dtype != h5py.ref_dtype:
            raise DataError(f"{self.file}: names: expected the names of the classes, found none")
        try:
            return ["".join(map(chr, np.asarray(self._content[place]).ravel())) for place in names[()].ravel()]
        except Exception as error:  # a reference to nowhere, or to something else than text
            raise damaged(self.file, "names", "cannot read", error) from error

    def _read(self, name: str, index: int) -> NDArray:
        try:
            return np.asarray(self._content[name][self._rows[index]])
        except Exception as error:  # whatever a damaged chunk leads to
            raise damaged(self.file, name, f"image {self.ids[index]}: cannot read", error) from error

    def load_image(self, index: int) -> NDArray[np.uint8]:
        image = self._read("images", index)
        if image.dtype != np.uint8:
            raise DataError(f"{self.file}: images: expected uint8, found {image.dtype}")
        return np.ascontiguousarray(image.transpose(2, 1, 0))  # [3, W, H] -> [H, W, 3]

    def load_target(self, index: int, task: str, size: tuple[int, ...]) -> NDArray:
        if task in ("depth", "normals"):
            depth = np.ascontiguousarray(as_depth(self.file, "depths", self._read("depths", index).T))
            return depth if task == "depth" else plane_normals(depth)
        labels = whole_numbers(self.file, "labels", np.ascontiguousarray(self._read("labels", index).T))
        if task == "semseg":
            assert self.mapping is not None, "asked for at the start"
            if labels.min() < 0 or labels.max() >= len(self.mapping):
                raise DataError(f"{self.file}: labels: image {self.ids[index]}: expected labels 0 to "
                                f"{len(self.mapping) - 1}, found {labels.max()}")  # fmt: skip
            return void_first(self.file, "labels", self.mapping[labels])
        regions = labels
        if "instances" in self._content and self._content["instances"].shape == self._content["labels"].shape:
            instances = whole_numbers(self.file, "instances", np.ascontiguousarray(self._read("instances", index).T))
            regions = labels * (int(instances.max()) + 1) + instances
        return region_edges(regions, labels > 0)


def plane_normals(depth: NDArray[np.float32], radius: int = 4, tolerance: float = 0.015) -> NDArray[np.float32]:
    """Surface normals from a depth map of the recorder's camera, by a least-squares plane around each pixel.

    The known points P of the (2 radius + 1)² window around a pixel, in metres in the camera frame (x right, y down, z
    forward), are fitted by the plane n · P = 1: (sum of P Pᵀ) n = sum of P. A pixel stays unknown (0) if it has no
    depth, if fewer than half of its window has, or if the root mean square of n · P - 1, the error relative to the
    distance of the plane, exceeds ``tolerance``, as it does across a depth step.

    Args:
        depth: float32 [H, W], metres, 0 = unknown. The camera's constants are scaled with the width from 640.

    Returns:
        float32 [H, W, 3], unit length, facing the camera, or 0.
    """
    from scipy.ndimage import uniform_filter

    height, width = depth.shape
    scale = width / _WIDTH
    z = depth.astype(np.float64)
    known = (z > 0).astype(np.float64)
    x = (np.arange(width) + 0.5 - (_CX + 0.5) * scale) / (_FX * scale) * z
    y = (np.arange(height)[:, None] + 0.5 - (_CY + 0.5) * scale) / (_FY * scale) * z
    points = (x, y, z)

    def mean(values: NDArray) -> NDArray:
        return uniform_filter(values, 2 * radius + 1, mode="constant")

    share = mean(known)
    moment = np.empty((height, width, 3, 3))
    first = np.stack([mean(p) for p in points], axis=-1)
    for i in range(3):
        for j in range(i + 1):
            moment[..., i, j] = moment[..., j, i] = mean(points[i] * points[j])
    usable = (known > 0) & (share >= 0.5)
    # A little of the identity keeps points on one line of sight from making the system singular.
    moment += 1e-9 * np.eye(3) * np.maximum(np.trace(moment, axis1=-2, axis2=-1), 1e-12)[..., None, None]
    plane = np.linalg.solve(moment, first[..., None])[..., 0]
    square = (np.einsum("hwi,hwij,hwj->hw", plane, moment, plane) - 2 * (plane * first).sum(-1) + share) / np.maximum(
        share, 1e-12
    )
    usable &= square <= tolerance**2
    length = np.linalg.norm(plane, axis=-1, keepdims=True)
    normals = -plane / np.maximum(length, 1e-12)  # n points away from the camera, because n · P = 1 > 0
    return np.where(usable[..., None], normals, 0).astype(np.float32)
