"""Everything that can go wrong on a board, through PYNQ: a clear error, nothing wedged, and the next run is correct."""

from __future__ import annotations

import atexit
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pynq = pytest.importorskip("pynq", reason="pynq is not installed; see `make test-pynq`")

from board_programs import CI, FORMATS, NETWORK, one_layer, runs_correctly  # noqa: E402

from accel.bundle import write_bundle  # noqa: E402
from accel.config import Formats, build_hash, engine_hash, hardware  # noqa: E402
from accel.errors import DeviceError, DeviceTimeout  # noqa: E402
from accel.random_params import random_encoder  # noqa: E402
from accel.registers import mask  # noqa: E402
from host.backends.board import lock_file  # noqa: E402
from host.backends.golden import Faults, GoldenDevice  # noqa: E402
from host.backends.sim_board import write_overlay  # noqa: E402
from host.device import Reg  # noqa: E402
from host.driver import Driver  # noqa: E402
from host.handoff import handoff  # noqa: E402
from host.overlay import ENGINE, MANIFEST, write_manifest  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
IDLE = mask("AP_CTRL", "idle")


# ---- the run itself


@pytest.mark.parametrize("register", [Reg.ARENA2_LO, Reg.GIER, Reg.AP_CTRL], ids=lambda reg: reg.name)
def test_register_write_error(board, bundle, register):
    with board.open() as device, Driver(device) as driver, driver.load(bundle) as loaded:
        driver.reset()
        program, right = one_layer(loaded)
        board.faults.write_errors.append(register)
        with pytest.raises(DeviceError, match=f"board: register {int(register):#x}: write: .*bus error"):
            loaded.run(program)
        assert loaded.run(program) and right()


def test_read_error_of_the_memory(rtl_board, bundle):
    """The memory answers the engine's reads of weights with an error, as for an address that nothing decodes."""
    with rtl_board.open() as device, Driver(device) as driver, driver.load(bundle) as loaded:
        program, right = one_layer(loaded)
        first = loaded.memory.device_address + program.commands[0].weights
        rtl_board.engine.inject(reads=[(first, first + 1024)])
        with pytest.raises(DeviceError, match="engine error READ at command 0 .*detail"):
            loaded.run(program)
        rtl_board.engine.inject()
        driver.reset()
        assert loaded.run(program) and right()


def test_write_error_of_the_memory(rtl_board, bundle):
    with rtl_board.open() as device, Driver(device) as driver, driver.load(bundle) as loaded:
        program, right = one_layer(loaded)
        first = loaded.memory.device_address + program.commands[0].output
        rtl_board.engine.inject(writes=[(first, first + 1024)])
        with pytest.raises(DeviceError, match="engine error WRITE at command 0"):
            loaded.run(program)
        rtl_board.engine.inject()
        driver.reset()
        assert loaded.run(program) and right()


def test_hang_of_the_verilated_engine(rtl_board, bundle):
    with rtl_board.open() as device, Driver(device) as driver, driver.load(bundle) as loaded:
        program, right = one_layer(loaded)
        rtl_board.engine.memory.freeze()
        run = loaded.start(program)
        with pytest.raises(DeviceTimeout, match="expected its end within 0.2 s"):
            run.wait(0.2)
        with pytest.raises(DeviceTimeout):
            run.wait(0.1)
        driver.reset()
        with pytest.raises(DeviceError, match="stopped by a reset"):
            run.wait(0.1)
        assert loaded.run(program, 60) and right()


def test_waiting_again_after_a_timeout(make_board, bundle):
    faults = Faults()
    board = make_board(GoldenDevice(CI, FORMATS, faults=faults))
    with board.open() as device, Driver(device) as driver, driver.load(bundle) as loaded:
        program, right = one_layer(loaded)
        faults.delay = 0.8
        run = loaded.start(program)
        with pytest.raises(DeviceTimeout):
            run.wait(0.02)
        assert run.wait(60) and right()


def test_lost_interrupts_cost_time_but_no_run(make_board, bundle):
    board = make_board(GoldenDevice(CI, FORMATS, faults=Faults(delay=0.01)))
    with board.open() as device, Driver(device) as driver, driver.load(bundle) as loaded:
        for _ in range(3):
            board.faults.lost_interrupts = 1
            assert runs_correctly(loaded)
            assert board.faults.lost_interrupts == 0, "it was lost"
            assert runs_correctly(loaded)


