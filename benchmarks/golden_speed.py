"""Seconds per frame and memory of the golden model and of exporting, on random weights of the workloads.

    python -m benchmarks.golden_speed --out golden_speed.json

Every measurement is a process of its own, so that its peak memory is its own. Exit code 1 if a limit is exceeded.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from accel.bundle import open_bundle
from accel.config import NETWORKS, digest
from accel.golden import GoldenEngine, run_frame
from benchmarks.common import parser, report, timed

FRAME_SECONDS = {"m3vit-small-pascal": 4.0, "m3vit-tiny-cityscapes": 0.3}
"""Median time that one frame for one task may take; the other workloads have no limit."""
EXPORT_SECONDS, EXPORT_GIB = 60.0, 4.0
"""What one export may take as a process, from start to end."""


def run_child(*arguments: object) -> dict[str, Any]:
    """Run ``python ARGUMENTS``: its seconds, its peak resident memory in GiB and its standard output.

    Raises:
        SystemExit: it failed; what it said is on standard error.
    """
    command = [sys.executable, *map(str, arguments)]
    start = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1]) as child:
        assert child.stdout is not None
        output = child.stdout.read()
        _, status, usage = os.wait4(child.pid, 0)  # RUSAGE_CHILDREN would be the maximum over all children so far
        child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"golden_speed: {' '.join(command)}: exit code {child.returncode}")
    return {"seconds": time.perf_counter() - start, "peak_rss_gib": usage.ru_maxrss / 2**20, "output": output}


def frame(bundle: Path, seed: int, repeats: int) -> dict[str, Any]:
    """Single frames for the first task of a bundle, in this process."""
    opened = open_bundle(bundle)
    encoder, network = opened.encoder, opened.config.network
    shape = (network.image_height, network.image_width, 3)
    image = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    golden, task = GoldenEngine(encoder), network.task_names[0]
    return {
        "config_hash": opened.config.hash,
        "seconds": timed(lambda: run_frame(encoder, image, task, golden), repeats),
    }


def limited(value: float, limit: float | None) -> dict[str, Any]:
    """A measurement beside what is allowed (None: anything)."""
    return {"value": value, "limit": limit, "ok": limit is None or value <= limit}


def measure(name: str, seed: int, repeats: int) -> dict[str, Any]:
    """One workload: ``m3vit export --random`` as a process, then frames in another."""
    with tempfile.TemporaryDirectory() as folder:
        bundle = Path(folder) / "bundle"
        export = run_child("-m", "cli", "export", "--random", name, bundle, "--seed", seed, "--json", "--quiet")
        frames = run_child("-m", "benchmarks.golden_speed", "--bundle", bundle, "--seed", seed, "--repeats", repeats)
    found = json.loads(frames["output"])
    checks = {
        "frame_seconds": limited(found["seconds"]["median"], FRAME_SECONDS.get(name)),
        "export_seconds": limited(export["seconds"], EXPORT_SECONDS),
        "export_peak_rss_gib": limited(export["peak_rss_gib"], EXPORT_GIB),
    }
    return {
        "config_hash": found["config_hash"],
        "frame_seconds": found["seconds"],
        "frame_peak_rss_gib": frames["peak_rss_gib"],
        "export_seconds": export["seconds"],
        "export_peak_rss_gib": export["peak_rss_gib"],
        "checks": checks,
        "ok": all(check["ok"] for check in checks.values()),
    }


def main() -> int:
    arguments = parser(__doc__)
    arguments.formatter_class = argparse.RawDescriptionHelpFormatter
    arguments.add_argument("--repeats", type=int, default=5)
    arguments.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS), metavar="NAME",
                           help=f"of {', '.join(NETWORKS)}")  # fmt: skip
    arguments.add_argument("--bundle", type=Path, help="only run frames of this bundle, in this process")
    chosen = arguments.parse_args()
    if chosen.bundle is not None:
        json.dump(frame(chosen.bundle, chosen.seed, chosen.repeats), sys.stdout)
        return 0
    results = {name: measure(name, chosen.seed, chosen.repeats) for name in chosen.networks}
    hashes = {name: result["config_hash"] for name, result in results.items()}
    report("golden_speed", chosen, digest(hashes)[:16], results)
    exceeded = [
        f"{name}: {what} = {check['value']:.2f}, limit {check['limit']:g}"
        for name, result in results.items()
        for what, check in result["checks"].items()
        if not check["ok"]
    ]
    for line in exceeded:
        print(f"golden_speed: {line}", file=sys.stderr)
    return 1 if exceeded else 0


if __name__ == "__main__":
    sys.exit(main())
