"""Edge quality as boundary benchmarks measure it: thin, match with a tolerance, best threshold of the data set.

The protocol is that of Martin, Fowlkes & Malik, "Learning to detect natural image boundaries" (PAMI 2004), and of
the BSDS benchmark built on it. A predicted edge pixel is right if it can be paired with a true edge pixel at most
``tolerance`` times the image diagonal away, every pixel in one pair at most, with as many pairs as possible. For a
threshold t, with M pairs, P predicted and G true edge pixels summed over all images, precision is M / P, recall is
M / G, and F = 2 M / (P + G). odsF is the largest F over the thresholds ("optimal data-set scale").

Three choices differ from the benchmark's own program, and why:

* It minimizes the summed distance of the pairs with a price on unpaired pixels above any distance that it allows.
  The number of pairs is then the largest possible one, and only that number enters F: a maximum bipartite matching
  gives the same F without distances.
* It thins after every threshold. Here non-maximum suppression and homotopic thinning, which takes away weak pixels
  first, run once, on probabilities; a threshold then selects pixels of that one set. So the sets of all thresholds are
  nested, and a single matching, grown from the strongest pixel to the weakest, is the largest one for every
  threshold: an augmenting path never unpairs a predicted pixel, and a pixel without one never gets one later.
* Pixels whose truth is unknown (255) are removed from the prediction.
"""

from __future__ import annotations

import math
import multiprocessing
from concurrent.futures import Future, ProcessPoolExecutor

import numpy as np
from numpy.typing import NDArray

from model.conventions import EDGE_TOLERANCE, IGNORE
from model.metrics_tasks import sigmoid

THRESHOLDS = np.arange(1, 100) / 100
"""Probabilities at or above which a pixel is an edge."""
_SMOOTHING = 2.0  # pixels: standard deviation at which the direction across a ridge is measured
_TIE = 1e-9  # probabilities closer than this are equal: a plateau is left to thinning

# The eight neighbours in circular order, starting at the upper left.
_RING = ((-1, -1), (-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1))


def _removable() -> NDArray[np.bool_]:
    """For each of the 256 neighbourhoods (bit i = `_RING`[i] is set): may the centre be taken away?

    It may if that changes neither the number of 8-connected parts nor of 4-connected holes (Yokoi's connectivity
    number is 1), and if it is neither the end of a line nor alone.
    """
    table = np.zeros(256, dtype=bool)
    for code in range(256):
        ring = [code >> i & 1 for i in range(8)]
        off = [1 - value for value in ring]
        # 8-connectivity number: sum over the 4-neighbours k of ~x_k - ~x_k ~x_{k+1} ~x_{k+2}.
        yokoi = sum(off[k] - off[k] * off[(k + 1) % 8] * off[(k + 2) % 8] for k in (1, 3, 5, 7))
        table[code] = yokoi == 1 and sum(ring) >= 2
    return table


_REMOVABLE = _removable().tolist()


def suppress(probability: NDArray) -> NDArray[np.float64]:
    """Probabilities [H, W] with everything set to 0 that is not a ridge.

    The direction across a ridge is the one in which the smoothed map is curved most: the eigenvector of its Hessian
    whose eigenvalue is largest in magnitude. (On a ridge that is the smallest one, on its flanks the largest.) A pixel
    stays if it is at least as large as the map, interpolated, one pixel away to both sides.
    """
    from scipy import ndimage

    p = np.asarray(probability, dtype=np.float64)
    yy, xx, xy = (
        ndimage.gaussian_filter(p, _SMOOTHING, order=order, mode="nearest") for order in ((2, 0), (0, 2), (1, 1))
    )
    # The axis of the larger eigenvalue, in (x, y); the other one is perpendicular. Their sum is the trace.
    angle = 0.5 * np.arctan2(2 * xy, xx - yy) + np.where(xx + yy > 0, 0, np.pi / 2)
    dx, dy = np.cos(angle), np.sin(angle)
    y, x = np.indices(p.shape)
    sides = (ndimage.map_coordinates(p, [y + sign * dy, x + sign * dx], order=1, mode="nearest") for sign in (-1, 1))
    return np.where(p + _TIE >= np.maximum(*sides), p, 0.0)


