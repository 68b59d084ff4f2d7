"""The simulator on engines and networks that nobody has thought of: every run ends, shortcuts or not, at one time."""

from __future__ import annotations

import dataclasses
import random

import pytest

from accel.config import Config, Formats, Hardware, Network, network
from accel.errors import ConfigError
from accel.memory_model import MemoryModel
from accel.routing import Schedule
from sim import computing, leaping, machine
from sim.explore import SCHEDULES, Problem
from sim.model import Result, simulate_workload
from sim.workload import PATTERNS, Workload, workload

SEEDS = 48
"""Runs of each kind."""


def _network(rng: random.Random) -> Network:
    """Small, of two or three blocks; the patch embedding may be wider than all else."""
    patch, heads, unit = rng.choice((4, 8, 16)), rng.choice((1, 2, 4)), rng.choice((32, 64, 96))
    sides = [patch * rng.choice((4, 8, 12, 20)) for _ in range(2)]
    return dataclasses.replace(
        network("m3vit-demo"), name="random", image_height=sides[0], image_width=sides[1], patch=patch,
        embed_dim=32 * heads * rng.choice((1, 2, 3)) // min(heads, 2), depth=rng.choice((2, 3)), heads=heads,
        unit_hidden=unit, dense_hidden=unit * rng.randint(1, 3), expert_hidden=unit * rng.randint(1, 2),
        experts=rng.choice((4, 8, 16)), top_k=rng.randint(1, 4),
    )  # fmt: skip


def _draw(seed: int) -> tuple[Workload, Hardware, MemoryModel]:
    """A program, an engine that takes it, and a memory, all by chance."""
    rng = random.Random(seed)
    while True:
        ports = rng.choice((1, 2, 4))
        choice: dict[str, int | str] = {
            "tile_tokens": rng.choice((2, 4, 8)), "tile_outputs": rng.choice((16, 32, 48)),
            "tile_inputs": rng.choice((2, 4, 8)), "weight_slots": rng.randint(2, 5), "ports": ports,
            "write_ports": rng.choice([count for count in (1, 2, 4) if count <= ports]),
            "outstanding": rng.choice((2, 4, 8)), "max_hidden": "1x", "max_experts": 16,
            **{name: rng.choice(("1x", "2x", "4x")) for name in ("slot_rows", "slot_groups")},
            **{name: rng.choice(("1x", "1.5x", "4x")) for name in ("max_tokens", "max_width")},
        }  # fmt: skip
        memory = MemoryModel(latency=rng.choice((20, 100, 300)), bytes_per_cycle=rng.choice((8, 24, 48, 64)),
                             turnaround=rng.choice((0, 16)), write_latency=rng.choice((20, 200)))  # fmt: skip
        try:
            problem = Problem(_network(rng), Formats(), ("depth",), memory=memory)
            engine = problem.candidate({**choice, "max_inputs": "1x"}).hardware
            problem.check(engine)
        except ConfigError:
            continue
        config = Config(problem.network, Formats(), engine)
        jobs = rng.sample(problem.network.task_names, rng.randint(1, 2))
        schedule = Schedule[rng.choice(SCHEDULES).upper()]
        return workload(config, jobs, rng.choice(PATTERNS), seed=seed, schedule=schedule), engine, memory


def _without_shortcuts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leaping.Leaping, "leaps_allowed", False)
    monkeypatch.setattr(machine, "BULK", 1 << 30)
    monkeypatch.setattr(computing, "STEADY", 1 << 30)


@pytest.mark.parametrize("seed", range(SEEDS))
def test_shortcuts_end_and_agree(seed: int, monkeypatch: pytest.MonkeyPatch):
    work, engine, memory = _draw(seed)
    fast = simulate_workload(work, engine, memory)
    _without_shortcuts(monkeypatch)
    slow = simulate_workload(work, engine, memory)
    assert sum(fast.breakdown.values()) == fast.cycles
    assert fast.cycles == pytest.approx(slow.cycles, rel=0.01)
    for name in ("bytes_read", "bytes_written", "weight_bytes", "pairs", "experts", "units", "macs"):
        assert _counter(fast, name) == _counter(slow, name)


def _counter(result: Result, name: str) -> int:
    return int(result.counters[name])
