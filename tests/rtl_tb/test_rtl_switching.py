"""Task switching costs nothing, measured: jobs of one task (A A A A) against jobs of two tasks in turn (A B A B).

Task B has gate tables of its own, which route the same way, and weights of its own at other addresses. All queues are
therefore equal (so are their CRCs), and a program that switches tasks must take the very cycles of one that does not.
What it would cost without prefetch across jobs is shown beside it: with a BARRIER between jobs, and with NO_PREFETCH.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import pytest
from engine_backends import rtl_bench
from engine_programs import MODELS, EngineBench, layer_of, tile_count
from small_programs import output_values

from accel import pack
from accel.commands import Command, Flag
from accel.config import hardware
from accel.layers import Kind
from accel.limits import KINDS
from accel.memory_model import MemoryModel
from accel.record import JOB, Record
from accel.routing import Schedule
from accel.synthetic import (
    SyntheticLayer,
    SyntheticProgram,
    Weights,
    build_program,
    random_weights,
    routing_of_loads,
    skewed_loads,
    synthetic_layer,
)
from host.backends.rtl_library import EVENT_KINDS
from rtl_tb.engine_cases import dense

pytestmark = pytest.mark.verilator
CI = hardware("ci")
TOKENS, WIDTH, HIDDEN, EXPERTS, TOP_K = 65, 64, 128, 8, 2
Job = list[SyntheticLayer]

SAME = tuple(slot.name for slot in JOB)
LEAST_BUSY = 0.85
"""Share of cycles in which the array must be busy in A A A A on ``ci``, whose layers are small: 65 tokens of 64
channels, two weight slots. ``zcu104`` has its own figures for layers of real size (benchmarks)."""
BOUNDARY_SLACK = 8
"""Idle cycles that a boundary between jobs may take more than one between layers within a job."""


@pytest.fixture(scope="module")
def bench(tools) -> Iterator[EngineBench]:
    yield from rtl_bench("ci")


def task_a(schedule: Schedule = Schedule.INDEX, seed: int = 10) -> Job:
    """Two blocks of a frame of m3vit-demo, a dense one and one with experts whose queues differ as trained ones do."""
    loads = skewed_loads(EXPERTS, TOKENS, TOP_K)
    chosen = routing_of_loads(loads, TOKENS, TOP_K, seed)
    qkv = dense(Kind.LINEAR, TOKENS, WIDTH, 3 * WIDTH, CI, seed, flags=Flag.NARROW)
    proj = dense(Kind.ACCUMULATE, TOKENS, WIDTH, WIDTH, CI, seed + 1)
    mlp = dense(Kind.MLP, TOKENS, WIDTH, WIDTH, CI, seed + 2, hidden=HIDDEN, units=2)
    moe = synthetic_layer(
        Kind.MOE, TOKENS, WIDTH, WIDTH, CI, seed + 3, hidden=HIDDEN, experts=EXPERTS, top_k=TOP_K, chosen=chosen,
        gates=2, schedule=schedule,
    )  # fmt: skip
    return [qkv, proj, mlp, qkv, proj, moe]


def task_b(job: Job) -> Job:
    """The same inputs through other weights at other addresses, and other gate tables that route equally."""
    other: dict[int, Weights] = {}
    result = []
    for item in job:
        if id(item.weights) not in other:
            gates = len(item.weights.gates) or 1
            other[id(item.weights)] = random_weights(item.layer, 99 + len(other), gates=gates)
        gate = 1 if item.layer.kind is Kind.MOE else 0
        result.append(dataclasses.replace(item, weights=other[id(item.weights)], gate=gate))
    return result


def programs(schedule: Schedule = Schedule.INDEX) -> dict[str, SyntheticProgram]:
    a = task_a(schedule)
    b = task_b(a)
    return {
        "AAAA": build_program([a, a, a, a], CI),
        "ABAB": build_program([a, b, a, b], CI),
        "barrier": build_program([a, b, a, b], CI, barrier_between_jobs=True),
        "no prefetch": build_program([a, b, a, b], CI, prefetch_across_jobs=False),
    }


def show(name: str, record: Record) -> None:
    jobs = ", ".join(f"{job['boundary_idle']} ({job['bytes_ahead'] / 1024:g} KiB ahead)" for job in record.jobs[:-1])
    print(f"{name:12} {record.counters['cycles']:7} cycles; idle between jobs: {jobs}; between layers: "
          f"{[job['layer_idle_max'] for job in record.jobs]} at most")  # fmt: skip


@pytest.mark.parametrize("model", ["default", "held", "far", "choppy", "ideal"])
def test_switching_tasks_takes_no_cycle(bench, model: str) -> None:
    found = programs()
    same, switching = (bench.run(found[name], MODELS[model]) for name in ("AAAA", "ABAB"))
    if model == "default":
        show("A A A A", same)
        show("A B A B", switching)
    crc = same.jobs[0]["queue_crc"]
    assert crc and [job["queue_crc"] for job in same.jobs] == [crc] * 4
    assert same.counters == switching.counters, "every counter, cycles and stalls included"
    for one, other in zip(same.jobs, switching.jobs, strict=True):
        assert {name: one[name] for name in SAME} == {name: other[name] for name in SAME}


def test_the_tasks_differ() -> None:
    """The comparison above would say nothing if both programs read the same bytes."""
    found = programs()
    jobs = [[c for c in found["ABAB"].commands if c.opcode in KINDS and c.job == job] for job in range(4)]
    for one, other in zip(jobs[0], jobs[1], strict=True):
        assert one.weights != other.weights and (one.gate != other.gate or not one.gate)
        size = layer_of(one, CI).expert_bytes
        memory = found["ABAB"].memory
        assert (memory[one.weights :][:size] != memory[other.weights :][:size]).any()
    assert [c.weights for c in jobs[0]] == [c.weights for c in jobs[2]]
    gates = {c.gate for c in jobs[0] + jobs[1] if c.gate}
    assert len(gates) == 2


def test_a_boundary_between_jobs_is_one_between_layers(bench) -> None:
    """The array is idle between jobs for no longer than between the same two layers within a job."""
    a = task_a()
    b = task_b(a)
    bench.use(MODELS["default"])
    apart = bench.run(build_program([a, b, a, b], CI))
    together = bench.run(build_program([[*a, *b, *a, *b]], CI))
    between_jobs = sum(job["boundary_idle"] for job in apart.jobs)
    within_jobs = sum(job["layer_idle"] for job in apart.jobs)
    assert abs(within_jobs + between_jobs - together.jobs[0]["layer_idle"]) <= 3 * BOUNDARY_SLACK
    for job in apart.jobs[:-1]:
        assert job["boundary_idle"] <= job["layer_idle_max"] + BOUNDARY_SLACK
        # At most a unit's slot can be full or filling with the next task's weights while the last of this one computes.
        assert job["bytes_ahead"] >= a[0].layer.unit_bytes


@pytest.mark.parametrize("name", ["ABAB", "barrier"])
def test_counters_agree_with_the_log(bench, name: str) -> None:
    """Boundaries measured a second time, without the engine's counters: from when beats were sent and stripes came."""
    program = programs()[name]
    found = bench.execute(program, MODELS["default"])
    record = bench.compare(program, found)
    kinds = {kind: found.events[found.events["kind"] == EVENT_KINDS.index(kind)] for kind in EVENT_KINDS}
    layers = [command for command in program.commands if command.opcode in KINDS]
    first, last = (kinds[kind]["cycle"].astype(int) for kind in ("layer_first", "layer_last"))
    assert len(first) == len(last) == len(layers)
    idle = first[1:] - last[:-1] - 1
    ends = [index for index, (one, two) in enumerate(zip(layers, layers[1:], strict=False)) if one.job != two.job]
    assert [job["boundary_idle"] for job in record.jobs] == [*idle[ends], 0]
    for job, entry in enumerate(record.jobs):
        inside = [gap for index, gap in enumerate(idle) if layers[index].job == layers[index + 1].job == job]
        assert (entry["layer_idle"], entry["layer_idle_max"]) == (sum(inside), max(inside))
    # Stripes of the second job that had come before the first's last beat. The engine counts them as it takes them out
    # of its read buffers; the log, a little earlier, as they arrive there.
    own = [command for command in layers if command.job == 1]
    regions = [(command.input, _input_bytes(command)) for command in own]
    regions += [(command.weights, layer_of(command, CI).expert_bytes) for command in own]
    regions += [(command.residual, 2 * _input_bytes(command)) for command in own if command.residual]
    reads = kinds["read_last"]
    came = reads[reads["cycle"] <= last[ends[0]]]["address"].astype(int)
    arrived = sum(int(((came >= low) & (came < low + size)).sum()) for low, size in regions) * CI.burst_bytes
    assert 0 <= arrived - record.jobs[0]["bytes_ahead"] <= CI.outstanding * CI.stripe_bytes


