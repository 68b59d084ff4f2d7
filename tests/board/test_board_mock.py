"""Opening, running and closing a board as register accesses, exactly: extra, missing or different ones fail."""

from __future__ import annotations

import errno
from pathlib import Path

import numpy as np
import pytest

pynq = pytest.importorskip("pynq", reason="pynq is not installed; see `make test-pynq`")

from board_programs import CI, FORMATS  # noqa: E402
from pynq.buffer import PynqBuffer  # noqa: E402
from pynq.pl_server import embedded_device  # noqa: E402

from accel.compiler import identify_program  # noqa: E402
from accel.errors import DeviceError, DeviceTimeout  # noqa: E402
from host.backends.board import BoardDevice  # noqa: E402
from host.backends.sim_board import write_overlay  # noqa: E402
from host.device import Reg  # noqa: E402
from host.driver import Driver  # noqa: E402
from host.overlay import ENGINE, RESET  # noqa: E402

ADDRESS = 0x1_2345_6000
IDLE = 4
BUS_ERROR = -1
"""Value of an access that fails."""
Access = tuple[str, int, int]


def engine(kind: str, register: int, value: int) -> Access:
    return kind, ENGINE.address + register, value


RESETTING = [("write", RESET.address, 0), ("write", RESET.address, 1), engine("read", Reg.AP_CTRL, IDLE)]
ARENA = [
    engine("write", Reg.ARENA0_LO + 16 * port + 4 * high, ADDRESS >> 32 if high else ADDRESS & 0xFFFF_FFFF)
    for port in range(4)
    for high in (0, 1)
]
STARTING = [
    engine("read", Reg.AP_CTRL, IDLE), engine("read", Reg.ISR, 0), engine("write", Reg.GIER, 1),
    engine("write", Reg.IER, 1), *ARENA, engine("write", Reg.PROGRAM, identify_program().arena.offsets["program"]),
    engine("write", Reg.COMMANDS, 1), engine("write", Reg.RECORD, identify_program().arena.offsets["record"]),
    engine("write", Reg.AP_CTRL, 1),
]  # fmt: skip
LOOKING = [engine("read", Reg.ISR, 0), engine("read", Reg.AP_CTRL, 0)]


class ScriptedDevice(pynq.Device):
    """Expects exactly these accesses of PYNQ's MMIO: (kind, address, value written or returned)."""

    def __init__(self, script: list[Access]) -> None:
        super().__init__("scripted")
        self.script = list(script)
        self.capabilities = {"REGISTER_RW": True}
        self.name, self.timestamp = "scripted", ""

    def _next(self, kind: str, address: int, value: int | None = None) -> int:
        where = f"{kind} {address:#x} {value}"
        assert self.script, f"extra access: {where}"
        expected = self.script.pop(0)
        assert expected[:2] == (kind, address), f"expected {expected}, found {where}"
        if expected[2] == BUS_ERROR:
            raise OSError(errno.EIO, "bus error")
        assert value is None or value == expected[2], f"expected {expected}, found {where}"
        return expected[2]

    def read_registers(self, address, length):
        return self._next("read", address).to_bytes(4, "little")

    def write_registers(self, address, data):
        self._next("write", address, int.from_bytes(bytes(data)[:4], "little"))

    def get_bitfile_metadata(self, name, partial=False):
        metadata = embedded_device.Metadata(input=str(Path(name).with_suffix(".hwh")))
        return embedded_device.RuntimeMetadataParser(metadata)

    def allocate(self, shape, dtype, **options):
        memory = np.zeros(shape, dtype)
        return PynqBuffer(shape=shape, dtype=dtype, buffer=memory, device_address=ADDRESS, coherent=True, device=self)


def through(folder: Path, script: list[Access], timeout: float = 0.0) -> None:
    """Open, identify, close; every access of the script must have happened."""
    device = ScriptedDevice(script)
    bit = write_overlay(folder, CI, FORMATS, interrupts=False)
    opened = BoardDevice(CI, FORMATS, bit, download=False, device=device, lock=folder / "lock")
    try:
        Driver(opened).identify(timeout)
    finally:
        opened.close()
        assert not device.script, f"missing accesses: {device.script}"


TIMED_OUT = [*RESETTING, *STARTING, *LOOKING, *RESETTING, *RESETTING]


def test_a_run_that_times_out(tmp_path):
    """Opening resets; the program is started and looked at; the time-out releases its memory behind a reset."""
    with pytest.raises(DeviceTimeout):
        through(tmp_path, TIMED_OUT)


@pytest.mark.parametrize("place", range(len(STARTING)), ids=lambda place: f"access {place}")
def test_bus_error_at_every_access_of_a_start(tmp_path, place):
    failing = [*STARTING[:place], (*STARTING[place][:2], BUS_ERROR)]
    with pytest.raises(DeviceError, match=r"board: register 0x[0-9a-f]+: (read|write): .*bus error"):
        through(tmp_path, [*RESETTING, *failing, *RESETTING])


def test_bus_error_while_opening_lets_go_of_the_lock(tmp_path):
    with pytest.raises(DeviceError, match="board: reset: .*bus error"):
        through(tmp_path, [("write", RESET.address, BUS_ERROR)])
    with pytest.raises(DeviceTimeout):
        through(tmp_path, TIMED_OUT)


def test_engine_that_stays_busy_after_a_reset(tmp_path, monkeypatch):
    monkeypatch.setattr("host.backends.board.SETTLE_SECONDS", 0.0)
    with pytest.raises(DeviceError, match="AP_CTRL = 0x1 after a reset: expected an idle engine"):
        through(tmp_path, [*RESETTING[:2], engine("read", Reg.AP_CTRL, 1)])


@pytest.mark.parametrize(
    ("script", "pattern"),
    [
        ([*TIMED_OUT, engine("read", 0, 0)], "missing accesses"),
        (TIMED_OUT[1:], "expected"),
        ([*RESETTING, *STARTING[:3], *STARTING[4:], *LOOKING], "expected"),
        ([*RESETTING, *STARTING[:5], engine("write", Reg.ARENA1_LO, 0)], "expected"),
        (RESETTING, "extra access"),
    ],
    ids=["missing", "first left out", "one left out", "value", "extra"],
)
def test_the_mock_can_fail(tmp_path, script, pattern):
    with pytest.raises((AssertionError, DeviceTimeout)) as caught:
        through(tmp_path, script)
    chain, texts = caught.value, []
    while chain is not None:
        texts.append(str(chain))
        chain = chain.__context__
    assert any(pattern in text for text in texts), texts
