"""Metrics that are fed batch by batch, and the trivial predictor that they are judged against.

NumPy only: the same meters measure the torch models and the integer engine.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from accel.errors import ConfigError
from model.conventions import IGNORE

if TYPE_CHECKING:
    from accel.config import Network, Task
    from model.data import Dataset

HIGHER_IS_BETTER = {
    "miou": True,
    "rmse": False,
    "absrel": False,
    "mean_angle": False,
    "edge_f": True,
    # Of model.metrics_tasks:
    "maxf": True,
    "log_rmse": False,
    "median_angle": False,
    "rmse_angle": False,
    "within_11_25": True,
    "within_22_5": True,
    "within_30": True,
    "ods_f": True,
}
UNITS = {
    "miou": "%",
    "rmse": "m",
    "absrel": "%",
    "mean_angle": "deg",
    "edge_f": "%",
    "maxf": "%",
    "log_rmse": "ln m",
    "median_angle": "deg",
    "rmse_angle": "deg",
    "within_11_25": "%",
    "within_22_5": "%",
    "within_30": "%",
    "ods_f": "%",
}
Metrics = dict[str, dict[str, float]]
"""task -> metric -> value."""


class Meter(Protocol):
    """Accumulates batches of one task."""

    def update(self, output: NDArray, target: NDArray) -> None:
        """Add output [B, C, H, W] and target (as in `model.data.Dataset`)."""

    def result(self) -> dict[str, float]:
        """Metrics of everything added so far."""


class SegmentationMeter:
    """``miou``, percent: mean over classes that occur of intersection over union."""

    def __init__(self, classes: int) -> None:
        self.confusion = np.zeros((classes, classes), dtype=np.int64)  # [truth, prediction]

    def update(self, output: NDArray, target: NDArray) -> None:
        self.add(output.argmax(1), target)

    def add(self, prediction: NDArray, target: NDArray) -> None:
        """Add class numbers of equal shape."""
        classes = len(self.confusion)
        valid = target < classes
        pairs = target[valid].astype(np.int64) * classes + prediction[valid]
        self.confusion += np.bincount(pairs, minlength=classes**2).reshape(classes, classes)

    def per_class(self) -> NDArray[np.float64]:
        """IoU of each class in percent, NaN where it never occurs."""
        hit = np.diag(self.confusion).astype(np.float64)
        union = self.confusion.sum(0) + self.confusion.sum(1) - hit
        return 100 * np.divide(hit, union, out=np.full_like(hit, np.nan), where=union > 0)

    def result(self) -> dict[str, float]:
        iou = self.per_class()
        return {"miou": float(iou[~np.isnan(iou)].mean()) if (~np.isnan(iou)).any() else 0.0}


class DepthMeter:
    """``rmse``, metres, and ``absrel``, percent: mean |error| / truth, over valid pixels."""

    def __init__(self, log: bool) -> None:
        self.log = log
        self.square = self.relative = 0.0
        self.count = 0

    def update(self, output: NDArray, target: NDArray) -> None:
        value = output[:, 0].astype(np.float64)
        self.add(np.exp(value) if self.log else value, target)

    def add(self, metres: NDArray, target: NDArray) -> None:
        """Add depths in metres of equal shape."""
        truth = target.astype(np.float64)
        valid = (truth > 0) & np.isfinite(truth)
        error, truth = (metres - truth)[valid], truth[valid]
        self.square += float((error * error).sum())
        self.relative += float((np.abs(error) / truth).sum())
        self.count += int(valid.sum())

    def result(self) -> dict[str, float]:
        count = max(1, self.count)
        return {"rmse": math.sqrt(self.square / count), "absrel": 100 * self.relative / count}


class NormalsMeter:
    """``mean_angle``, degrees, between predicted and true normals over valid pixels."""

    def __init__(self) -> None:
        self.angle = 0.0
        self.count = 0

    def update(self, output: NDArray, target: NDArray) -> None:
        self.add(np.moveaxis(output, 1, -1), target)

    def add(self, vectors: NDArray, target: NDArray) -> None:
        """Add vectors [..., 3]; neither side needs to have unit length. A zero vector counts 90."""
        a, b = vectors.astype(np.float64), target.astype(np.float64)
        length = np.linalg.norm(b, axis=-1)
        valid = (length > 0) & np.isfinite(length)
        dot = (a * b).sum(-1)
        cosine = dot / np.maximum(np.linalg.norm(a, axis=-1) * length, 1e-12)
        self.angle += float(np.degrees(np.arccos(np.clip(cosine[valid], -1, 1))).sum())
        self.count += int(valid.sum())

    def result(self) -> dict[str, float]:
        return {"mean_angle": self.angle / max(1, self.count)}


class EdgeMeter:
    """``edge_f``, percent: F of edge pixels at the best single threshold for the data set (ODS)."""

    thresholds = np.linspace(0.02, 0.98, 49)  # probabilities

    def __init__(self) -> None:
        self.edges = np.log(self.thresholds / (1 - self.thresholds))  # the same as logits
        bins = len(self.edges) + 1
        self.positive = np.zeros(bins, dtype=np.int64)
        self.negative = np.zeros(bins, dtype=np.int64)

    def update(self, output: NDArray, target: NDArray) -> None:
        valid = target != IGNORE
        bins = np.searchsorted(self.edges, output[:, 0][valid], side="right")
        truth, size = target[valid] > 0, len(self.positive)
        self.positive += np.bincount(bins[truth], minlength=size)
        self.negative += np.bincount(bins[~truth], minlength=size)

    def result(self) -> dict[str, float]:
        # Everything at or above a threshold lies in the bins after it; bin 0 is below all.
        hits = self.positive[::-1].cumsum()[::-1][1:]
        alarms = self.negative[::-1].cumsum()[::-1][1:]
        f = 2 * hits / np.maximum(1, hits + alarms + self.positive.sum())
        return {"edge_f": 100 * float(f.max())}


def make_meter(task: Task) -> Meter:
    """The meter for a task's kind."""
    if task.kind == "labels":
        return SegmentationMeter(task.channels)
    if task.kind in ("depth", "log_depth"):
        return DepthMeter(log=task.kind == "log_depth")
    if task.kind == "normals":
        return NormalsMeter()
    if task.kind == "binary":
        return EdgeMeter()
    raise ConfigError(f"metrics: task {task.name!r}: kind = {task.kind!r} has no metric")


