"""Rendered scenes: deterministic, varied, and with labels that agree with each other."""

from __future__ import annotations

import numpy as np
import pytest

from model import scenes


@pytest.fixture(scope="module")
def batch() -> dict[str, np.ndarray]:
    return scenes.render_range(0, 0, 48)


def test_deterministic_and_independent_of_the_batch(batch: dict[str, np.ndarray]) -> None:
    again = scenes.render_scene(0, 17)
    for name in ("image", "semseg", "depth", "edge"):
        np.testing.assert_array_equal(batch[name][17], getattr(again, name))
    np.testing.assert_array_equal(batch["normals"][17], again.normals.astype(np.float16))


def test_varied(batch: dict[str, np.ndarray]) -> None:
    flat = batch["image"].reshape(48, -1).astype(int)
    closest = min(np.abs(flat[i] - flat[j]).mean() for i in range(48) for j in range(i))
    assert closest > 5
    assert set(np.unique(batch["semseg"])) == set(range(len(scenes.CLASSES)))
    assert not np.array_equal(scenes.render_scene(1, 0).image, batch["image"][0])


def test_types_and_ranges(batch: dict[str, np.ndarray]) -> None:
    assert batch["image"].shape == (48, 64, 64, 3) and batch["image"].dtype == np.uint8
    assert batch["depth"].dtype == np.float32 and (batch["depth"] > 0).all()
    assert batch["depth"].max() < 12 and set(np.unique(batch["edge"])) == {0, 1}
    length = np.linalg.norm(scenes.render_scene(0, 3).normals, axis=-1)
    np.testing.assert_allclose(length, 1, atol=1e-5)
    assert len(scenes.PALETTE) == len(scenes.CLASSES)


@pytest.mark.parametrize("height, width", [(64, 64), (32, 80), (48, 20)])
def test_planes_are_planes(height: int, width: int) -> None:
    """On a plane the normal is constant and 1/depth is affine in the pixel coordinates."""
    checked = 0
    for index in range(12):
        scene = scenes.render_scene(5, index, height, width)
        assert scene.image.shape == (height, width, 3)
        floor = (scene.semseg == scenes.FLOOR) | (scene.semseg == scenes.RUG)
        if floor.sum() < 20:
            continue
        y, x = np.nonzero(floor)
        design = np.stack([x, y, np.ones(len(x))], 1)
        inverse = 1 / scene.depth[floor].astype(np.float64)
        fit = design @ np.linalg.lstsq(design, inverse, rcond=None)[0]
        np.testing.assert_allclose(fit, inverse, rtol=1e-4)
        normals = scene.normals[floor]
        np.testing.assert_allclose(normals, normals[:1].repeat(len(normals), 0), atol=1e-6)
        assert normals[0, 1] > 0.5  # the floor faces up
        ceiling = scene.normals[scene.semseg == scenes.CEILING]
        if len(ceiling):
            np.testing.assert_allclose(ceiling[0], -normals[0], atol=1e-5)
        checked += 1
    assert checked >= 6


def test_surfaces_face_the_camera(batch: dict[str, np.ndarray]) -> None:
    """At the image centre the ray is the optical axis, so the normal must point back along it."""
    assert (batch["normals"][:, 31:33, 31:33, 2] < 0.15).all()


def test_label_changes_are_edges(batch: dict[str, np.ndarray]) -> None:
    semseg, edge = batch["semseg"], batch["edge"].astype(bool)
    rows, columns = semseg[:, 1:] != semseg[:, :-1], semseg[:, :, 1:] != semseg[:, :, :-1]
    assert rows.any() and columns.any()
    assert edge[:, 1:][rows].all() and edge[:, :-1][rows].all()
    assert edge[:, :, 1:][columns].all() and edge[:, :, :-1][columns].all()
    assert 0.05 < edge.mean() < 0.3


def test_find_edges_by_hand() -> None:
    surface = np.array([[0, 0, 1], [0, 0, 0], [0, 0, 0]])
    normals = np.zeros((3, 3, 3), np.float32)
    normals[..., 2] = -1
    normals[2, 0] = (1, 0, 0)
    assert scenes.find_edges(surface, normals).tolist() == [[0, 1, 1], [1, 0, 1], [1, 1, 0]]
