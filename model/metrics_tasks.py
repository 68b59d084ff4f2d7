"""Meters of the metrics that multi-task papers report for real data sets.

NumPy only, like `model.metrics`: outputs [B, C, H, W] are a model's, targets as in
`model.data.Dataset`. Edges are in `model.edges`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from model.conventions import EDGE_TOLERANCE, IGNORE
from model.metrics import DepthMeter, Meter, SegmentationMeter, make_meter

if TYPE_CHECKING:
    from accel.config import Network, Task

SALIENCY_THRESHOLDS = np.linspace(0.2, 0.9, 15)
"""Probabilities above which a pixel counts as salient."""
ANGLES = {"within_11_25": 11.25, "within_22_5": 22.5, "within_30": 30.0}
"""Metric → angle in degrees: the percentage of pixels with a smaller error."""
SMALLEST_DEPTH = 1e-9
"""Metres. Predictions at or below 0 have no logarithm; they count as this."""


class HumanPartsMeter(SegmentationMeter):
    """``miou``, percent, over images that show a part; the others say nothing about parts and are skipped."""

    def add(self, prediction: NDArray, target: NDArray) -> None:
        """Add class numbers [B, H, W]; class 0 is background."""
        classes = len(self.confusion)
        shown = ((target > 0) & (target < classes)).any(axis=(1, 2))
        super().add(prediction[shown], target[shown])


class SaliencyMeter:
    """``miou`` and ``maxf``, percent, each at its best of 15 thresholds.

    IoU of the salient pixels is taken per image and averaged over images. F is the harmonic mean of precision
    and recall, each averaged over images. Where nothing is salient and nothing predicted, all three are 1;
    precision without a prediction and recall without a salient pixel are 0 otherwise.
    """

    def __init__(self, thresholds: NDArray[np.float64] = SALIENCY_THRESHOLDS) -> None:
        self.thresholds = np.asarray(thresholds, dtype=np.float64)
        self.iou, self.precision, self.recall = np.zeros((3, len(self.thresholds)))
        self.images = 0

    def update(self, output: NDArray, target: NDArray) -> None:
        self.add(sigmoid(output[:, 0]), target)

    def add(self, probability: NDArray, target: NDArray) -> None:
        """Add probabilities [B, H, W] of being salient; images without a valid pixel are skipped."""
        for chances, truth in zip(probability, target, strict=True):
            valid = truth != IGNORE
            if not valid.any():
                continue
            salient = truth[valid] > 0
            # How many thresholds each pixel exceeds (strictly); above[k] counts pixels beyond threshold k.
            passed = np.searchsorted(self.thresholds, chances[valid].astype(np.float64), side="left")
            above = _at_least(passed, len(self.thresholds))
            hits = _at_least(passed[salient], len(self.thresholds))
            total = int(salient.sum())
            self.iou += _ratio(hits, above + total - hits, above + total == 0)
            self.precision += _ratio(hits, above, above + total == 0)
            self.recall += _ratio(hits, np.full_like(hits, total), above + total == 0)
            self.images += 1

    def result(self) -> dict[str, float]:
        count = max(1, self.images)
        precision, recall = self.precision / count, self.recall / count
        f = _ratio(2 * precision * recall, precision + recall, np.False_)
        return {"miou": 100 * float(self.iou.max()) / count, "maxf": 100 * float(f.max())}


def sigmoid(logits: NDArray) -> NDArray[np.float64]:
    """1 / (1 + exp(-x)) without overflow."""
    return 0.5 * (1 + np.tanh(0.5 * logits.astype(np.float64)))


def _at_least(passed: NDArray, thresholds: int) -> NDArray[np.int64]:
    """For k = 0 .. thresholds - 1, how many values exceed threshold k."""
    counts = np.bincount(passed.ravel(), minlength=thresholds + 1)
    return counts[::-1].cumsum()[::-1][1:]


def _ratio(part: NDArray, whole: NDArray, one: NDArray | np.bool_) -> NDArray[np.float64]:
    """``part / whole``; 0 where ``whole`` is 0, 1 where ``one``."""
    part, whole = np.asarray(part, dtype=np.float64), np.asarray(whole, dtype=np.float64)
    return np.where(one, 1.0, np.divide(part, whole, out=np.zeros_like(part), where=whole > 0))


class MetricDepthMeter(DepthMeter):
    """``rmse``, metres, ``log_rmse``, natural logarithm, and ``absrel``, percent, over pixels with known depth."""

    def __init__(self, log: bool) -> None:
        super().__init__(log)
        self.log_square = 0.0

    def add(self, metres: NDArray, target: NDArray) -> None:
        super().add(metres, target)
        truth = target.astype(np.float64)
        valid = (truth > 0) & np.isfinite(truth)
        guess = np.maximum(metres[valid].astype(np.float64), SMALLEST_DEPTH)
        self.log_square += float(((np.log(guess) - np.log(truth[valid])) ** 2).sum())

    def result(self) -> dict[str, float]:
        plain = super().result()
        log_rmse = math.sqrt(self.log_square / max(1, self.count))
        return {"rmse": plain["rmse"], "log_rmse": log_rmse, "absrel": plain["absrel"]}


class AngleMeter:
    """Errors of normals in degrees: mean, median, root mean square; percentages below 11.25, 22.5 and 30.

    The median is exact for the first ``exact`` pixels. Beyond them angles are counted in 2^22 bins, which gives
    it to 4e-5 degrees without keeping the angles of a whole data set.
    """

    bins = 1 << 22

    def __init__(self, exact: int = 1 << 24) -> None:
        self.exact = exact
        self.total = self.square = 0.0
        self.count = 0
        self.within = dict.fromkeys(ANGLES, 0)
        self.kept: list[NDArray[np.float64]] = []
        self.histogram: NDArray[np.int64] | None = None

    def update(self, output: NDArray, target: NDArray) -> None:
        self.add(np.moveaxis(output, 1, -1), target)

    def add(self, vectors: NDArray, target: NDArray) -> None:
        """Add vectors [..., 3]; neither side needs to have unit length. A zero vector counts 90."""
        truth = target.astype(np.float64)
        length = np.linalg.norm(truth, axis=-1)
        valid = (length > 0) & np.isfinite(length)
        a, b = vectors[valid].astype(np.float64), truth[valid]
        cosine = (a * b).sum(-1) / np.maximum(np.linalg.norm(a, axis=-1) * length[valid], 1e-12)
        angles = np.degrees(np.arccos(np.clip(cosine, -1, 1)))
        self.total += float(angles.sum())
        self.square += float((angles * angles).sum())
        self.count += angles.size
        for name, limit in ANGLES.items():
            self.within[name] += int((angles < limit).sum())
        if self.histogram is None:
            self.kept.append(angles)
            if self.count > self.exact:
                self.histogram = np.zeros(self.bins, dtype=np.int64)
                for part in self.kept:
                    self._tally(part)
                self.kept = []
        else:
            self._tally(angles)

    def _tally(self, angles: NDArray[np.float64]) -> None:
        assert self.histogram is not None
        places = np.minimum((angles * (self.bins / 180)).astype(np.int64), self.bins - 1)
        self.histogram += np.bincount(places, minlength=self.bins)

    def median(self) -> float:
        """Degrees; 0 if there is no pixel."""
        if self.histogram is not None:
            ranks = [(self.count - 1) // 2, self.count // 2]
            places = np.searchsorted(self.histogram.cumsum(), ranks, side="right")
            return float((places + 0.5).mean() * 180 / self.bins)
        return float(np.median(np.concatenate(self.kept))) if self.count else 0.0

    def result(self) -> dict[str, float]:
        count = max(1, self.count)
        return {
            "mean_angle": self.total / count,
            "median_angle": self.median(),
            "rmse_angle": math.sqrt(self.square / count),
            **{name: 100 * hits / count for name, hits in self.within.items()},
        }


def benchmark_meter(task: Task, workers: int = 1, edge_tolerance: float = EDGE_TOLERANCE) -> Meter:
    """The meter that papers use for a task of a real data set, by its name and kind.

    Args:
        workers: processes that match edges.
        edge_tolerance: how far apart matched edge pixels may be, as a fraction of the image diagonal; it belongs to the
            data set (`model.datasets.common.DatasetSpec`).
    """
    if task.name == "human_parts":
        return HumanPartsMeter(task.channels)
    if task.name == "sal":
        return SaliencyMeter()
    if task.name == "edge":
        from model.edges import OdsMeter

        return OdsMeter(tolerance=edge_tolerance, workers=workers)
    if task.kind in ("depth", "log_depth"):
        return MetricDepthMeter(log=task.kind == "log_depth")
    if task.kind == "normals":
        return AngleMeter()
    return make_meter(task)


def benchmark_meters(
    network: Network, tasks: Iterable[str], workers: int = 1, edge_tolerance: float = EDGE_TOLERANCE
) -> dict[str, Meter]:
    """Task → the meter that papers use for it, see `benchmark_meter`."""
    return {name: benchmark_meter(network.task(name), workers, edge_tolerance) for name in tasks}