def _input_bytes(command: Command) -> int:
    return pack.token_bytes(command.tokens, command.inputs, 1, CI)


def least_cycles(jobs: Sequence[Job]) -> int:
    """Cycles that the array needs for these layers if it never waits."""
    total = 0
    for item in (item for job in jobs for item in job):
        layer = item.layer
        tiles = tile_count(layer.tokens, CI)
        if layer.kind is Kind.MOE:
            assert layer.gate is not None and layer.first is not None
            loads = skewed_loads(EXPERTS, TOKENS, TOP_K)
            per_unit = layer.first.rows + layer.second.rows
            total += tiles * layer.gate.rows + sum(tile_count(load, CI) for load in loads) * layer.units * per_unit
        elif layer.first is not None:
            total += tiles * layer.units * (layer.first.rows + layer.second.rows)
        else:
            total += tiles * layer.units * layer.second.rows
    return total


def test_neither_program_is_slow(bench) -> None:
    """Equal cycles would be worth nothing if both were slow: the array is busy, measured against what it must do."""
    a = task_a()
    record = bench.run(programs()["AAAA"], MODELS["default"])
    busy = least_cycles([a] * 4)
    assert record.counters["array_cycles"] == busy
    print(f"array busy in {busy / record.counters['cycles']:.1%} of {record.counters['cycles']} cycles")
    cold = record.jobs[0]["cycles"] - record.jobs[1]["cycles"]
    assert record.counters["cycles"] <= busy / LEAST_BUSY + max(0, cold) + MODELS["default"].latency


