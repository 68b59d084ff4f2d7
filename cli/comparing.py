"""Two results of ``m3vit bench`` side by side: figures of the same name, and settings that make them incomparable."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from accel.config import parse_json
from accel.errors import DataError
from host.phases import PHASES
from host.power import MEASURED

BENCHMARK, VERSION = "m3vit bench", 1

_SETTINGS = (
    "config", "config_hash", "backend", "simulated", "tasks", "mix", "frames", "repeat", "seed", "images", "machine",
)  # fmt: skip
"""What two results should have in common; the commit is what usually changes."""
Metric = tuple[str, str, float]
"""Name, unit, value."""


def load_result(path: Path) -> dict[str, Any]:
    """A result file.

    Raises:
        DataError: it cannot be read, is not a result of ``m3vit bench``, or lacks something.
        ConfigError: not valid JSON.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot read result: {getattr(error, 'strerror', None) or error}") from error
    data = parse_json(text, str(path))
    found = data.get("benchmark") if isinstance(data, dict) else type(data).__name__
    if not isinstance(data, dict) or found != BENCHMARK:
        raise DataError(f"{path}: benchmark: expected {BENCHMARK!r}, found {found!r}")
    if data.get("version") != VERSION:
        raise DataError(f"{path}: version: expected {VERSION}, found {data.get('version')!r}")
    try:
        list(metrics(data))
        for name in (*_SETTINGS, "commit"):
            data[name]
    except KeyError as error:
        raise DataError(f"{path}: missing field {error}") from error
    except (TypeError, AttributeError, ValueError) as error:
        raise DataError(f"{path}: damaged result: {error}") from error
    return data


def metrics(data: Mapping[str, Any]) -> Iterator[Metric]:
    """Every figure of a result that another one may have too."""
    for part in ("live", "replay"):
        found = data[part]
        if found is None:
            continue
        yield f"{part} total", "ms", 1e3 * float(found["total"]["median"])
        for phase in PHASES:
            yield f"{part} {phase}", "ms", 1e3 * float(found["phases"][phase]["median"])
        if found["engine"] is not None:
            yield f"{part} engine", "cycles per job", float(found["engine"]["cycles"]["mean"])
            for clock, times in found["engine"]["milliseconds"].items():
                yield f"{part} engine at {clock} MHz", "ms per job", float(times["mean"])
        yield from _energy(part, found["energy"])
    if data["replay"] is not None and data["replay"]["engine"] is not None:
        yield "replay useful MACs", "%", 100 * float(data["replay"]["utilization"])
        yield "replay idle between jobs", "cycles", float(data["replay"]["boundary_idle"])
    for name, entry in data["baselines"].items():
        yield f"{name} total", "ms", 1e3 * float(entry["total"]["median"])


def _energy(part: str, energy: Mapping[str, Any] | None) -> Iterator[Metric]:
    """Names contain the kind, so that a measurement and an estimate never share a row."""
    if energy is None:
        return
    kind = energy["kind"]
    if kind == MEASURED:
        for rail, entry in energy["rails"].items():
            yield f"{part} energy, {kind}, rail {rail}", "mJ per job", 1e3 * float(entry["joules_per_frame"])
        return
    for clock, entry in energy["per_clock_mhz"].items():
        for end, value in zip(("low", "high"), entry["joules_per_frame"], strict=True):
            yield f"{part} energy, {kind}, {end}, at {clock} MHz", "mJ per job", 1e3 * float(value)


def compare(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """Every metric of either result, the ratio second/first where both have it, and the settings that differ."""
    left, right = ({name: (unit, value) for name, unit, value in metrics(data)} for data in (first, second))
    rows = []
    for name in dict.fromkeys((*left, *right)):
        unit = (left.get(name) or right[name])[0]
        one, other = (side[name][1] if name in side else None for side in (left, right))
        ratio = other / one if one and other is not None else None
        rows.append({"metric": name, "unit": unit, "first": one, "second": other, "ratio": ratio})
    return {
        "commits": [first["commit"], second["commit"]],
        "differences": {
            name: [first[name], second[name]] for name in _SETTINGS if first[name] != second[name]
        },
        "metrics": rows,
    }
