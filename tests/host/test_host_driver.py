"""The driver on the golden device: runs, waits, recovers, and says what went wrong."""

from __future__ import annotations

import dataclasses
import time

import numpy as np
import pytest

from accel import pack
from accel.bundle import write_bundle
from accel.commands import Command, Opcode
from accel.compiler import Program, layer_bytes, live_program
from accel.config import Formats, build_hash, engine_hash, hardware
from accel.errors import BundleError, DeviceError, DeviceTimeout
from accel.golden import GoldenEngine
from accel.layers import engine_layers
from accel.random_params import random_encoder
from host.backends.golden import Faults, GoldenDevice
from host.driver import Driver

CI = hardware("ci")


@pytest.fixture
def device():
    with GoldenDevice(CI, Formats()) as opened:
        yield opened


@pytest.fixture
def driver(device):
    with Driver(device) as opened:
        yield opened


def layer_of(bundle, name):
    return next(layer for layer in engine_layers(bundle.config) if layer.name == name)


def qkv_program(loaded):
    """Program of one layer with random input; returns it with the expected and a function that reads the output."""
    layer = layer_of(loaded.bundle, "blocks.1.qkv")
    program, offsets = live_program(loaded.bundle, layer, "semseg", loaded.arena)
    x = np.random.default_rng(0).integers(-128, 128, (layer.tokens, layer.inputs)).astype(np.int8)
    loaded.write(offsets["input"], pack.pack_tokens(x, CI))
    expected = GoldenEngine(loaded.bundle.encoder).linear(layer.name, x)

    def output():
        data = loaded.read(offsets["output"], layer_bytes(layer)["output"])
        return pack.unpack_tokens(data, layer.tokens, layer.outputs, np.int8, CI)

    return program, expected, output


def changed(program: Program, **fields: int) -> Program:
    """The program with fields of its first command replaced."""
    first = dataclasses.replace(program.commands[0], **fields)
    return Program((first, *program.commands[1:]), program.arena, program.jobs)


def test_identify(driver):
    assert driver.identify().engine_hash == engine_hash(Formats(), CI)
    assert driver.identify() is driver.identify()


def test_bits_and_counters(driver, bundle):
    with driver.load(bundle) as loaded:
        program, expected, output = qkv_program(loaded)
        record = loaded.run(program)
        assert (output() == expected).all()
    layer = layer_of(bundle, "blocks.1.qkv")
    assert record.counters["macs"] == layer.tokens * layer.inputs * layer.outputs
    assert record.counters["weight_bytes"] == layer.expert_bytes
    assert record.counters["bytes_written"] == layer_bytes(layer)["output"]
    assert record.header["commands"] == 3 and len(record.jobs) == 1


def test_output_is_fresh_every_time(driver, bundle):
    """A run that did nothing would leave the old output: clear it in between."""
    with driver.load(bundle) as loaded:
        program, expected, output = qkv_program(loaded)
        offset, size = program.commands[0].output, layer_bytes(layer_of(bundle, "blocks.1.qkv"))["output"]
        for _ in range(3):
            loaded.write(offset, np.zeros(size, np.uint8))
            loaded.run(program)
            assert (output() == expected).all()


def test_timeout_raises_then_recovers_after_reset(driver, device, bundle):
    with driver.load(bundle) as loaded:
        program, expected, output = qkv_program(loaded)
        device.faults = Faults(hangs=1)
        began = time.monotonic()
        run = loaded.start(program)
        with pytest.raises(DeviceTimeout, match=r"within 0\.2 s"):
            run.wait(0.2)
        assert 0.2 <= time.monotonic() - began < 5
        with pytest.raises(DeviceError, match="busy"):
            loaded.run(program)
        driver.reset()
        with pytest.raises(DeviceError, match="stopped by a reset"):
            run.wait(0.1)
        loaded.run(program)
        assert (output() == expected).all()


def test_waiting_again_after_a_timeout(driver, device, bundle):
    with driver.load(bundle) as loaded:
        program, expected, output = qkv_program(loaded)
        device.faults = Faults(delay=0.4)
        run = loaded.start(program)
        with pytest.raises(DeviceTimeout):
            run.wait(0.05)
        record = run.wait(10)
        assert run.wait(0) is record, "the record is kept"
        assert (output() == expected).all()


