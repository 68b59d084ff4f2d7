"""Counters of bytes, tokens, experts, units and MACs, of the program and of every job: the HLS engine's equal the
RTL's, read from both engines' records of the same programs."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from engine_backends import hls_bench, rtl_bench
from engine_programs import EngineBench
from small_programs import every_kind

from accel.config import hardware
from accel.record import COUNTERS, JOB, Record
from accel.routing import Schedule
from accel.synthetic import SyntheticProgram, build_program
from rtl_tb.engine_cases import CASES, moe, random_program

pytestmark = pytest.mark.verilator
CI = hardware("ci")
TIMED = ("cycles", "idle", "_ahead")
"""Endings of the names of counters that depend on time: the RTL's alone."""


def untimed(names: list[str]) -> list[str]:
    return [name for name in names if not name.endswith((*TIMED, "layer_idle_max")) and not name.startswith("stall_")]


PROGRAM_COUNTERS = untimed([slot.name for slot in COUNTERS])
JOB_COUNTERS = untimed([slot.name for slot in JOB])


def residents(seed: int) -> SyntheticProgram:
    """Layers that find some of their experts on chip: fewer bytes are read, equally many on both engines."""
    layers = [moe([9, 5, 4], 9, 2, CI, seed=seed + index, schedule=Schedule.RESIDENT_FIRST) for index in range(4)]
    for item in layers:
        item.weights = layers[0].weights
    return build_program([layers[:2], layers[2:]], CI)


def programs() -> dict[str, Callable[[], SyntheticProgram]]:
    found: dict[str, Callable[[], SyntheticProgram]] = {}
    for name, make in CASES.items():
        found[name] = lambda make=make: make(CI)
    for seed in range(30):
        found[f"random {seed}"] = lambda seed=seed: random_program(3000 + seed, CI)
    for seed in range(3):
        found[f"residents {seed}"] = lambda seed=seed: residents(seed)
        found[f"every kind {seed}"] = lambda seed=seed: every_kind(CI, seed)
    return found


@pytest.fixture(scope="module")
def rtl() -> Iterator[EngineBench]:
    yield from rtl_bench("ci")


@pytest.fixture(scope="module")
def hls() -> Iterator[EngineBench]:
    yield from hls_bench("ci")


def counted(record: Record) -> dict[str, object]:
    """What a record counts and does not depend on time; of the header all but the build's own hash."""
    return {
        "header": {name: value for name, value in record.header.items() if name != "build_hash"},
        "program": {name: record.counters[name] for name in PROGRAM_COUNTERS},
        "jobs": [{name: job[name] for name in JOB_COUNTERS} for job in record.jobs],
    }


def test_what_is_compared() -> None:
    assert PROGRAM_COUNTERS == ["bytes_read", "bytes_written", "weight_bytes", "pairs", "experts", "units", "macs"]
    assert JOB_COUNTERS == ["job", "pairs", "experts", "macs", "queue_crc"]


def test_counters_of_both_engines_are_equal(rtl, hls) -> None:
    """Whatever the program, at every counter; nothing is compared with what the functional engine counts."""
    total = jobs = 0
    for name, make in programs().items():
        program = make()
        records = [counted(bench.run(program)) for bench in (rtl, hls)]
        assert records[0] == records[1], name
        total += records[0]["program"]["pairs"]  # type: ignore[index]
        jobs += len(records[0]["jobs"])  # type: ignore[arg-type]
    print(f"{len(programs())} programs, {jobs} jobs, {total:,} pairs of token and expert: equal counters")
    assert total > 10_000 and jobs > 100
