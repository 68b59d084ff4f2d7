"""A simulated board: PYNQ's own library, with the verilated or the golden engine where the chip would be.

The driver, :class:`~host.backends.board.BoardDevice` and PYNQ run unmodified. Simulated is what Linux and the chip
would offer PYNQ: registers behind addresses, memory behind a cache that keeps what is not flushed, the AXI interrupt
controller, the device file of its interrupt (a pseudo-terminal), and the GPIO that resets the engine. Needs pynq::

    with SimulatedBoard(hardware, Formats(), folder) as board, board.open() as device, Driver(device) as driver:
        ...
"""

from __future__ import annotations

import errno
import os
import threading
import time
import tty
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from accel.config import Formats, Hardware
from accel.errors import DeviceError
from accel.registers import mask
from host.backends.board import BoardDevice, _in_loop
from host.device import Buffer, Closing, Device, Reg
from host.handoff import handoff
from host.overlay import ENGINE, GPIO_DATA, INTERRUPTS, NAME, RESET, Slave, write_manifest

try:
    import pynq.interrupt
    import pynq.ps
    from pynq.buffer import PynqBuffer
    from pynq.pl_server import embedded_device
    from pynq.pl_server.device import Device as PynqDevice
except ImportError as problem:  # not on a board, and not `make test-pynq`
    raise DeviceError(f"simulated board: cannot import pynq: {problem}; see `make test-pynq`") from problem

TICK_SECONDS = 0.002
"""How long the engine is simulated at a stretch, between which registers can be reached."""
PAUSE_SECONDS = 0.0002
"""Between two stretches; locks are not fair, so others need the time to get in."""
IDLE_SECONDS = 0.01
"""Between two looks at the device file of the interrupt while nothing runs."""
UNINITIALIZED = 0xA5
"""What new memory is full of."""
_START = mask("AP_CTRL", "start")
_LINE_REGISTERS = frozenset({Reg.AP_CTRL, Reg.GIER, Reg.IER, Reg.ISR})
_CLOCK_PAGES = (0xFF5E, 0xFD1A)
"""Addresses of the processor's clock registers (UG1087, CRL_APB and CRF_APB), upper half."""
_CLOCK_REGISTER = 90 << 8 | 1 << 16
"""Reset value: as a PLL, 33.3 MHz times 90, halved."""
_clock_registers: dict[int, int] = {}  # of the process: PYNQ keeps its clocks that long
_linux_uio_irq = pynq.interrupt.get_uio_irq
pynq.ps.CPU_ARCH = pynq.ps.ZU_ARCH  # PYNQ 3.0 asks the processor that it runs on, not the device, about clocks
_PENDING, _ENABLED_PENDING, _ENABLE, _ACKNOWLEDGE, _SET, _CLEAR, _MASTER = 0x00, 0x04, 0x08, 0x0C, 0x10, 0x14, 0x1C
"""Registers of the AXI interrupt controller (PG099)."""


@dataclass
class BoardFaults:
    """What goes wrong, for tests. Counts go down as they happen.

    Attributes:
        write_errors: engine registers whose write is answered with a bus error; once each.
        lost_interrupts: interrupts that never reach Linux.
        allocations: allocations that still succeed, or None for all.
    """

    write_errors: list[int] = field(default_factory=list)
    lost_interrupts: int = 0
    allocations: int | None = None


class Controller:
    """The AXI interrupt controller, one level-sensitive input, and Linux's device file for its output."""

    def __init__(self, faults: BoardFaults) -> None:
        self.faults = faults
        self.line = False
        self._pending = self._enable = self._master = 0
        self._armed = self._lost = False
        self._ours, theirs = os.openpty()
        tty.setraw(theirs)
        os.set_blocking(self._ours, False)
        self.path = os.ttyname(theirs)
        self._theirs = theirs  # kept open: without a reader, a pseudo-terminal reports errors

    def read(self, offset: int) -> int:
        pending = self._pending | self.line
        values = {_PENDING: pending, _ENABLED_PENDING: pending & self._enable, _ENABLE: self._enable}
        return values.get(offset, self._master if offset == _MASTER else 0)

    def write(self, offset: int, value: int) -> None:
        if offset == _ACKNOWLEDGE:
            self._pending &= ~value
        elif offset == _ENABLE:
            self._enable = value & 1
        elif offset == _SET:
            self._enable |= value & 1
        elif offset == _CLEAR:
            self._enable &= ~value
        elif offset == _MASTER:
            self._master = value
        self.update(self.line)

    def update(self, line: bool) -> None:
        """Take over the engine's line; tell whoever reads the device file, once per time that it asked."""
        if line and not self.line and self.faults.lost_interrupts > 0:
            self.faults.lost_interrupts -= 1
            self._lost = True
        if not line:
            self._lost = False
        self.line = line
        if line and not self._lost:
            self._pending |= 1
        try:
            self._armed |= bool(os.read(self._ours, 64))
        except BlockingIOError:
            pass
        except OSError as error:  # nobody has opened the file yet
            if error.errno != errno.EIO:
                raise
        if self._armed and self._master & 1 and self._pending & self._enable:
            self._armed = False
            os.write(self._ours, b"\1\0\0\0")

    def close(self) -> None:
        os.close(self._ours)
        os.close(self._theirs)


