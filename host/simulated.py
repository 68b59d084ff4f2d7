"""Frames on the simulated board: replay programs of the engine's layers, and what its record says of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
from numpy.typing import NDArray

from accel.bundle import Bundle
from accel.compiler import RecordedFrame
from accel.record import Record
from accel.synthetic import SyntheticProgram
from host.backends import open_device
from host.driver import Driver
from host.runner import EncoderRunner

CLOCKS_MHZ = (300, 250, 200)
"""Clocks at which cycles are quoted as time: the RTL's goal, and what a first build or HLS may reach."""


def milliseconds(cycles: int) -> dict[str, float]:
    """Clock in MHz → milliseconds that ``cycles`` take."""
    return {str(clock): cycles / clock / 1e3 for clock in CLOCKS_MHZ}


def describe(record: Record, macs_per_cycle: int) -> dict[str, Any]:
    """What a record says about time, ready for JSON.

    ``utilization`` is useful multiply-accumulates over what the array could have done in all cycles; ``overlap`` is the
    share of cycles with a read in flight during which the array computed.
    """
    counters = record.counters
    reading = counters["overlap_cycles"] + counters["load_only_cycles"]
    return {
        "cycles": counters["cycles"],
        "milliseconds": milliseconds(counters["cycles"]),
        "utilization": counters["macs"] / (counters["cycles"] * macs_per_cycle) if counters["cycles"] else 0.0,
        "overlap": counters["overlap_cycles"] / reading if reading else 0.0,
        "counters": dict(counters),
        "jobs": [dict(job) for job in record.jobs],
    }


def run_synthetic(
    driver: Driver, program: SyntheticProgram, timeout: float | None = 3600.0
) -> tuple[Record, NDArray[np.uint8]]:
    """Run a synthetic program in memory of its own: its record, and the memory as the engine left it."""
    with driver.device.allocate(program.arena.bytes) as memory:
        memory.array[:] = program.memory
        memory.flush()
        record = driver.start(program.program, memory).wait(timeout)
        memory.invalidate()
        return record, memory.array.copy()


def replay_tasks(
    bundle: Bundle, frames: Sequence[RecordedFrame], *, backend: str = "rtl", timeout: float = 3600.0, **options: Any
) -> dict[str, Any]:
    """Run every engine layer of ``frames`` as one chained program on a back end with a clock.

    Args:
        frames: one job each, in order, with their golden traces.
        options: passed on to the back end.

    Returns:
        :func:`describe`, with ``tasks`` (one per job), ``compared`` and ``mismatches`` (integers against golden).
    """
    config = bundle.config
    with ExitStack() as stack:
        device = stack.enter_context(open_device(backend, config.hardware, config.formats, **options))
        driver = stack.enter_context(Driver(device))
        runner = EncoderRunner(stack.enter_context(driver.load(bundle)), timeout=timeout)
        result = runner.replay(frames)
    return {
        "backend": backend,
        "tasks": [frame.task for frame in frames],
        "compared": result.compared,
        "mismatches": result.mismatches,
        **describe(result.record, config.hardware.macs_per_cycle),
    }


def job_rows(result: Mapping[str, Any], macs_per_cycle: int) -> list[tuple[object, ...]]:
    """Rows of a table: task, cycles, milliseconds at the first clock, array share, utilization, boundary idle, bytes
    of the next job that were there when this one ended."""
    rows: list[tuple[object, ...]] = []
    for task, job in zip(result["tasks"], result["jobs"], strict=True):
        cycles = job["cycles"]
        rows.append(
            (
                task, cycles, cycles / CLOCKS_MHZ[0] / 1e3, 100.0 * job["array_cycles"] / cycles,
                100.0 * job["macs"] / (cycles * macs_per_cycle), job["boundary_idle"], job["bytes_ahead"],
            )
        )  # fmt: skip
    return rows


JOB_HEADER = (
    "task", "cycles", f"ms at {CLOCKS_MHZ[0]} MHz", "array busy %", "useful MACs %", "idle at switch", "bytes ahead",
)  # fmt: skip
