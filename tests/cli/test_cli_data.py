"""``m3vit data``: make a sample, check it, break it, check again."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("scipy")


@pytest.fixture
def sample(m3vit: Callable, tmp_path: Path) -> Callable[..., Path]:
    def make(name: str, folder: str | None = None, images: int = 3) -> Path:
        path = tmp_path / (folder or name)
        outcome = m3vit("data", "make-sample", name, path, "--images", images)
        assert outcome.code == 0 and "3 images in each split" in outcome.err
        return path

    return make


def test_help_and_wrong_usage(m3vit: Callable, tmp_path: Path) -> None:
    outcome = m3vit("data", "--help")
    assert outcome.code == 0 and "check" in outcome.out and "make-sample" in outcome.out
    assert m3vit("data", "make-sample", "coco", tmp_path / "x").code == 2
    assert m3vit("data", "make-sample", "nyud", tmp_path / "x", "--images", 0).code == 2
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("name", ["pascal", "nyud", "cityscapes"])
def test_sample_is_usable(m3vit: Callable, sample: Callable, name: str) -> None:
    root = sample(name)
    outcome = m3vit("data", "check", root, "--json")
    assert outcome.code == 0 and outcome.err == ""
    report = outcome.json()
    (found,) = report["datasets"]
    assert report["ok"] and (found["dataset"], found["layout"]) == (name, "folders")
    for split in ("train", "val"):
        part = found["splits"][split]
        assert part["images"] == 3 and part["sizes"]["largest"]
        assert all(task["state"] == "complete" and task["files"] == 3 for task in part["tasks"].values())
        labels = part["tasks"]["semseg"]["values"]["labels"]
        assert len(labels) > 2 and max(labels) < 40
    text = m3vit("data", "check", root)
    assert text.code == 0 and text.out.rstrip().endswith("\nusable")


def test_json_of_make_sample(m3vit: Callable, tmp_path: Path) -> None:
    report = m3vit("data", "make-sample", "nyud", tmp_path / "s", "--images", 2, "--seed", 5, "--json").json()
    assert report["bytes"] > 0 and report["images_per_split"] == 2 and report["seed"] == 5
    assert "expected an empty or a new directory" in m3vit("data", "make-sample", "nyud", tmp_path / "s").error()


def test_gaps_name_split_and_task(m3vit: Callable, sample: Callable) -> None:
    root = sample("nyud")
    (root / "depth" / "0001.npy").unlink()
    outcome = m3vit("data", "check", root)
    assert outcome.code == 1 and "not usable" in outcome.out
    assert f"split train, depth: missing {root / 'depth' / '0001.npy'}" in outcome.out
    assert "split val" not in outcome.out
    report = m3vit("data", "check", root, "--json")
    tasks = report.json()["datasets"][0]["splits"]["train"]["tasks"]
    assert report.code == 1 and (tasks["depth"]["state"], tasks["depth"]["missing"]) == ("incomplete", 1)
    assert tasks["semseg"]["state"] == "complete"
    assert m3vit("data", "check", root, "--tasks", "semseg,edge").code == 0


def test_absent_task_matters_only_if_asked_for(m3vit: Callable, sample: Callable) -> None:
    root = sample("pascal")
    shutil.rmtree(root / "sal_distill")
    shutil.rmtree(root / "pascal-context")
    outcome = m3vit("data", "check", root, "--json")
    tasks = outcome.json()["datasets"][0]["splits"]["val"]["tasks"]
    states = {name: task["state"] for name, task in tasks.items()}
    assert outcome.code == 0
    assert states == {"image": "complete", "semseg": "complete", "human_parts": "complete", "sal": "absent",
                      "normals": "absent", "edge": "absent"}  # fmt: skip
    assert m3vit("data", "check", root, "--tasks", "sal").code == 1
    assert "task 'depth'" in m3vit("data", "check", root, "--tasks", "depth").error()
    # Present in one split only: a gap, asked for or not.
    for path in (root / "human_parts").glob("2009_*"):
        path.unlink()
    assert m3vit("data", "check", root).code == 1


def test_damage_is_found_in_samples(m3vit: Callable, sample: Callable) -> None:
    root = sample("cityscapes")
    np.save(root / "val/label_7/0.npy", np.full((128, 256), 9.0))
    np.save(root / "val/depth/2.npy", np.zeros((4, 4, 1)))
    (root / "train/image/1.npy").write_bytes(b"no array")
    outcome = m3vit("data", "check", root)
    assert outcome.code == 1
    assert "split val, semseg: " in outcome.out and "expected labels 0 to 6 or 255, found 9" in outcome.out
    assert "split val, depth: " in outcome.out and "expected the image's size 128×256, found 4×4×1" in outcome.out
    assert "split train, image: " in outcome.out and "cannot read as NumPy array" in outcome.out
    assert m3vit("data", "check", root, "--samples", 0).code == 0  # every file is there; none was read


def test_folder_with_several(m3vit: Callable, sample: Callable, tmp_path: Path) -> None:
    sample("pascal", "PASCAL_MT")
    sample("cityscapes", "cityscapes")
    report = m3vit("data", "check", tmp_path, "--json").json()
    assert [found["dataset"] for found in report["datasets"]] == ["pascal", "cityscapes"]
    one = m3vit("data", "check", tmp_path, "--dataset", "cityscapes", "--json").json()
    assert [found["root"] for found in one["datasets"]] == [str(tmp_path / "cityscapes")]


def test_nothing_there(m3vit: Callable, sample: Callable, tmp_path: Path) -> None:
    assert "expected a directory with a data set, found none" in m3vit("data", "check", tmp_path / "no").error()
    (tmp_path / "empty").mkdir()
    assert "expected a data set (pascal: JPEGImages" in m3vit("data", "check", tmp_path / "empty").error()
    outcome = m3vit("data", "check", tmp_path / "empty", "--dataset", "nyud")
    assert outcome.code == 1 and "split train: " in outcome.out and "gt_sets/train.txt" in outcome.out
    root = sample("nyud")
    (root / "gt_sets/val.txt").write_text("")
    outcome = m3vit("data", "check", root, "--json")
    assert outcome.code == 1
    assert "expected at least one image" in outcome.json()["datasets"][0]["splits"]["val"]["problem"]


def test_labeled_mat(m3vit: Callable, tmp_path: Path) -> None:
    pytest.importorskip("h5py")
    import sys

    sys.path.insert(0, str(Path(__file__).parents[1] / "model"))
    try:
        from datasets_trees import write_nyu_mat
    finally:
        sys.path.pop(0)
    write_nyu_mat(tmp_path)
    outcome = m3vit("data", "check", tmp_path, "--json")
    (found,) = outcome.json()["datasets"]
    assert outcome.code == 0 and found["layout"] == "mat" and found["splits"]["train"]["images"] == 3
    (tmp_path / "classMapping40.mat").unlink()
    outcome = m3vit("data", "check", tmp_path / "nyu_depth_v2_labeled.mat")
    assert outcome.code == 0 and "split val, semseg: " in outcome.out and "classMapping40.mat" in outcome.out
    assert m3vit("data", "check", tmp_path, "--tasks", "semseg").code == 1
    (tmp_path / "splits.mat").unlink()
    assert m3vit("data", "check", tmp_path, "--tasks", "depth").code == 1
