"""Photographs in, pictures out."""

from __future__ import annotations

import numpy as np
import pytest
from host_networks import TINY
from PIL import Image

from accel.config import Task
from accel.errors import DataError, M3vitError
from accel.golden import GoldenEngine, run_frame, unpatch
from host import images
from host.images import load_directory, load_image
from host.outputs import (
    decode,
    depth_colours,
    output_map,
    palette,
    picture,
    save_picture,
    side_by_side,
    summarize,
)

SHAPE = (TINY.image_height, TINY.image_width, 3)


@pytest.mark.parametrize("suffix", ["png", "jpg"])
@pytest.mark.parametrize("size", [(300, 50), (24, 16), (7, 9), (640, 480)])
def test_any_size(tmp_path, size, suffix):
    path = tmp_path / f"photo.{suffix}"
    Image.new("RGB", size, (200, 100, 50)).save(path)
    pixels = load_image(path, TINY)
    assert pixels.shape == SHAPE and pixels.dtype == np.uint8
    assert np.abs(pixels.astype(int) - (200, 100, 50)).max() <= 3


def test_exact_size_is_unchanged(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, SHAPE, dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "same.png")
    assert (load_image(tmp_path / "same.png", TINY) == pixels).all()


def test_the_middle_is_kept(tmp_path):
    """Three times too wide: the outer thirds are cut off."""
    pixels = np.zeros((16, 72, 3), np.uint8)
    pixels[:, 24:48] = 255
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    assert (load_image(tmp_path / "wide.png", TINY) == 255).all()


@pytest.mark.parametrize("mode", ["L", "P", "1", "LA", "RGBA", "CMYK"])
def test_modes(tmp_path, mode):
    path = tmp_path / ("photo.jpg" if mode == "CMYK" else "photo.png")
    Image.new("L", (24, 16), 255).convert(mode).save(path)
    assert (load_image(path, TINY) == 255).all()


def test_transparent_is_white(tmp_path):
    Image.new("RGBA", (24, 16), (0, 0, 0, 0)).save(tmp_path / "glass.png")
    assert (load_image(tmp_path / "glass.png", TINY) == 255).all()


def test_orientation_tag_is_obeyed(tmp_path):
    image = Image.new("RGB", (16, 24), (255, 255, 255))
    image.paste((0, 0, 0), (0, 0, 8, 24))
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by 90 degrees clockwise
    image.save(tmp_path / "turned.png", exif=exif)
    pixels = load_image(tmp_path / "turned.png", TINY)
    assert (pixels[:7] == 0).all() and (pixels[9:] == 255).all()


def test_bad_images(tmp_path, monkeypatch):
    good = tmp_path / "good.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, SHAPE, dtype=np.uint8)).save(good)
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "short.png").write_bytes(good.read_bytes()[:200])
    Image.new("RGB", (4, 4)).save(tmp_path / "moving.gif")
    Image.new("I;16", (4, 4)).save(tmp_path / "deep.png")
    np.save(tmp_path / "array.png", np.zeros(4))
    cases = {
        "text.png": "another type of file", "empty.png": "another type", "short.png": "cannot read image",
        "moving.gif": "expected a PNG or JPEG image", "deep.png": "expected 8 bits", "none.png": "no such image",
        ".": "found a directory", "array.png.npy": "another type",
    }  # fmt: skip
    for name, pattern in cases.items():
        with pytest.raises(DataError, match=pattern) as caught:
            load_image(tmp_path / name, TINY)
        assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)
    monkeypatch.setattr(images, "MAX_PIXELS", 100)
    with pytest.raises(DataError, match="24×16 pixels: expected at most 100"):
        load_image(good, TINY)


def test_directory(tmp_path):
    with pytest.raises(DataError, match="expected images"):
        load_directory(tmp_path, TINY, 3)
    with pytest.raises(DataError, match="expected a directory"):
        load_directory(tmp_path / "none", TINY, 3)
    for name in ("c.png", "a.PNG", "b.jpg", "notes.txt"):
        if name.endswith("txt"):
            (tmp_path / name).write_text("skip me")
        else:
            Image.new("RGB", (9, 9)).save(tmp_path / name)
    assert [name for name, _ in load_directory(tmp_path, TINY, 2)] == ["a.PNG", "b.jpg"]


