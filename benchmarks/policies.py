"""Schedules beside each other: distance to the roofline of every policy, and reordering against an LRU cache.

    python -m benchmarks.policies --out policies.json                    # minutes
    python -m benchmarks.policies --bundle build/bundle --frames 4      # routing of other weights
    python -m benchmarks.policies --report                              # tables, as in docs/simulator.md

Every program is judged against its own roofline (weights once per job; once per frame where tasks go layer by layer).
The roofline of the jobs one by one stands beside it, but a program that shares experts between tasks may well beat that
one. Exit code 1 if no policy on ``zcu104`` comes within a tenth of its own roofline.

Policies run on ``m3vit-tiny-cityscapes``, where memory binds, with routing recorded from the golden model: a bundle's,
or random weights'. What they know beforehand is the usage of other images. Engines: ``zcu104``; the same writing on all
four ports; with slots of half the rows, hence twice as many; with both. Reordering against the cache is measured on
``m3vit-small-pascal`` at uniform routing and with growing locality.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from accel.bundle import open_bundle
from accel.config import Config, Hardware, Network, hardware, network
from accel.params import Encoder
from accel.random_params import random_encoder
from accel.usage import ExpertUsage, golden_usage
from benchmarks.common import parser, report
from cli.console import progress, table
from model.scenes import render_scene, split_seed
from sim.baseline import cached_frame
from sim.comparing import PolicyRow, compare
from sim.locality import local_experts, neighbour_overlap
from sim.policies import PLANS
from sim.trace import RoutingTrace, record_trace

TINY, SMALL = "m3vit-tiny-cityscapes", "m3vit-small-pascal"
GOAL = 0.10
"""Most that the policy closest to it may be over the roofline of its own program."""
POOLS, LOCALITIES = (2, 4, 5), (0.0, 0.25, 0.5, 0.75, 0.9)
USAGE_FRAMES = 32


def engines() -> dict[str, Hardware]:
    """Variants of ``zcu104`` by name."""
    base = hardware("zcu104")
    half = {"weight_slots": base.weight_slots * 2, "slot_rows": base.slot_rows // 2}
    return {
        "zcu104": base,
        "zcu104, 4 write ports": dataclasses.replace(base, name="zcu104-w4", write_ports=4),
        "zcu104, 10 slots of 384 rows": dataclasses.replace(base, name="zcu104-s10", **half),
        "zcu104, both": dataclasses.replace(base, name="zcu104-w4-s10", write_ports=4, **half),
    }


def scenes(net: Network, count: int, seed: int, split: str) -> list[Any]:
    """Rendered images of a network's size."""
    size = net.image_height, net.image_width
    return [render_scene(split_seed(seed, split), index, *size).image for index in range(count)]


def tiny_policies(encoder: Encoder, frames: int, seed: int, bar: Any) -> dict[str, dict[str, list[PolicyRow]]]:
    """Engine → jobs and routing → rows."""
    net = encoder.network
    trace = record_trace(encoder, scenes(net, frames, seed, "val"))
    usage = golden_usage(encoder, scenes(net, USAGE_FRAMES, seed, "train"))
    first, second = net.task_names[:2]
    runs: list[tuple[str, list[str], str | RoutingTrace, ExpertUsage | None]] = [
        (f"{frames} frames, {first}, recorded", [first] * frames, trace, usage),
        (f"{frames} frames, {first} and {second}, recorded", [first, second] * frames, trace, usage),
        (f"{frames} frames, {first} and {second}, recorded, usage unknown", [first, second] * frames, trace, None),
        (f"{frames} frames, {first} and {second}, zipf", [first, second] * frames, "zipf", None),
        (f"{frames} frames, {first} and {second}, uniform", [first, second] * frames, "uniform", None),
    ]
    found: dict[str, dict[str, list[PolicyRow]]] = {}
    for name, engine in engines().items():
        config = Config(net, hardware=engine)
        for what, tasks, routing, known in runs if name == "zcu104" else runs[:2]:
            rows = compare(config, tasks, routing, seed=seed, usage=known, progress=bar.update)
            found.setdefault(name, {})[what] = rows
    return found


