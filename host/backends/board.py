"""Board back end: the engine in an overlay on a ZCU104, through PYNQ 3 or 4.

pynq is imported when a device is opened, never before, so this module can be read anywhere.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import fcntl
import functools
import importlib
import os
import tempfile
import threading
import time
from collections.abc import Coroutine, Iterator
from concurrent.futures import TimeoutError as FutureTimeout
from pathlib import Path
from typing import IO, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from accel.config import Formats, Hardware
from accel.errors import DeviceError
from accel.memory_map import ARENA_ALIGNMENT
from accel.registers import mask
from host.device import Buffer, Device, Reg, check_register
from host.overlay import ENGINE_VLNV, GPIO_DATA, RESET, RESET_VLNV, check_overlay, find_overlay

CACHE_LINE = 64
"""Bytes; flushes and invalidations cover whole lines."""
POLL_SECONDS = 0.0002
"""Between two looks at the engine where no interrupt is wired."""
RESET_SECONDS = 0.0001
"""How long the reset is held; the reset block needs some tens of cycles."""
SETTLE_SECONDS = 0.1
"""How long the engine may take to be idle after a reset."""

T = TypeVar("T")
_IDLE = mask("AP_CTRL", "idle")
_FAILURES = (OSError, RuntimeError, MemoryError, ValueError, AttributeError, LookupError, SyntaxError)
"""What PYNQ raises when something is missing, damaged or refused; all become DeviceErrors here."""


class BoardBuffer(Buffer):
    """Contiguous memory from ``pynq.allocate``. Nobody else may hold on to ``array`` after closing it."""

    def __init__(self, device: BoardDevice, buffer: Any) -> None:
        self._device, self._buffer = device, buffer
        self.device_address = int(buffer.device_address)
        self.array: NDArray[np.uint8] = buffer.view(np.ndarray)

    def _lines(self, offset: int, size: int | None) -> Any:
        """The cache lines of a range, as a PYNQ buffer."""
        if self._buffer is None:
            raise DeviceError("board: expected an open buffer, found a closed one")
        end = self.size if size is None else offset + size
        first = offset - offset % CACHE_LINE
        return self._buffer[first : min(self.size, end + -end % CACHE_LINE)]

    def flush(self, offset: int = 0, size: int | None = None) -> None:
        with _decoded("flush"):
            self._lines(offset, size).flush()

    def invalidate(self, offset: int = 0, size: int | None = None) -> None:
        with _decoded("invalidate"):
            self._lines(offset, size).invalidate()

    def close(self) -> None:
        buffer, self._buffer = self._buffer, None
        if buffer is not None:
            self.array = np.zeros(0, np.uint8)  # the memory behind the view is about to go
            self._device._release(self)
            buffer.freebuffer()


class BoardDevice(Device):
    """The engine of an overlay. One process at a time: a second one is refused.

    Opening checks the overlay's manifest against ``hardware`` and ``formats``, then loads it and resets the engine, so
    that whatever a process before left running is stopped.

    Args:
        hardware, formats: what bundles are for.
        overlay: ``.bit`` file with ``.hwh`` and manifest beside it; by default :func:`host.overlay.find_overlay`.
        download: load the bitstream; False trusts that it is loaded.
        cacheable: let the processor cache the memory. Reads get faster, flushes slower.
        interrupts: use the interrupt if one is wired.
        device: a ``pynq.Device``; by default PYNQ's active one.
        lock: file that the one process which uses the board holds.

    Attributes:
        manifest: of the overlay.
        engine: PYNQ's driver of the engine.
        interrupts: whether an interrupt is in use; else the registers are polled.
    """

    name = "board"
    simulated = False

    def __init__(
        self,
        hardware: Hardware,
        formats: Formats,
        overlay: str | os.PathLike[str] | None = None,
        download: bool = True,
        cacheable: bool = False,
        interrupts: bool = True,
        device: Any = None,
        lock: str | os.PathLike[str] | None = None,
    ) -> None:
        super().__init__(hardware, formats)
        self._buffers: list[BoardBuffer] = []
        self._cacheable = cacheable
        self._engine: Any = None
        bit = Path(overlay) if overlay is not None else find_overlay(formats, hardware)
        self.manifest = check_overlay(bit, hardware, formats)
        self.build_hash = self.manifest.build_hash
        self._pynq = _import_pynq()
        self._lock: IO[str] | None = _take(Path(lock) if lock is not None else lock_file())
        try:
            with _decoded(f"overlay {bit}"):
                self._device = device if device is not None else self._pynq.Device.active_device
                self.overlay = self._pynq.Overlay(str(bit.resolve()), download=download, device=self._device)
                self._reset_gpio = self._find_reset()
                self._engine = self.engine = self._find_engine(bit)
            self.interrupts = interrupts and self.engine.line is not None
            self.simulated = getattr(self._device, "simulated", False)
            self.reset()
            atexit.register(self.close)
        except BaseException:
            self._engine = None
            self._unlock()
            raise

    def _find_engine(self, bit: Path) -> Any:
        vlnv = ENGINE_VLNV[self.manifest.engine]
        found = {name: item.get("type") for name, item in self.overlay.ip_dict.items()}
        names = [name for name, kind in found.items() if kind == vlnv]
        if len(names) != 1:
            others = ", ".join(sorted({str(kind) for kind in found.values()}))
            raise DeviceError(f"board: {bit}: expected one {vlnv} in its .hwh, found {len(names)} (blocks: {others})")

        # PYNQ ties interrupts to the event loop of the thread that makes the driver.
        async def make() -> Any:
            return functools.reduce(getattr, names[0].split("/"), self.overlay)

        return _in_loop(make())

    def _find_reset(self) -> Any:
        details = self.overlay.ip_dict.get(RESET.cell)
        if details is None or details.get("type") != RESET_VLNV:
            raise DeviceError(f"board: reset: expected {RESET.cell!r} of type {RESET_VLNV} in the overlay, found none")
        return self._pynq.MMIO(details["phys_addr"], details["addr_range"], device=self._device)

    def allocate(self, size: int) -> BoardBuffer:
        self._check_open()
        if size < 1:
            raise DeviceError(f"allocate: {size} bytes: expected at least 1")
        options = {"cacheable": 1} if self._cacheable else {}
        try:
            memory = self._pynq.allocate((size,), np.uint8, target=self._device, **options)
        except Exception as error:  # XRT's errors have no common class
            raise DeviceError(f"allocate: {size} bytes: refused: {error}{_free_memory()}") from error
        buffer = BoardBuffer(self, memory)
        if buffer.device_address % ARENA_ALIGNMENT:
            address = buffer.device_address
            memory.freebuffer()
            raise DeviceError(f"allocate: address {address:#x}: expected a multiple of {ARENA_ALIGNMENT}")
        self._buffers.append(buffer)
        buffer.array[:] = 0
        buffer.flush()  # else a zero that leaves the cache late would overwrite what the engine has written
        return buffer

    def _release(self, buffer: BoardBuffer) -> None:
        if buffer in self._buffers:
            self._buffers.remove(buffer)

    def read_register(self, offset: int) -> int:
        check_register(offset)
        self._check_open()
        with _decoded(f"register {offset:#x}: read"):
            return int(self.engine.read(int(offset)))

    def write_register(self, offset: int, value: int) -> None:
        check_register(offset, value)
        self._check_open()
        with _decoded(f"register {offset:#x}: write"):
            self.engine.write(int(offset), int(value))

    def wait_interrupt(self, timeout: float) -> bool:
        self._check_open()
        end = time.monotonic() + timeout
        pending = self.read_register(Reg.ISR)
        if not pending and self.interrupts:
            # A time-out leaves the request in place: PYNQ takes it up again when it is next waited for.
            with contextlib.suppress(asyncio.TimeoutError, FutureTimeout), _decoded("interrupt"):
                _in_loop(asyncio.wait_for(self.engine.line.wait(), timeout), timeout)
            pending = self.read_register(Reg.ISR)
        while not pending and not self.interrupts and time.monotonic() < end:
            time.sleep(POLL_SECONDS)
            pending = self.read_register(Reg.ISR)
        return bool(pending)

    def reset(self) -> None:
        """Reset the engine through the overlay's GPIO; PYNQ and the memory are left alone."""
        self._check_open()
        with _decoded("reset"):
            self._reset_gpio.write(GPIO_DATA, 0)
            time.sleep(RESET_SECONDS)
            self._reset_gpio.write(GPIO_DATA, 1)
        end = time.monotonic() + SETTLE_SECONDS
        while not (found := self.read_register(Reg.AP_CTRL)) & _IDLE:
            if time.monotonic() >= end:
                raise DeviceError(
                    f"board: AP_CTRL = {found:#x} after a reset: expected an idle engine; "
                    "load the overlay again, or switch the board off and on"
                )

    def _check_open(self) -> None:
        if self._engine is None:
            raise DeviceError("board: expected an open device, found a closed one")

    def _unlock(self) -> None:
        lock, self._lock = self._lock, None
        if lock is not None:
            fcntl.flock(lock, fcntl.LOCK_UN)  # also for a child that was forked and still has the file
            lock.close()

    def close(self) -> None:
        """Stop the engine, free all memory, let the next process have the board. Closing twice is harmless."""
        if self._engine is None:
            return
        atexit.unregister(self.close)
        try:
            self.reset()  # before the memory goes: an engine that runs would write into what others then own
        finally:
            self._engine = None
            for buffer in list(self._buffers):
                buffer.close()
            self._unlock()


