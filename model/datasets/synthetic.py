"""Small synthetic trees in the layouts of the data sets, drawn by `model.scenes`: for tests and first tries.

The scenes' objects stand in for the data sets' classes, so a network can learn something from them, and nothing that
says anything about the real data. Every split gets several images, sizes differ where the real ones do.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from accel.atomic import atomic_directory
from accel.errors import ConfigError, M3vitError
from model.datasets.boundaries import laplacian_edges
from model.datasets.pascal import PASCAL, PERSON
from model.scenes import BOX, CEILING, CYLINDER, FLOOR, PICTURE, RUG, SPHERE, WALL, Scene, render_scene

SPLITS = PASCAL.splits
PASCAL_SIZES = ((96, 128), (128, 96), (96, 120), (112, 128))  # height, width: they differ as the photos do
NYUD_SIZE = (96, 128)
CITYSCAPES_SIZE = (128, 256)


def _table(numbers: Mapping[int, int]) -> NDArray:
    table = np.zeros(8, dtype=np.int64)
    for scene_class, number in numbers.items():
        table[scene_class] = number
    return table


# Scene class -> class of the data set.
_VOC = _table({BOX: 9, SPHERE: PERSON, CYLINDER: 5, PICTURE: 20})  # chair, person, bottle, tvmonitor; else background
_CONTEXT = _table({FLOOR: 158, CEILING: 68, WALL: 440, BOX: 72, SPHERE: 284, CYLINDER: 34, PICTURE: 427, RUG: 244})
_NYU40 = _table({WALL: 1, FLOOR: 2, BOX: 5, PICTURE: 11, RUG: 20, CEILING: 22, SPHERE: 31, CYLINDER: 40})
_CITY7 = _table({FLOOR: 0, RUG: 0, WALL: 1, PICTURE: 2, CYLINDER: 2, BOX: 6, CEILING: 4, SPHERE: 5})
# Parts of a "person" from top to bottom, in PASCAL-Part's names, with the share of its height where each ends.
_BODY = (("head", 0.25), ("torso", 0.45), ("luarm", 0.55), ("rhand", 0.65), ("luleg", 0.8), ("rfoot", 1.0))


def _scenes(seed: int, split: str, sizes: tuple[tuple[int, int], ...], wanted: Callable[[int, Scene], bool]
            ) -> Iterator[Scene]:  # fmt: skip
    """Scenes of a split, of the given sizes in turn, leaving out those that are not wanted at their place."""
    place = index = 0
    while True:
        scene = render_scene(seed * len(SPLITS) + SPLITS.index(split), index, *sizes[place % len(sizes)])
        index += 1
        if wanted(place, scene):
            place += 1
            yield scene


def _save_jpeg(path: Path, image: NDArray[np.uint8]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path, quality=95)


def _save_png(path: Path, values: NDArray[np.uint8]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)


def _save_npy(path: Path, values: NDArray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, values)


def _save_mat(path: Path, content: dict) -> None:
    from scipy.io import savemat

    path.parent.mkdir(parents=True, exist_ok=True)
    savemat(str(path), content, do_compression=True)
    with path.open("r+b") as file:  # SciPy writes the date into the header; the same sample shall be the same bytes
        file.write(b"MATLAB 5.0 MAT-file, written by m3vit".ljust(116))


def _save_lines(path: Path, lines: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def _y_down(normals: NDArray[np.float32]) -> NDArray[np.float32]:
    """From the scenes' camera frame (y up) to that of the data sets (y down)."""
    return normals * np.array([1, -1, 1], dtype=np.float32)


def _structs(records: list[dict]) -> NDArray:
    """Records as the 1xN struct array that MATLAB would write."""
    array = np.empty((1, len(records)), dtype=[(name, object) for name in records[0]])
    for place, record in enumerate(records):
        array[0, place] = tuple(record.values())
    return array


def person_anno(name: str, person: NDArray[np.bool_]) -> dict:
    """Variable ``anno`` in the layout of PASCAL-Part: one person cut into bands, if any, and a chair without parts."""
    objects = [{"class": "chair", "class_ind": 9, "mask": np.zeros(person.shape, np.uint8), "parts": np.zeros((0, 0))}]
    rows = np.flatnonzero(person.any(1))
    if len(rows):
        ends = rows[0] + np.array([0.0, *(end for _, end in _BODY)]) * (rows[-1] + 1 - rows[0])
        height = np.arange(person.shape[0])[:, None] + 0.5
        parts = []
        for (part, _), top, bottom in zip(_BODY, ends[:-1], ends[1:], strict=True):
            mask = person & (height >= top) & (height < bottom)
            if mask.any():
                parts.append({"part_name": part, "mask": mask.astype(np.uint8)})
        objects.append({"class": "person", "class_ind": PERSON, "mask": person.astype(np.uint8),
                        "parts": _structs(parts)})  # fmt: skip
    return {"anno": _structs([{"imname": name, "objects": _structs(objects)}])}


