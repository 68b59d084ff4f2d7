"""From integers to what a task means, and from there to pictures."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from accel.atomic import atomic_write
from accel.config import Task
from accel.golden import FrameResult, unpatch
from accel.params import Encoder, LightHead
from host.pup import pup_head

Array = NDArray[Any]

_DEPTH_COLOURS = np.array(
    [(255, 240, 170), (250, 170, 70), (215, 75, 75), (125, 35, 115), (35, 15, 75), (5, 5, 20)], np.float64
)
"""Near to far; lightness falls all the way, so that the map also reads in grey."""
_GOLDEN_RATIO = 0.6180339887498949
_CAPTION = 14  # pixels
_LARGEST_EXPONENT = 80.0
"""exp of this still fits float32; no trained output comes near it."""


def output_map(encoder: Encoder, result: FrameResult) -> NDArray[np.float32]:
    """A task's raw output, float32 [H, W, C]: logits, metres, ln(metres) or unnormalized normals."""
    net, head = encoder.network, encoder.heads[result.task]
    if isinstance(head, LightHead):
        assert result.head is not None
        values = result.head.astype(np.float32) * np.float32(2.0**head.exponent)
        return unpatch(values, net, net.task(result.task).channels)
    return pup_head(head, result.residual, encoder.residual_exponent, net)


def decode(values: Array, task: Task) -> Array:
    """Raw output [H, W, C] → what it means.

    ``labels``: class numbers uint8 [H, W], ties to the lower one; ``depth``, ``log_depth``: metres [H, W];
    ``normals``: unit vectors [H, W, 3]; ``binary``: probability [H, W].
    """
    if task.kind == "labels":
        return values.argmax(axis=-1).astype(np.uint8 if task.channels <= 256 else np.int32)
    if task.kind == "normals":
        length = np.sqrt(np.square(values).sum(axis=-1, keepdims=True))
        return values / np.maximum(length, 1e-12)
    plane = values[..., 0]
    if task.kind == "log_depth":
        return np.exp(np.clip(plane, -_LARGEST_EXPONENT, _LARGEST_EXPONENT))
    if task.kind == "binary":
        return 1.0 / (1.0 + np.exp(-np.clip(plane, -_LARGEST_EXPONENT, _LARGEST_EXPONENT)))
    return plane


def palette(classes: int) -> NDArray[np.uint8]:
    """A colour per class, [classes, 3]: hues a golden ratio apart, so that neighbours differ most."""
    index = np.arange(classes)
    hue = index * _GOLDEN_RATIO % 1.0
    saturation = 0.75 - 0.25 * (index % 2)
    value = 0.95 - 0.2 * (index // 2 % 3)
    # HSV → RGB: each channel is a trapezoid of the hue.
    phase = (hue[:, None] * 6.0 + np.array([5.0, 3.0, 1.0])) % 6.0
    trapezoid = np.clip(np.minimum(phase, 4.0 - phase), 0.0, 1.0)
    rgb = value[:, None] * (1.0 - saturation[:, None] * trapezoid)
    return np.rint(255.0 * rgb).astype(np.uint8)


def depth_colours(metres: Array, near: float, far: float) -> NDArray[np.uint8]:
    """Colours of depths, [H, W] → [H, W, 3]; ``near`` is bright, ``far`` dark."""
    share = np.clip((metres - near) / max(far - near, 1e-6), 0.0, 1.0)
    stops = np.linspace(0.0, 1.0, len(_DEPTH_COLOURS))
    channels = [np.interp(share, stops, _DEPTH_COLOURS[:, channel]) for channel in range(3)]
    return np.rint(np.stack(channels, axis=-1)).astype(np.uint8)


def picture(decoded: Array, task: Task) -> Image.Image:
    """RGB picture of a decoded output. Depth is scaled to its own 2nd to 98th percentile."""
    if task.kind == "labels":
        pixels = palette(task.channels)[decoded]
    elif task.kind == "normals":
        pixels = np.rint((np.clip(decoded, -1.0, 1.0) + 1.0) * 127.5).astype(np.uint8)
    elif task.kind == "binary":
        grey = np.rint(np.clip(decoded, 0.0, 1.0) * 255.0).astype(np.uint8)
        pixels = np.repeat(grey[..., None], 3, axis=-1)
    else:
        near, far = np.percentile(decoded, (2.0, 98.0))
        pixels = depth_colours(decoded, float(near), float(far))
    return Image.fromarray(pixels)


def summarize(decoded: Array, task: Task) -> dict[str, Any]:
    """A few numbers that describe a decoded output, ready for JSON."""
    if task.kind == "labels":
        counts = np.bincount(decoded.reshape(-1), minlength=task.channels)
        shares = {str(i): round(float(counts[i] / decoded.size), 4) for i in np.flatnonzero(counts)}
        return {"share_of_pixels_per_class": shares}
    if task.kind in ("depth", "log_depth"):
        low, middle, high = (float(v) for v in np.percentile(decoded, (2.0, 50.0, 98.0)))
        return {"metres": {"p2": round(low, 3), "median": round(middle, 3), "p98": round(high, 3)}}
    if task.kind == "normals":
        return {"mean_normal": [round(float(v), 4) for v in decoded.reshape(-1, 3).mean(axis=0)]}
    return {"share_of_pixels_above_half": round(float((decoded > 0.5).mean()), 4)}


def side_by_side(pictures: Sequence[tuple[str, Image.Image]], min_width: int = 192) -> Image.Image:
    """Captioned pictures in one row; small ones are enlarged by whole factors."""
    factor = max(1, -(-min_width // pictures[0][1].width))
    scaled = [
        (name, item.resize((item.width * factor, item.height * factor), Image.Resampling.NEAREST))
        for name, item in pictures
    ]
    gap = 6
    width = sum(item.width + gap for _, item in scaled) + gap
    height = max(item.height for _, item in scaled) + _CAPTION + 2 * gap
    sheet = Image.new("RGB", (width, height), (255, 255, 255))
    draw, font, left = ImageDraw.Draw(sheet), ImageFont.load_default(), gap
    for name, item in scaled:
        draw.text((left, 2), name, fill=(0, 0, 0), font=font)
        sheet.paste(item, (left, _CAPTION + gap))
        left += item.width + gap
    return sheet


def save_picture(path: str | os.PathLike[str], image: Image.Image) -> None:
    """Write a PNG file completely or not at all; raises M3vitError if the file system refuses."""
    with atomic_write(path) as temporary:
        image.save(temporary, format="PNG")