class _Memory:
    """Gives PYNQ's buffers back to the engine's memory when they are freed."""

    def __init__(self, board: SimulatedBoard) -> None:
        self._board = board

    def return_pointer(self, buffer: Buffer) -> None:
        self._board._free(buffer)


class SimulatedPynqDevice(PynqDevice):
    """What PYNQ needs to know of a device, answered by a :class:`SimulatedBoard`."""

    def __init__(self, board: SimulatedBoard) -> None:
        super().__init__("m3vit-simulated")
        self.name, self.arch, self.simulated = "m3vit-simulated", "aarch64", True
        self.capabilities = {"REGISTER_RW": True, "MEMORY_MAPPED": False, "CALLABLE": False}
        self.timestamp = ""
        self._board = board

    def read_registers(self, address: int, length: int) -> bytes:
        return self._board._read(address).to_bytes(4, "little")[:length]

    def write_registers(self, address: int, data: Any) -> None:
        self._board._write(address, int.from_bytes(bytes(data)[:4], "little"))

    def get_bitfile_metadata(self, name: str, partial: bool = False) -> Any:
        metadata = embedded_device.Metadata(input=str(Path(name).with_suffix(".hwh")))
        return embedded_device.RuntimeMetadataParser(metadata)

    def download(self, bitstream: Any, parser: Any = None) -> None:
        self._board._configure()
        self.post_download(bitstream, parser, self.name)

    def allocate(self, shape: Any, dtype: Any, **options: Any) -> Any:
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        memory, cache = self._board._allocate(size)
        buffer = PynqBuffer(
            shape=shape, dtype=dtype, buffer=cache, device_address=memory.device_address, coherent=False, bo=memory,
            device=self,
        )  # fmt: skip
        buffer.memory, buffer.pointer, buffer.return_to = self, memory, self._board._returns
        buffer.freed = True  # PYNQ unmaps memory that was not returned; there is nothing to unmap here
        return buffer

    def flush(self, memory: Buffer, offset: int, pointer: int, size: int) -> None:
        self._board._flush(memory, offset, size)

    def invalidate(self, memory: Buffer, offset: int, pointer: int, size: int) -> None:
        self._board._invalidate(memory, offset, size)


