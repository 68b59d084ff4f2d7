"""Damaged files are errors of one line that name the file, whatever decoders make of them; where roots may point."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("scipy")
from datasets_trees import write_nyu_mat  # noqa: E402
from scipy.io import savemat  # noqa: E402

from accel.errors import DataError  # noqa: E402
from model.datasets import DATASETS, NyuMat, open_source  # noqa: E402
from model.datasets.check import check_dataset, find_datasets  # noqa: E402
from model.datasets.common import as_normals, read_mat, read_mat_numbers, read_npy  # noqa: E402
from model.datasets.location import DATA_ROOT, locate  # noqa: E402
from model.datasets.pascal import read_human_parts, read_label_map  # noqa: E402
from model.datasets.synthetic import make_sample, person_anno  # noqa: E402

ROUNDS = 150


def damages(whole: bytes, seed: int) -> list[bytes]:
    """The same file with a few bytes changed, mostly in its headers, or cut short.

    MATLAB files are compressed, as MATLAB writes them, so that most damage meets a checksum: changed bytes of
    uncompressed ones can crash SciPy's compiled reader, which no caller can prevent.
    """
    rng, variants = np.random.default_rng(seed), []
    for _ in range(ROUNDS):
        content = bytearray(whole)
        for _ in range(int(rng.integers(1, 5))):
            end = len(content) if rng.random() < 0.3 else min(len(content), 320)
            content[int(rng.integers(0, end))] = int(rng.integers(0, 256))
        variants.append(bytes(content[: int(rng.integers(1, len(content)))] if rng.random() < 0.2 else content))
    return variants


def test_damaged_arrays_and_matlab_files_never_surprise(tmp_path: Path) -> None:
    person = np.zeros((24, 16), bool)
    person[4:20, 3:9] = True
    anno, labels, splits, array = (tmp_path / name for name in ("anno.mat", "labels.mat", "splits.mat", "depth.npy"))
    savemat(str(anno), person_anno("a", person), do_compression=True)
    savemat(str(labels), {"LabelMap": np.arange(24 * 16, dtype=np.uint16).reshape(24, 16)}, do_compression=True)
    savemat(str(splits), {"testNdxs": [[2], [5]]}, do_compression=True)
    np.save(array, np.ones((24, 16), np.float32))
    readers = {
        anno: lambda: read_human_parts(anno, (24, 16)),
        labels: lambda: read_label_map(labels, (24, 16)),
        splits: lambda: read_mat_numbers(splits, "testNdxs"),
        array: lambda: read_npy(array, "depth"),
    }
    for seed, (path, read) in enumerate(readers.items()):
        refused = 0
        for content in damages(path.read_bytes(), seed):
            path.write_bytes(content)
            try:
                read()
            except DataError as error:
                refused += 1
                assert str(error).startswith(f"{path}: ") and "\n" not in str(error)
        assert refused > ROUNDS // 10, path.name


def test_headers_that_tokenize_to_nothing(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    np.save(path, np.zeros((3, 4)))
    for header in (b"{'descr': '<f8', 'fortran_order': False, 'shape': (3, 4", b"{'descr': '<f8',\n\n(\n", b"[[[[\n'"):
        path.write_bytes(b"\x93NUMPY\x01\x00" + (118).to_bytes(2, "little") + header.ljust(118) + bytes(96))
        with pytest.raises(DataError, match=r"x\.npy: depth: cannot read as NumPy array: \S") as caught:
            read_npy(path, "depth")
        assert "\n" not in str(caught.value)


def test_cells_and_fractions_are_no_numbers(tmp_path: Path) -> None:
    path, cells = tmp_path / "splits.mat", np.empty((1, 2), dtype=object)
    cells[0, 0], cells[0, 1] = np.array([[1]]), np.array([[2]])
    for values, message in (
        (cells, "expected numbers, found object"),
        ("text", "expected numbers, found <U4"),
        ([[1.5]], "expected whole numbers, found fractions"),
        ([[np.nan]], "expected whole numbers, found fractions"),
    ):
        savemat(str(path), {"testNdxs": values})
        with pytest.raises(DataError, match=rf"splits\.mat: testNdxs: {message}"):
            read_mat_numbers(path, "testNdxs")
    with pytest.raises(DataError, match="none.mat: testNdxs: expected a file, found none"):
        read_mat(tmp_path / "none.mat", "testNdxs", ["testNdxs"])


def test_normals_that_are_not_finite_are_unknown() -> None:
    values = np.zeros((1, 4, 3))
    values[0, :, 2] = (1, np.nan, np.inf, 0.5)
    assert as_normals("x", "normals", values)[0, :, 2].tolist() == [1, 0, 0, 1]
    assert not as_normals("x", "normals", np.full((2, 2, 3), np.nan)).any()


def test_mapping_of_classes_is_checked(tmp_path: Path) -> None:
    pytest.importorskip("h5py")
    write_nyu_mat(tmp_path)
    (tmp_path / "classMapping40.mat").unlink()

    def state() -> str:
        return check_dataset("nyud", tmp_path).splits["val"].tasks["semseg"].state

    assert state() == "absent" and check_dataset("nyud", tmp_path).ok
    path = tmp_path / "classMapping40.json"
    for number, shown in ((1.7, "1.7"), ("3", "'3'"), (True, "True"), (None, "None"), (-1, "-1")):
        path.write_text(json.dumps([1, number]))
        with pytest.raises(DataError, match=f"json: semseg: class 2: expected a whole number from 0 .*, found {shown}"):
            open_source("nyud", "val", ["semseg"], tmp_path)
        assert state() == "damaged" and not check_dataset("nyud", tmp_path).ok
    path.unlink()
    savemat(str(tmp_path / "classMapping40.mat"), {"mapClass": [[1.0, 2.5]]})
    report = check_dataset("nyud", tmp_path).splits["val"]
    assert report.tasks["semseg"].problems[0].endswith("mapClass: expected whole numbers, found fractions")
    assert report.tasks["depth"].state == "complete"


def test_hdf5_of_other_content(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    write_nyu_mat(tmp_path)
    file = tmp_path / "nyu_depth_v2_labeled.mat"
    with h5py.File(file, "r+") as content:
        shape = content["depths"].shape
        del content["depths"]
        content["depths"] = np.empty(shape, dtype=h5py.ref_dtype)  # a cell array
    with pytest.raises(DataError, match="depths: expected an array of numbers, found object"):
        NyuMat(file, "val", ["depth"])


# Where a root may point.


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for variable in (DATA_ROOT, *(spec.variable for spec in DATASETS.values())):
        monkeypatch.delenv(variable, raising=False)
    make_sample("nyud", tmp_path / "NYUD_MT", images=1)
    make_sample("cityscapes", tmp_path / "cityscapes", images=1)
    return tmp_path


def test_folder_or_its_parent_everywhere(places: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec, wanted = DATASETS["nyud"], places / "NYUD_MT"
    for root in (places, wanted):
        assert locate(spec, root) == wanted == open_source("nyud", "val", root=root).root  # type: ignore[attr-defined]
        assert find_datasets(root, "nyud") == [(spec, wanted)] and check_dataset("nyud", root).root == str(wanted)
        for variable in (spec.variable, DATA_ROOT):
            with monkeypatch.context() as patch:
                patch.setenv(variable, str(root))
                assert locate(spec) == wanted
    assert [spec.name for spec, _ in find_datasets(places)] == ["nyud", "cityscapes"]


def test_home_is_expanded(places: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(places))
    assert locate(DATASETS["nyud"], "~/NYUD_MT") == locate(DATASETS["nyud"], "~") == places / "NYUD_MT"
    assert find_datasets("~/cityscapes") == [(DATASETS["cityscapes"], places / "cityscapes")]
    monkeypatch.setenv(DATA_ROOT, "~")
    assert locate(DATASETS["cityscapes"]) == places / "cityscapes"


def test_one_file_release(places: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("h5py")
    spec, folder = DATASETS["nyud"], places / "other"
    write_nyu_mat(folder / "NYUD_MT")
    file = folder / "NYUD_MT" / str(spec.one_file)
    for root in (folder, folder / "NYUD_MT", file):
        assert locate(spec, root) == file and find_datasets(root) == [(spec, file)]
        assert isinstance(open_source("nyud", "val", ["depth"], root), NyuMat)
        assert check_dataset("nyud", root).layout == "mat"
    monkeypatch.setenv(spec.variable, str(file))
    assert locate(spec) == file
    with pytest.raises(DataError, match="root: expected the directory of data set 'pascal', found a file"):
        locate(DATASETS["pascal"], file)


def test_nothing_there(places: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="no: root: expected the directory of data set 'nyud', found nothing"):
        locate(DATASETS["nyud"], places / "no")
    monkeypatch.setenv(DATA_ROOT, str(places))
    with pytest.raises(DataError, match="PASCAL_MT: M3VIT_DATA_ROOT: expected the directory of data set 'pascal'"):
        locate(DATASETS["pascal"])
    (places / "empty").mkdir()
    assert locate(DATASETS["pascal"], places / "empty") == places / "empty"  # so that what it lacks can be named
