"""What a simulation tells: the record's counters under their own names, and where the cycles went, layer by layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from accel.commands import COMMAND_BYTES
from accel.config import Hardware
from accel.memory_model import MemoryModel
from accel.record import COUNTERS, JOB
from sim.machine import Machine
from sim.state import DRAIN, INPUT, ROUTE, STORE, WEIGHTS, Entry

STALLS = {
    "stall_weights_cycles": WEIGHTS,
    "stall_input_cycles": INPUT,
    "stall_route_cycles": ROUTE,
    "stall_drain_cycles": DRAIN,
    "stall_store_cycles": STORE,
}
"""Counters of stalls, in the order of the record."""


@dataclass(frozen=True)
class LayerResult:
    """One layer command. Cycles of a program are those of its layers plus ``drain`` of the whole.

    Attributes:
        job, layer: as the command names them.
        kind, name: what it is; the name comes from the workload, if there is one.
        cycles: from the last beat of the layer before (start, for the first) to its own last beat.
        first_beat, last_beat, retired: cycles since the start.
        ideal: cycles at the peak of the array: multiply-accumulates over macs_per_cycle.
        array_cycles, gate_cycles: array busy.
        stalls: by counter name.
        idle: neither busy nor a stall: nothing was to do, or fill before the first layer.
        weight_bytes, read_bytes, written_bytes: bytes of memory that it moved.
        experts, loads: non-empty experts; tokens of each.
        order: experts in the order of use, and whether they were on chip.
        entry: number of the command among those in flight, JOB_ENDs included.
    """

    job: int
    layer: int
    kind: str
    name: str
    cycles: float
    first_beat: float
    last_beat: float
    retired: float
    ideal: float
    array_cycles: int
    gate_cycles: int
    stalls: dict[str, float]
    idle: float
    weight_bytes: int
    read_bytes: int
    written_bytes: int
    experts: int
    loads: tuple[int, ...] = ()
    order: tuple[tuple[int, bool], ...] = ()
    entry: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Plain dictionary, ready for JSON; cycles are rounded."""
        exact = ("job", "layer", "name", "kind", "array_cycles", "gate_cycles", "weight_bytes", "read_bytes",
                 "written_bytes", "experts")  # fmt: skip
        data = {name: getattr(self, name) for name in exact}
        for name in ("cycles", "first_beat", "last_beat", "retired", "ideal", "idle"):
            data[name] = round(getattr(self, name))
        data["stalls"] = {name: round(value) for name, value in self.stalls.items()}
        return data


@dataclass(frozen=True)
class Result:
    """A simulated program.

    Attributes:
        cycles: as the record counts them.
        counters, jobs: the record's, by the names of ``accel.record``; ``queue_crc`` needs weights and is 0.
        layers: in the order of the commands.
        breakdown: addable: ideal, padding, the five stalls, fill, idle, drain; their sum is ``cycles``.
        roofline_cycles: least that peak arithmetic and peak memory allow: the larger of ``compute_bound`` and
            ``memory_bound``.
        loading: units of weights wanted, those that were on chip then, experts guessed before a gate decided, those of
            them that got no token, bytes read for these.
        spans: (begin, end) of loads, passes and stores, if a timeline was asked for.
    """

    hardware: Hardware
    memory: MemoryModel
    cycles: int
    counters: dict[str, int]
    jobs: list[dict[str, int]]
    layers: list[LayerResult]
    breakdown: dict[str, int]
    compute_bound: float
    memory_bound: float
    loading: dict[str, int] = field(default_factory=dict)
    spans: dict[str, list[tuple[float, float, int, int, int]]] = field(default_factory=dict, repr=False)

    @property
    def milliseconds(self) -> float:
        return self.cycles / self.hardware.clock_mhz / 1000

    @property
    def utilization(self) -> float:
        """Useful multiply-accumulates over what the array could have done."""
        return self.counters["macs"] / (self.cycles * self.hardware.macs_per_cycle) if self.cycles else 0.0

    @property
    def roofline_cycles(self) -> float:
        return max(self.compute_bound, self.memory_bound)

    @property
    def ddr_bytes(self) -> int:
        return self.counters["bytes_read"] + self.counters["bytes_written"]

    def to_dict(self) -> dict[str, Any]:
        """Plain dictionary, ready for JSON."""
        return {
            "cycles": self.cycles,
            "milliseconds": self.milliseconds,
            "clock_mhz": self.hardware.clock_mhz,
            "utilization": self.utilization,
            "roofline_cycles": round(self.roofline_cycles),
            "compute_bound_cycles": round(self.compute_bound),
            "memory_bound_cycles": round(self.memory_bound),
            "ddr_bytes": self.ddr_bytes,
            "breakdown": self.breakdown,
            "loading": self.loading,
            "counters": self.counters,
            "jobs": self.jobs,
            "per_layer": [layer.to_dict() for layer in self.layers],
        }