def test_lost_interrupt_costs_time_not_the_run(driver, device, bundle):
    with driver.load(bundle) as loaded:
        program, expected, output = qkv_program(loaded)
        device.faults = Faults(lost_interrupts=1)
        loaded.run(program, timeout=10)
        assert device.faults.lost_interrupts == 0
        assert (output() == expected).all()


def test_hang_while_identifying(driver, device, bundle):
    device.faults = Faults(hangs=1)
    with pytest.raises(DeviceTimeout):
        driver.identify(0.05)
    with driver.load(bundle) as loaded:
        loaded.run(qkv_program(loaded)[0])


@pytest.mark.parametrize(
    ("fields", "pattern"),
    [
        ({"opcode": Opcode.NORM}, r"OPCODE at command 0 of 3 \(NORM.*does not know"),
        ({"input": 64}, r"ADDRESS at command 0 of 3 \(LINEAR, job 0, layer 0\) field input = 64"),
        ({"tokens": CI.max_tokens + 1}, rf"SHAPE .* field tokens = {CI.max_tokens + 1}"),
        ({"inputs": 12}, r"SHAPE .* field inputs = 12"),
        ({"unit_bytes": 1024}, r"ADDRESS .* field unit_bytes = 1024"),
    ],
)
def test_errors_in_the_record_are_decoded(driver, bundle, monkeypatch, fields, pattern):
    """What the driver would refuse itself, had it looked."""
    with driver.load(bundle) as loaded:
        program, expected, output = qkv_program(loaded)
        with monkeypatch.context() as patch:
            patch.setattr("host.driver.check_program", lambda *_: None)
            run = loaded.start(changed(program, **fields))
        for _ in range(2):
            with pytest.raises(DeviceError, match=pattern):
                run.wait()
        loaded.run(program)
        assert (output() == expected).all(), "usable after an error"


def test_program_without_end(driver, bundle):
    with driver.load(bundle) as loaded:
        program, _, _ = qkv_program(loaded)
        endless = Program(program.commands[:2], program.arena, program.jobs)
        with pytest.raises(DeviceError, match="PROGRAM at command 2 of 2: the program has no END"):
            loaded.run(endless)


def test_missing_job_entry_is_noticed(driver, bundle):
    with driver.load(bundle) as loaded:
        program, _, _ = qkv_program(loaded)
        shorter = Program((program.commands[0], Command(Opcode.END)), program.arena, program.jobs)
        with pytest.raises(DeviceError, match="jobs = 0: expected 1"):
            loaded.run(shorter)


def test_no_record_written(driver, bundle, device, monkeypatch):
    with driver.load(bundle) as loaded:
        program, _, _ = qkv_program(loaded)
        loaded.run(program)
        monkeypatch.setattr(device._engine, "execute", lambda *_: None)
        with pytest.raises(DeviceError, match="no engine wrote here"):
            loaded.run(program)


def test_wrong_engine_is_refused_before_weights_are_placed(bundle, monkeypatch):
    with GoldenDevice(hardware("zcu104"), Formats()) as device, Driver(device) as driver:
        driver.identify()
        monkeypatch.setattr(device, "allocate", lambda size: pytest.fail("memory was allocated"))
        expected = engine_hash(Formats(), hardware("zcu104"))
        with pytest.raises(DeviceError, match=f"engine_hash: expected {expected:#010x}.*'ci'"):
            driver.load(bundle)


def test_a_bundle_for_a_slower_engine_with_fewer_slots_runs(bundle):
    """Clock, slots and name are no part of an engine's identity."""
    fast = dataclasses.replace(CI, name="fast", clock_mhz=500, weight_slots=5, outstanding=16)
    with GoldenDevice(fast, Formats()) as device, Driver(device) as driver, driver.load(bundle) as loaded:
        program, expected, output = qkv_program(loaded)
        record = loaded.run(program)
        assert (output() == expected).all()
        assert record.header["engine_hash"] == bundle.config.engine_hash
        assert record.header["build_hash"] == build_hash(Formats(), fast) != build_hash(Formats(), CI)


def test_two_bundles_resident(driver, bundle, other_bundle):
    with driver.load(bundle) as first, driver.load(other_bundle) as second:
        assert first.memory.device_address != second.memory.device_address
        programs = [qkv_program(first), qkv_program(second)]
        assert (programs[0][1] != programs[1][1]).any()
        for _ in range(2):
            for loaded, (program, expected, output) in zip((first, second), programs, strict=True):
                loaded.run(program)
                assert (output() == expected).all()


