"""The driver on the simulated engine in SystemVerilog: same bits, registers and errors as on the golden back end."""

from __future__ import annotations

import dataclasses
import json
import os
import zlib
from collections.abc import Iterator

import numpy as np
import pytest
from every_backend import TESTS
from test_host_driver import qkv_program
from test_host_registers import finish, place_identify

from accel.commands import Flag, Opcode
from accel.compiler import Program, RecordedFrame
from accel.config import Formats, hardware
from accel.errors import DeviceError, DeviceTimeout
from accel.functional import FunctionalEngine
from accel.golden import GoldenEngine, run_frame
from accel.layers import Kind
from accel.memory_model import IDEAL, MemoryModel
from accel.record import ErrorCode, Record
from accel.routing import Schedule
from accel.synthetic import SyntheticProgram, build_program, synthetic_layer
from cli.main import main
from host import simulated
from host.backends import open_device
from host.backends.plain_memory import BASE
from host.backends.rtl import RtlDevice
from host.backends.rtl_build import ROOT, build
from host.backends.toolchain import find_toolchain
from host.device import Reg
from host.driver import Driver
from host.runner import EncoderRunner

pytestmark = pytest.mark.verilator

CI = hardware("ci")
START = 1
COVERAGE = os.environ.get("M3VIT_RTL_COVERAGE") == "1"
FUNCTIONAL = ("bytes_read", "bytes_written", "weight_bytes", "pairs", "experts", "units", "macs")
CYCLES = ("load_only_cycles", "compute_only_cycles", "overlap_cycles", "idle_cycles")


@pytest.fixture(scope="session")
def library():
    try:
        find_toolchain()
    except DeviceError as error:
        pytest.skip(str(error))
    return build(CI, Formats(), assertions=True, coverage=COVERAGE)


@pytest.fixture
def device(library, request) -> Iterator[RtlDevice]:
    with RtlDevice(CI, Formats(), library=library, memory_bytes=64 << 20, max_cycles=2_000_000) as opened:
        yield opened
        if COVERAGE:
            folder = ROOT / "build" / "rtl_tb" / f"host-{zlib.crc32(request.node.name.encode()):08x}-coverage"
            folder.mkdir(parents=True, exist_ok=True)
            opened.write_coverage(folder / "coverage.dat")


@pytest.fixture
def driver(device) -> Iterator[Driver]:
    with Driver(device) as opened:
        yield opened


# Collected here once more, they run with the fixtures above.
globals().update(TESTS)


def run_synthetic(driver: Driver, synthetic: SyntheticProgram) -> Record:
    """Run a program; every byte of its arena, and what needs no clock in its record, must be as golden says."""
    record, found = simulated.run_synthetic(driver, synthetic, 120)
    expected = synthetic.memory.copy()
    FunctionalEngine(driver.device.hardware).execute(
        expected, synthetic.program_offset, len(synthetic.commands), synthetic.record_offset
    )
    golden = Record.decode(expected[synthetic.record_offset :].tobytes())
    end = synthetic.record_offset + synthetic.arena.sizes["record"]
    for part in (slice(0, synthetic.record_offset), slice(end, None)):
        different = np.flatnonzero(found[part] != expected[part])
        assert not len(different), f"{len(different)} bytes differ, the first at {different[0]:#x}"
    assert record.header == golden.header
    assert {name: record.counters[name] for name in FUNCTIONAL} == {name: golden.counters[name] for name in FUNCTIONAL}
    assert sum(record.counters[name] for name in CYCLES) == record.counters["cycles"] > 0
    names = ("job", "pairs", "experts", "macs", "queue_crc")
    assert [[job[name] for name in names] for job in record.jobs] == [
        [job[name] for name in names] for job in golden.jobs
    ]
    return record


LAYERS = {
    "linear": lambda seed: synthetic_layer(Kind.LINEAR, 13, 64, 40, CI, seed),
    "linear, narrow, two units": lambda seed: synthetic_layer(
        Kind.LINEAR, 5, 128, 192, CI, seed, units=2, flags=Flag.NARROW
    ),
    "accumulate": lambda seed: synthetic_layer(Kind.ACCUMULATE, 10, 96, 72, CI, seed),
    "accumulate, wide rows": lambda seed: synthetic_layer(Kind.ACCUMULATE, 9, 768, 64, CI, seed),
    "mlp": lambda seed: synthetic_layer(Kind.MLP, 11, 64, 64, CI, seed, hidden=64, units=3),
    "moe": lambda seed: synthetic_layer(Kind.MOE, 21, 64, 64, CI, seed, hidden=32, experts=8, top_k=2),
    "moe, longest first": lambda seed: synthetic_layer(
        Kind.MOE, 30, 32, 48, CI, seed, hidden=64, units=2, experts=5, top_k=3, schedule=Schedule.LONGEST_FIRST
    ),
    "moe, one token": lambda seed: synthetic_layer(Kind.MOE, 1, 32, 32, CI, seed, hidden=16, experts=20, top_k=1),
}


