"""Seconds per frame of the golden model, and what exporting costs, on random weights of the three workloads.

    python -m benchmarks.golden_speed --out golden_speed.json
"""

from __future__ import annotations

import resource
import tempfile
import time
from pathlib import Path

import numpy as np

from accel.bundle import write_bundle
from accel.config import NETWORKS, Config, digest, hardware
from accel.golden import GoldenEngine, run_frame
from accel.random_params import random_encoder
from benchmarks.common import parser, report, timed


def measure(name: str, seed: int, repeats: int) -> dict[str, object]:
    """One workload: export of random weights, then single frames for its first task."""
    network, engine = NETWORKS[name], hardware("zcu104")
    start = time.perf_counter()
    encoder = random_encoder(network, seed=seed)
    with tempfile.TemporaryDirectory() as folder:
        write_bundle(Path(folder) / "bundle", encoder, engine)
    export = time.perf_counter() - start
    shape = (network.image_height, network.image_width, 3)
    image = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    golden = GoldenEngine(encoder)
    task = network.task_names[0]
    return {
        "config_hash": Config(network, encoder.formats, engine).hash,
        "frame_seconds": timed(lambda: run_frame(encoder, image, task, golden), repeats),
        "export_seconds": export,
        "peak_rss_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--repeats", type=int, default=5)
    chosen = arguments.parse_args()
    results = {name: measure(name, chosen.seed, chosen.repeats) for name in NETWORKS}
    hashes = {name: result["config_hash"] for name, result in results.items()}
    report("golden_speed", chosen, digest(hashes)[:16], results)


if __name__ == "__main__":
    main()
