"""The driver between threads, and where a register access fails or Ctrl-C comes in the middle of a start."""

from __future__ import annotations

import pytest
from test_host_driver import qkv_program

from accel.config import Formats, hardware
from accel.errors import DeviceError
from host.backends.golden import Faults, GoldenDevice
from host.device import Reg
from host.driver import Driver


@pytest.fixture
def device():
    with GoldenDevice(hardware("ci"), Formats()) as opened:
        yield opened


def test_a_program_that_ends_while_the_driver_looks(device, bundle, monkeypatch):
    """Another thread may note the end of a run between any two of the driver's steps."""

    class Racing(Driver):
        """Whose program has ended by the time that it is looked at again."""

        @property
        def _running(self):
            run, self._run = self._run, None
            return run

        @_running.setter
        def _running(self, run):
            self._run = run

    with Racing(device) as driver, Driver(device) as plain:
        one, other = plain.load(bundle), plain.load(bundle)
        program, run = qkv_program(one)[0], plain.start(qkv_program(other)[0], other.memory)
        driver._running = run
        assert driver.place(program, one.memory).memory is one.memory
        resets = []
        monkeypatch.setattr(device, "reset", lambda: resets.append(None))
        driver._running = run
        driver._release(one.memory)
        assert not resets
        driver._running = run
        with pytest.raises(DeviceError, match="found that of the running one"):
            driver.place(program, other.memory)
        driver._running = run
        driver._release(other.memory)
        assert len(resets) == 1
        run.wait(10)


def test_a_start_that_fails(device, bundle, monkeypatch):
    """A register that cannot be written leaves the driver free; Ctrl-C after it was written, a program to be reset."""
    with Driver(device) as driver, driver.load(bundle) as loaded:
        program, expected, output = qkv_program(loaded)
        write = device.write_register

        def fail(error, late):
            def failing(offset, value):
                if late or offset != Reg.AP_CTRL:
                    write(offset, value)
                if offset == Reg.AP_CTRL:
                    raise error

            return failing

        with monkeypatch.context() as patched, pytest.raises(DeviceError, match="no answer"):
            patched.setattr(device, "write_register", fail(DeviceError("no answer"), late=False))
            loaded.start(program)
        assert loaded.run(program).jobs and (output() == expected).all()
        device.faults = Faults(hangs=1)
        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            patched.setattr(device, "write_register", fail(KeyboardInterrupt(), late=True))
            loaded.start(program)
        with pytest.raises(DeviceError, match="busy"):
            loaded.start(program)
        loaded.close()  # resets the engine, which is idle again
        loaded = driver.load(bundle)
        program, expected, output = qkv_program(loaded)
        assert loaded.run(program).jobs and (output() == expected).all()