class SimulatedBoard(Closing):
    """A board with the overlay loaded, as long as it is open. Only one may be open in a process.

    Args:
        hardware, formats: of the overlay's engine.
        folder: where the overlay's files go; by default one that goes away with the board.
        engine: implementation that the overlay claims to hold.
        interrupts: whether the engine's interrupt is wired.
        backend: the engine behind the registers, by default the verilated one; closed with the board.
        faults: what shall go wrong.

    Attributes:
        bit: the overlay.
        device: the ``pynq.Device``, PYNQ's active one while the board is open.
        engine: the back end behind the registers.
    """

    def __init__(
        self,
        hardware: Hardware,
        formats: Formats,
        folder: str | os.PathLike[str] | None = None,
        *,
        engine: str = "rtl",
        interrupts: bool = True,
        backend: Device | None = None,
        faults: BoardFaults | None = None,
    ) -> None:
        if pynq.interrupt.get_uio_irq is not _linux_uio_irq:
            raise DeviceError("simulated board: expected none in this process, found one")
        self.hardware, self.formats = hardware, formats
        self._folder = TemporaryDirectory(prefix="m3vit-overlay-") if folder is None else None
        target = Path(self._folder.name if self._folder is not None else folder)  # type: ignore[arg-type]
        target.mkdir(parents=True, exist_ok=True)
        self.bit = write_overlay(target, hardware, formats, engine, interrupts)
        if backend is None:
            from host.backends.rtl import RtlDevice

            backend = RtlDevice(hardware, formats)
        self.engine = backend
        self.faults = faults or BoardFaults()
        self._buffers: dict[int, tuple[Buffer, Any]] = {}
        self._returns = _Memory(self)
        self._bus = threading.RLock()
        self._running = self._out_of_reset = self._closed = False
        self._wake = threading.Event()
        self._controller = Controller(self.faults)
        self._time = threading.Thread(target=self._pass_time, name="simulated board", daemon=True)
        self._time.start()
        self.device = SimulatedPynqDevice(self)
        self._before = getattr(PynqDevice, "_active_device", None)
        PynqDevice.active_device = self.device
        pynq.interrupt.get_uio_irq = lambda irq: self._controller.path

    def open(self, hardware: Hardware | None = None, formats: Formats | None = None, **options: Any) -> BoardDevice:
        """The back end ``board`` on this board, for bundles that expect this hardware."""
        given = {"overlay": self.bit, "device": self.device, "lock": self.bit.with_suffix(".lock"), **options}
        return BoardDevice(hardware or self.hardware, formats or self.formats, **given)

    # ---- registers

    def _place(self, address: int) -> tuple[Slave, int]:
        for slave in (ENGINE, RESET, INTERRUPTS):
            if slave.address <= address < slave.address + slave.size:
                return slave, address - slave.address
        raise OSError(errno.EIO, f"no block answers at {address:#x}")

    def _read(self, address: int) -> int:
        if address >> 16 in _CLOCK_PAGES:
            return _clock_registers.get(address, _CLOCK_REGISTER)
        slave, offset = self._place(address)
        with self._bus:
            if slave is INTERRUPTS:
                return self._controller.read(offset)
            if slave is RESET or not self._out_of_reset:
                return 0
            value = self.engine.read_register(offset)
            if offset == Reg.ISR:
                self._controller.update(self._level())
            return value

    def _write(self, address: int, value: int) -> None:
        if address >> 16 in _CLOCK_PAGES:
            _clock_registers[address] = value
            return
        slave, offset = self._place(address)
        with self._bus:
            if slave is INTERRUPTS:
                self._controller.write(offset, value)
            elif slave is RESET and offset == GPIO_DATA:
                self._out_of_reset = bool(value & 1)
                if not self._out_of_reset:
                    self._stop()
            elif slave is ENGINE and self._out_of_reset:
                if offset in self.faults.write_errors:
                    self.faults.write_errors.remove(offset)
                    raise OSError(errno.EIO, "bus error")
                self.engine.write_register(offset, value)
                if offset == Reg.AP_CTRL and value & _START:
                    self._running = True
                    self._wake.set()
                if offset in _LINE_REGISTERS:
                    self._controller.update(self._level())

    def _level(self) -> bool:
        """The engine's interrupt line; both back ends say so without waiting."""
        return bool(self.engine.read_register(Reg.ISR) and self.engine.read_register(Reg.GIER))

    def _stop(self) -> None:
        self.engine.reset()
        self._running = False
        self._controller.update(False)

    def _configure(self) -> None:
        """What loading the bitstream does: everything in its state after power-up."""
        with self._bus:
            self._stop()
            self._out_of_reset = True

    def _pass_time(self) -> None:
        """Let the engine run while it has something to do, in stretches, so that registers can be reached."""
        while not self._closed:
            if not self._running:
                self._wake.wait(IDLE_SECONDS)
                self._wake.clear()
            with self._bus:
                line = self._controller.line
                if self._running and not self._closed:
                    try:
                        line = self.engine.wait_interrupt(TICK_SECONDS)
                    except DeviceError:  # its back end gives a hang up: the engine stays as it is until it is reset
                        self._running = False
                    self._running = self._running and not line
                self._controller.update(line)
            time.sleep(PAUSE_SECONDS)

    # ---- memory

    def _allocate(self, size: int) -> tuple[Buffer, Any]:
        if self.faults.allocations is not None:
            if self.faults.allocations == 0:
                raise RuntimeError("BO allocation failed: Cannot allocate memory")
            self.faults.allocations -= 1
        with self._bus:
            try:
                memory = self.engine.allocate(size)
            except DeviceError as error:
                raise RuntimeError(f"BO allocation failed: {error}") from error
        memory.array[:] = UNINITIALIZED
        cache = memory.array.copy()
        self._buffers[id(memory)] = memory, cache
        return memory, cache

    def _free(self, memory: Buffer) -> None:
        if self._buffers.pop(id(memory), None) is not None:
            memory.close()

    def _flush(self, memory: Buffer, offset: int, size: int) -> None:
        cache = self._buffers[id(memory)][1]
        memory.array[offset : offset + size] = cache[offset : offset + size]

    def _invalidate(self, memory: Buffer, offset: int, size: int) -> None:
        cache = self._buffers[id(memory)][1]
        cache[offset : offset + size] = memory.array[offset : offset + size]

    @property
    def allocated(self) -> int:
        """Buffers that have not been given back."""
        return len(self._buffers)

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._wake.set()
        self._time.join()
        self.engine.close()
        pynq.interrupt.get_uio_irq = _linux_uio_irq
        _in_loop(_forget_interrupts())
        self._controller.close()
        if self._before is not None:
            PynqDevice.active_device = self._before
        else:
            del PynqDevice._active_device
        if self._folder is not None:
            self._folder.cleanup()


async def _forget_interrupts() -> None:
    """Let PYNQ forget the device file, in the loop that watches it."""
    pynq.interrupt._InterruptController._controllers.clear()
    pynq.interrupt._InterruptController._uio_devices.clear()


def write_overlay(
    folder: Path, hardware: Hardware, formats: Formats, engine: str = "rtl", interrupts: bool = True
) -> Path:
    """An overlay for the simulated board: handoff and manifest are real, the bitstream is empty. Returns the latter."""
    bit = folder / f"{NAME}.bit"
    bit.write_bytes(b"")
    bit.with_suffix(".hwh").write_text(handoff(hardware, engine, interrupts), encoding="utf-8")
    write_manifest(folder, engine, hardware, formats, "simulated")
    return bit
