"""``nyu_depth_v2_labeled.mat``: axes, mapping, splits, what is derived, and one line for everything that is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

h5py = pytest.importorskip("h5py")
pytest.importorskip("scipy")
from datasets_trees import CLASSES, write_nyu_mat  # noqa: E402
from scipy.io import savemat  # noqa: E402

from accel.errors import DataError  # noqa: E402
from model.datasets import NyuMat, open_source  # noqa: E402
from model.datasets.nyu_mat import FILE, plane_normals  # noqa: E402


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_nyu_mat(tmp_path)
    return tmp_path


def test_axes_mapping_and_splits(folder: Path) -> None:
    content = write_nyu_mat(folder)
    train, val = open_source("nyud", "train", root=folder), open_source("nyud", "val", root=folder / FILE)
    assert isinstance(train, NyuMat)
    assert (list(train.ids), list(val.ids)) == (["0001", "0003", "0004"], ["0002", "0005"])
    sample = val.load(1)
    np.testing.assert_array_equal(sample["image"], content["images"][4])
    np.testing.assert_array_equal(sample["depth"], content["depths"][4])
    labels = content["labels"][4]
    expected = np.full(labels.shape, 255)
    expected[labels == 3], expected[labels == 7] = 3 - 1, 40 - 1  # the mapping's class, from 0
    np.testing.assert_array_equal(sample["semseg"], expected)
    assert sample["edge"].shape == sample["normals"].shape[:2] == labels.shape
    line = sample["edge"][10:-10, 25:40] == 1
    assert (line.sum(1) == 1).all()  # one line in the gap of two columns
    assert train.key != val.key


def test_instances_split_regions_of_one_class(folder: Path) -> None:
    with h5py.File(folder / FILE, "r+") as file:
        instances = np.ones(file["labels"].shape, np.uint8)
        instances[:, :, 20:] = 2  # axes [N, W, H]: the lower part
        file["instances"] = instances
    edge = open_source("nyud", "val", ["edge"], folder).load(0)["edge"]
    assert (edge[18:22, 10:25] == 1).any(0).all()


def test_mapping_as_json(folder: Path) -> None:
    reference = open_source("nyud", "val", ["semseg"], folder).load(0)["semseg"]
    (folder / "classMapping40.mat").unlink()
    numbers = [*range(1, CLASSES + 1)]
    numbers[6] = 40
    path = folder / "classMapping40.json"
    path.write_text(json.dumps(numbers))
    np.testing.assert_array_equal(open_source("nyud", "val", ["semseg"], folder).load(0)["semseg"], reference)
    by_name = {f"class {index + 1}": number for index, number in enumerate(numbers)}
    path.write_text(json.dumps(by_name))
    np.testing.assert_array_equal(open_source("nyud", "val", ["semseg"], folder).load(0)["semseg"], reference)
    del by_name["class 5"]
    path.write_text(json.dumps(by_name))
    with pytest.raises(DataError, match="classMapping40.json: semseg: class 'class 5': expected a number, found none"):
        open_source("nyud", "val", ["semseg"], folder)
    path.write_text("[41]")
    with pytest.raises(DataError, match=r"json: semseg: class 1: expected a whole number from 0 \(void\) to 40"):
        open_source("nyud", "val", ["semseg"], folder)
    path.write_text("{")
    with pytest.raises(DataError, match="classMapping40.json: semseg: expected JSON"):
        open_source("nyud", "val", ["semseg"], folder)


def test_missing_mapping_matters_to_semseg_only(folder: Path) -> None:
    (folder / "classMapping40.mat").unlink()
    with pytest.raises(DataError, match=r"classMapping40\.mat: semseg: expected a mapping of the file's classes to 40"):
        open_source("nyud", "val", root=folder)
    sample = open_source("nyud", "val", ["depth", "normals", "edge"], folder).load(0)
    assert set(sample) == {"image", "depth", "normals", "edge"}


def test_labels_beyond_the_mapping(folder: Path) -> None:
    savemat(str(folder / "classMapping40.mat"), {"mapClass": np.array([[1, 2, 3, 4]])})
    with pytest.raises(DataError, match=r"labels: image 0002: expected labels 0 to 4, found 7"):
        open_source("nyud", "val", ["semseg"], folder).load(0)


def test_files_of_another_version(folder: Path) -> None:
    (folder / "splits.mat").unlink()
    with h5py.File(folder / "splits.mat", "w") as file:
        file["testNdxs"] = np.ones((1, 2))
    with pytest.raises(DataError, match=r"splits\.mat: testNdxs: expected a MATLAB file of version 5, found version 7"):
        open_source("nyud", "val", [], folder)
    (folder / "splits.mat").unlink()
    with pytest.raises(DataError, match=r"splits\.mat: testNdxs: expected a file, found none"):
        open_source("nyud", "val", [], folder)
    savemat(str(folder / FILE), {"images": np.zeros((2, 2))}, appendmat=False)
    with pytest.raises(DataError, match=r"nyu_depth_v2_labeled: expected a MATLAB file of version 7\.3, found"):
        open_source("nyud", "val", [], folder)
    (folder / FILE).write_bytes(b"MATLAB 7.3 MAT-file".ljust(600))
    with pytest.raises(DataError, match=rf"{FILE}: nyu_depth_v2_labeled: cannot read as HDF5"):
        open_source("nyud", "val", [], folder)


def test_wrong_arrays(folder: Path) -> None:
    def change(name: str, values: np.ndarray | None) -> None:
        with h5py.File(folder / FILE, "r+") as file:
            del file[name]
            if values is not None:
                file[name] = values

    change("depths", np.zeros((5, 48, 64), np.float32))  # not reversed
    with pytest.raises(DataError, match=r"depths: expected the size of the images, \(5, 64, 48\), found \(5, 48, 64\)"):
        open_source("nyud", "val", [], folder)
    change("depths", np.zeros((5, 64), np.float32))
    with pytest.raises(DataError, match=r"depths: expected an array \[N, W, H\], found shape \(5, 64\)"):
        open_source("nyud", "val", [], folder)
    change("depths", None)
    with pytest.raises(DataError, match=r"depths: expected an array \[N, W, H\], found none"):
        open_source("nyud", "val", [], folder)
    write_nyu_mat(folder)
    change("images", np.zeros((5, 4, 64, 48), np.uint8))
    with pytest.raises(DataError, match=r"images: expected an array \[N, 3, W, H\], found shape"):
        open_source("nyud", "val", [], folder)


def test_wrong_splits(folder: Path) -> None:
    savemat(str(folder / "splits.mat"), {"testNdxs": [[2], [6]], "trainNdxs": np.zeros((0, 1))})
    with pytest.raises(DataError, match=r"testNdxs: expected image numbers 1 to 5, found 6"):
        open_source("nyud", "val", [], folder)
    with pytest.raises(DataError, match=r"trainNdxs: split 'train': expected at least one image, found none"):
        open_source("nyud", "train", [], folder)


@pytest.mark.parametrize("normal", [(0.0, 0.0, -1.0), (0.5, 0.0, -0.866), (0.3, -0.6, -0.742), (0.0, -0.95, -0.312)])
def test_plane_normals_of_a_plane(normal: tuple[float, float, float]) -> None:
    n = np.array(normal) / np.linalg.norm(normal)
    height, width = 120, 160
    scale = width / 640
    x = (np.arange(width) + 0.5 - 326.08 * scale) / (518.86 * scale)
    y = (np.arange(height)[:, None] + 0.5 - 254.24 * scale) / (519.47 * scale)
    facing = n[0] * x + n[1] * y + n[2]
    depth = np.where(facing < -0.05, -2 * -n[2] / facing, 0).astype(np.float32)  # passes 2 m in front of the camera
    depth[(depth > 20) | (depth < 0)] = 0
    found = plane_normals(depth)
    known = (found != 0).any(-1)
    assert known.mean() > 0.5 and not known[depth == 0].any()
    np.testing.assert_allclose(np.linalg.norm(found[known], axis=-1), 1, atol=1e-5)
    cosine = (found[known] * n).sum(-1)
    assert np.degrees(np.arccos(np.clip(cosine, -1, 1))).max() < 1


def test_plane_normals_leave_steps_and_holes_unknown() -> None:
    depth = np.full((60, 80), 2.0, np.float32)
    depth[:, 40:] = 4.0
    depth[:20, :20] = 0
    found = plane_normals(depth)
    known = (found != 0).any(-1)
    assert not known[30:, 37:43].any() and not known[:20, :20].any()
    assert known[30:55, 5:35].all() and known[30:55, 45:75].all()
    np.testing.assert_allclose(found[known], np.broadcast_to([0, 0, -1], found[known].shape), atol=1e-3)