def _trivial_task(task: Task, train: NDArray, val: NDArray) -> dict[str, float]:
    shape = (len(val), *train.shape[1:])
    if task.kind == "labels":
        votes = np.stack([(train == c).sum(0) for c in range(task.channels)])
        labels = SegmentationMeter(task.channels)
        labels.add(np.broadcast_to(votes.argmax(0), shape), val)
        return labels.result()
    if task.kind in ("depth", "log_depth"):
        mean, median = DepthMeter(log=False), DepthMeter(log=False)
        known = np.ma.masked_array(train, mask=(train <= 0) | ~np.isfinite(train))
        if known.mask.any():
            centre = np.ma.mean(known, 0).filled(0), np.ma.median(known, 0).filled(0)
        else:  # much faster
            centre = train.mean(0, dtype=np.float64), np.median(train, 0)
        mean.add(np.broadcast_to(centre[0], shape), val)
        median.add(np.broadcast_to(centre[1], shape), val)
        return {"rmse": mean.result()["rmse"], "absrel": median.result()["absrel"]}
    if task.kind == "normals":
        normals = NormalsMeter()
        normals.add(np.broadcast_to(train.mean(0, dtype=np.float64), shape), val)
        return normals.result()
    positives = float((val[val != IGNORE] > 0).mean())
    return {"edge_f": 100 * 2 * positives / (1 + positives)}


def trivial_metrics(network: Network, train: Dataset, val: Dataset) -> Metrics:
    """Metrics on ``val`` of the best guess that ignores the image, learnt from ``train``.

    Per pixel: the most frequent class, the mean depth (for rmse) or median depth (for absrel), the
    mean normal; every pixel an edge.
    """
    return {
        task.name: _trivial_task(task, train.targets[task.name], val.targets[task.name])
        for task in network.tasks
        if task.name in train.targets
    }


@dataclass(frozen=True)
class Comparison:
    """One metric against a bound: ``value`` must be on the good side of ``bound``."""

    task: str
    metric: str
    value: float
    reference: float
    bound: float
    ok: bool


def _compare(value: Metrics, reference: Metrics, bounds: Mapping[str, float]) -> list[Comparison]:
    rows = []
    for task, metrics in value.items():
        for name, number in metrics.items():
            bound = bounds[f"{task}.{name}"]
            ok = number >= bound if HIGHER_IS_BETTER[name] else number <= bound
            rows.append(Comparison(task, name, number, reference[task][name], bound, bool(ok)))
    return rows


def against_trivial(
    value: Metrics, trivial: Metrics, error_ratio: float = 0.8, gain: float = 1.8
) -> list[Comparison]:
    """Errors at most ``error_ratio`` x the trivial predictor's, mIoU and F at least ``gain`` x."""
    bounds = {
        f"{task}.{name}": trivial[task][name] * (gain if HIGHER_IS_BETTER[name] else error_ratio)
        for task, metrics in value.items()
        for name in metrics
    }
    return _compare(value, trivial, bounds)


def against_float(
    value: Metrics, reference: Metrics, points: float = 0.5, relative: float = 0.01
) -> list[Comparison]:
    """mIoU at most ``points`` below the float model's, all else at most ``relative`` worse."""
    bounds = {}
    for task, metrics in value.items():
        for name in metrics:
            wanted = reference[task][name]
            if name == "miou":
                bound = wanted - points
            else:
                bound = wanted * (1 - relative if HIGHER_IS_BETTER[name] else 1 + relative)
            bounds[f"{task}.{name}"] = bound
    return _compare(value, reference, bounds)