def _import_pynq() -> Any:
    try:
        pynq = importlib.import_module("pynq")
        importlib.import_module("host.backends.board_ip")  # registers the driver with PYNQ
    except ImportError as error:
        raise DeviceError(
            f"board: pynq: cannot import: {error}; on a ZCU104 use the Python environment of the PYNQ image "
            "(docs/board.md), elsewhere use the back ends golden or rtl"
        ) from error
    return pynq


@contextlib.contextmanager
def _decoded(what: str) -> Iterator[None]:
    """Turn what PYNQ raises into a DeviceError of one line."""
    try:
        yield
    except DeviceError:
        raise
    except (asyncio.TimeoutError, FutureTimeout):  # an OSError since Python 3.11, but no failure
        raise
    except _FAILURES as error:
        text = str(error).splitlines()
        raise DeviceError(f"board: {what}: {text[0] if text else type(error).__name__}") from error


def _free_memory() -> str:
    """What Linux says of contiguous memory, for an error message."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("CmaFree:"):
                return f" (contiguous memory free: {' '.join(line.split()[1:])})"
    return ""


def lock_file() -> Path:
    """The file that the process which uses the board holds."""
    shared = Path("/run/lock")
    folder = shared if os.access(shared, os.W_OK) else Path(tempfile.gettempdir())
    return folder / "m3vit-board.lock"


def _take(path: Path) -> IO[str]:
    """Hold the lock file; the system lets go of it when the process ends, however it ends."""
    try:
        handle = path.open("a+", encoding="utf-8")
    except OSError as error:
        raise DeviceError(f"board: {path}: cannot open the lock file: {error.strerror}") from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        handle.seek(0)
        holder = handle.read().strip() or "unknown"
        handle.close()
        raise DeviceError(f"board: in use by process {holder}: expected a free board; lock: {path}") from error
    handle.truncate(0)
    handle.write(f"{os.getpid()}\n")
    handle.flush()
    return handle


@functools.cache
def _loop() -> asyncio.AbstractEventLoop:
    """The event loop of all interrupts, in a thread of its own.

    There is one as long as the process lives, because PYNQ keeps its interrupt controllers that long, and it is not
    that of the main thread, because notebooks run one there.
    """
    loop = asyncio.new_event_loop()
    threading.Thread(target=_run, args=(loop,), name="m3vit interrupts", daemon=True).start()
    return loop


def _run(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    loop.run_forever()


def _in_loop(work: Coroutine[Any, Any, T], timeout: float | None = None) -> T:
    """Result of a coroutine that runs in the loop of all interrupts."""
    future = asyncio.run_coroutine_threadsafe(work, _loop())
    try:
        return future.result(None if timeout is None else timeout + 1.0)
    except BaseException:
        future.cancel()
        raise