def test_allocation_failure(board, bundle, twins):
    with board.open() as device, Driver(device) as driver, driver.load(bundle) as loaded:
        held = board.allocated
        board.faults.allocations = 0
        with pytest.raises(DeviceError, match="allocate: .* bytes: refused: BO allocation failed"):
            driver.load(twins)
        assert board.allocated == held and runs_correctly(loaded)
        board.faults.allocations = None
        with driver.load(twins) as other:
            assert runs_correctly(other)
        with pytest.raises(DeviceError, match="expected at least 1"):
            device.allocate(0)


# ---- processes


def busy(board) -> bool:
    """Whether the engine runs, asked over the board's bus, because its simulation goes on meanwhile."""
    found = board.device.read_registers(ENGINE.address + Reg.AP_CTRL, 4)
    return not int.from_bytes(found, "little") & IDLE


def test_process_killed_in_mid_run_and_restarted(rtl_board, bundle, long_bundle, tmp_path):
    """The board and its engine outlive the processes. While the first runs a program, a second is refused; then the
    first is killed, and the engine goes on alone, writing to memory that is no longer anybody's. A process that starts
    anew finds a board that works."""
    from board_remote import serve

    socket, lock = tmp_path / "socket", tmp_path / "lock"

    def process(what: str, of: Path) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, Path(__file__).with_name("board_remote.py"), what, socket, rtl_board.bit, lock, of],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip

    def ends(found: subprocess.Popen[str]) -> tuple[int, str, str]:
        out, err = found.communicate(timeout=60)
        return found.returncode, out, err

    with serve(rtl_board, socket):
        first = process("run", long_bundle.path)
        assert first.stdout is not None
        try:
            assert first.stdout.readline() == "running\n" and busy(rtl_board)
            code, out, err = ends(process("check", bundle.path))
            assert (code, out) == (1, "")
            assert err == f"board: in use by process {first.pid}: expected a free board; lock: {lock}\n"
            assert busy(rtl_board), "nobody disturbed it"
        finally:
            first.kill()
            first.communicate(timeout=60)
        assert first.returncode == -signal.SIGKILL and busy(rtl_board)
        assert ends(process("check", bundle.path)) == (0, "correct\n", "")
    assert not busy(rtl_board) and rtl_board.allocated == 0
    with rtl_board.open(lock=lock) as device, Driver(device) as driver, driver.load(bundle) as loaded:
        assert runs_correctly(loaded)


@pytest.mark.parametrize("download", [True, False])
def test_engine_that_a_killed_process_left_running(rtl_board, bundle, download):
    """The board outlives the process: the engine is in the middle of a program when the next process opens it."""
    lost = rtl_board.open()
    driver = Driver(lost)
    program, _ = one_layer(driver.load(bundle))
    rtl_board.engine.memory.freeze()
    driver._resident[0].start(program)
    time.sleep(0.02)
    atexit.unregister(lost.close)
    lost._unlock()  # all that the system does for a process that is killed, besides taking its memory
    assert busy(rtl_board)
    with rtl_board.open(download=download) as device, Driver(device) as driver, driver.load(bundle) as loaded:
        assert runs_correctly(loaded)


def test_second_opening_in_one_process_is_refused(board):
    with board.open() as device:
        with pytest.raises(DeviceError, match=f"in use by process {os.getpid()}"):
            board.open()
        assert Driver(device).identify().engine_hash == engine_hash(FORMATS, CI)
    board.open().close()


