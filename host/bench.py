"""Benchmark of a back end: frames and task mixes, live and as replay programs, phase by phase.

*Live*: image in, decoded output out, one job (one task on one frame) after the other; the host computes what lies
between the engine's layers. *Replay*: every engine layer of all jobs chained in one program, so that only the engine
determines its cycles. Both are compared with the golden model: what computes wrong results is not worth timing.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from accel.bundle import Bundle
from accel.compiler import Job, RecordedFrame
from accel.config import Config
from accel.errors import ConfigError
from accel.golden import FrameResult, GoldenEngine, run_frame
from host.backends import open_device
from host.driver import Driver
from host.outputs import decode, output_map
from host.phases import HOST, PHASES
from host.power import PowerMeter, Reading, estimate, measured, open_meter
from host.runner import EncoderRunner
from host.simulated import CLOCKS_MHZ, describe

Array = NDArray[Any]

MIXES = ("alternating", "random", "grouped")
"""Which task each job runs: one after the other, drawn at random, or all jobs of a task before those of the next."""
PHASE_TOLERANCE = 0.02
"""Largest share of the total time that the phases may leave unexplained."""
IDLE_SECONDS = 1.0
"""How long a board's power at rest is measured."""

_CYCLES = ("load_only_cycles", "compute_only_cycles", "overlap_cycles", "idle_cycles")


@dataclass(frozen=True)
class Sample:
    """One job, live.

    Attributes:
        repeat: pass over the jobs.
        job: index in the order of the jobs.
        task, frame: what ran.
        seconds: image to decoded output, taken around everything.
        phases: seconds by phase.
        cycles: of all its engine programs; 0 where there is no clock.
        mismatches: integers of the last residual and the head that differ from golden.
    """

    repeat: int
    job: int
    task: str
    frame: int
    seconds: float
    phases: Mapping[str, float]
    cycles: int
    mismatches: int


def order_jobs(tasks: Sequence[str], frames: int, mix: str, seed: int) -> list[Job]:
    """``frames`` jobs, each another frame. Raises ConfigError: unknown mix."""
    if mix not in MIXES:
        raise ConfigError(f"mix {mix!r}: expected one of {', '.join(MIXES)}")
    if mix == "random":
        chosen = np.random.default_rng(seed).integers(0, len(tasks), frames).tolist()
    else:
        chosen = [index % len(tasks) for index in range(frames)]
    jobs = [Job(tasks[index], frame) for frame, index in enumerate(chosen)]
    return sorted(jobs, key=lambda job: tasks.index(job.task)) if mix == "grouped" else jobs


def distribution(values: Iterable[float]) -> dict[str, float]:
    """Minimum, median, 95th percentile, maximum and mean."""
    data = np.fromiter(values, float)
    low, middle, high, most = (float(v) for v in np.percentile(data, (0, 50, 95, 100)))
    return {"min": low, "median": middle, "p95": high, "max": most, "mean": float(data.mean())}


def _phase_report(phases: Sequence[Mapping[str, float]], totals: Sequence[float]) -> dict[str, Any]:
    """Distributions per phase and of the total, shares, and what the phases leave unexplained."""
    total = sum(totals)
    sums = {name: sum(item[name] for item in phases) for name in PHASES}
    return {
        "phases": {
            name: {**distribution(item[name] for item in phases), "share": sums[name] / total} for name in PHASES
        },
        "total": distribution(totals),
        "sum_of_phases": sum(sums.values()),
        "sum_of_totals": total,
        "unexplained": abs(total - sum(sums.values())) / total,
    }


def _add_counters(sums: Counter[str], counters: Mapping[str, int]) -> None:
    sums.update({name: int(value) for name, value in counters.items()})


def _wrong(found: FrameResult, expected: FrameResult) -> int:
    """Integers in which the results of a job differ."""
    wrong = int(np.count_nonzero(found.residual != expected.residual))
    if expected.head is not None and found.head is not None:
        wrong += int(np.count_nonzero(found.head != expected.head))
    return wrong