def test_double_close_and_use_after_close(driver, bundle):
    loaded = driver.load(bundle)
    program, _, _ = qkv_program(loaded)
    loaded.close()
    loaded.close()
    for action in (lambda: loaded.run(program), lambda: loaded.read(0, 1)):
        with pytest.raises(DeviceError, match="closed"):
            action()
    driver.close()
    driver.close()


def test_closing_a_bundle_in_flight_stops_the_engine(driver, device, bundle):
    with driver.load(bundle) as loaded:
        device.faults = Faults(hangs=1)
        loaded.start(qkv_program(loaded)[0])
    assert driver.identify().engine_hash == bundle.config.engine_hash


def test_driver_closes_what_it_loaded(device, bundle):
    with Driver(device) as driver:
        loaded = driver.load(bundle)
    with pytest.raises(DeviceError, match="closed"):
        loaded.read(0, 1)


def test_memory_exhausted(bundle):
    with GoldenDevice(CI, Formats(), memory_bytes=20_000) as device, Driver(device) as driver:
        with pytest.raises(DeviceError, match="expected 1 to"):
            driver.load(bundle)
        driver.identify()


def test_sizes_are_checked_before_any_register(driver, device, bundle, monkeypatch):
    with driver.load(bundle) as loaded:
        program, _, _ = qkv_program(loaded)
        monkeypatch.setattr(device, "write_register", lambda *_: pytest.fail("register written"))
        room, end, stripe = program.arena.sizes["program"], program.arena.bytes, CI.stripe_bytes
        first = r"program: command 0 of 3 \(LINEAR, job 0, layer 0\)"
        long = Program((*program.commands[:1] * 5, *program.commands[1:]), program.arena, program.jobs)
        cases = [
            (long, rf"program bytes = {7 * 64}: expected at most {room}"),
            (dataclasses.replace(program, jobs=program.jobs * 9), "record bytes = .*: expected at most"),
            (changed(program, output=end), rf"{first}: expected its output to end within the arena's {end} bytes"),
            (changed(program, weights=end - stripe), f"{first}: expected everything it reads to end within"),
            (changed(program, input=64), f"{first} field input = 64: an offset that is not aligned"),
            (changed(program, inputs=12), f"{first} field inputs = 12: a shape"),
            (changed(program, weight_source=1), f"{first} field weight_source = 1: the engine does not know"),
        ]
        size = layer_of(bundle, "blocks.1.qkv").expert_bytes
        assert size > stripe, "these weights start inside the arena and end outside"
        for bad, pattern in cases:
            with pytest.raises(DeviceError, match=pattern):
                loaded.start(bad)
        with driver.device.allocate(4096) as small:
            with pytest.raises(DeviceError, match="arena = .*: expected at most 4096 bytes"):
                driver.start(program, small)
        with pytest.raises(DeviceError, match="expected to end within"):
            loaded.write(loaded.memory.size - 8, np.zeros(9, np.uint8))


def test_damaged_blob_leaves_no_memory_behind(driver, device, tmp_path, bundle):
    copy = write_bundle(tmp_path / "copy", random_encoder(bundle.config.network), CI)
    victim = copy.path / "blobs" / "blocks.1.mlp.expert.003.bin"
    data = bytearray(victim.read_bytes())
    data[100] ^= 1
    victim.write_bytes(data)
    free = device._free
    with pytest.raises(BundleError, match=r"expert\.003\.bin: SHA-256"):
        driver.load(copy)
    assert device._free == free


def test_place_ahead(driver, bundle, other_bundle, device):
    """A program is placed while another runs, in memory of its own, and launched when that one has ended."""
    with driver.load(bundle) as one, driver.load(other_bundle) as other:
        first, _, _ = qkv_program(one)
        second, expected, output = qkv_program(other)
        device.faults.delay = 0.2
        run = one.start(first)
        with pytest.raises(DeviceError, match="memory: expected memory in which no program runs"):
            one.place(first)
        placed = other.place(second)
        with pytest.raises(DeviceError, match="engine busy"):
            other.launch(placed)
        assert run.wait(10).jobs
        assert other.launch(placed).wait(10).jobs and (output() == expected).all()
