"""PASCAL-Context with five tasks, in the layout ``PASCAL_MT``.

| task | file |
|---|---|
| (image) | JPEGImages/ID.jpg |
| semseg | semseg/VOC12/ID.png, else semseg/pascal-context/ID.png: 0 to 20, 255 = ignore |
| human_parts | human_parts/ID.mat, struct ``anno`` of PASCAL-Part |
| sal | sal_distill/ID.png, salient above one half of 255 |
| edge | pascal-context/trainval/ID.mat, ``LabelMap``: its thinned boundaries |
| normals | normals_distill/ID.png, 2 v / 255 - 1, where ``LabelMap`` has one of the classes below |

``ImageSets/Context/{train,val}.txt`` lists the IDs. ``ImageSets/Parts/{split}.txt`` (JSON, ID -> category numbers of
its objects) is used if it is there, to know without reading .mat files which images show a person.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from accel.errors import DataError
from model.conventions import IGNORE
from model.datasets.boundaries import laplacian_edges
from model.datasets.common import (
    DatasetSpec,
    FolderSource,
    Needed,
    TaskSpec,
    as_labels,
    check_size,
    read_gray,
    read_lines,
    read_mat,
    read_rgb,
    unit,
)

SEMSEG_CLASSES = 21
PART_CLASSES = 7  # background, head, torso, upper arms, lower arms, upper legs, lower legs
PERSON = 15  # category number of a person in PASCAL-Part
LABEL_MAP_CLASSES = 460  # 0 and the 459 classes of PASCAL-Context

PASCAL = DatasetSpec(
    name="pascal",
    folder="PASCAL_MT",
    variable="M3VIT_PASCAL_ROOT",
    tasks=(
        TaskSpec("semseg", SEMSEG_CLASSES, ("labels",)),
        TaskSpec("human_parts", PART_CLASSES, ("labels",)),
        TaskSpec("sal", 1, ("binary",)),
        TaskSpec("normals", 3, ("normals",)),
        TaskSpec("edge", 1, ("binary",)),
    ),
    height=512,
    width=512,
    marks=("JPEGImages", "ImageSets/Context", "pascal-context", "sal_distill", "normals_distill", "human_parts"),
)

_HEAD = ("head", "hair", "lear", "rear", "leye", "reye", "lebrow", "rebrow", "nose", "mouth")
PARTS = {
    **dict.fromkeys(_HEAD, 1),
    **dict.fromkeys(("torso", "neck"), 2),
    **{side + name: number for side in "lr" for name, number in (
        ("uarm", 3), ("larm", 4), ("hand", 4), ("uleg", 5), ("lleg", 6), ("foot", 6),
    )},
}  # fmt: skip
"""Name of a person's part in PASCAL-Part -> class."""

# Distilled normals come from a network that learnt NYUD-v2; they count only where PASCAL-Context's class is one that
# NYUD-v2 has, too: the two lists of names, intersected (without "unknown"), and tvmonitor. Numbers of LabelMap.
NORMALS_CLASSES = np.array([
    3, 4, 6, 9, 10, 11, 13, 15, 17, 18, 22, 23, 29, 30, 33, 34, 36, 37, 38, 39, 41, 43, 46, 48, 49, 50, 53, 55, 56, 59,
    61, 62, 65, 66, 68, 69, 72, 73, 78, 83, 84, 85, 87, 88, 95, 96, 100, 104, 105, 107, 111, 113, 115, 121, 123, 135,
    141, 142, 143, 146, 150, 154, 157, 158, 159, 165, 172, 174, 181, 183, 184, 191, 193, 195, 197, 199, 202, 213, 215,
    216, 219, 220, 223, 225, 228, 230, 232, 233, 238, 239, 242, 243, 246, 250, 251, 252, 255, 260, 261, 263, 269, 272,
    273, 275, 281, 283, 284, 285, 286, 287, 288, 290, 291, 292, 293, 295, 304, 307, 309, 310, 314, 315, 319, 323, 329,
    330, 331, 336, 342, 345, 349, 350, 351, 352, 355, 357, 368, 370, 371, 374, 379, 380, 383, 384, 397, 401, 403, 405,
    407, 408, 411, 412, 413, 414, 417, 419, 421, 423, 427, 429, 430, 432, 440, 441, 442, 443, 444, 446, 454, 457,
])  # fmt: skip