def thin(strength: NDArray) -> NDArray[np.bool_]:
    """Lines one pixel wide out of the pixels of ``strength`` [H, W] above 0.

    Pixels are visited from the weakest to the strongest, among equals from the border inwards, and taken away if the
    shape keeps its parts, holes and line ends. Repeated until nothing changes.
    """
    from scipy import ndimage

    strength = np.asarray(strength)
    height, width = strength.shape
    grid = np.pad(strength > 0, 1)
    if not grid.any():
        return grid[1:-1, 1:-1]
    depth = ndimage.distance_transform_edt(grid)
    rows, columns = np.nonzero(grid)
    order = np.lexsort((depth[rows, columns], strength[rows - 1, columns - 1]))
    stride = width + 2
    offsets = [dy * stride + dx for dy, dx in _RING]
    pixels = bytearray(grid.astype(np.uint8).tobytes())
    places = (rows * stride + columns)[order].tolist()
    while True:
        kept = []
        for place in places:
            code = 0
            for bit, offset in enumerate(offsets):
                code |= pixels[place + offset] << bit
            if _REMOVABLE[code]:
                pixels[place] = 0
            else:
                kept.append(place)
        if len(kept) == len(places):
            return np.frombuffer(pixels, dtype=np.uint8).reshape(height + 2, stride)[1:-1, 1:-1] > 0
        places = kept


def _neighbours(points: NDArray, truth: NDArray, radius: float) -> list[list[int]]:
    """For each point [n, 2] the indices of the ``truth`` points [m, 2] at most ``radius`` away, nearest first."""
    from scipy.spatial import cKDTree

    if not len(points) or not len(truth):
        return [[] for _ in points]
    found = cKDTree(truth).query_ball_point(points, radius + 1e-9)
    result = []
    for point, near in zip(points, found, strict=True):
        near = np.asarray(near, dtype=np.int64)
        distance = ((truth[near] - point) ** 2).sum(1) if near.size else near
        result.append(near[np.argsort(distance, kind="stable")].tolist())
    return result


def matched(neighbours: list[list[int]], size: int) -> NDArray[np.bool_]:
    """Which predicted pixels are paired in a maximum matching that is maximum for every prefix, too.

    Args:
        neighbours: per predicted pixel, strongest first, the true pixels that it may be paired with.
        size: number of true pixels.

    The paired pixels among the first k are as many as any matching of the first k can have, for every k.
    """
    partner = [-1] * size  # true pixel → predicted pixel
    dead = bytearray(size)  # true pixels from which no free one can be reached, now and later
    found = np.zeros(len(neighbours), dtype=bool)
    for start, near in enumerate(neighbours):
        free = next((t for t in near if partner[t] < 0), -1)
        if free >= 0:
            partner[free] = start
            found[start] = True
            continue
        # Breadth-first search for the shortest augmenting path.
        parent: dict[int, int] = {}  # true pixel → predicted pixel from which it was reached
        queue = [start]
        end = -1
        for here in queue:
            for t in neighbours[here]:
                if t in parent or dead[t]:
                    continue
                parent[t] = here
                if partner[t] < 0:
                    end = t
                    break
                queue.append(partner[t])
            if end >= 0:
                break
        if end < 0:
            for t in parent:
                dead[t] = 1
            continue
        found[start] = True
        previous = {partner[t]: t for t in parent if partner[t] >= 0}  # predicted pixel → its true pixel so far
        while True:
            here = parent[end]
            partner[end] = here
            if here == start:
                break
            end = previous[here]
    return found


