"""Golden back end: registers as ``ap_ctrl_hs`` has them, around the functional model of the engine.

The program runs in a thread of its own, so that waiting, time-outs and the interrupt are as real as with
hardware. Faults can be injected, so that the driver's recovery can be tested.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass

import numpy as np

from accel.config import Formats, Hardware
from accel.errors import DeviceError
from accel.functional import FunctionalEngine
from accel.layers import round_up
from accel.memory_map import ARENA_ALIGNMENT
from accel.registers import ARENAS, UNMAPPED, mask
from host.backends.plain_memory import BASE, PlainBuffer
from host.device import Device, Reg, check_register

START, DONE, IDLE, READY, AUTO_RESTART, INTERRUPT = (
    mask("AP_CTRL", name) for name in ("start", "done", "idle", "ready", "auto_restart", "interrupt")
)
_ARGUMENTS = frozenset(
    {offset for pair in ARENAS for offset in pair} | {Reg.PROGRAM, Reg.COMMANDS, Reg.RECORD}
)


@dataclass
class Faults:
    """What goes wrong, for tests. Counts go down as they happen.

    Attributes:
        delay: seconds that every program takes longer.
        hangs: programs that never end.
        lost_interrupts: ends of programs that raise no interrupt.
    """

    delay: float = 0.0
    hangs: int = 0
    lost_interrupts: int = 0


class GoldenDevice(Device):
    """The engine as integers.

    Registers behave as in hardware: ``start`` clears itself when the program is taken, ``done`` and
    ``ready`` clear on read, ISR bits toggle on write and are set only where IER allows. Reads of addresses
    without a register give ``UNMAPPED``, writes to them are ignored; offsets that are not aligned or lie
    outside the register space are DeviceErrors, because no bus carries them.

    Args:
        hardware, formats: what the engine is built with.
        memory_bytes: memory that can be allocated in all.
        faults: what shall go wrong.
    """

    name = "golden"

    def __init__(
        self,
        hardware: Hardware,
        formats: Formats,
        memory_bytes: int = 8 << 30,
        faults: Faults | None = None,
    ) -> None:
        super().__init__(hardware, formats)
        self.faults = faults or Faults()
        self._engine = FunctionalEngine(hardware, formats)
        self._free = memory_bytes
        self._next_address = BASE
        self._buffers: list[PlainBuffer] = []
        self._changed = threading.Condition()
        self._abort = threading.Event()
        self._worker: threading.Thread | None = None
        self._failure: BaseException | None = None
        self._closed = False
        self._clear()

    def _clear(self) -> None:
        self._arguments = dict.fromkeys(_ARGUMENTS, 0)
        self._start = self._done = self._ready = self._auto_restart = False
        self._idle = True
        self._gier = self._ier = self._isr = 0

    def allocate(self, size: int) -> PlainBuffer:
        self._check_open()
        if size < 1 or size > self._free:
            raise DeviceError(f"allocate: {size} bytes: expected 1 to {self._free} bytes")
        buffer = PlainBuffer(self, self._next_address, np.zeros(size, np.uint8))
        self._next_address += round_up(size, ARENA_ALIGNMENT) + ARENA_ALIGNMENT
        self._free -= size
        self._buffers.append(buffer)
        return buffer

    def _release(self, buffer: PlainBuffer) -> None:
        if buffer in self._buffers:
            self._buffers.remove(buffer)
            self._free += buffer.size

    def read_register(self, offset: int) -> int:
        check_register(offset)
        with self._changed:
            self._check_alive()
            if offset == Reg.AP_CTRL:
                bits = (
                    (START, self._start), (DONE, self._done), (IDLE, self._idle),
                    (READY, self._ready), (AUTO_RESTART, self._auto_restart),
                    (INTERRUPT, self._line),
                )  # fmt: skip
                self._done = self._ready = False
                return sum(bit for bit, on in bits if on)
            if offset in self._arguments:
                return self._arguments[offset]
            plain = {Reg.GIER: self._gier, Reg.IER: self._ier, Reg.ISR: self._isr}
            return plain.get(offset, UNMAPPED)

    def write_register(self, offset: int, value: int) -> None:
        check_register(offset, value)
        with self._changed:
            self._check_alive()
            if offset == Reg.AP_CTRL:
                self._auto_restart = bool(value & AUTO_RESTART)
                if value & START:
                    self._begin()
            elif offset == Reg.GIER:
                self._gier = value & 1
            elif offset == Reg.IER:
                self._ier = value & 3
            elif offset == Reg.ISR:
                self._isr ^= value & 3
            elif offset in self._arguments:
                self._arguments[offset] = value
            self._changed.notify_all()

    @property
    def _line(self) -> bool:
        return bool(self._gier and self._isr)

    def wait_interrupt(self, timeout: float) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._line or self._failure is not None, max(0.0, timeout))
            self._check_alive()
            return self._line

    def _begin(self) -> None:
        """Set start; a program that runs already is followed by another one, as in hardware."""
        self._start = True
        if self._idle:
            self._idle = False
            self._worker = threading.Thread(target=self._work, name="golden engine", daemon=True)
            self._worker.start()

    def _work(self) -> None:
        """Run programs until neither start nor auto_restart asks for another."""
        try:
            while not self._abort.is_set():
                with self._changed:
                    self._start = False
                    arguments = dict(self._arguments)
                self._execute(arguments)
                if self._abort.is_set():
                    return
                with self._changed:
                    self._finish()
                    if self._idle:
                        return
        except BaseException as error:
            # A defect of the model must surface in the thread that waits, not vanish in this one.
            with self._changed:
                self._failure = error
                self._changed.notify_all()

    def _finish(self) -> None:
        self._done = self._ready = True
        if self.faults.lost_interrupts > 0:
            self.faults.lost_interrupts -= 1
        else:
            self._isr |= self._ier
        self._idle = not (self._start or self._auto_restart)
        self._changed.notify_all()

    def _execute(self, arguments: dict[int, int]) -> None:
        if self.faults.hangs > 0:
            self.faults.hangs -= 1
            self._abort.wait()
        if self._abort.wait(self.faults.delay):
            return
        memory = self._arena(arguments)
        if memory is not None:
            program, record = arguments[Reg.PROGRAM], arguments[Reg.RECORD]
            self._engine.execute(memory, program, arguments[Reg.COMMANDS], record)

    def _arena(self, arguments: dict[int, int]) -> np.ndarray | None:
        """Memory from the arena's address to the end of its buffer.

        None where there is none or the ports disagree: there, hardware could not write its record either.
        """
        addresses = {arguments[low] | arguments[high] << 32 for low, high in ARENAS}
        if len(addresses) != 1:
            return None
        address = addresses.pop()
        for buffer in self._buffers:
            if buffer.device_address <= address < buffer.device_address + buffer.size:
                return buffer.array[address - buffer.device_address :]
        return None

    def reset(self) -> None:
        """Stop the engine. A program that is computing is waited for: its memory must not change later."""
        self._check_open()
        self._stop()
        with self._changed:
            self._clear()
            self._failure = None

    def _stop(self) -> None:
        self._abort.set()
        if self._worker is not None:
            self._worker.join()
            self._worker = None
        self._abort.clear()

    def _check_open(self) -> None:
        if self._closed:
            raise DeviceError("golden: expected an open device, found a closed one")

    def _check_alive(self) -> None:
        self._check_open()
        if self._failure is not None:
            kind = type(self._failure).__name__
            raise DeviceError(f"golden: the engine model failed: {kind}: {self._failure}") from self._failure

    def close(self) -> None:
        if not self._closed:
            self._stop()
            self._closed = True
            self._buffers.clear()
