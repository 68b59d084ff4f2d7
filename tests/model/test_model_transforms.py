"""Geometry and its corrections, against positions and vectors worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from accel.errors import ConfigError
from model.transforms import RECIPES, Augmentation, Geometry, apply, prepare, resize, rotate_normals

H, W = 40, 60


def sample() -> dict[str, np.ndarray]:
    """A picture whose every target says where it is."""
    rng = np.random.default_rng(0)
    normals = rng.normal(size=(H, W, 3)).astype(np.float32)
    normals /= np.linalg.norm(normals, axis=-1, keepdims=True)
    return {
        "image": rng.integers(0, 256, (H, W, 3), dtype=np.uint8),
        "semseg": (np.arange(H)[:, None] // 10 * 6 + np.arange(W) // 10).astype(np.uint8),
        "depth": rng.uniform(1, 5, (H, W)).astype(np.float32),
        "normals": normals,
        "edge": (rng.random((H, W)) < 0.1).astype(np.uint8),
    }


def test_nothing_to_do_changes_nothing() -> None:
    before = sample()
    after = prepare(before, H, W, Geometry())
    assert before.keys() == after.keys()
    for name, values in before.items():
        np.testing.assert_array_equal(after[name], values)


def test_mirroring_negates_normal_x() -> None:
    before = sample()
    after = apply(before, Geometry(mirror=True))
    for name in ("image", "semseg", "depth", "edge"):
        np.testing.assert_array_equal(after[name], before[name][:, ::-1])
    np.testing.assert_array_equal(after["normals"], before["normals"][:, ::-1] * np.float32([-1, 1, 1]))
    again = apply(after, Geometry(mirror=True))
    np.testing.assert_array_equal(again["normals"], before["normals"])


def test_zoom_shows_the_window_and_divides_depth() -> None:
    before = sample()
    after = apply(before, Geometry(scale=2))
    rows, columns = np.arange(H) // 2 + H // 4, np.arange(W) // 2 + W // 4  # nearest neighbours of the centre window
    np.testing.assert_array_equal(after["semseg"], before["semseg"][np.ix_(rows, columns)])
    np.testing.assert_allclose(after["depth"], before["depth"][np.ix_(rows, columns)] / 2, rtol=1e-6)
    corner = apply(before, Geometry(scale=2, across=1, down=0))
    np.testing.assert_array_equal(
        corner["semseg"], before["semseg"][np.ix_(np.arange(H) // 2, np.arange(W) // 2 + W // 2)]
    )


def test_shrinking_leaves_the_outside_ignored() -> None:
    before = sample()
    after = apply(before, Geometry(scale=0.5))
    outside = np.ones((H, W), bool)
    outside[H // 4 : -H // 4, W // 4 : -W // 4] = False
    assert (after["semseg"][outside] == 255).all() and (after["edge"][outside] == 255).all()
    assert (after["depth"][outside] == 0).all() and (after["image"][outside] == 0).all()
    assert (after["normals"][outside] == 0).all()
    assert (after["semseg"][~outside] != 255).all() and (after["depth"][~outside] >= 2).all()


def test_quarter_turn_is_counter_clockwise_with_its_normals() -> None:
    size = 20
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 9, (size, size), dtype=np.uint8)
    normals = np.tile(np.float32([1, 0, 0]), (size, size, 1))  # all point right
    image = rng.integers(0, 256, (size, size, 3), dtype=np.uint8)
    after = apply({"image": image, "semseg": labels, "normals": normals}, Geometry(angle=90))
    np.testing.assert_array_equal(after["semseg"], np.rot90(labels))
    np.testing.assert_allclose(after["image"].astype(int), np.rot90(image).astype(int), atol=1)  # rounding of cos 90°
    # Turned counter-clockwise, right becomes up: -y where y points down, +y where it points up.
    np.testing.assert_allclose(after["normals"], np.tile(np.float32([0, -1, 0]), (size, size, 1)), atol=1e-6)
    up = apply({"image": image, "normals": normals}, Geometry(angle=90), normals_y_down=False)
    np.testing.assert_allclose(up["normals"], np.tile(np.float32([0, 1, 0]), (size, size, 1)), atol=1e-6)


@pytest.mark.parametrize("angle", [-20.0, 7.5, 33.0])
def test_rotated_normals_are_those_of_the_rotated_surface(angle: float) -> None:
    """Depth of a slanted plane, rotated, must have the gradient that the rotated normals say."""
    size = 64
    y, x = np.mgrid[:size, :size].astype(np.float32)
    depth = 40 + 0.3 * x - 0.2 * y
    normal = np.float32([0.3, -0.2, -1]) / np.linalg.norm([0.3, -0.2, -1])
    after = apply(
        {"image": np.zeros((size, size, 3), np.uint8), "depth": depth, "normals": np.tile(normal, (size, size, 1))},
        Geometry(angle=angle),
    )
    inner = slice(16, 48)
    slope = np.polynomial.polynomial.polyfit(np.arange(32), after["depth"][inner, inner].T, 1)[1].mean()
    found = after["normals"][32, 32]
    assert -found[0] / found[2] == pytest.approx(slope, abs=0.01)  # dz/dx of the plane with this normal
    assert np.linalg.norm(found) == pytest.approx(1, abs=1e-5)
    radians = math.radians(angle)
    assert slope == pytest.approx(0.3 * math.cos(radians) - 0.2 * math.sin(radians), abs=0.01)
    there_and_back = rotate_normals(rotate_normals(normal[None, None], angle), -angle)
    np.testing.assert_allclose(there_and_back[0, 0], normal, atol=1e-6)


def test_resizing_keeps_labels_and_unit_normals() -> None:
    before = sample()
    before["normals"] = np.tile(np.float32([0.6, 0, -0.8]), (H, W, 1))
    before["normals"][:, : W // 2] = [0, 0.6, -0.8]
    before["normals"][:10] = 0
    before["depth"][:10] = 0
    after = resize(before, 20, 30)
    np.testing.assert_array_equal(after["semseg"], before["semseg"][1::2, 1::2])
    assert set(np.unique(after["depth"])) <= set(np.unique(before["depth"]))
    assert after["image"].shape == (20, 30, 3) and after["image"].dtype == np.uint8
    length = np.linalg.norm(after["normals"], axis=-1)
    assert (length[:5] == 0).all()
    np.testing.assert_allclose(length[5:], 1, atol=1e-5)
    np.testing.assert_allclose(after["normals"][15, 25], [0.6, 0, -0.8], atol=1e-5)


def test_picture_without_parts_is_ignored_as_a_whole() -> None:
    parts = np.zeros((H, W), np.uint8)
    image = np.zeros((H, W, 3), np.uint8)
    assert (prepare({"image": image, "human_parts": parts}, 20, 30)["human_parts"] == 255).all()
    parts[4:20, 4:20] = 3
    kept = prepare({"image": image, "human_parts": parts}, 20, 30)["human_parts"]
    assert set(np.unique(kept)) == {0, 3}
    # The window that zooms in on the far corner shows no part either.
    away = prepare({"image": image, "human_parts": parts}, 20, 30, Geometry(scale=3, across=1, down=1))["human_parts"]
    assert (away == 255).all()


def test_draws_are_deterministic_and_in_range() -> None:
    recipe = RECIPES["pascal"]
    draws = [recipe.draw(np.random.default_rng((3, i))) for i in range(300)]
    assert draws == [recipe.draw(np.random.default_rng((3, i))) for i in range(300)]
    angles, scales = [d.angle for d in draws], [d.scale for d in draws]
    assert -20 <= min(angles) < -15 and 15 < max(angles) <= 20
    assert 0.75 <= min(scales) < 0.8 and 1.2 < max(scales) <= 1.25
    assert 100 < sum(d.mirror for d in draws) < 200
    nyud = [RECIPES["nyud"].draw(np.random.default_rng((3, i))) for i in range(100)]
    assert {d.scale for d in nyud} == {1.0, 1.2, 1.5}
    assert {(d.angle, d.across, d.down) for d in nyud} == {(0.0, 0.5, 0.5)}
    city = [RECIPES["cityscapes"].draw(np.random.default_rng((3, i))) for i in range(100)]
    assert len({d.across for d in city}) == 100
    # Turning one option off leaves the other draws alone.
    assert [d.mirror for d in nyud] == [d.mirror for d in draws[:100]]


def test_impossible_recipes_are_refused() -> None:
    with pytest.raises(ConfigError, match="mirror = 2"):
        Augmentation(mirror=2)
    with pytest.raises(ConfigError, match="scales"):
        Augmentation(scales=(1.0, 0.0))
    with pytest.raises(ConfigError, match="scales"):
        Augmentation(scales=(1.0,), continuous=True)
    with pytest.raises(ConfigError, match="angle"):
        Augmentation(angle=200)