@pytest.mark.parametrize("name", LAYERS)
def test_every_kind_of_layer(driver, name):
    for seed in range(2):
        run_synthetic(driver, build_program([[LAYERS[name](seed)]], CI))


@pytest.mark.slow
def test_full_size_engine(library):
    """The engine of the ZCU104, built as the command line builds it: layers of the widths of M3ViT-small."""
    full = hardware("zcu104")
    jobs = [
        [
            synthetic_layer(Kind.LINEAR, 65, 384, 1152, full, 1, flags=Flag.NARROW),
            synthetic_layer(Kind.ACCUMULATE, 65, 384, 384, full, 2),
            synthetic_layer(Kind.MOE, 65, 384, 384, full, 3, hidden=384, experts=16, top_k=4),
        ],
        [
            synthetic_layer(Kind.ACCUMULATE, 40, 768, 384, full, 4),
            synthetic_layer(Kind.MLP, 33, 384, 384, full, 5, hidden=384, units=4),
        ],
    ]
    with open_device("rtl", full) as device, Driver(device) as driver:
        run_synthetic(driver, build_program(jobs, full))


@pytest.mark.parametrize(
    "model",
    [
        MemoryModel(),
        IDEAL,
        MemoryModel(latency=200, bytes_per_cycle=16, bucket_bytes=16),
        MemoryModel(stall_percent=30, stall_run=5, stall_seed=1),
        MemoryModel(stall_percent=80, stall_run=2, stall_seed=2, turnaround=3, outstanding=1),
    ],
    ids=["default", "ideal", "slow", "stalls", "hardly any"],
)
def test_all_kinds_in_one_program_whatever_the_memory_does(driver, device, model):
    device.memory.configure(model)
    jobs = [[make(10 * job) for make in list(LAYERS.values())[job::2]] for job in range(2)]
    run_synthetic(driver, build_program(jobs, CI))


def test_a_program_takes_the_same_cycles_every_time(driver, device):
    """Refresh and stalls begin anew with every program. The engine remembers whom it served last, until a reset."""
    synthetic = build_program([[LAYERS["moe"](3), LAYERS["mlp"](4)]], CI)
    device.memory.configure(MemoryModel(stall_percent=10, stall_seed=5))

    def counters(pause: int) -> dict[str, int]:
        device._library.board_idle(device._board, pause)
        return run_synthetic(driver, synthetic).counters

    first, second, third = counters(0), counters(0), counters(1234)
    assert second == third
    driver.reset()
    assert counters(777) == first


@pytest.mark.parametrize("schedule", [Schedule.INDEX, Schedule.RESIDENT_FIRST])
def test_whole_frames_live_and_replayed(driver, bundle, image, schedule):
    tasks = bundle.config.network.task_names[:2]
    golden = [run_frame(bundle.encoder, image, task, GoldenEngine(bundle.encoder), record=True) for task in tasks]
    with driver.load(bundle) as loaded:
        runner = EncoderRunner(loaded, schedule=schedule, routing=True)
        for expected, found in zip(golden, runner.run(image, tasks, record=True), strict=True):
            assert set(found.trace) == set(expected.trace)
            for name, values in expected.trace.items():
                assert (found.trace[name] == values).all(), (found.task, name)
        result = runner.replay([RecordedFrame(item.task, image, item.trace) for item in golden])
        assert result.mismatches == 0 and result.compared > 0


