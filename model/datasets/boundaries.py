"""Edge maps from label maps: boundaries, thinned to one pixel."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from model.conventions import IGNORE

_OFFSETS = ((0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1), (1, 0), (1, 1))
"""The eight neighbours, east first, then counter-clockwise: bit k of a neighbourhood code."""


def _tables() -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which of the 256 neighbourhoods let the centre go, in the first and in the second sub-iteration.

    Guo and Hall, "Parallel thinning with two-subiteration algorithms", CACM 32 (1989), algorithm A1: the centre goes
    if it has one run of neighbours (so that nothing comes apart), is no end point and no inner point, and lies on the
    north-east (first) or south-west (second) side.
    """
    bits = ((np.arange(256)[:, None] >> np.arange(8)) & 1).astype(bool)
    x = [bits[:, k % 8] for k in range(9)]  # x[0] = x1 of the paper, x[8] = x1 again
    runs = sum((~x[2 * k] & (x[2 * k + 1] | x[2 * k + 2])).astype(int) for k in range(4))
    first = sum((x[2 * k] | x[2 * k + 1]).astype(int) for k in range(4))
    second = sum((x[2 * k + 1] | x[2 * k + 2]).astype(int) for k in range(4))
    fewest = np.minimum(first, second)
    loose = (runs == 1) & (fewest >= 2) & (fewest <= 3)
    east = ~((x[1] | x[2] | ~x[7]) & x[0])
    west = ~((x[5] | x[6] | ~x[3]) & x[4])
    return loose & east, loose & west


_FIRST, _SECOND = _tables()


def thin(mask: NDArray) -> NDArray[np.bool_]:
    """One-pixel-wide skeleton of a mask [H, W], connected as the mask was (Guo-Hall thinning until nothing changes)."""
    height, width = mask.shape
    padded = np.zeros((height + 2, width + 2), dtype=bool)
    inner = padded[1:-1, 1:-1]
    inner[:] = mask
    rows, columns = np.nonzero(padded)
    while True:
        before = len(rows)
        for table in (_FIRST, _SECOND):
            code = np.zeros(len(rows), dtype=np.uint8)
            for bit, (down, right) in enumerate(_OFFSETS):
                code |= padded[rows + down, columns + right].astype(np.uint8) << np.uint8(bit)
            stay = ~table[code]
            padded[rows[~stay], columns[~stay]] = False
            rows, columns = rows[stay], columns[stay]
        if len(rows) == before:
            return inner.copy()


def laplacian_edges(labels: NDArray) -> NDArray[np.uint8]:
    """Edges uint8 0 / 1 of a label map [H, W]: where its 4-neighbour Laplacian is not 0, thinned.

    The border is mirrored without repeating it. This is how PASCAL-Context's edges are defined from ``LabelMap``.
    """
    values = np.pad(labels.astype(np.int64), 1, mode="reflect" if min(labels.shape) > 1 else "edge")
    neighbours = values[:-2, 1:-1] + values[2:, 1:-1] + values[1:-1, :-2] + values[1:-1, 2:]
    return thin(neighbours != 4 * values[1:-1, 1:-1]).astype(np.uint8)


def region_edges(regions: NDArray, known: NDArray[np.bool_], reach: float = 6.0) -> NDArray[np.uint8]:
    """Edges uint8 0 / 1, 255 = ignore, between regions that may have unlabelled gaps between them.

    Args:
        regions: [H, W] integers, one number per region.
        known: [H, W], False where a pixel belongs to no region. Such pixels take the number of the nearest known
            pixel, so that a gap becomes one line; those more than ``reach`` pixels away from any are ignored.
    """
    if not known.any():
        return np.full(regions.shape, IGNORE, dtype=np.uint8)
    from scipy.ndimage import distance_transform_edt

    distance, nearest = distance_transform_edt(~known, return_indices=True)
    filled = regions[tuple(nearest)]
    change = np.zeros(regions.shape, dtype=bool)
    change[:-1] |= filled[:-1] != filled[1:]
    change[:, :-1] |= filled[:, :-1] != filled[:, 1:]
    return np.where(distance > reach, IGNORE, thin(change)).astype(np.uint8)