def _pascal(folder: Path, split: str, images: int, seed: int) -> None:
    def wanted(place: int, scene: Scene) -> bool:
        return place % 4 == 3 or bool((scene.semseg == SPHERE).sum() > 60)  # every fourth may be without a person

    ids, categories = [], {}
    for index, scene in zip(range(images), _scenes(seed, split, PASCAL_SIZES, wanted), strict=False):
        name = f"{2008 + SPLITS.index(split)}_{index:06d}"
        person = scene.semseg == SPHERE
        ids.append(name)
        categories[name] = [9, PERSON] if person.any() else [9]
        _save_jpeg(folder / "JPEGImages" / f"{name}.jpg", scene.image)
        kind = "pascal-context" if index == images - 1 else "VOC12"  # one from the second choice
        _save_png(folder / "semseg" / kind / f"{name}.png", _VOC[scene.semseg].astype(np.uint8))
        _save_mat(folder / "human_parts" / f"{name}.mat", person_anno(name, person))
        label_map = _CONTEXT[scene.semseg].astype(np.uint16)
        _save_mat(folder / "pascal-context" / "trainval" / f"{name}.mat", {"LabelMap": label_map})
        salient = np.isin(scene.semseg, (BOX, SPHERE, CYLINDER))
        _save_png(folder / "sal_distill" / f"{name}.png", salient.astype(np.uint8) * 255)
        normals = np.rint((_y_down(scene.normals) + 1) * 127.5).astype(np.uint8)
        _save_png(folder / "normals_distill" / f"{name}.png", normals)
    _save_lines(folder / "ImageSets" / "Context" / f"{split}.txt", ids)
    parts = folder / "ImageSets" / "Parts" / f"{split}.txt"
    _save_lines(parts, [json.dumps(categories)])


def _nyud(folder: Path, split: str, images: int, seed: int) -> None:
    ids = []
    for index, scene in zip(range(images), _scenes(seed, split, (NYUD_SIZE,), lambda *_: True), strict=False):
        name = f"{SPLITS.index(split) * images + index + 1:04d}"
        ids.append(name)
        labels = _NYU40[scene.semseg].astype(np.uint8)
        labels[:4] = 0  # real pictures have a white frame without labels,
        depth = scene.depth.astype(np.float32)
        depth[:, :4] = 0  # and depth that the sensor did not see
        normals = _y_down(scene.normals)
        normals[:, :4] = 0
        _save_jpeg(folder / "images" / f"{name}.jpg", scene.image)
        _save_png(folder / "segmentation" / f"{name}.png", labels)
        _save_npy(folder / "depth" / f"{name}.npy", depth)
        _save_npy(folder / "normals" / f"{name}.npy", normals)
        _save_npy(folder / "edge" / f"{name}.npy", laplacian_edges(scene.semseg).astype(np.float32))
    _save_lines(folder / "gt_sets" / f"{split}.txt", ids)


def _cityscapes(folder: Path, split: str, images: int, seed: int) -> None:
    for index, scene in zip(range(images), _scenes(seed, split, (CITYSCAPES_SIZE,), lambda *_: True), strict=False):
        labels = _CITY7[scene.semseg].astype(np.float64)
        labels[-8:] = -1  # the car that carries the camera
        depth = scene.depth.astype(np.float32)
        depth[:, :8] = 0
        _save_npy(folder / split / "image" / f"{index}.npy", scene.image.astype(np.float32) / np.float32(255))
        _save_npy(folder / split / "label_7" / f"{index}.npy", labels)
        _save_npy(folder / split / "depth" / f"{index}.npy", depth[..., None])


_WRITERS: Mapping[str, Callable[[Path, str, int, int], None]] = {
    "pascal": _pascal,
    "nyud": _nyud,
    "cityscapes": _cityscapes,
}


def make_sample(name: str, folder: str | os.PathLike[str], images: int = 8, seed: int = 0) -> Path:
    """Write a synthetic tree of data set ``name``: ``images`` images in each split, all tasks.

    The tree appears complete or not at all. An existing directory is replaced only if it is empty.

    Raises:
        ConfigError: unknown name, or fewer than one image. M3vitError: the directory is in use, or cannot be written.
    """
    if name not in _WRITERS:
        raise ConfigError(f"data set {name!r}: expected one of {', '.join(_WRITERS)}")
    if images < 1:
        raise ConfigError(f"sample: images = {images}: expected at least 1")
    if seed < 0:
        raise ConfigError(f"sample: seed = {seed}: expected at least 0")
    target = Path(folder)
    if target.is_dir() and any(target.iterdir()):
        raise M3vitError(f"{target}: expected an empty or a new directory, found files in it")
    with atomic_directory(target) as temporary:
        for split in SPLITS:
            _WRITERS[name](temporary, split, images, seed)
    return target
