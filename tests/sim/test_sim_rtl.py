"""The simulator beside the RTL: the same programs, whose bits are checked too, and cycles within fixed limits."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
from rtl_cases import CASES, LAYERS, Case, build_case

from accel.compiler import Job, Program
from accel.config import NETWORKS, Formats, Hardware, hardware
from accel.errors import DeviceError
from accel.functional import FunctionalEngine
from accel.record import Record
from host.backends.rtl import RtlDevice
from host.backends.rtl_build import build
from host.backends.toolchain import find_toolchain
from host.driver import Driver
from sim.model import Result, simulate
from sim.results import STALLS

pytestmark = pytest.mark.verilator

TOTAL, CAUSE = 0.02, 0.05
"""Of the program's cycles: how far the total and every other counter of cycles may be off."""
ROUNDING = 8
"""Cycles by which counters of very short programs may differ whatever their share."""
CYCLES = (
    *STALLS, "load_only_cycles", "compute_only_cycles", "overlap_cycles", "idle_cycles",
)  # fmt: skip
JOB_CYCLES = ("cycles", "boundary_idle", "layer_idle", "layer_idle_max")
JOB_EQUAL = ("job", "array_cycles", "gate_cycles", "pairs", "experts", "macs")

Open = Callable[[Case], RtlDevice]


@pytest.fixture(scope="module")
def open_device() -> Iterator[Open]:
    """Opens a device for a case; there is one per engine."""
    try:
        find_toolchain()
    except DeviceError as error:
        pytest.skip(str(error))
    devices: dict[Hardware, RtlDevice] = {}

    def open_(case: Case) -> RtlDevice:
        engine = case.hardware
        if engine not in devices:
            library = build(engine, Formats())
            devices[engine] = RtlDevice(engine, Formats(), library=library, max_cycles=2_000_000)
        device = devices[engine]
        device.memory.configure(case.memory)
        return device

    yield open_
    for device in devices.values():
        device.close()


def run_both(case: Case, device: RtlDevice) -> tuple[Record, Result]:
    """The case on the RTL, whose memory is compared byte for byte with the functional engine's, and simulated."""
    program, routing = build_case(case)
    expected = program.memory.copy()
    functional = FunctionalEngine(case.hardware).execute(
        expected, program.program_offset, len(program.commands), program.record_offset
    )
    jobs = tuple(Job("synthetic", job) for job in range(len(case.jobs)))
    with device.allocate(program.arena.bytes) as buffer:
        buffer.array[:] = program.memory
        record = Driver(device).start(Program(program.commands, program.arena, jobs), buffer).wait(600)
        for offset, size in program.outputs:
            np.testing.assert_array_equal(buffer.array[offset : offset + size], expected[offset : offset + size])
    for found, wanted in zip(record.jobs, functional.jobs, strict=True):
        assert found["queue_crc"] == wanted["queue_crc"]
    return record, simulate(program.commands, routing, case.hardware, case.memory)


def _parameters() -> list[object]:
    marks = {False: (), True: (pytest.mark.slow,)}
    return [pytest.param(case, id=case.name, marks=marks[case.slow]) for case in CASES]


@pytest.mark.parametrize("case", _parameters())
def test_counters_agree_with_the_rtl(case: Case, open_device: Open):
    record, result = run_both(case, open_device(case))
    total = record.counters["cycles"]
    assert abs(result.cycles - total) <= TOTAL * total

    def near(found: int, wanted: int) -> bool:
        return abs(found - wanted) <= max(CAUSE * total, ROUNDING)

    off = {name: (result.counters[name], record.counters[name])
           for name in CYCLES if not near(result.counters[name], record.counters[name])}  # fmt: skip
    equal = set(record.counters) - set(CYCLES) - {"cycles"}
    off |= {name: (result.counters[name], record.counters[name])
            for name in equal if result.counters[name] != record.counters[name]}  # fmt: skip
    assert not off
    for found, wanted in zip(result.jobs, record.jobs, strict=True):
        for name in JOB_CYCLES:
            assert near(found[name], wanted[name]), (name, found, wanted)
        for name in JOB_EQUAL:
            assert found[name] == wanted[name], (name, found, wanted)


def test_there_are_enough_cases():
    """Both presets, several latencies, held-back memories, programs of several jobs, every workload's expert layer."""
    assert len(CASES) >= 30
    assert {case.preset for case in CASES} == {"ci", "zcu104"}
    assert {60, 100, 200} <= {case.memory.latency for case in CASES}
    assert sum(case.memory.stall_percent > 0 for case in CASES) >= 3
    assert sum(len(case.jobs) > 1 for case in CASES) >= 5
    built = [layer.layer for case in CASES for names in case.jobs for layer, _ in
             (LAYERS[name](case.hardware, 0) for name in names if name.endswith(".moe"))]  # fmt: skip
    sizes = {(found.tokens, found.inputs, found.hidden, found.experts, found.top_k) for found in built}
    for net in NETWORKS.values():
        assert (net.tokens, net.embed_dim, net.expert_hidden, net.experts, net.top_k) in sizes, net.name


def test_a_program_of_end_alone(open_device: Open):
    """Fetch and record alone."""
    from accel.compiler import identify_program

    case = CASES[0]
    device = open_device(case)
    program = identify_program()
    with device.allocate(program.arena.bytes) as buffer:
        buffer.array[program.arena.offsets["program"] :][: len(program.image)] = np.frombuffer(program.image, np.uint8)
        record = Driver(device).start(program, buffer).wait(60)
    result = simulate(program.commands, {}, hardware(case.preset), case.memory)
    assert abs(result.cycles - record.counters["cycles"]) <= 3