def _overlap(machine: Machine) -> tuple[float, float]:
    """Cycles with a read burst in flight, and those of them in which the array was busy."""
    if not machine.reading:
        return 0.0, 0.0
    reading = np.minimum(np.asarray(machine.reading), machine.last_event)
    edges = reading.reshape(-1)
    # Cycles of reading up to each begin and end of it; between them it grows by one per cycle, or not at all.
    covered = np.repeat(np.cumsum(reading[:, 1] - reading[:, 0]), 2)
    covered[0::2] -= reading[:, 1] - reading[:, 0]
    # Leaps: what reading did in the cycles before stands for what it did in those that were passed over.
    leaps = np.array([(leap.time, leap.span, leap.cycles, leap.busy) for leap in machine.leaps]).reshape(-1, 4)
    time, span, cycles, busy_share = leaps.T

    def covers(times: NDArray[Any]) -> NDArray[Any]:
        return np.interp(times, edges, covered)

    passed_over = (covers(time) - covers(time - span)) * cycles / span
    total = float(covered[-1] + passed_over.sum())
    if not machine.busy:
        return total, 0.0
    begin, end, beats = np.asarray(machine.busy).T
    inside = (covers(end) - covers(begin)) * beats / (end - begin)
    return total, float(inside.sum() + (passed_over * busy_share).sum())


