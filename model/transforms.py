"""Augmentation and resizing of an image together with its targets, with the corrections that targets need.

Geometry comes from one affine map per sample, drawn from a random generator that the caller seeds, so that a sample
depends on nothing else. Images and normals are resampled by cubic, everything else by nearest-neighbour interpolation.
Corrections: mirroring negates the normals' x; rotation turns normals in the image plane; zooming in by s divides depth
by s (the scene looks s times nearer); interpolated normals are scaled to unit length again. What comes from outside
the picture is black in the image and ignored or unknown in the targets.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from accel.errors import ConfigError
from model.conventions import IGNORE, Sample

Resample = Callable[[Image.Image, Image.Resampling], Image.Image]


@dataclass(frozen=True)
class Geometry:
    """One affine map about the picture, and whether the picture is mirrored afterwards.

    Attributes:
        mirror: left and right are exchanged, after everything else.
        angle: degrees, counter-clockwise as seen.
        scale: more than 1 zooms in.
        across, down: where the zoomed-in window lies between the left (top, 0) and right (bottom, 1) end of the
            picture; 0.5 keeps the centre.
    """

    mirror: bool = False
    angle: float = 0.0
    scale: float = 1.0
    across: float = 0.5
    down: float = 0.5

    @property
    def moves(self) -> bool:
        """Whether anything but mirroring happens."""
        return self.angle != 0 or self.scale != 1

    def inverse(self, height: int, width: int) -> tuple[float, float, float, float, float, float]:
        """Coefficients (a, b, c, d, e, f): output (x, y) shows input (a x + b y + c, d x + e y + f).

        Coordinates are continuous, pixels centred at halves, y down. The output window's centre shows the input point
        that ``across`` and ``down`` choose; the window is 1 / scale of the picture.
        """
        c, s = math.cos(math.radians(self.angle)) / self.scale, math.sin(math.radians(self.angle)) / self.scale
        centre_x = width * (0.5 + (self.across - 0.5) * (1 - 1 / self.scale))
        centre_y = height * (0.5 + (self.down - 0.5) * (1 - 1 / self.scale))
        x0, y0 = width / 2, height / 2
        return c, -s, centre_x - c * x0 + s * y0, s, c, centre_y - s * x0 - c * y0


@dataclass(frozen=True)
class Augmentation:
    """Distribution of `Geometry`.

    Attributes:
        mirror: probability of mirroring.
        angle: rotation is uniform in ± this, degrees.
        scales: choices, or with ``continuous`` the two ends of a uniform range.
        anywhere: the zoomed-in window lies at random, not in the centre.
    """

    mirror: float = 0.5
    angle: float = 0.0
    scales: tuple[float, ...] = (1.0,)
    continuous: bool = False
    anywhere: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.mirror <= 1:
            raise ConfigError(f"augmentation: mirror = {self.mirror}: expected a probability")
        if not self.scales or min(self.scales) <= 0 or (self.continuous and len(self.scales) != 2):
            raise ConfigError(f"augmentation: scales = {self.scales}: expected positive numbers, two for a range")
        if not 0 <= self.angle <= 180:
            raise ConfigError(f"augmentation: angle = {self.angle}: expected 0 to 180 degrees")

    def draw(self, rng: np.random.Generator) -> Geometry:
        """A random geometry; always takes five numbers, so that one option does not change the draws of another."""
        mirror, angle, scale, across, down = rng.random(5)
        if self.continuous:
            low, high = self.scales
            factor = low + (high - low) * scale
        else:
            factor = self.scales[int(scale * len(self.scales))]
        return Geometry(
            mirror=bool(mirror < self.mirror),
            angle=float((2 * angle - 1) * self.angle),
            scale=float(factor),
            across=float(across) if self.anywhere else 0.5,
            down=float(down) if self.anywhere else 0.5,
        )


RECIPES: Mapping[str, Augmentation] = {
    "pascal": Augmentation(angle=20.0, scales=(0.75, 1.25), continuous=True),
    "nyud": Augmentation(scales=(1.0, 1.2, 1.5)),
    "cityscapes": Augmentation(scales=(1.0, 1.2, 1.5), anywhere=True),
}
"""What each data set's training images go through in M³ViT."""