def test_failed_opening_lets_go_of_the_board(board, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("host.backends.board.BoardDevice._find_reset", lambda self: {}["reset"])
        with pytest.raises(DeviceError, match="overlay .*'reset'"):
            board.open()
    board.open().close()


def test_closing_stops_what_runs_before_the_memory_goes(make_board, bundle):
    board = make_board(GoldenDevice(CI, FORMATS, faults=Faults(hangs=0)))
    device = board.open()
    driver = Driver(device)
    loaded = driver.load(bundle)
    program, _ = one_layer(loaded)
    board.engine.faults.hangs = 1
    loaded.start(program)
    device.close()
    device.close()
    assert board.allocated == 0 and board.engine.read_register(Reg.AP_CTRL) & IDLE
    for refused in (lambda: device.allocate(64), lambda: device.read_register(0), device.reset):
        with pytest.raises(DeviceError, match="found a closed one"):
            refused()
    assert lock_file().name == "m3vit-board.lock"


# ---- bundles and overlays that do not belong together


def test_wrong_bundle_is_refused_before_the_board_is_touched(board):
    other = Formats(weight_bits=6)
    with pytest.raises(DeviceError, match="engine_hash: expected .* found .*; use the overlay that the bundle"):
        board.open(formats=other)
    with pytest.raises(DeviceError, match=r"hardware 'zcu104'.*hardware 'ci'"):
        board.open(hardware=hardware("zcu104"))


@pytest.mark.parametrize(
    "engine", [(CI, Formats(weight_bits=6)), (dataclasses.replace(CI, clock_mhz=200), FORMATS)],
    ids=["other widths", "same widths, other build"],
)  # fmt: skip
def test_engine_that_is_not_what_its_manifest_says(make_board, bundle, engine):
    """The manifest fits the bundle, the engine's own identity is another: no weight is placed."""
    board = make_board(GoldenDevice(*engine))
    with board.open(download=False) as device, Driver(device) as driver:
        found = build_hash(engine[1], engine[0])
        for _ in range(2):
            with pytest.raises(DeviceError, match=f"build_hash: expected .* manifest, found {found:#010x}"):
                driver.load(bundle)
        assert board.allocated == 0


def test_bundle_for_another_engine(board, bundle, tmp_path):
    """Overlay and engine agree; the bundle that is loaded next was exported for other hardware."""
    other = write_bundle(tmp_path / "other", random_encoder(NETWORK, seed=1), dataclasses.replace(CI, max_tokens=40))
    with board.open() as device, Driver(device) as driver, driver.load(bundle) as loaded:
        held = board.allocated
        with pytest.raises(DeviceError, match="engine_hash: expected .* for the engine of back end 'board'"):
            driver.load(other)
        assert board.allocated == held and runs_correctly(loaded)


def _no_manifest(bit):
    (bit.parent / MANIFEST).unlink()


def _other_bits(bit):
    bit.write_bytes(b"other")


def _other_handoff(bit):
    bit.with_suffix(".hwh").write_text(handoff(CI, "hls"))


def _other_engine(bit):
    bit.with_suffix(".hwh").write_text(handoff(CI, "hls"))
    write_manifest(bit.parent, "rtl", CI, FORMATS, "test")


def _no_reset(bit):
    file = bit.with_suffix(".hwh")
    file.write_text(file.read_text().replace("engine_reset_gpio", "something_else"))
    write_manifest(bit.parent, "rtl", CI, FORMATS, "test")


def _edited(bit):
    file = bit.parent / MANIFEST
    data = json.loads(file.read_text())
    data["hardware"]["max_tokens"] += 1
    file.write_text(json.dumps(data))


def _old(bit):
    file = bit.parent / MANIFEST
    file.write_text(file.read_text().replace('"format": 1', '"format": 0'))


def _not_json(bit):
    (bit.parent / MANIFEST).write_text("{")


def _no_bit(bit):
    bit.unlink()


def _not_xml(bit):
    bit.with_suffix(".hwh").write_text("not a handoff")
    write_manifest(bit.parent, "rtl", CI, FORMATS, "test")


@pytest.mark.parametrize(
    ("damage", "pattern"),
    [
        (_no_manifest, "cannot read the manifest"),
        (_other_bits, "m3vit.bit: SHA-256: expected"),
        (_other_handoff, "m3vit.hwh: SHA-256: expected"),
        (_other_engine, "expected one xilinx.com:module_ref:m3vit_engine_axi:1.0 in its .hwh, found 0"),
        (_no_reset, "reset: expected 'engine_reset_gpio'"),
        (_edited, "for its own hardware and formats"),
        (_old, "format = 0: expected 1"),
        (_not_json, "not valid JSON"),
        (_no_bit, "cannot read"),
        (_not_xml, "overlay .*m3vit.bit: .*syntax error"),
    ],
)
def test_overlay_that_is_not_whole_is_refused(board, tmp_path, damage, pattern):
    bit = write_overlay(tmp_path, CI, FORMATS)
    damage(bit)
    with pytest.raises(DeviceError, match=pattern):
        board.open(overlay=bit)
    board.open().close()


def test_no_overlay_at_all(monkeypatch):
    from host.backends import open_device

    monkeypatch.delenv("M3VIT_OVERLAY", raising=False)
    with pytest.raises(DeviceError, match=r"expected the path of a .bit file in \$M3VIT_OVERLAY"):
        open_device("board", CI, FORMATS)