def test_output_map_places_every_pixel(bundle, image):
    encoder = bundle.encoder
    for task in TINY.tasks:
        result = run_frame(encoder, image, task.name, GoldenEngine(encoder))
        found = output_map(encoder, result)
        scale = 2.0 ** encoder.heads[task.name].exponent
        assert found.shape == (*SHAPE[:2], task.channels) and found.dtype == np.float32
        assert (found / scale == unpatch(result.head, TINY, task.channels)).all()
        # Pixel (y, x) is entry (y % 8, x % 8, c) of patch (y // 8, x // 8).
        y, x, c = 11, 21, task.channels - 1
        patch = (y // 8) * TINY.grid_w + x // 8
        assert found[y, x, c] / scale == result.head[patch, ((y % 8) * 8 + x % 8) * task.channels + c]


def test_decode():
    logits = np.zeros((2, 2, 3), np.float32)
    logits[0, 0] = (1, 5, 5)
    assert decode(logits, Task("t", 3, "labels")).tolist() == [[1, 0], [0, 0]]
    values = np.array([[[np.log(2.0)], [200.0]]], np.float32)
    metres = decode(values, Task("t", 1, "log_depth"))
    assert metres[0, 0] == pytest.approx(2.0) and np.isfinite(metres).all()
    assert (decode(values, Task("t", 1, "depth")) == values[..., 0]).all()
    assert decode(-values, Task("t", 1, "binary"))[0, 0] == pytest.approx(1 / 3)
    vectors = np.array([[[3.0, 0.0, 4.0], [0.0, 0.0, 0.0]]], np.float32)
    normals = decode(vectors, Task("t", 3, "normals"))
    assert normals[0, 0].tolist() == pytest.approx([0.6, 0.0, 0.8]) and (normals[0, 1] == 0).all()


def test_colours():
    for classes in (2, 8, 21, 40):
        colours = palette(classes)
        assert len({tuple(colour) for colour in colours.tolist()}) == classes
    ramp = depth_colours(np.linspace(1, 5, 50)[None], 1.0, 5.0)
    lightness = ramp[0].astype(float) @ (0.3, 0.6, 0.1)
    assert (np.diff(lightness) < 0).all(), "farther is darker"


def test_pictures_show_what_they_should():
    facing = np.zeros((4, 4, 3))
    facing[..., 2] = 1.0
    assert picture(facing, Task("t", 3, "normals")).getpixel((0, 0)) == (128, 128, 255)
    edge = np.eye(4)
    drawn = picture(edge, Task("t", 1, "binary"))
    assert drawn.getpixel((0, 0)) == (255, 255, 255) and drawn.getpixel((1, 0)) == (0, 0, 0)
    labels = np.arange(16).reshape(4, 4) % 5
    drawn = picture(labels, TINY.task("semseg"))
    assert drawn.getpixel((2, 1)) == tuple(palette(5)[labels[1, 2]].tolist())
    flat = picture(np.full((4, 4), 2.0), Task("t", 1, "depth"))
    assert flat.size == (4, 4)


def test_summaries():
    assert summarize(np.array([[0, 2], [2, 2]]), TINY.task("semseg")) == {
        "share_of_pixels_per_class": {"0": 0.25, "2": 0.75}
    }
    assert summarize(np.array([[0.4, 0.6]]), TINY.task("edge")) == {"share_of_pixels_above_half": 0.5}
    assert summarize(np.full((2, 2), 3.0), TINY.task("depth"))["metres"]["median"] == 3.0
    assert summarize(np.full((2, 2, 3), 0.5), TINY.task("normals")) == {"mean_normal": [0.5] * 3}


def test_side_by_side_and_save(tmp_path):
    red, blue = (Image.new("RGB", (24, 16), colour) for colour in ((255, 0, 0), (0, 0, 255)))
    sheet = side_by_side([("first", red), ("second", blue)])
    colours = {colour for _, colour in sheet.getcolors(1 << 20)}
    assert {(255, 0, 0), (0, 0, 255)} <= colours
    save_picture(tmp_path / "new" / "sheet.png", sheet)
    assert Image.open(tmp_path / "new" / "sheet.png").size == sheet.size
    assert [item.name for item in (tmp_path / "new").iterdir()] == ["sheet.png"]
    (tmp_path / "file").write_text("")
    with pytest.raises(M3vitError, match="cannot write"):
        save_picture(tmp_path / "file" / "x.png", sheet)