def test_verify_on_the_command_line(bundle, library, monkeypatch, capsys):
    monkeypatch.setattr("host.backends.rtl.build", lambda *_, **__: library)
    arguments = ["--backends", "golden,rtl", "--frames", "1", "--tasks", "edge", "--json"]
    assert main(["verify", str(bundle.path), *arguments]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["per_backend"]["rtl"] == report["per_backend"]["golden"]
    assert report["per_backend"]["rtl"]["compared"] > 1000 and report["mismatches"] == 0


def registers(device, program: Program, addresses: list[int]) -> None:
    """Point the engine at a program without the driver's checks, and start it; ports take turns with the addresses."""
    for port in range(CI.ports):
        device.write_register(Reg.ARENA0_LO + 16 * port, addresses[port % len(addresses)])
    device.write_register(Reg.PROGRAM, program.arena.offsets["program"])
    device.write_register(Reg.COMMANDS, len(program.commands))
    device.write_register(Reg.RECORD, program.arena.offsets["record"])
    device.write_register(Reg.AP_CTRL, START)


@pytest.mark.parametrize(
    "fields",
    [
        {"opcode": Opcode.ATTENTION}, {"weight_source": 1}, {"tokens": 0}, {"inputs": 20}, {"units": 0},
        {"tiles_per_unit": 1}, {"weights": 512}, {"unit_bytes": 1024}, {"hidden": 8},
    ],
    ids=str,
)  # fmt: skip
def test_bad_commands_are_refused_as_golden_refuses_them(driver, bundle, monkeypatch, fields):
    """In the middle of a program: what comes before is complete, and nothing of what follows is written."""
    monkeypatch.setattr("host.driver.check_program", lambda *_: None)
    with driver.load(bundle) as loaded:
        program, expected, output = qkv_program(loaded)
        first, *rest = program.commands
        bad = dataclasses.replace(first, output=first.output + CI.stripe_bytes, **fields)
        whole = Program((first, bad, *rest), program.arena, program.jobs)
        offsets, memory = program.arena.offsets, loaded.memory.array.copy()
        memory[offsets["program"] :][: len(whole.image)] = list(whole.image)
        FunctionalEngine(CI).execute(memory, offsets["program"], len(whole.commands), offsets["record"])
        golden = Record.decode(memory[offsets["record"] :].tobytes())
        run = loaded.start(whole)
        with pytest.raises(DeviceError, match=f"engine error {golden.error.name} at command 1 of 4"):
            run.wait(60)
        assert (loaded.memory.array[: offsets["record"]] == memory[: offsets["record"]]).all()
        found = Record.decode(loaded.memory.array[offsets["record"] :].tobytes())
        for name in ("error", "error_command", "commands", "jobs"):
            assert found.header[name] == golden.header[name], name
        driver.reset()
        loaded.run(program)
        assert (output() == expected).all()


@pytest.mark.parametrize("operand", ["weights", "input"])
def test_read_error_names_the_port_and_needs_a_reset(driver, device, bundle, operand):
    with driver.load(bundle) as loaded:
        program, expected, output = qkv_program(loaded)
        address = loaded.memory.device_address + getattr(program.commands[0], operand)
        # Bursts of the ports lie side by side: this one is port 2's.
        device.inject(reads=[(address + 2 * CI.burst_bytes + 16, address + 2 * CI.burst_bytes + 32)])
        with pytest.raises(DeviceError, match=r"READ at command 0 of 3 \(LINEAR, job 0, layer 0\) detail 2"):
            loaded.run(program)
        device.inject()
        driver.reset()
        loaded.run(program)
        assert (output() == expected).all()


def test_write_error_names_the_port(driver, device, bundle):
    with driver.load(bundle) as loaded:
        program, expected, output = qkv_program(loaded)
        address = loaded.memory.device_address + program.commands[0].output + CI.burst_bytes
        device.inject(writes=[(address, address + 1)])
        with pytest.raises(DeviceError, match=r"WRITE at command 0 of 3 \(LINEAR, job 0, layer 0\) detail 1"):
            loaded.run(program)
        device.inject()
        driver.reset()
        loaded.run(program)
        assert (output() == expected).all()


def test_program_outside_memory(device):
    """Reads answer DECERR; the record, whose place exists, says so."""
    buffer, record = place_identify(device)
    device.write_register(Reg.PROGRAM, device.memory.size)
    device.write_register(Reg.AP_CTRL, START)
    finish(device)
    decoded = Record.decode(buffer.array[record:].tobytes())
    assert decoded.error is ErrorCode.READ and decoded.header["error_command"] == 0


def test_hang_timeout_reset_and_recovery(driver, device, bundle):
    with driver.load(bundle) as loaded:
        program, expected, output = qkv_program(loaded)
        for moment in (0, 60, 400, 900):  # cycles into the program: nothing fetched, loading, computing, storing
            run = loaded.start(program)
            device._library.board_idle(device._board, moment)
            device.memory.freeze()
            with pytest.raises(DeviceTimeout, match=r"within 0\.05 s"):
                run.wait(0.05)
            with pytest.raises(DeviceError, match="busy"):
                loaded.start(program)
            driver.reset()
            with pytest.raises(DeviceError, match="stopped by a reset"):
                run.wait(0.1)
            loaded.write(program.commands[0].output, np.zeros(1024, np.uint8))
            loaded.run(program)
            assert (output() == expected).all()


def test_waiting_again_after_a_timeout(driver, device, bundle):
    with driver.load(bundle) as loaded:
        program, expected, output = qkv_program(loaded)
        device.memory.configure(MemoryModel(latency=100_000))
        run = loaded.start(program)
        with pytest.raises(DeviceTimeout):
            run.wait(0.001)
        run.wait(60)
        assert (output() == expected).all()


def test_reset_clears_registers_but_not_memory(device):
    buffer, _ = place_identify(device)
    before = buffer.array.copy()
    device.memory.freeze()
    device.write_register(Reg.GIER, 1)
    device.write_register(Reg.AP_CTRL, START)
    device.reset()
    assert device.read_register(Reg.AP_CTRL) == 4
    assert device.read_register(Reg.GIER) == device.read_register(Reg.PROGRAM) == 0
    assert (buffer.array == before).all()


def test_cycle_limit(library):
    with RtlDevice(CI, Formats(), library=library, memory_bytes=1 << 20, max_cycles=3000) as device:
        place_identify(device)
        device.memory.freeze()
        device.write_register(Reg.AP_CTRL, START)
        with pytest.raises(DeviceError, match="within 3000 cycles"):
            device.wait_interrupt(60)


def test_refused_commands_that_no_command_object_can_hold(driver, device, bundle):
    """Reserved bits and unknown flags, which the encoder would refuse to write."""
    with driver.load(bundle) as loaded:
        program, _, _ = qkv_program(loaded)
        offset = program.arena.offsets["program"]
        for byte, value in ((1, 0x80), (45, 1), (63, 0x40), (0, 0x7F)):
            image = bytearray(program.image)
            image[byte] |= value
            loaded.write(offset, np.frombuffer(bytes(image), np.uint8))
            loaded.write(program.arena.offsets["record"], np.zeros(256, np.uint8))
            registers(device, program, [loaded.memory.device_address])
            finish(device)
            decoded = Record.decode(loaded.read(program.arena.offsets["record"], 256).tobytes())
            assert (decoded.error, decoded.header["error_command"]) == (ErrorCode.OPCODE, 0), byte
            driver.reset()


def test_ports_may_see_the_arena_at_different_addresses(driver, device, bundle):
    """Every port has an address register of its own: write port 1's output goes to another place here."""
    with driver.load(bundle) as loaded, device.allocate(loaded.memory.size) as other:
        program, expected, _ = qkv_program(loaded)
        other.array[:] = loaded.memory.array
        offset = program.arena.offsets["program"]
        for memory in (loaded.memory, other):
            memory.array[offset : offset + len(program.image)] = list(program.image)
        registers(device, program, [loaded.memory.device_address, other.device_address])
        finish(device)
        start = program.commands[0].output
        parts = [memory.array[start : start + 1024].copy() for memory in (loaded.memory, other)]
        loaded.run(program)
        whole = loaded.memory.array[start : start + 1024]
        for port in range(4):
            span = slice(port * CI.burst_bytes, (port + 1) * CI.burst_bytes)
            assert (parts[port % 2][span] == whole[span]).all()
            assert not parts[1 - port % 2][span].any()


def test_memory_is_limited_given_back_and_zeroed(library):
    with RtlDevice(CI, Formats(), library=library, memory_bytes=16384) as device:
        first, second = device.allocate(8000), device.allocate(4096)
        assert (first.device_address, second.device_address) == (BASE, BASE + 8192)
        with pytest.raises(DeviceError, match="5000 bytes: expected 1 to 4096 bytes"):
            device.allocate(5000)
        first.array[:] = 7
        first.close()
        first.close()
        with device.allocate(100) as third:
            assert third.device_address == BASE and not third.array.any()
        view = second.array
    view[:] = 1  # memory that somebody still looks at outlives the device
    with pytest.raises(DeviceError, match="closed"):
        device.read_register(Reg.AP_CTRL)
    device.close()


def test_open_by_name_with_a_trace(tmp_path, library):
    path = tmp_path / ("wave.fst" if find_toolchain().writes_fst else "wave.vcd")
    with open_device("rtl", CI, trace=path) as device, Driver(device) as driver:
        driver.identify()
    assert path.stat().st_size > 1000
    with pytest.raises(DeviceError, match=r"wave\.txt: expected a name that ends in \.fst or \.vcd"):
        open_device("rtl", CI, trace=tmp_path / "wave.txt")


def test_two_devices_at_once(library, bundle):
    models = (MemoryModel(), IDEAL)
    devices = [RtlDevice(CI, Formats(), model, library=library, memory_bytes=32 << 20) for model in models]
    try:
        runs = []
        for device in devices:
            loaded = Driver(device).load(bundle)
            program, expected, output = qkv_program(loaded)
            runs.append((loaded.start(program), expected, output))
        cycles = []
        for run, expected, output in reversed(runs):
            cycles.append(run.wait(60).counters["cycles"])
            assert (output() == expected).all()
        assert cycles[0] < cycles[1], "the ideal memory is the faster one"
    finally:
        for device in devices:
            device.close()

