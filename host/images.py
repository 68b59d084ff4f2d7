"""Photographs in, pixels out: PNG or JPEG of any size to the network's image size."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from accel.config import Network
from accel.errors import DataError

FORMATS = ("PNG", "JPEG")
SUFFIXES = (".png", ".jpg", ".jpeg")
MAX_PIXELS = 100_000_000
"""Larger photographs are refused before they are decoded: their pixels might not fit in memory."""

_EIGHT_BIT = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")


def load_image(path: str | os.PathLike[str], network: Network) -> NDArray[np.uint8]:
    """Read a photograph, cut its middle to the network's aspect ratio, and scale it.

    Orientation tags are obeyed; transparent parts become white; grey and indexed images become RGB.

    Returns:
        uint8 [image_height, image_width, 3].

    Raises:
        DataError: not a PNG or JPEG file, unreadable, truncated, too large, or not 8 bits per channel.
    """
    source = Path(path)
    expected = f"expected a {' or '.join(FORMATS)} image"
    if source.is_dir():
        raise DataError(f"{source}: {expected}, found a directory")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(source, formats=FORMATS) as opened:
                if opened.width * opened.height > MAX_PIXELS:
                    raise DataError(
                        f"{source}: {opened.width}×{opened.height} pixels: expected at most {MAX_PIXELS} in all"
                    )
                if opened.mode not in _EIGHT_BIT:
                    raise DataError(f"{source}: mode {opened.mode}: expected 8 bits per channel")
                image = _to_rgb(ImageOps.exif_transpose(opened))
    except FileNotFoundError as error:
        raise DataError(f"{source}: no such image") from error
    except UnidentifiedImageError as error:
        raise DataError(f"{source}: {expected}, found another type of file") from error
    except Image.DecompressionBombError as error:
        raise DataError(f"{source}: expected at most {MAX_PIXELS} pixels: {error}") from error
    except (OSError, SyntaxError, ValueError) as error:  # Pillow's decoders raise all three
        raise DataError(f"{source}: cannot read image: {' '.join(str(error).split())}") from error
    return fit(image, network)


def _to_rgb(image: Any) -> Image.Image:
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def fit(image: Image.Image, network: Network) -> NDArray[np.uint8]:
    """Largest centred part of ``image`` with the network's aspect ratio, scaled to its size."""
    width, height = network.image_width, network.image_height
    scale = min(image.width / width, image.height / height)
    left, top = (image.width - width * scale) / 2, (image.height - height * scale) / 2
    box = (left, top, left + width * scale, top + height * scale)
    fitted = image.resize((width, height), Image.Resampling.BICUBIC, box=box)
    return np.asarray(fitted, dtype=np.uint8)


def load_directory(
    path: str | os.PathLike[str], network: Network, limit: int
) -> list[tuple[str, NDArray[np.uint8]]]:
    """First ``limit`` images of a directory in the order of their names, as (name, pixels).

    Raises:
        DataError: no such directory, no images in it, or one of them is bad.
    """
    source = Path(path)
    if not source.is_dir():
        raise DataError(f"{source}: expected a directory with images, found none")
    files = sorted(item for item in source.iterdir() if item.suffix.lower() in SUFFIXES)
    if not files:
        raise DataError(f"{source}: expected images ({', '.join(SUFFIXES)}), found none")
    return [(file.name, load_image(file, network)) for file in files[:limit]]
