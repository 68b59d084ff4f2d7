"""The driver against a mock that knows every register access in order: extra, missing or different ones fail."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np
import pytest

from accel.compiler import identify_program
from accel.config import Formats, engine_hash, hardware
from accel.errors import DeviceError, DeviceTimeout
from accel.record import Record
from host.device import Buffer, Device, Reg
from host.driver import Driver

CI = hardware("ci")
ADDRESS = 0x1_2345_6000
IDLE, DONE = 4, 2 | 4
READ, WRITE, INTERRUPT, RESET = "read", "write", "interrupt", "reset"


class MockBuffer(Buffer):
    device_address = ADDRESS

    def __init__(self, size: int, log: list[str]) -> None:
        self.array, self.log = np.zeros(size, np.uint8), log

    def flush(self, offset: int = 0, size: int | None = None) -> None:
        self.log.append("flush")

    def invalidate(self, offset: int = 0, size: int | None = None) -> None:
        self.log.append("invalidate")

    def close(self) -> None:
        self.log.append("close")


class MockDevice(Device):
    """Expects exactly ``script``: (kind, offset or None, value written, read or returned)."""

    name = "mock"

    def __init__(self, script: list[tuple[str, int | None, int]]) -> None:
        super().__init__(CI, Formats())
        self.script, self.log = list(script), []
        self.record = Record({"engine_hash": engine_hash(Formats(), CI)})

    def _next(self, kind: str, offset: int | None, value: int | None = None) -> int:
        where = f"{kind} {offset} {value}"
        assert self.script, f"extra transaction: {where}"
        expected = self.script.pop(0)
        assert expected[:2] == (kind, offset), f"expected {expected}, found {where}"
        assert value is None or value == expected[2], f"expected {expected}, found {where}"
        return expected[2]

    def check(self) -> None:
        assert not self.script, f"missing transactions: {self.script}"

    def allocate(self, size: int) -> MockBuffer:
        self.buffer = MockBuffer(size, self.log)
        return self.buffer

    def read_register(self, offset: int) -> int:
        return self._next(READ, offset)

    def write_register(self, offset: int, value: int) -> None:
        self._next(WRITE, offset, value)

    def wait_interrupt(self, timeout: float) -> bool:
        answer = bool(self._next(INTERRUPT, None))
        if answer:
            data = self.record.encode()
            offset = identify_program().arena.offsets["record"]
            self.buffer.array[offset : offset + len(data)] = np.frombuffer(data, np.uint8)
        return answer

    def reset(self) -> None:
        self._next(RESET, None)

    def close(self) -> None:
        self.log.append("device closed")


def start_script(interrupts_enabled: bool = False) -> list[tuple[str, int | None, int]]:
    arena = identify_program().arena
    enable = [(READ, Reg.ISR, 0), (WRITE, Reg.GIER, 1), (WRITE, Reg.IER, 1)]
    addresses = [
        (WRITE, Reg.ARENA0_LO + 16 * port + 4 * high, ADDRESS >> 32 if high else ADDRESS & 0xFFFF_FFFF)
        for port in range(4)
        for high in (0, 1)
    ]
    return [
        (READ, Reg.AP_CTRL, IDLE),
        *([] if interrupts_enabled else enable),
        *addresses,
        (WRITE, Reg.PROGRAM, arena.offsets["program"]),
        (WRITE, Reg.COMMANDS, 1),
        (WRITE, Reg.RECORD, arena.offsets["record"]),
        (WRITE, Reg.AP_CTRL, 1),
    ]


END = [(INTERRUPT, None, 1), (READ, Reg.AP_CTRL, DONE), (READ, Reg.ISR, 1), (WRITE, Reg.ISR, 1)]


@contextlib.contextmanager
def mocked(script: list[tuple[str, int | None, int]]) -> Iterator[tuple[Driver, MockDevice]]:
    device = MockDevice(script)
    with device, Driver(device) as driver:
        yield driver, device
    device.check()


def identify_through(script: list[tuple[str, int | None, int]]) -> None:
    with mocked(script) as (driver, device):
        assert driver.identify().engine_hash == engine_hash(Formats(), CI)
        assert device.log == ["flush", "flush", "invalidate", "close"]


def test_identify_transactions():
    identify_through(start_script() + END)


def test_interrupts_are_enabled_once():
    with mocked(start_script() + END + start_script(interrupts_enabled=True) + END) as (driver, device):
        with device.allocate(identify_program().arena.bytes) as memory:
            for _ in range(2):
                driver.start(identify_program(), memory).wait()


def test_interrupt_before_done_and_without_status():
    early = [(INTERRUPT, None, 1), (READ, Reg.AP_CTRL, 0)]
    polled = [(INTERRUPT, None, 1), (READ, Reg.AP_CTRL, DONE), (READ, Reg.ISR, 0)]
    identify_through(start_script() + early + polled)


def test_stale_interrupt_is_cleared_first():
    script = start_script()
    script[1:2] = [(READ, Reg.ISR, 1), (WRITE, Reg.ISR, 1)]
    identify_through(script + END)


def test_busy_engine_is_not_started():
    with mocked([(READ, Reg.AP_CTRL, 0)]) as (driver, _):
        with pytest.raises(DeviceError, match="AP_CTRL = 0x0: expected an idle engine"):
            driver.identify()


def test_timeout_then_reset_and_interrupts_enabled_again():
    late = [(INTERRUPT, None, 0), (READ, Reg.AP_CTRL, 0), (RESET, None, 0)]
    with mocked(start_script() + late + start_script() + END) as (driver, _):
        with pytest.raises(DeviceTimeout):
            driver.identify(0)
        driver.identify()


SCRIPT = start_script() + END


@pytest.mark.parametrize(
    ("script", "pattern"),
    [
        (SCRIPT[:-1], "extra transaction"),
        ([*SCRIPT, (READ, Reg.ISR, 0)], "missing transactions"),
        ([SCRIPT[0], *SCRIPT[2:]], "expected"),
        ([*SCRIPT[:4], (WRITE, Reg.ARENA0_LO, 0), *SCRIPT[5:]], "expected"),
        ([*SCRIPT[:5], SCRIPT[6], SCRIPT[5], *SCRIPT[7:]], "expected"),
    ],
    ids=["extra", "missing", "left out", "value", "order"],
)
def test_the_mock_can_fail(script, pattern):
    with pytest.raises(AssertionError, match=pattern):
        identify_through(script)