def apply(sample: Mapping[str, NDArray], geometry: Geometry, normals_y_down: bool = True) -> Sample:
    """``sample`` under ``geometry``, at the same size.

    Args:
        sample: ``image`` and targets as in `model.data.Dataset`, each [H, W] or [H, W, 3].
        normals_y_down: whether the normals' y axis points down or up in the picture; x points right.
    """
    result = {}
    height, width = sample["image"].shape[:2]
    coefficients = geometry.inverse(height, width)
    for name, values in sample.items():
        out = values
        if geometry.moves:
            out = _warp(name, out, coefficients)
            if name == "depth":
                out = out / np.float32(geometry.scale)
            elif name == "normals":
                out = rotate_normals(out, geometry.angle, normals_y_down)
        if geometry.mirror:
            out = out[:, ::-1].copy()
            if name == "normals":
                out[..., 0] *= -1
        result[name] = out
    return result


def rotate_normals(normals: NDArray, angle: float, y_down: bool = True) -> NDArray[np.float32]:
    """Normals [H, W, 3] after the picture turned counter-clockwise by ``angle`` degrees."""
    c, s = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    s = s if y_down else -s
    turn = np.array([[c, s, 0], [-s, c, 0], [0, 0, 1]], dtype=np.float32)
    return np.asarray(normals, dtype=np.float32) @ turn.T


def resize(sample: Mapping[str, NDArray], height: int, width: int) -> Sample:
    """``sample`` at another size; images are low-passed when they shrink."""
    result = {}
    for name, values in sample.items():
        if values.shape[:2] == (height, width):
            result[name] = values
        elif name == "image":
            picture = Image.fromarray(values).resize((width, height), Image.Resampling.BICUBIC)
            result[name] = np.asarray(picture, dtype=np.uint8)
        elif name == "normals":
            result[name] = _resample_normals(values, lambda p, how: p.resize((width, height), how))
        else:
            picture = _picture(values).resize((width, height), Image.Resampling.NEAREST)
            result[name] = np.asarray(picture, dtype=values.dtype)
    return result


def prepare(
    sample: Mapping[str, NDArray],
    height: int,
    width: int,
    geometry: Geometry | None = None,
    normals_y_down: bool = True,
) -> Sample:
    """``sample`` as the network sees it: under ``geometry``, resized, images without parts wholly ignored."""
    moved = dict(sample) if geometry is None else apply(sample, geometry, normals_y_down)
    result = resize(moved, height, width)
    parts = result.get("human_parts")
    if parts is not None and not ((parts != 0) & (parts != IGNORE)).any():
        result["human_parts"] = np.full_like(parts, IGNORE)
    return result


def _picture(values: NDArray) -> Image.Image:
    """A single-channel target as a Pillow image that keeps its values."""
    return Image.fromarray(values if values.dtype == np.uint8 else values.astype(np.float32))


def _warp(name: str, values: NDArray, coefficients: tuple[float, ...]) -> NDArray:
    height, width = values.shape[:2]

    def warp(picture: Image.Image, how: Image.Resampling, fill: float | tuple[int, ...] = 0) -> Image.Image:
        return picture.transform((width, height), Image.Transform.AFFINE, coefficients, how, fillcolor=fill)

    if name == "image":
        picture = warp(Image.fromarray(values), Image.Resampling.BICUBIC, (0, 0, 0))
        return np.asarray(picture, dtype=np.uint8)
    if name == "normals":
        return _resample_normals(values, warp)
    fill = IGNORE if values.dtype == np.uint8 else 0
    return np.asarray(warp(_picture(values), Image.Resampling.NEAREST, fill), dtype=values.dtype)


def _resample_normals(values: NDArray, resample: Resample) -> NDArray[np.float32]:
    """Cubic per component, unit length again; unknown where the nearest normal is."""
    known = (values != 0).any(-1)
    nearest = np.asarray(resample(Image.fromarray(known.astype(np.uint8)), Image.Resampling.NEAREST))
    channels = [
        np.asarray(resample(_picture(values[..., axis]), Image.Resampling.BICUBIC), dtype=np.float32)
        for axis in range(3)
    ]
    vectors = np.stack(channels, axis=-1)
    length = np.sqrt((vectors * vectors).sum(-1))
    valid = (nearest > 0) & (length > 1e-3)
    return np.divide(vectors, length[..., None], out=np.zeros_like(vectors), where=valid[..., None])
