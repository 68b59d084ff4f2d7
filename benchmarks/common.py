"""What every benchmark shares: a JSON result with configuration hash, seed, commit and machine."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

from accel.atomic import atomic_write
from cli.provenance import commit, machine


def timed(function: Callable[[], object], repeats: int) -> dict[str, float]:
    """Seconds of ``repeats`` calls after one that warms up: minimum, median, maximum."""
    function()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - start)
    return {"min": min(seconds), "median": statistics.median(seconds), "max": max(seconds)}


def parser(description: str | None) -> argparse.ArgumentParser:
    """Arguments of every benchmark: ``--out FILE`` and ``--seed N``."""
    arguments = argparse.ArgumentParser(description=description)
    arguments.add_argument("--out", type=Path, help="write the JSON here instead of to standard output")
    arguments.add_argument("--seed", type=int, default=0)
    return arguments


def report(name: str, arguments: argparse.Namespace, config_hash: str, results: object) -> None:
    """Print or write one result."""
    data = {
        "benchmark": name,
        "config_hash": config_hash,
        "seed": arguments.seed,
        "commit": commit(),
        "machine": machine(),
        "results": results,
    }
    text = json.dumps(data, indent=1) + "\n"
    if arguments.out is None:
        sys.stdout.write(text)
        return
    with atomic_write(arguments.out) as path:
        path.write_text(text, encoding="utf-8")