class Bench:
    """Runs the benchmark on one back end.

    Args:
        bundle: what runs.
        images: one per frame, uint8 [H, W, 3].
        jobs: in the order in which they run.
        backend: name of the back end; ``options`` are passed on to it.
        repeat: passes over the jobs.
        timeout: seconds per program.
        progress: called after every job of every pass, replayed ones included.
    """

    def __init__(
        self,
        bundle: Bundle,
        images: Sequence[Array],
        jobs: Sequence[Job],
        *,
        backend: str = "golden",
        repeat: int = 1,
        timeout: float = 600.0,
        progress: Callable[[int], object] = lambda jobs: None,
        **options: Any,
    ) -> None:
        self.bundle, self.images, self.jobs = bundle, images, jobs
        self.backend, self.repeat, self.timeout = backend, repeat, timeout
        self.progress, self.options = progress, options
        self.golden: dict[Job, FrameResult] = {}

    def run(self, replay: bool = True) -> dict[str, Any]:
        """Everything that was measured, ready for JSON. The driver and its memory are given back before it returns."""
        config = self.bundle.config
        engine = GoldenEngine(self.bundle.encoder)
        for job in self.jobs:
            self.golden[job] = run_frame(
                self.bundle.encoder, self.images[job.frame], job.task, engine, record=replay
            )
        with ExitStack() as stack:
            began = time.perf_counter()
            device = stack.enter_context(open_device(self.backend, config.hardware, config.formats, **self.options))
            opened = time.perf_counter()
            driver = stack.enter_context(Driver(device))
            driver.identify(self.timeout)
            identified = time.perf_counter()
            loaded = stack.enter_context(driver.load(self.bundle))
            setup = {
                "open": opened - began, "identify": identified - opened, "load": time.perf_counter() - identified
            }  # fmt: skip
            runner = EncoderRunner(loaded, timeout=self.timeout)
            meter = open_meter(device)
            if meter is not None:
                stack.enter_context(meter)
            result: dict[str, Any] = {
                "backend": device.name,
                "simulated": device.simulated,
                "setup_seconds": setup,
                "live": self._live(runner, meter),
            }
            result["replay"] = self._replay(runner, meter) if replay else None
        result["has_clock"] = bool(result["live"]["counters"]["cycles"])
        result["checks"] = checks(result)
        return result

    def _live(self, runner: EncoderRunner, meter: PowerMeter | None) -> dict[str, Any]:
        """Every job, ``repeat`` times, after one of each task that nobody counts: programs are compiled then."""
        for job in {job.task: job for job in self.jobs}.values():
            self._run_job(runner, job)
        idle = _at_rest(meter)
        samples: list[Sample] = []
        sums: Counter[str] = Counter()
        per_task: dict[str, Counter[str]] = {}
        began = time.perf_counter()
        for number in range(self.repeat):
            for index, job in enumerate(self.jobs):
                seconds, phases, result = self._run_job(runner, job)
                counters = runner.counters[job.task]
                _add_counters(sums, counters)
                _add_counters(per_task.setdefault(job.task, Counter()), counters)
                wrong = _wrong(result, self.golden[job])
                samples.append(Sample(number, index, job.task, job.frame, seconds, phases, counters["cycles"], wrong))
                self.progress(1)
        wall = time.perf_counter() - began
        busy = meter.stop() if meter is not None else None
        return {
            **_phase_report([item.phases for item in samples], [item.seconds for item in samples]),
            "wall_seconds": wall,
            "jobs_per_second": len(samples) / sum(item.seconds for item in samples),
            "engine": _engine_times([item.cycles for item in samples]),
            "counters": dict(sums),
            "per_task": {
                task: {
                    "jobs": sum(1 for item in samples if item.task == task),
                    "total": distribution(item.seconds for item in samples if item.task == task),
                    "engine": _engine_times([item.cycles for item in samples if item.task == task]),
                    "counters": dict(counters),
                }
                for task, counters in per_task.items()
            },
            "energy": _energy(idle, busy, sums, self.bundle.config, len(samples)),
            "mismatches": sum(item.mismatches for item in samples),
            "samples": [asdict(item) for item in samples],
        }

    def _run_job(self, runner: EncoderRunner, job: Job) -> tuple[float, dict[str, float], FrameResult]:
        """One job: seconds in all, seconds by phase, and its result."""
        task = self.bundle.config.network.task(job.task)
        image = self.images[job.frame]
        runner.clock.take()
        began = time.perf_counter()
        with runner.clock(HOST):
            result = runner.run(image, [job.task])[0]
            decode(output_map(runner.encoder, result), task)
        seconds = time.perf_counter() - began
        return seconds, runner.clock.take(), result

    def _replay(self, runner: EncoderRunner, meter: PowerMeter | None) -> dict[str, Any]:
        """All jobs as one program, ``repeat`` times."""
        frames = [RecordedFrame(job.task, self.images[job.frame], self.golden[job].trace) for job in self.jobs]
        idle = _at_rest(meter)
        phases, totals, cycles, mismatches = [], [], [], 0
        sums: Counter[str] = Counter()
        for _ in range(self.repeat):
            runner.clock.take()
            began = time.perf_counter()
            with runner.clock(HOST):
                result = runner.replay(frames)
            totals.append(time.perf_counter() - began)
            phases.append(runner.clock.take())
            cycles.append(result.record.counters["cycles"])
            _add_counters(sums, result.record.counters)
            mismatches += result.mismatches
            self.progress(len(frames))
        busy = meter.stop() if meter is not None else None
        jobs = len(frames)
        described = describe(result.record, self.bundle.config.hardware.macs_per_cycle)
        entries = [{"task": job.task, "frame": job.frame, **entry} for job, entry in
                   zip(self.jobs, described.pop("jobs"), strict=True)]  # fmt: skip
        return {
            **_phase_report(phases, totals),
            **described,
            "cycles_of_every_pass": cycles,
            "engine": _engine_times([cycle / jobs for cycle in cycles]),
            "jobs": entries,
            "boundary_idle": sum(entry["boundary_idle"] for entry in entries),
            "compared": result.compared * self.repeat,
            "mismatches": mismatches,
            "energy": _energy(idle, busy, sums, self.bundle.config, jobs * self.repeat),
        }


