"""The RTL alone: back-pressure on every channel, resets in the middle of bursts, auto-restart, and the bench that
compares. What every engine must compute is in tests/engines."""

from __future__ import annotations

import random
from collections.abc import Iterator

import numpy as np
import pytest
from engine_backends import rtl_bench
from engine_programs import (
    BUS_EVENTS,
    DONE,
    IDLE,
    MODELS,
    START,
    EngineBench,
    held_back,
)
from small_programs import every_kind

from accel.config import hardware
from accel.errors import DeviceError
from accel.memory_model import CHANNELS, MemoryModel
from accel.record import ErrorCode, Record
from accel.registers import mask
from host.backends.rtl import RtlDevice
from host.device import Reg

pytestmark = pytest.mark.verilator
CI = hardware("ci")


@pytest.fixture(scope="module")
def bench(tools) -> Iterator[EngineBench]:
    yield from rtl_bench("ci")


# ---- back-pressure


HELD_BACK = [
    (channel, ports)
    for channel in CHANNELS
    for used in [CI.ports if channel in ("ar", "r") else CI.write_ports]
    for ports in [tuple(range(used)), *((port,) for port in range(used))]
]


@pytest.mark.parametrize(("channel", "ports"), HELD_BACK, ids=str)
def test_back_pressure_on_one_channel(bench, channel: str, ports: tuple[int, ...]) -> None:
    program = every_kind(CI)
    for percent, run in ((50, 1), (80, 3), (60, 90)):
        bench.run(program, held_back([channel], ports, stall_percent=percent, stall_run=run, stall_seed=percent))


def test_back_pressure_everywhere(bench) -> None:
    program = every_kind(CI)
    for seed in range(6):
        bench.run(program, MemoryModel(stall_percent=30 + 10 * seed, stall_run=1 + 3 * seed, stall_seed=seed))


# ---- one program after the other


def test_auto_restart(bench) -> None:
    """The program runs again and again until the bit is cleared; every run writes its record."""
    program, device = every_kind(CI, 5), bench.device
    expected = bench.expect(program).memory
    buffer, offset = bench.place(program)
    low, high = offset + program.record_offset, offset + program.record_offset + program.arena.sizes["record"]
    restart = mask("AP_CTRL", "auto_restart")
    with buffer:
        bench.start(program, buffer.device_address + offset, START | restart)
        for run in range(4):
            if run == 3:
                device.write_register(Reg.AP_CTRL, 0)  # the run that has begun is the last
            while not device.wait_interrupt(1.0):
                pass
            device.write_register(Reg.ISR, mask("ISR", "done"))
            record = Record.decode(buffer.array[low:high].tobytes())
            assert record.error is ErrorCode.NONE and len(record.jobs) == 2
            buffer.array[low:high] = 0
        assert device.read_register(Reg.AP_CTRL) & (DONE | IDLE | START | restart) == DONE | IDLE
        assert not device.wait_interrupt(0.05), "it has stopped"
        assert not buffer.array[low:high].any()
        assert (buffer.array[offset:low] == expected[: program.record_offset]).all()


# ---- reset


@pytest.mark.parametrize("model", ["default", "choppy", "far"])
def test_reset_at_any_moment(bench, model: str) -> None:
    """In the middle of bursts: the next run is correct and takes the cycles that it takes on a fresh engine."""
    program = every_kind(CI, 6)
    cycles = bench.run(program, MODELS[model]).counters["cycles"]
    draw, device = random.Random(model), bench.device
    assert isinstance(device, RtlDevice)
    in_burst = 0
    for _ in range(25):
        buffer, offset = bench.place(program)
        with buffer:
            device.memory.log()
            bench.start(program, buffer.device_address + offset)
            device._library.board_idle(device._board, draw.randrange(cycles))
            counts = np.bincount(device.memory.events()["kind"], minlength=len(BUS_EVENTS))
            in_burst += counts[0] != counts[1] or counts[2] != counts[3]
            device.memory.log(False)
            device.reset()
        assert device.read_register(Reg.AP_CTRL) == IDLE
        assert bench.run(program).counters["cycles"] == cycles
    assert in_burst > 10, "most resets found bursts in flight"


# ---- the bench itself


def test_differences_are_found(bench) -> None:
    """The comparison would fail if a byte, a counter or a job's entry were wrong, or if nothing was compared."""
    program = every_kind(CI, 7)
    found = bench.execute(program, MODELS["default"])
    bench.compare(program, found)
    places = [program.outputs[0][0], program.outputs[-1][0] + 5, 17, program.arena.offsets["program"]]
    for place in places:
        found.memory[place] ^= 1
        with pytest.raises(AssertionError, match=f"1 bytes differ, first at {place:#x}"):
            bench.compare(program, found)
        found.memory[place] ^= 1
    counters, jobs = found.record.counters, found.record.jobs
    for table, name in (
        (counters, "pairs"), (counters, "array_cycles"), (counters, "idle_cycles"), (jobs[1], "queue_crc"),
        (jobs[0], "gate_cycles"), (found.record.header, "commands"),
    ):  # fmt: skip
        table[name] += 1
        with pytest.raises(AssertionError):
            bench.compare(program, found)
        table[name] -= 1
    found.around[0] = 1
    with pytest.raises(AssertionError, match="outside the arena"):
        bench.compare(program, found)


def test_a_broken_device_is_replaced(bench) -> None:
    assert isinstance(bench.device, RtlDevice)
    broken = bench.device
    bench.device.memory.freeze()
    bench.device._max_cycles = 5000
    with pytest.raises(DeviceError, match="within 5000 cycles"):
        bench.run(every_kind(CI, 9))
    assert bench.device is not broken
    bench.run(every_kind(CI, 9))
