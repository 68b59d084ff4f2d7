"""Δm: how much better or worse a multi-task model is than one model per task.

    Δm = 100 / T · Σ over tasks of ± (M_multi − M_single) / M_single,    − where lower is better

(Vandenhende et al., arXiv:2004.13379, eq. 4). The single-task results come from files, never from this code.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accel.errors import ConfigError
from model.metrics import HIGHER_IS_BETTER, Metrics

MAIN_METRICS: tuple[str, ...] = ("miou", "rmse", "mean_angle", "ods_f", "edge_f")
"""The metric that stands for a task is the first of these that it has."""


@dataclass(frozen=True)
class TaskDelta:
    """One task's part: relative gain in percent, positive when the multi-task model is better."""

    task: str
    metric: str
    multi: float
    single: float
    percent: float


def main_metric(task: str, metrics: Mapping[str, float]) -> str:
    """Name of the metric that stands for a task; ConfigError if it has none of them."""
    for name in MAIN_METRICS:
        if name in metrics:
            return name
    raise ConfigError(f"task {task!r}: metrics: expected one of {', '.join(MAIN_METRICS)}, found {sorted(metrics)}")


def delta_m(multi: Metrics, single: Metrics, where: str = "single-task results") -> tuple[float, list[TaskDelta]]:
    """Δm in percent over all tasks of ``multi``, and each task's part.

    Raises:
        ConfigError: ``single`` lacks a task or its metric, or that is 0; a value is not finite.
    """
    parts = []
    for task, metrics in multi.items():
        name = main_metric(task, metrics)
        if task not in single:
            raise ConfigError(f"{where}: {task}: missing: found only {', '.join(single) or 'nothing'}")
        if name not in single[task]:
            raise ConfigError(f"{where}: {task}.{name}: missing: found only {', '.join(single[task]) or 'nothing'}")
        reference = single[task][name]
        for value, origin in ((reference, where), (metrics[name], "metrics")):
            if not math.isfinite(value):
                raise ConfigError(f"{origin}: {task}.{name}: expected a finite number, found {value}")
        if reference == 0:
            raise ConfigError(f"{where}: {task}.{name}: expected a value other than 0: the change is relative to it")
        gain = (metrics[name] - reference) / reference
        percent = 100 * (gain if HIGHER_IS_BETTER[name] else -gain)
        parts.append(TaskDelta(task, name, metrics[name], reference, percent))
    if not parts:
        raise ConfigError("metrics: expected at least one task")
    return sum(part.percent for part in parts) / len(parts), parts


def read_results(
    paths: Iterable[str | os.PathLike[str]], *, dataset: str | None = None, split: str | None = None
) -> Metrics:
    """Single-task metrics from files, one or several tasks each.

    A file is a JSON object {task: {metric: number}}, or one with such an object under ``metrics``, as
    ``m3vit eval --json`` prints it.

    Args:
        dataset, split: of the multi-task results; a file that says that it is about others is refused.

    Raises:
        ConfigError: unreadable, of another form, of another data set or split, a value is not finite, or a task is in
            two files.
    """
    merged: Metrics = {}
    origin: dict[str, Path] = {}
    for path in map(Path, paths):
        try:
            data = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_unique)
        except OSError as error:
            raise ConfigError(f"{path}: cannot read results: {error.strerror or error}") from error
        except (ValueError, RecursionError) as error:  # not UTF-8, not JSON, a field twice
            raise ConfigError(f"{path}: cannot read results: {error}") from error
        if isinstance(data, dict) and isinstance(data.get("metrics"), dict):
            for field, expected in (("dataset", dataset), ("split", split)):
                found = data.get(field, expected)
                if expected is not None and found != expected:
                    raise ConfigError(f"{path}: {field}: expected {expected!r} as evaluated, found {found!r}")
            data = data["metrics"]
        for task, metrics in _tables(path, data).items():
            if task in merged:
                raise ConfigError(f"{path}: {task}: given twice: {origin[task]} has it, too")
            merged[task], origin[task] = metrics, path
    return merged


def _finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond all floats
        return False


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    seen: dict[str, Any] = {}
    for key, value in pairs:
        if key in seen:
            raise ValueError(f"field {key!r} is given twice")
        seen[key] = value
    return seen


def _tables(path: Path, data: Any) -> Metrics:
    if not isinstance(data, dict) or not data:
        raise ConfigError(f"{path}: expected an object of tasks, found {json.dumps(data)[:40]}")
    for task, metrics in data.items():
        if not isinstance(metrics, dict):
            raise ConfigError(f"{path}: {task}: expected an object of metrics, found {type(metrics).__name__}")
        for name, value in metrics.items():
            if isinstance(value, bool) or not isinstance(value, int | float) or not _finite(value):
                raise ConfigError(f"{path}: {task}.{name}: expected a finite number, found {str(value)[:40]!r}")
    return {task: {name: float(value) for name, value in metrics.items()} for task, metrics in data.items()}
