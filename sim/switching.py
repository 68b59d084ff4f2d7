"""What it costs to switch tasks: the same jobs with and without other gate tables, and what prefetching saves."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from accel.commands import Opcode
from accel.config import Config
from accel.errors import ConfigError
from accel.memory_model import MemoryModel
from accel.routing import Schedule
from accel.usage import ExpertUsage
from sim.model import simulate, simulate_workload
from sim.results import Result
from sim.trace import RoutingTrace
from sim.workload import Workload, workload


def without_switches(work: Workload) -> Workload:
    """The same jobs, routing included, with the gate tables of the first: what is left is everything but the switch."""
    gates: dict[int, int] = {}
    commands = []
    for command in work.commands:
        if command.opcode is Opcode.MOE:
            command = dataclasses.replace(command, gate=gates.setdefault(command.layer, command.gate))
        commands.append(command)
    return dataclasses.replace(work, commands=tuple(commands), tasks=(work.tasks[0],) * len(work.tasks))


def switch_extra_cycles(work: Workload, result: Result) -> int:
    """Cycles of ``result`` that are due to the tasks of ``work`` being different."""
    if len(set(work.tasks)) < 2:
        return 0
    other = without_switches(work)
    return result.cycles - simulate(other.commands, other.routing, result.hardware, result.memory).cycles


@dataclass(frozen=True)
class SwitchRow:
    """One sequence of jobs.

    Attributes:
        sequence: its name; ``tasks`` what it runs.
        switches: boundaries between different tasks.
        cycles: of the program; ``extra`` those due to switching (see :func:`switch_extra_cycles`).
        boundary_idle: array-idle cycles at job boundaries, mean.
        without_prefetch, with_barrier: cycles more if weights were not loaded across jobs, and if each job waited for
            the end of the one before.
    """

    sequence: str
    tasks: tuple[str, ...]
    switches: int
    cycles: int
    extra: int
    boundary_idle: float
    without_prefetch: int
    with_barrier: int

    def to_dict(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "tasks": list(self.tasks)}


def sequences(first: str, second: str, jobs: int, seed: int) -> dict[str, list[str]]:
    """A→A, A→B once in the middle, alternating, random."""
    rng = np.random.default_rng(seed)
    return {
        "A→A": [first] * jobs,
        "A→B": [first] * (jobs // 2) + [second] * (jobs - jobs // 2),
        "alternating": [(first, second)[job % 2] for job in range(jobs)],
        "random": [(first, second)[pick] for pick in rng.integers(0, 2, jobs)],
    }


def switching_report(
    config: Config, tasks: Sequence[str], routing: str | RoutingTrace | ExpertUsage, memory: MemoryModel | None = None,
    *, jobs: int = 4, seed: int = 0, schedule: Schedule = Schedule.INDEX,
) -> list[SwitchRow]:  # fmt: skip
    """Run four sequences of two tasks.

    Args:
        tasks: the first two different ones are A and B.
        jobs: length of each sequence.
    """
    different = list(dict.fromkeys(tasks))
    if len(different) < 2:
        raise ConfigError(f"switching: expected two different tasks, found {', '.join(different) or 'none'}")
    if jobs < 2:
        raise ConfigError(f"switching: jobs = {jobs}: expected at least 2")
    rows = []
    for name, sequence in sequences(different[0], different[1], jobs, seed).items():

        def run(**controls: bool) -> tuple[Workload, Result]:
            work = workload(config, sequence, routing, seed=seed, schedule=schedule, **controls)  # noqa: B023
            return work, simulate_workload(work, config.hardware, memory)

        work, result = run()
        idle = [job["boundary_idle"] for job in result.jobs[:-1]]
        rows.append(
            SwitchRow(
                name, tuple(sequence), sum(a != b for a, b in zip(sequence, sequence[1:], strict=False)), result.cycles,
                switch_extra_cycles(work, result), sum(idle) / len(idle),
                run(prefetch_across_jobs=False)[1].cycles - result.cycles,
                run(barrier_between_jobs=True)[1].cycles - result.cycles,
            )
        )  # fmt: skip
    return rows
