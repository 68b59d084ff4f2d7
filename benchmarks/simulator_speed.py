"""Seconds per frame and memory of the simulator: one frame of every network, and a long chain of mixed tasks.

    python -m benchmarks.simulator_speed --out simulator_speed.json

Every measurement is a process of its own, so that its peak memory is its own. Seconds are recorded by the clock and of
processor time; limits hold for the latter, which the clock shows too where nobody else wants the core: the simulator
runs in one thread and waits for nothing. Exit code 1 if a limit is exceeded.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import sys
import time
from typing import Any

from accel.config import NETWORKS, Config, digest, network
from benchmarks.common import parser, report
from benchmarks.golden_speed import limited, run_child
from sim.model import simulate_workload
from sim.workload import workload

FRAME_SECONDS = {"m3vit-small-pascal": 1.0}
"""Median processor time that simulating one frame may take; the other workloads have no limit."""
CHAIN_NETWORK, CHAIN_FRAMES, CHAIN_SECONDS = "m3vit-small-pascal", 100, 30.0
"""The chain: as many frames, each for another task than the one before, and what it may take."""
PEAK_GIB = 1.0


def measure(name: str, frames: int, repeats: int, seed: int) -> dict[str, Any]:
    """Simulate a chain of ``frames`` in this process, ``repeats`` times after one that warms up; 0 means once."""
    config = Config(network(name))
    tasks = [config.network.task_names[frame % len(config.network.tasks)] for frame in range(frames)]
    work = workload(config, tasks, seed=seed)
    wall: list[float] = []
    processor: list[float] = []
    for _ in range(repeats + 1):
        begin, begin_processor = time.perf_counter(), time.process_time()
        cycles = simulate_workload(work, config.hardware).cycles
        wall.append(time.perf_counter() - begin)
        processor.append(time.process_time() - begin_processor)
    if repeats:
        del wall[0], processor[0]

    def spread(seconds: list[float]) -> dict[str, float]:
        return {"min": min(seconds), "median": statistics.median(seconds), "max": max(seconds)}

    return {
        "config_hash": config.hash, "frames": frames, "cycles": cycles, "seconds": spread(wall),
        "processor_seconds": spread(processor), "cycles_per_second": cycles / statistics.median(processor),
        "peak_rss_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }  # fmt: skip


def main() -> int:
    arguments = parser(__doc__)
    arguments.formatter_class = argparse.RawDescriptionHelpFormatter
    arguments.add_argument("--repeats", type=int, default=3)
    arguments.add_argument("--frames", type=int, default=CHAIN_FRAMES, help="length of the chain, 0: none")
    arguments.add_argument("--child", help="only measure this network, in this process")
    chosen = arguments.parse_args()
    if chosen.child:
        json.dump(measure(chosen.child, chosen.frames, chosen.repeats, chosen.seed), sys.stdout)
        return 0

    def child(name: str, frames: int, repeats: int) -> dict[str, Any]:
        found = run_child("-m", "benchmarks.simulator_speed", "--child", name, "--frames", frames,
                          "--repeats", repeats, "--seed", chosen.seed)  # fmt: skip
        return json.loads(found["output"])

    results: dict[str, Any] = {}
    for name in NETWORKS:
        found = child(name, 1, chosen.repeats)
        checks = {"frame_seconds": limited(found["processor_seconds"]["median"], FRAME_SECONDS.get(name)),
                  "peak_rss_gib": limited(found["peak_rss_gib"], PEAK_GIB)}  # fmt: skip
        results[name] = {**found, "checks": checks}
    if chosen.frames:
        found = child(CHAIN_NETWORK, chosen.frames, 0)
        limit = CHAIN_SECONDS * chosen.frames / CHAIN_FRAMES
        checks = {"chain_seconds": limited(found["processor_seconds"]["median"], limit),
                  "peak_rss_gib": limited(found["peak_rss_gib"], PEAK_GIB)}  # fmt: skip
        results["chain"] = {"network": CHAIN_NETWORK, **found, "checks": checks}
    report("simulator_speed", chosen, digest({name: result["config_hash"] for name, result in results.items()})[:16],
           results)  # fmt: skip
    exceeded = [
        f"{name}: {what} = {check['value']:.2f}, limit {check['limit']:g}"
        for name, result in results.items()
        for what, check in result["checks"].items()
        if not check["ok"]
    ]
    for line in exceeded:
        print(f"simulator_speed: {line}", file=sys.stderr)
    return 1 if exceeded else 0


if __name__ == "__main__":
    sys.exit(main())