class PascalContext(FolderSource):
    """One split of PASCAL-Context. With human_parts as the only task, images without a person are left out if
    ``ImageSets/Parts/{split}.txt`` says which those are; otherwise they are there, with every pixel ignored."""

    spec = PASCAL

    def split_file(self) -> Path:
        return self.root / "ImageSets" / "Context" / f"{self.split}.txt"

    def read_ids(self) -> list[str]:
        ids = read_lines(self.split_file(), f"split {self.split!r}")
        self._categories = self._read_categories() if "human_parts" in self.tasks else {}
        if self.tasks == ("human_parts",) and self._categories:
            ids = [name for name in ids if PERSON in self._categories.get(name, (PERSON,))]
        return ids

    def _read_categories(self) -> dict[str, list[int]]:
        path = self.root / "ImageSets" / "Parts" / f"{self.split}.txt"
        if path not in self.listing:
            return {}
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            return {str(name): [int(number) for number in numbers] for name, numbers in content.items()}
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise DataError(f"{path}: human_parts: expected JSON, image ID to category numbers: {error}") from error

    def image_file(self, name: str) -> Path:
        return self.root / "JPEGImages" / f"{name}.jpg"

    def needed(self, task: str, name: str) -> tuple[Needed, ...]:
        label_map = Needed((self.root / "pascal-context" / "trainval" / f"{name}.mat",))
        if task == "semseg":
            return (Needed(tuple(self.root / "semseg" / kind / f"{name}.png" for kind in ("VOC12", "pascal-context"))),)
        if task == "human_parts":
            return (Needed((self.root / "human_parts" / f"{name}.mat",)),)
        if task == "sal":
            return (Needed((self.root / "sal_distill" / f"{name}.png",)),)
        if task == "normals":
            return Needed((self.root / "normals_distill" / f"{name}.png",)), label_map
        return (label_map,)

    def load_target(self, index: int, task: str, size: tuple[int, ...]) -> NDArray:
        path = self.path(task, index)
        if task == "semseg":
            values = read_gray(path, task)
            check_size(path, task, values, size)
            return as_labels(path, task, values, SEMSEG_CLASSES)
        if task == "human_parts":
            known = self._categories.get(self.ids[index])
            if known is not None and PERSON not in known:
                return np.full(size, IGNORE, dtype=np.uint8)
            return read_human_parts(path, size)
        if task == "sal":
            values = read_gray(path, task)
            check_size(path, task, values, size)
            return (values > (0.5 if values.dtype == bool else 127.5)).astype(np.uint8)
        if task == "normals":
            values = read_rgb(path, task)
            check_size(path, task, values, size)
            known_class = np.isin(read_label_map(self.path(task, index, 1), size), NORMALS_CLASSES)
            vectors = values.astype(np.float32) * np.float32(2 / 255) - 1
            return unit(vectors * known_class[..., None])
        return laplacian_edges(read_label_map(path, size))


def read_label_map(path: Path, size: tuple[int, ...]) -> NDArray:
    """PASCAL-Context's ``LabelMap`` [H, W] of class numbers 0 to 459."""
    values = np.asarray(read_mat(path, "LabelMap", ["LabelMap"])["LabelMap"])
    if values.dtype.kind not in "iuf":
        raise DataError(f"{path}: LabelMap: expected numbers, found {values.dtype}")
    check_size(path, "LabelMap", values, size)
    if values.size and not (0 <= values.min() and values.max() < LABEL_MAP_CLASSES):
        found = values.max() if values.max() >= LABEL_MAP_CLASSES else values.min()
        raise DataError(f"{path}: LabelMap: expected labels 0 to {LABEL_MAP_CLASSES - 1}, found {found}")
    return values


def read_human_parts(path: Path, size: tuple[int, ...]) -> NDArray[np.uint8]:
    """Parts of all persons in PASCAL-Part's ``anno``: 0 background, 1 to 6; all 255 without a person's part."""
    anno = read_mat(path, "anno", ["anno"])["anno"]
    target = np.zeros(size, dtype=np.uint8)
    for person in _structs(path, anno, "anno.objects", "objects"):
        kind = np.asarray(_field(path, person, "anno.objects.class_ind", "class_ind"))
        if kind.size != 1 or kind.dtype.kind not in "iuf":
            raise DataError(f"{path}: anno.objects.class_ind: expected a number, found {kind.dtype} {kind.shape}")
        if kind.flat[0] != PERSON:
            continue
        for part in _structs(path, person, "anno.objects.parts", "parts"):
            name = "".join(map(str, np.asarray(_field(path, part, "anno.objects.parts.part_name", "part_name")).flat))
            if name not in PARTS:
                raise DataError(f"{path}: anno.objects.parts.part_name: expected a part of a person, found {name!r}")
            mask = np.asarray(_field(path, part, "anno.objects.parts.mask", "mask"))
            check_size(path, f"anno.objects.parts.mask ({name})", mask, size)
            if mask.ndim != 2 or mask.dtype.kind not in "biuf":
                raise DataError(f"{path}: anno.objects.parts.mask ({name}): expected one channel of numbers, "
                                f"found {mask.dtype} {mask.shape}")  # fmt: skip
            target[mask.astype(bool)] = PARTS[name]
    return target if target.any() else np.full(size, IGNORE, dtype=np.uint8)


def _field(path: Path, struct: Any, where: str, name: str) -> Any:
    try:
        value = struct[name]
    except (IndexError, KeyError, TypeError, ValueError):
        raise DataError(f"{path}: {where}: expected this field, found none") from None
    # A MATLAB struct is an array of records: a 1x1 struct holds its fields one level down.
    return value.flat[0] if isinstance(struct, np.ndarray) and value.size else value


def _structs(path: Path, owner: Any, where: str, name: str) -> Sequence[Any]:
    """Elements of a struct array that is a field of ``owner``; an empty MATLAB matrix stands for none."""
    value = np.asarray(_field(path, owner, where, name))
    if value.size and value.dtype.names is None:
        raise DataError(f"{path}: {where}: expected a struct array, found {value.dtype}")
    return list(value.flat)
