"""SETR's progressive up-sampling head (SETR-PUP, CVPR 2021, §3.2) in float32, on the host.

M³ViT puts it on every task: LayerNorm, four times [3×3 convolution to 256, ReLU] with bilinear doubling
between, a 1×1 convolution to the task's channels and a last bilinear step to full resolution. Batch norm
is folded into the convolutions at export.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from accel.config import Network
from accel.errors import BundleError
from accel.params import PupHead

Array = NDArray[Any]

NORM_EPSILON = 1e-6
_COLUMNS_BYTES = 1 << 26
"""Largest patch matrix at once; rows of an image are taken in pieces of this size."""


def layer_norm(x: Array, weight: Array, bias: Array) -> Array:
    """LayerNorm over the last axis, float32."""
    centred = x - x.mean(axis=-1, keepdims=True)
    variance = np.square(centred).mean(axis=-1, keepdims=True)
    return (centred / np.sqrt(variance + np.float32(NORM_EPSILON)) * weight + bias).astype(np.float32)


def conv3x3(x: Array, weight: Array, bias: Array) -> Array:
    """3×3 convolution with zero padding: float32 [H, W, I], [O, I, 3, 3], [O] → [H, W, O]."""
    height, width, inputs = x.shape
    padded = np.pad(x, ((1, 1), (1, 1), (0, 0)))
    matrix = np.ascontiguousarray(weight.transpose(2, 3, 1, 0)).reshape(9 * inputs, -1)
    result = np.empty((height, width, matrix.shape[1]), np.float32)
    step = max(1, _COLUMNS_BYTES // (width * 9 * inputs * 4))
    for row in range(0, height, step):
        rows = min(step, height - row)
        columns = np.empty((rows, width, 9, inputs), np.float32)
        for tap in range(9):
            dy, dx = divmod(tap, 3)
            columns[:, :, tap] = padded[row + dy : row + dy + rows, dx : dx + width]
        product = columns.reshape(rows * width, 9 * inputs) @ matrix
        result[row : row + rows] = product.reshape(rows, width, -1)
    return result + bias


def _taps(inputs: int, outputs: int) -> tuple[Array, Array, Array]:
    """For each output position the two input positions it lies between, and the weight of the second."""
    centre = (np.arange(outputs) + 0.5) * (inputs / outputs) - 0.5
    source = np.clip(centre, 0.0, inputs - 1.0)
    low = np.floor(source).astype(np.int64)
    return low, np.minimum(low + 1, inputs - 1), (source - low).astype(np.float32)


def resize_bilinear(x: Array, height: int, width: int) -> Array:
    """Bilinear interpolation between pixel centres (``align_corners=False``): [h, w, C] → [height, width, C]."""
    low, high, share = _taps(x.shape[0], height)
    x = x[low] + (x[high] - x[low]) * share[:, None, None]
    low, high, share = _taps(x.shape[1], width)
    return x[:, low] + (x[:, high] - x[:, low]) * share[:, None]


def pup_head(head: PupHead, residual: Array, residual_exponent: int, network: Network) -> Array:
    """Run the head.

    Args:
        head: parameters.
        residual: int16 [tokens, D] of the last block, cls first.
        residual_exponent: what its integers count.
        network: dimensions.

    Returns:
        float32 [image_height, image_width, C].

    Raises:
        BundleError: a tensor is missing.
    """

    def tensor(name: str) -> Array:
        if name not in head.tensors:
            raise BundleError(f"SETR-PUP head: {name}: missing: found {', '.join(sorted(head.tensors))}")
        return head.tensors[name]

    x = residual[1:].astype(np.float32) * np.float32(2.0**residual_exponent)
    x = layer_norm(x, tensor("norm.weight"), tensor("norm.bias"))
    x = x.reshape(network.grid_h, network.grid_w, -1)
    # One doubling per factor of two in the patch; the last one follows the 1×1 convolution.
    doublings = max(0, math.ceil(math.log2(network.patch)))
    doubled = range(3 - min(3, doublings - 1), 3) if doublings else range(0)
    for index in range(4):
        x = conv3x3(x, tensor(f"conv_{index}.weight"), tensor(f"conv_{index}.bias"))
        np.maximum(x, 0.0, out=x)
        if index in doubled:
            x = resize_bilinear(x, 2 * x.shape[0], 2 * x.shape[1])
    x = x @ tensor("conv_4.weight")[:, :, 0, 0].T + tensor("conv_4.bias")
    return resize_bilinear(x, network.image_height, network.image_width).astype(np.float32)