def count_pairs(
    chances: NDArray[np.float64], truth: NDArray, thresholds: NDArray[np.float64], tolerance: float
) -> tuple[NDArray[np.int64], NDArray[np.int64], int]:
    """Matched and predicted edge pixels per threshold, and true ones, of one image [H, W]."""
    known = truth != IGNORE
    ridges = suppress(chances)
    ridges[(ridges < thresholds[0]) | ~known] = 0
    strength = np.where(thin(ridges), ridges, 0.0)
    wanted = np.argwhere(thin((truth > 0) & known))
    points = np.argwhere(strength > 0)
    values = strength[points[:, 0], points[:, 1]]
    order = np.argsort(-values, kind="stable")
    points, values = points[order], values[order]
    radius = tolerance * math.hypot(*chances.shape)
    found = matched(_neighbours(points, wanted, radius), len(wanted))
    # Values fall, so the pixels at or above a threshold are a prefix.
    predicted = np.searchsorted(-values, -thresholds, side="right")
    return np.concatenate([[0], found.cumsum()])[predicted], predicted, len(wanted)


class OdsMeter:
    """``ods_f``, percent. Counts of all images are summed before F is computed.

    Args:
        thresholds: probabilities, rising. tolerance: fraction of the image diagonal.
        workers: processes that count; 1 counts in this one. An image takes about a second.

    Attributes:
        pairs, predicted: per threshold, matched and predicted edge pixels.
        true: true edge pixels.
    """

    def __init__(
        self, thresholds: NDArray[np.float64] = THRESHOLDS, tolerance: float = EDGE_TOLERANCE, workers: int = 1
    ) -> None:
        self.thresholds, self.tolerance = np.asarray(thresholds, dtype=np.float64), tolerance
        self.pairs = np.zeros(len(self.thresholds), dtype=np.int64)
        self.predicted = np.zeros(len(self.thresholds), dtype=np.int64)
        self.true = 0
        self._workers = workers
        self._pool: ProcessPoolExecutor | None = None
        self._waiting: list[Future] = []

    def update(self, output: NDArray, target: NDArray) -> None:
        self.add(sigmoid(output[:, 0]), target)

    def add(self, probability: NDArray, target: NDArray) -> None:
        """Add probabilities [B, H, W] of being an edge."""
        for chances, truth in zip(probability, target, strict=True):
            job = np.asarray(chances, dtype=np.float64), np.asarray(truth), self.thresholds, self.tolerance
            if self._workers <= 1:
                self._sum(count_pairs(*job))
                continue
            if self._pool is None:
                # spawn: a forked child would inherit torch's thread pools in an unknown state.
                self._pool = ProcessPoolExecutor(self._workers, multiprocessing.get_context("spawn"))
            self._waiting.append(self._pool.submit(count_pairs, *job))
            self._collect(4 * self._workers)

    def _sum(self, counts: tuple[NDArray[np.int64], NDArray[np.int64], int]) -> None:
        pairs, predicted, true = counts
        self.pairs += pairs
        self.predicted += predicted
        self.true += true

    def _collect(self, left: int) -> None:
        """Add results until at most ``left`` images wait."""
        while len(self._waiting) > left:
            self._sum(self._waiting.pop(0).result())

    def curve(self) -> dict[str, NDArray[np.float64]]:
        """Per threshold: ``threshold``, ``precision``, ``recall``, ``f``, each 0 .. 1; 0 where undefined."""
        self._collect(0)
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None
        pairs = self.pairs.astype(np.float64)

        def over(total: NDArray) -> NDArray[np.float64]:
            return np.divide(pairs, total, out=np.zeros_like(pairs), where=np.asarray(total) > 0)

        true = np.full_like(self.predicted, self.true)
        return {
            "threshold": self.thresholds,
            "precision": over(self.predicted),
            "recall": over(true),
            "f": 2 * over(self.predicted + true),
        }

    def result(self) -> dict[str, float]:
        return {"ods_f": 100 * float(self.curve()["f"].max())}
