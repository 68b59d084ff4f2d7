"""Seconds that C simulation of the HLS engine takes for one MoE layer of a workload, and whether its bits are right.

    python -m benchmarks.hls_simulation --out hls_simulation.json

The optimized build, compiled first if it is not there (not counted); all processes in turn on one thread and, beside
it, a thread each. Every byte of memory but the record's is compared with the functional engine. Exit code 1 if the
limit is exceeded or a byte differs.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

import numpy as np

from accel.config import Config, network
from accel.functional import FunctionalEngine
from accel.layers import Kind, engine_layers
from accel.synthetic import build_program, routing_of_loads, skewed_loads, synthetic_layer
from benchmarks.common import parser, report, timed
from benchmarks.golden_speed import limited
from host.backends import open_device
from host.driver import Driver
from host.simulated import run_synthetic

SECONDS = 60.0
"""Median time that one layer may take."""


def measure(config: Config, threads: bool, repeats: int, seed: int) -> dict[str, Any]:
    """One MoE layer of the network, queues as unequal as a trained router makes them."""
    engine = config.hardware
    layer = next(item for item in engine_layers(config) if item.kind is Kind.MOE)
    loads = skewed_loads(layer.experts, layer.tokens, layer.top_k)
    item = synthetic_layer(
        layer.kind, layer.tokens, layer.inputs, layer.outputs, engine, seed, hidden=layer.hidden, units=layer.units,
        experts=layer.experts, top_k=layer.top_k, chosen=routing_of_loads(loads, layer.tokens, layer.top_k, seed),
    )  # fmt: skip
    program = build_program([[item]], engine)
    expected = program.memory.copy()
    FunctionalEngine(engine).execute(
        expected, program.program_offset, len(program.commands), program.record_offset
    )  # fmt: skip
    found: list[Any] = []
    with open_device("hls", engine, config.formats, sequential=not threads) as device, Driver(device) as driver:
        seconds = timed(lambda: found.append(run_synthetic(driver, program)), repeats)
    record, memory = found[-1]
    end = program.record_offset
    macs = record.counters["macs"]
    return {
        "processes": "a thread each" if threads else "in turn", "layer": layer.name, "macs": macs, "seconds": seconds,
        "macs_per_second": macs / seconds["median"], "bytes_compared": int(end),
        "bytes_different": int(np.count_nonzero(memory[:end] != expected[:end])),
    }  # fmt: skip


def main() -> int:
    arguments = parser(__doc__)
    arguments.formatter_class = argparse.RawDescriptionHelpFormatter
    arguments.add_argument("--network", default="m3vit-small-pascal")
    arguments.add_argument("--repeats", type=int, default=3)
    chosen = arguments.parse_args()
    config = Config(network(chosen.network))
    results = []
    for threads in (False, True):
        found = measure(config, threads, chosen.repeats, chosen.seed)
        checks = {"seconds": limited(found["seconds"]["median"], SECONDS),
                  "bytes_different": limited(found["bytes_different"], 0)}  # fmt: skip
        results.append({**found, "checks": checks})
    report("hls_simulation", chosen, config.hash, results)
    return 0 if all(check["ok"] for result in results for check in result["checks"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
