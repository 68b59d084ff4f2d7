"""Data sets and batches: splits, cache, pure functions of (seed, step), mirroring."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from accel.errors import ConfigError, DataError
from model import data, scenes
from model.data import Batches, Dataset, scene_dataset


def test_splits_differ_and_longer_sets_begin_alike() -> None:
    options = {"height": 8, "width": 8, "workers": 1, "quiet": True}
    train, val = scene_dataset("train", 6, **options), scene_dataset("val", 6, **options)
    longer = scene_dataset("train", 9, **options)
    assert not any((a == b).all() for a in train.images for b in val.images)
    np.testing.assert_array_equal(train.images, longer.images[:6])
    assert len({train.key, val.key, longer.key}) == 3
    seeds = {scenes.split_seed(s, split) for s in range(5) for split in scenes.SPLITS}
    assert len(seeds) == 10


def test_processes_change_nothing() -> None:
    one = scene_dataset("train", 70, 8, 8, workers=1, quiet=True)
    two = scene_dataset("train", 70, 8, 8, workers=2, quiet=True)
    np.testing.assert_array_equal(one.images, two.images)
    np.testing.assert_array_equal(one.targets["normals"], two.targets["normals"])


def test_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load() -> Dataset:
        return scene_dataset("val", 5, 8, 8, cache_dir=tmp_path, workers=1, quiet=True)

    first = load()
    (path,) = tmp_path.glob("*.npz")
    rendered = []
    original = data._render
    monkeypatch.setattr(data, "_render", lambda *a: rendered.append(a) or original(*a))
    np.testing.assert_array_equal(load().images, first.images)
    assert not rendered
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    np.testing.assert_array_equal(load().targets["depth"], first.targets["depth"])
    assert len(rendered) == 1 and path.read_bytes() == whole


def test_batches_are_a_function_of_seed_and_step(scenes_train: Dataset) -> None:
    first, second = Batches(scenes_train, 16, seed=1), Batches(scenes_train, 16, seed=1)
    forward = [first.indices(step) for step in range(6)]
    backward = [second.indices(step) for step in reversed(range(6))][::-1]
    for a, b in zip(forward, backward, strict=True):
        np.testing.assert_array_equal(a, b)
    epoch = np.concatenate(forward)[:40]
    assert sorted(epoch) == list(range(40))  # every image once, across batch borders
    assert not np.array_equal(forward[0], Batches(scenes_train, 16, seed=2).indices(0))


def test_processes_share_the_global_batch(scenes_train: Dataset) -> None:
    images, targets = Batches(scenes_train, 8, seed=4).batch(3)
    parts = [Batches(scenes_train, 8, seed=4, rank=r, world=4).batch(3) for r in range(4)]
    np.testing.assert_array_equal(images, np.concatenate([part[0] for part in parts]))
    for name in targets:
        np.testing.assert_array_equal(targets[name], np.concatenate([p[1][name] for p in parts]))
    with pytest.raises(ConfigError, match="batch_size = 6"):
        Batches(scenes_train, 6, world=4)


def test_mirroring_flips_everything_and_negates_normal_x(scenes_train: Dataset) -> None:
    before = scenes_train.targets["normals"].copy()
    batches = Batches(scenes_train, 16, seed=0)
    images, targets = batches.batch(0)
    indices, flip = batches.indices(0), batches.mirrored(0)
    assert 0 < flip.sum() < 16
    for row, (index, flipped) in enumerate(zip(indices, flip, strict=True)):
        way = slice(None, None, -1 if flipped else 1)
        np.testing.assert_array_equal(images[row], scenes_train.images[index][:, way])
        for name in ("semseg", "depth", "edge"):
            np.testing.assert_array_equal(
                targets[name][row], scenes_train.targets[name][index][:, way]
            )
        normals = scenes_train.targets["normals"][index][:, way].copy()
        normals[..., 0] *= -1 if flipped else 1
        np.testing.assert_array_equal(targets["normals"][row], normals)
    np.testing.assert_array_equal(before, scenes_train.targets["normals"])  # set left alone
    assert not Batches(scenes_train, 16, mirror=False).mirrored(0).any()


def test_wrong_arrays_are_refused() -> None:
    images = np.zeros((2, 4, 4, 3), np.uint8)
    with pytest.raises(DataError, match="uint8"):
        Dataset(images.astype(np.float32), {})
    with pytest.raises(DataError, match="depth"):
        Dataset(images, {"depth": np.zeros((2, 4, 5), np.float32)})
    with pytest.raises(ConfigError, match="test"):
        scene_dataset("test", 1)
    with pytest.raises(ConfigError, match="count"):
        scene_dataset("val", 0)
