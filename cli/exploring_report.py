"""Files that ``m3vit explore`` leaves: everything found as JSON, a plot, and the front's engines as hardware files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from accel.atomic import atomic_directory, atomic_write
from accel.config import to_dict
from accel.resources import LIMITS
from cli.exploring import Exploration
from cli.training import write_json
from sim.pareto_plot import pareto_plot

FORMAT, VERSION = "m3vit-exploration", 1


def document(found: Exploration, source: str) -> dict[str, Any]:
    """Everything found, ready for JSON; the same for the same search, however often it was interrupted."""
    problem, listed = found.problem, found.engines
    points = {point.candidate.key: {**point.to_dict(), "objectives": dict(zip(found.objectives, point.values(
        found.objectives), strict=True))} for point in found.points}  # fmt: skip
    return {
        "format": FORMAT,
        "version": VERSION,
        "source": source,
        "network": problem.network.name,
        "jobs": list(problem.tasks),
        "routing": problem.routing if isinstance(problem.routing, str) else "file",
        "seed": problem.seed,
        "memory": problem.memory.to_dict(),
        "base": to_dict(problem.base),
        "limits": LIMITS,
        "space": {name: list(values) for name, values in found.space.values.items()},
        "configurations": found.space.size,
        "engines": found.space.engines,
        "possible_engines": None if listed is None else len(listed.fitting),
        "refused_engines": None if listed is None else listed.refused,
        "objectives": list(found.objectives),
        "exhaustive": found.exhaustive,
        "failed": list(found.failed.values()),
        "best": found.best.name,
        "reference": None if found.reference is None else found.reference.to_dict(),
        "front": [points[point.candidate.key] for point in found.front],
        "points": list(points.values()),
    }


def write_results(out: Path, found: Exploration, source: str) -> tuple[dict[str, Any], list[Path]]:
    """Write all files; returns the document and their paths."""
    data = document(found, source)
    title = f"{data['network']}, {', '.join(data['jobs'])}: {len(found.points)} configurations on a ZCU104"
    result, plot, best, front = out / "explore.json", out / "pareto.svg", out / "best.json", out / "front"
    with atomic_directory(front) as temporary:
        for point in found.front:
            text = json.dumps(to_dict(point.candidate.hardware), indent=1) + "\n"
            (temporary / f"{point.name}.json").write_text(text, encoding="utf-8")
    write_json(best, to_dict(found.best.candidate.hardware))
    with atomic_write(plot) as temporary:
        temporary.write_text(
            pareto_plot(found.points, found.front, found.objectives, found.reference, title), encoding="utf-8"
        )
    write_json(result, data)  # last: it is there only if everything else is
    return data, [result, plot, best, front]