@pytest.mark.parametrize("control", ["barrier", "no prefetch"])
def test_without_prefetch_a_switch_costs_cycles(bench, control: str) -> None:
    """Negative controls: the measurement does see what a switch costs where it costs something."""
    found = programs()
    good, bad = (bench.run(found[name], MODELS["default"]) for name in ("ABAB", control))
    show(control, bad)
    for one, other in zip(good.jobs[:-1], bad.jobs[:-1], strict=True):
        assert other["boundary_idle"] > one["boundary_idle"] + BOUNDARY_SLACK
    assert bad.counters["cycles"] > good.counters["cycles"]
    if control == "barrier":
        assert all(job["bytes_ahead"] == 0 for job in bad.jobs)


@pytest.mark.parametrize("switching", [False, True])
def test_order_of_experts_changes_no_bit(bench, switching: bool) -> None:
    """INDEX, LONGEST_FIRST and RESIDENT_FIRST: other orders, other cycles, the same bytes."""
    outputs = []
    for order in Schedule:
        program = programs(order)["ABAB" if switching else "AAAA"]
        found = bench.execute(program, MemoryModel())
        bench.compare(program, found)
        outputs.append([output_values(program, found.memory, index, CI) for index in range(len(program.outputs))])
    for other in outputs[1:]:
        for one, two in zip(outputs[0], other, strict=True):
            assert (one == two).all()