def collect(machine: Machine, names: Sequence[str] = ()) -> Result:
    """Results of a machine that has run. ``names``: of the layers of a job."""
    hw, memory = machine.hw, machine.memory
    stripe = hw.stripe_bytes
    layers: list[LayerResult] = []
    before = 0.0
    totals = dict.fromkeys((slot.name for slot in COUNTERS), 0)
    stalls = dict.fromkeys(STALLS, 0.0)
    by_job: dict[int, list[Entry]] = {}
    for entry in machine.entries:
        shape = entry.shape
        if shape is None:
            continue
        by_job.setdefault(entry.job, []).append(entry)
        here = {name: entry.stalls[cause] for name, cause in STALLS.items()}
        for name, value in here.items():
            stalls[name] += value
        cycles = entry.last_beat + 1 - before
        before = entry.last_beat + 1
        rows = (shape.input_stripes + shape.residual_stripes) * stripe
        number = entry.command.layer
        name = names[number] if number < len(names) else f"layer {number}"
        layers.append(
            LayerResult(
                entry.command.job, number, shape.kind.value, name, cycles,
                entry.first_beat, entry.last_beat, entry.retired, shape.macs / hw.macs_per_cycle,
                entry.array_beats, entry.gate_beats, here, cycles - entry.array_beats - sum(here.values()),
                entry.loaded * stripe, entry.loaded * stripe + rows, shape.output_stripes * stripe, entry.experts,
                tuple(entry.loads), tuple((expert, there) for expert, _, _, there in entry.orders),
                entry.index,
            )
        )  # fmt: skip
        totals["array_cycles"] += entry.array_beats
        totals["gate_cycles"] += entry.gate_beats
        totals["weight_bytes"] += entry.loaded * stripe
        totals["bytes_read"] += entry.loaded * stripe + rows
        totals["bytes_written"] += shape.output_stripes * stripe
        totals["pairs"] += shape.pairs
        totals["experts"] += entry.experts
        totals["units"] += entry.experts * shape.units
        totals["macs"] += shape.macs
    totals["bytes_read"] += COMMAND_BYTES * len(machine.commands)
    cycles = round(machine.end_time)
    for name, value in stalls.items():
        totals[name] = round(value)
    reading, overlap = _overlap(machine)
    totals["cycles"] = cycles
    totals["overlap_cycles"] = min(round(overlap), totals["array_cycles"])
    totals["load_only_cycles"] = max(0, round(reading - overlap))
    totals["compute_only_cycles"] = totals["array_cycles"] - totals["overlap_cycles"]
    totals["idle_cycles"] = (
        cycles - totals["overlap_cycles"] - totals["load_only_cycles"] - totals["compute_only_cycles"]
    )
    ideal = totals["macs"] / hw.macs_per_cycle
    breakdown = {"ideal": round(ideal), "padding": totals["array_cycles"] - round(ideal)}
    breakdown |= {name: totals[name] for name in STALLS}
    fill = round(layers[0].idle) if layers else 0
    drain = cycles - round(before)
    breakdown |= {"fill": fill, "idle": 0, "drain": drain}
    breakdown["idle"] = max(0, cycles - sum(breakdown.values()))
    breakdown["drain"] += cycles - sum(breakdown.values())  # every part is rounded by itself
    jobs = _jobs(machine, by_job)
    spans = {"load": machine.loads, "compute": machine.passes,
             "store": [(begin, end, entry, 0, 0) for begin, end, entry in machine.stores]}  # fmt: skip
    loading = {
        "units_wanted": totals["units"] + sum(1 for layer in layers if layer.kind == "moe"),  # and gate tables
        "units_on_chip": machine.reused_units,
        "guesses": machine.guesses,
        "wrong_guesses": machine.wrong_guesses,
        "wasted_bytes": machine.wasted_stripes * stripe,
    }
    moved = totals["bytes_read"] + totals["bytes_written"]
    return Result(
        hw, memory, cycles, totals, jobs, layers, breakdown, ideal, moved / memory.bytes_per_cycle, loading,
        spans if machine.timeline else {},
    )  # fmt: skip


def _jobs(machine: Machine, by_job: dict[int, list[Entry]]) -> list[dict[str, int]]:
    jobs = []
    before = 1.0
    ends = [entry for entry in machine.entries if entry.is_job_end]
    for position, end in enumerate(ends):
        entries = by_job.get(end.job, [])
        job = dict.fromkeys((slot.name for slot in JOB), 0)
        job["job"] = end.command.job
        job["cycles"] = round(end.retired - before)
        before = end.retired
        last = position == len(ends) - 1
        if not last and entries and end.job + 1 in machine.job_first_beat:
            job["boundary_idle"] = round(machine.job_first_beat[end.job + 1] - machine.job_last_beat[end.job] - 1)
            job["bytes_ahead"] = machine.ahead.get(end.job, 0) * machine.hw.stripe_bytes
        gaps = machine.job_idle.get(end.job, [])
        job["layer_idle"] = round(sum(gaps))
        job["layer_idle_max"] = round(max(gaps, default=0.0))
        for entry in entries:
            shape = entry.shape
            assert shape is not None
            job["array_cycles"] += entry.array_beats
            job["gate_cycles"] += entry.gate_beats
            job["pairs"] += shape.pairs
            job["experts"] += entry.experts
            job["macs"] += shape.macs
        jobs.append(job)
    return jobs
