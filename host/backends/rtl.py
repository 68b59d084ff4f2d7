"""RTL back end: the engine in SystemVerilog, simulated cycle by cycle by Verilator, behind the driver's interface.

Simulated time passes only while somebody waits for the interrupt, and a little with every register access.
"""

from __future__ import annotations

import os
import time
from ctypes import byref, c_uint32
from pathlib import Path

from accel.config import Formats, Hardware
from accel.errors import DeviceError
from accel.memory_model import MemoryModel
from accel.registers import mask
from host.backends.build_cache import Note, say
from host.backends.plain_memory import BASE, PlainBuffer, place
from host.backends.rtl_build import build, trace_format
from host.backends.rtl_library import Library, Ranges, SimulatedMemory
from host.device import Device, Reg, check_register

ACCESS_CYCLES = 32
"""Cycles that pass after a register access; on a board they take about this long."""
CHUNK_CYCLES = 512
"""Cycles between two looks at the clock on the wall."""

_START = mask("AP_CTRL", "start")


class RtlDevice(Device):
    """The engine as it would be synthesized, with memory that takes its time.

    The first use of a configuration builds the simulator, which takes minutes for a large engine.

    Args:
        hardware, formats: what the engine is built with.
        memory_model: timing of the memory.
        memory_bytes: memory that can be allocated in all; taken from the system only as it is touched.
        max_cycles: cycles after which a program counts as hung, or None.
        trace: file for the waveforms of everything (``.fst`` or ``.vcd``); very large, for short programs.
        assertions: check the assertions of the RTL as well.
        library: a library built already.
        note: told before a build starts.

    Attributes:
        memory: bytes, faults and log of the simulated memory.
    """

    name = "rtl"

    def __init__(
        self,
        hardware: Hardware,
        formats: Formats,
        memory_model: MemoryModel | None = None,
        memory_bytes: int = 4 << 30,
        max_cycles: int | None = None,
        trace: str | os.PathLike[str] | None = None,
        assertions: bool = False,
        library: Path | None = None,
        note: Note = say,
    ) -> None:
        super().__init__(hardware, formats)
        if library is None:
            waves = None if trace is None else trace_format(trace)
            library = build(hardware, formats, trace=waves, assertions=assertions, note=note)
        self._library = Library(library)
        self.memory = SimulatedMemory(self._library, memory_model or MemoryModel(), BASE, memory_bytes)
        self._buffers: list[PlainBuffer] = []
        self._max_cycles, self._begun = max_cycles, 0
        self._board = self._library.board_new(self.memory.handle)
        try:
            if trace is not None and self._library.board_trace(self._board, os.fsencode(trace)):
                raise DeviceError(f"{os.fspath(trace)}: cannot write waveforms")
            self._library.board_reset(self._board)
        except BaseException:
            self.close()
            raise

    def write_coverage(self, path: str | os.PathLike[str]) -> None:
        """Write the line coverage since this device was opened; its library must record it."""
        self._check_open()
        if self._library.board_coverage(self._board, os.fsencode(path)):
            raise DeviceError(f"{os.fspath(path)}: expected a library built with coverage, found one without")

    @property
    def cycles(self) -> int:
        """Cycles simulated so far."""
        self._check_open()
        return int(self._library.board_cycles(self._board))

    def allocate(self, size: int) -> PlainBuffer:
        self._check_open()
        made = place(self, self.memory.array, self._buffers, size)
        self._buffers.append(made)
        return made

    def _release(self, buffer: PlainBuffer) -> None:
        if buffer in self._buffers:
            self._buffers.remove(buffer)

    def read_register(self, offset: int) -> int:
        check_register(offset)
        self._check_open()
        value = c_uint32()
        self._check_response(offset, self._library.board_read(self._board, offset, byref(value)))
        return value.value

    def write_register(self, offset: int, value: int) -> None:
        check_register(offset, value)
        self._check_open()
        if offset == Reg.AP_CTRL and value & _START:
            self.memory.restart_clock()
            self._begun = self.cycles
        self._check_response(offset, self._library.board_write(self._board, offset, value))

    def _check_response(self, offset: int, response: int) -> None:
        self._library.board_idle(self._board, ACCESS_CYCLES)
        self._check_simulation()
        if response:
            what = "no response" if response < 0 else f"response {response}"
            raise DeviceError(f"rtl: register {offset:#x}: expected an OKAY response, found {what}")

    def wait_interrupt(self, timeout: float) -> bool:
        self._check_open()
        end = time.monotonic() + timeout
        while True:
            self._library.board_run(self._board, CHUNK_CYCLES)
            self._check_simulation()
            if self._library.board_interrupt(self._board):
                return True
            if self._max_cycles is not None and self.cycles - self._begun > self._max_cycles:
                raise DeviceError(f"rtl: expected the program's end within {self._max_cycles} cycles; reset the engine")
            if time.monotonic() >= end:
                return False

    def reset(self) -> None:
        self._check_open()
        self.memory.freeze(False)
        self._library.board_reset(self._board)
        self._begun = self.cycles

    def inject(self, reads: Ranges = (), writes: Ranges = ()) -> None:
        """Answer accesses to these address ranges (first, past the last) with an error, and no others."""
        self.memory.inject(reads, writes)

    def _check_simulation(self) -> None:
        """Raise if the engine broke the protocol of its memory ports, or one of its own assertions."""
        stopped = self._library.board_stopped(self._board)
        if stopped is not None:
            raise DeviceError(f"rtl: simulation stopped at {stopped.decode()}")
        broken = self.memory.violation()
        if broken:
            raise DeviceError(f"rtl: the engine broke AXI4: {broken}")

    def _check_open(self) -> None:
        if not self._board:
            raise DeviceError("rtl: expected an open device, found a closed one")

    def close(self) -> None:
        board, self._board = self._board, None
        if board:
            self._library.board_delete(board)
            self.memory.close()
            self._buffers.clear()