def _at_rest(meter: PowerMeter | None) -> Reading | None:
    """What the board draws while nothing runs; the meter then goes on measuring."""
    if meter is None:
        return None
    meter.start()
    time.sleep(IDLE_SECONDS)
    idle = meter.stop()
    meter.start()
    return idle


def _energy(
    idle: Reading | None, busy: Reading | None, counters: Mapping[str, int], config: Config, jobs: int
) -> dict[str, Any] | None:
    """A measurement where there is a meter, else an estimate, or None where there is nothing to base one on."""
    if idle is not None and busy is not None:
        return measured(idle, busy, jobs)
    return estimate(counters, config, jobs, CLOCKS_MHZ)


def _engine_times(cycles: Sequence[float]) -> dict[str, Any] | None:
    """Cycles of a job, as time at each clock, and jobs per second if nothing but the engine took time."""
    if not any(cycles):
        return None
    mean = sum(cycles) / len(cycles)
    return {
        "cycles": distribution(cycles),
        "milliseconds": {str(clock): distribution(c / clock / 1e3 for c in cycles) for clock in CLOCKS_MHZ},
        "jobs_per_second": {str(clock): clock * 1e6 / mean for clock in CLOCKS_MHZ},
    }


def checks(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What must hold for the figures to mean anything."""
    found = []

    def check(name: str, value: float, limit: float) -> None:
        found.append({"check": name, "value": value, "limit": limit, "ok": value <= limit})

    for part in ("live", "replay"):
        if result[part] is not None:
            check(f"{part}: time that no phase explains", result[part]["unexplained"], PHASE_TOLERANCE)
            check(f"{part}: integers that differ from golden", result[part]["mismatches"], 0)
            counters = result[part]["counters"]
            parts = sum(counters[name] for name in _CYCLES)
            check(f"{part}: cycles in none of the four classes", abs(counters["cycles"] - parts), 0)
    return found
