"""The golden device's registers behave as ap_ctrl_hs does (UG1399, control register tables)."""

from __future__ import annotations

import time

import pytest

from accel.compiler import identify_program
from accel.config import Formats, engine_hash, hardware
from accel.errors import DeviceError
from accel.record import Record
from accel.registers import REGISTERS, SPAN, UNMAPPED, Access
from host.backends import BACKENDS, open_device
from host.backends.golden import DONE, IDLE, INTERRUPT, READY, START, Faults, GoldenDevice
from host.device import Reg

CI = hardware("ci")


@pytest.fixture
def device():
    with GoldenDevice(CI, Formats()) as opened:
        yield opened


def place_identify(device: GoldenDevice):
    """An END program in memory, registers pointing at it; returns the buffer and the record's offset."""
    program = identify_program()
    buffer = device.allocate(program.arena.bytes)
    offset = program.arena.offsets["program"]
    buffer.array[offset : offset + len(program.image)] = list(program.image)
    for port in range(4):
        device.write_register(Reg.ARENA0_LO + 16 * port, buffer.device_address & 0xFFFF_FFFF)
        device.write_register(Reg.ARENA0_HI + 16 * port, buffer.device_address >> 32)
    device.write_register(Reg.PROGRAM, offset)
    device.write_register(Reg.COMMANDS, 1)
    device.write_register(Reg.RECORD, program.arena.offsets["record"])
    return buffer, program.arena.offsets["record"]


def finish(device: GoldenDevice) -> int:
    """Poll AP_CTRL until done; returns what was read then."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        control = device.read_register(Reg.AP_CTRL)
        if control & DONE:
            return control
        time.sleep(0.001)
    raise AssertionError("the program did not end")


def test_arguments_hold_what_is_written(device):
    arguments = [item for item in REGISTERS if item.access is Access.READ_WRITE and not item.bits]
    assert len(arguments) == 11
    for index, item in enumerate(arguments):
        device.write_register(item.offset, 0xFFFF_FF00 + index)
    for index, item in enumerate(arguments):
        assert device.read_register(item.offset) == 0xFFFF_FF00 + index, item.name


def test_unmapped_addresses(device):
    used = {item.offset for item in REGISTERS}
    for offset in (0x10, 0x28, 0x64, SPAN - 4):
        assert offset not in used
        device.write_register(offset, 1)
        assert device.read_register(offset) == UNMAPPED


@pytest.mark.parametrize("offset", [-4, 2, SPAN])
def test_addresses_that_no_bus_carries(device, offset):
    with pytest.raises(DeviceError, match="register"):
        device.read_register(offset)
    with pytest.raises(DeviceError, match="register"):
        device.write_register(offset, 0)


def test_value_wider_than_the_bus(device):
    with pytest.raises(DeviceError, match="32 bits"):
        device.write_register(Reg.PROGRAM, 1 << 32)


def test_start_clears_itself_done_and_ready_clear_on_read(device):
    buffer, record = place_identify(device)
    assert device.read_register(Reg.AP_CTRL) == IDLE
    device.write_register(Reg.AP_CTRL, START)
    control = finish(device)
    assert control & (START | DONE | IDLE | READY) == DONE | IDLE | READY
    assert device.read_register(Reg.AP_CTRL) == IDLE
    decoded = Record.decode(buffer.array[record:].tobytes())
    assert decoded.header["engine_hash"] == engine_hash(Formats(), CI)


def test_start_while_running_gives_a_second_run(device):
    place_identify(device)
    device.faults = Faults(delay=0.1)
    device.write_register(Reg.AP_CTRL, START)
    time.sleep(0.03)
    assert not device.read_register(Reg.AP_CTRL) & (START | IDLE)
    device.write_register(Reg.AP_CTRL, START)
    assert device.read_register(Reg.AP_CTRL) & START
    assert not finish(device) & IDLE
    assert finish(device) & IDLE


def test_auto_restart_runs_until_cleared(device):
    place_identify(device)
    device.write_register(Reg.AP_CTRL, START | 0x80)
    for _ in range(3):
        finish(device)
    device.write_register(Reg.AP_CTRL, 0)
    deadline = time.monotonic() + 5
    while not device.read_register(Reg.AP_CTRL) & IDLE:
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_interrupt_needs_both_enables_and_isr_toggles(device):
    place_identify(device)
    device.write_register(Reg.AP_CTRL, START)
    finish(device)
    assert device.read_register(Reg.ISR) == 0, "IER was 0: no status"
    device.write_register(Reg.IER, 3)
    device.write_register(Reg.AP_CTRL, START)
    assert not finish(device) & INTERRUPT, "GIER is 0: no line"
    assert device.read_register(Reg.ISR) == 3
    assert device.read_register(Reg.ISR) == 3, "reading does not clear it"
    assert not device.wait_interrupt(0.0)
    device.write_register(Reg.GIER, 1)
    assert device.wait_interrupt(0.0)
    device.write_register(Reg.ISR, 1)
    assert device.read_register(Reg.ISR) == 2
    device.write_register(Reg.ISR, 3)
    assert device.read_register(Reg.ISR) == 1, "toggles, even from 0 to 1"


def test_reset_clears_registers_but_not_memory(device):
    buffer, _ = place_identify(device)
    before = buffer.array.copy()
    device.faults = Faults(hangs=1)
    device.write_register(Reg.GIER, 1)
    device.write_register(Reg.AP_CTRL, START)
    device.reset()
    assert device.read_register(Reg.AP_CTRL) == IDLE
    assert all(device.read_register(item.offset) == 0 for item in REGISTERS[1:])
    assert (buffer.array == before).all()


def test_ports_that_disagree_reach_no_memory(device):
    buffer, record = place_identify(device)
    device.write_register(Reg.ARENA2_LO, 0)
    device.write_register(Reg.AP_CTRL, START)
    finish(device)
    assert not buffer.array[record : record + 64].any()


def test_a_defect_of_the_model_reaches_the_waiting_thread(device, monkeypatch):
    place_identify(device)

    def broken(*_):
        raise ZeroDivisionError("defect")

    monkeypatch.setattr(device._engine, "execute", broken)
    device.write_register(Reg.AP_CTRL, START)
    with pytest.raises(DeviceError, match="ZeroDivisionError: defect"):
        device.wait_interrupt(5.0)
    device.reset()
    assert device.read_register(Reg.AP_CTRL) == IDLE


def test_memory_is_limited_and_given_back():
    with GoldenDevice(CI, Formats(), memory_bytes=8192) as device:
        first = device.allocate(8000)
        with pytest.raises(DeviceError, match="8000 bytes: expected 1 to 192 bytes"):
            device.allocate(8000)
        first.close()
        first.close()
        with device.allocate(8000) as second:
            assert second.device_address % 4096 == 0
            assert second.size == 8000 and not second.array.any()


def test_closed_device_refuses():
    device = GoldenDevice(CI, Formats())
    device.close()
    device.close()
    with pytest.raises(DeviceError, match="closed"):
        device.read_register(Reg.AP_CTRL)


def test_registry():
    with pytest.raises(DeviceError, match="'abacus': expected one of golden"):
        open_device("abacus", CI)
    for name in BACKENDS:
        if name == "golden":
            with open_device(name, CI) as device:
                assert device.name == name