def small_cache(pools: Sequence[int], localities: Sequence[float], seed: int, bar: Any) -> list[dict[str, Any]]:
    """Reordering against the cache, a row per pool and locality."""
    config = Config(network(SMALL))
    task = config.network.task_names[0]
    rows = []
    for locality in localities:
        chosen = local_experts(config.network, locality, np.random.default_rng(seed))
        overlap = neighbour_overlap(config.network, chosen)
        for pool in pools:
            strict, kind = (
                cached_frame(config, [task], f"local:{locality:g}", pool=pool, seed=seed, hits_first=first)
                for first in (False, True)
            )
            kinder = {"hit_rate": kind.hit_rate, "encoder_ratio": kind.encoder_ratio}
            rows.append(
                {"locality": locality, "neighbour_overlap": overlap, **strict.to_dict(), "hits_first": kinder}
            )
            bar.update(1)
    return rows


def print_report(policies: dict[str, dict[str, list[PolicyRow]]], cache: list[dict[str, Any]]) -> None:
    """The same as tables."""
    for engine, runs in policies.items():
        for what, rows in runs.items():
            print(f"\n{TINY} on {engine}: {what}")
            header = ("policy", "cycles", "× index", "MB weights", "wasted", "on chip", "over its roofline",
                      "over the jobs'", "orders over optimum")  # fmt: skip
            print(table(header, [
                (row.name, row.cycles, row.ratio, round(row.weight_bytes / 1e6, 2), round(row.wasted_bytes / 1e6, 2),
                 f"{row.hit_rate:.1%}", f"{row.over_roofline:+.1%}", f"{row.over_jobs_roofline:+.1%}",
                 "–" if row.order_extra is None else f"{'' if row.order_exact else '≤ '}{row.order_extra:,}")
                for row in rows
            ]))  # fmt: skip
    print(f"\n{SMALL}: reordering against an LRU cache in token order")
    header = ("locality", "neighbours share", "pool", "hit rate", "encoder", "engine's layers", "MoE layers",
              "hit rate, hits first", "encoder, hits first")  # fmt: skip
    print(table(header, [
        (row["locality"], f"{row['neighbour_overlap']:.0%}", row["pool"], f"{row['hit_rate']:.1%}",
         *(f"{row[name]:.1f}×" for name in ("encoder_ratio", "ratio", "moe_ratio")),
         f"{row['hits_first']['hit_rate']:.1%}", f"{row['hits_first']['encoder_ratio']:.1f}×")
        for row in cache
    ]))  # fmt: skip


def main() -> int:
    arguments = parser(__doc__)
    arguments.formatter_class = argparse.RawDescriptionHelpFormatter
    arguments.add_argument("--bundle", help=f"of {TINY}; without, random weights")
    arguments.add_argument("--frames", type=int, default=2, help="of every task")
    arguments.add_argument("--report", action="store_true", help="print tables instead of JSON")
    chosen = arguments.parse_args()
    net = network(TINY)
    encoder = random_encoder(net, seed=chosen.seed) if chosen.bundle is None else open_bundle(chosen.bundle).encoder
    if encoder.network != net:
        arguments.error(f"--bundle: expected a bundle of {TINY}, found one of {encoder.network.name}")
    total = (5 + 3 * 2) * len(PLANS) + len(POOLS) * len(LOCALITIES)
    with progress(total, "policies", "run") as bar:
        policies = tiny_policies(encoder, chosen.frames, chosen.seed, bar)
        cache = small_cache(POOLS, LOCALITIES, chosen.seed, bar)
    both = next(rows for what, rows in policies["zcu104"].items() if " and " in what)
    fastest = min(both, key=lambda row: row.cycles)
    closest = min(both, key=lambda row: row.over_roofline)
    met = closest.over_roofline <= GOAL
    if chosen.report:
        print_report(policies, cache)
    else:
        results = {
            "policies": {engine: {what: [row.to_dict() for row in rows] for what, rows in runs.items()}
                         for engine, runs in policies.items()},
            "fastest": fastest.to_dict(),
            "closest": {**closest.to_dict(), "goal": GOAL, "met": met},
            "cache": cache,
        }  # fmt: skip
        report("policies", chosen, Config(net).hash, results)
    if not met:
        print(f"policies: zcu104, two tasks: no policy within {GOAL:.0%} of its own roofline; closest: {closest.name}, "
              f"{closest.over_roofline:+.1%}", file=sys.stderr)  # fmt: skip
    return 0 if met else 1


if __name__ == "__main__":
    raise SystemExit(main())
