"""Timelines in the Chrome trace format, for https://ui.perfetto.dev or chrome://tracing."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from accel.atomic import atomic_write
from sim.results import LayerResult, Result

_TRACKS = {"job": 0, "load": 1, "compute": 2, "store": 3}


def events(result: Result, tasks: tuple[str, ...] = ()) -> list[dict[str, Any]]:
    """Events of a result that was simulated with ``timeline=True``; times in microseconds at the engine's clock.

    Tracks: jobs (first to last beat), loads of units, passes of the array (a unit over its tokens), segments written.
    """
    scale = 1.0 / result.hardware.clock_mhz
    found: list[dict[str, Any]] = [
        {"ph": "M", "pid": 0, "tid": track, "name": "thread_name", "args": {"name": name}}
        for name, track in _TRACKS.items()
    ]
    found.insert(0, {"ph": "M", "pid": 0, "name": "process_name", "args": {"name": f"m3vit {result.hardware.name}"}})

    def add(track: str, name: str, begin: float, end: float, lane: int = 0, **facts: object) -> None:
        number = _TRACKS[track] if not lane else len(_TRACKS) + lane
        found.append({"ph": "X", "pid": 0, "tid": number, "name": name, "cat": track, "ts": begin * scale,
                      "dur": max(end - begin, 0.0) * scale, "args": {"cycle": round(begin), **facts}})  # fmt: skip

    lanes: list[float] = []  # ends of jobs that run side by side: their tasks are interleaved
    by_entry = {layer.entry: layer for layer in result.layers}
    for job in dict.fromkeys(layer.job for layer in result.layers):
        mine = [layer for layer in result.layers if layer.job == job]
        task = tasks[job] if job < len(tasks) else ""
        begin, end = mine[0].first_beat, mine[-1].last_beat + 1
        lane = next((lane for lane, busy in enumerate(lanes) if busy <= begin), len(lanes))
        lanes[lane : lane + 1] = [end]
        add("job", f"job {job} {task}".strip(), begin, end, lane, task=task)
    for track in ("load", "compute"):
        for begin, end, entry, expert, unit in result.spans.get(track, ()):
            layer = by_entry[entry]
            add(track, f"{layer.name} {_what(layer, expert, unit)}".strip(), begin, end, job=layer.job, unit=unit)
    for begin, end, entry in _merged(result):
        layer = by_entry[entry]
        add("store", layer.name, begin, end, job=layer.job)
    return found


def _what(layer: LayerResult, expert: int, unit: int) -> str:
    if unit < 0:
        return "gate"
    parts = [f"expert {expert}"] if layer.kind == "moe" else []
    return " ".join([*parts, f"unit {unit}"])


def _merged(result: Result) -> list[tuple[float, float, int]]:
    """Stores of one layer that follow each other closely, as one."""
    merged: list[tuple[float, float, int]] = []
    for begin, end, entry, _, _ in result.spans.get("store", ()):
        if merged and merged[-1][2] == entry and begin - merged[-1][1] < 64:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]), entry)
        else:
            merged.append((begin, end, entry))
    return merged


def save_timeline(path: str | os.PathLike[str], result: Result, tasks: tuple[str, ...] = ()) -> None:
    """Write :func:`events` as a trace file."""
    data = {"displayTimeUnit": "ms", "traceEvents": events(result, tasks)}
    with atomic_write(Path(path)) as temporary:
        Path(temporary).write_text(json.dumps(data) + "\n", encoding="utf-8")
