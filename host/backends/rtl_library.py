"""The simulated board's C interface (``rtl_tb/board/``): memory model and board, as Python objects."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Sequence
from ctypes import POINTER, byref, c_char_p, c_int, c_int64, c_uint8, c_uint32, c_uint64, c_void_p
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from accel.errors import DeviceError
from accel.memory_model import MemoryModel

_SIGNATURES: dict[str, tuple[object, list[object]]] = {
    "memory_new": (c_void_p, []),
    "memory_delete": (None, [c_void_p]),
    "memory_default": (c_void_p, []),
    "memory_attach": (None, [c_void_p, POINTER(c_uint8), c_uint64, c_uint64]),
    "memory_configure": (c_int, [c_void_p, POINTER(c_int64), c_int, POINTER(c_uint32), c_uint64]),
    "memory_errors": (None, [c_void_p, c_int, POINTER(c_uint64), c_uint64]),
    "memory_restart_clock": (None, [c_void_p]),
    "memory_freeze": (None, [c_void_p, c_int]),
    "memory_log": (None, [c_void_p, c_int]),
    "memory_events": (c_uint64, [c_void_p, POINTER(c_void_p)]),
    "memory_violation": (c_char_p, [c_void_p]),
    "memory_clear_violation": (None, [c_void_p]),
    "memory_moved": (c_uint64, [c_void_p, c_int, c_int]),
    "board_new": (c_void_p, [c_void_p]),
    "board_delete": (None, [c_void_p]),
    "board_cycles": (c_uint64, [c_void_p]),
    "board_interrupt": (c_int, [c_void_p]),
    "board_reset": (None, [c_void_p]),
    "board_run": (c_uint64, [c_void_p, c_uint64]),
    "board_idle": (None, [c_void_p, c_uint64]),
    "board_write": (c_int, [c_void_p, c_uint32, c_uint32]),
    "board_read": (c_int, [c_void_p, c_uint32, POINTER(c_uint32)]),
    "board_stopped": (c_char_p, [c_void_p]),
    "board_trace": (c_int, [c_void_p, c_char_p]),
    "board_coverage": (c_int, [c_void_p, c_char_p]),
}

EVENT = np.dtype(
    [("cycle", "<u8"), ("address", "<u8"), ("kind", "<u4"), ("port", "<u4"), ("beats", "<u4"), ("response", "<u4")]
)
"""One entry of the memory's log."""
EVENT_KINDS = (
    "read_address", "read_last", "write_address", "write_response",
    "layer_first", "layer_last", "unit_first", "unit_last",
)  # fmt: skip
"""Names of an event's ``kind``: address accepted or last beat or response taken; first and last array beat of a layer
or of a unit, where ``port`` is the command's place in the engine's table (index modulo 8, END and BARRIER not counted)
and ``address`` the weight slot."""

_PARAMETERS = (
    "latency", "bytes_per_cycle", "bucket_bytes", "refresh_period", "refresh_cycles", "turnaround", "write_batch",
    "write_wait", "write_latency", "outstanding", "burst_beats",
)  # fmt: skip
"""Fields of the memory model in the order of the C++ structure."""

Ranges = Sequence[tuple[int, int]]


class Library:
    """A loaded library; its functions are attributes, without the common prefix."""

    def __init__(self, path: Path | None) -> None:
        """Load ``path``; None means the running program itself, as under cocotb."""
        try:
            self._library = ctypes.CDLL(None if path is None else str(path))
        except OSError as error:
            raise DeviceError(f"rtl: {path}: cannot load: {error}") from error
        for name, (result, arguments) in _SIGNATURES.items():
            function = getattr(self._library, f"m3vit_{name}", None)
            if function is not None:
                function.restype, function.argtypes = result, arguments
                setattr(self, name, function)

    def __getattr__(self, name: str) -> Any:
        raise DeviceError(f"rtl: the library has no function m3vit_{name}")


class SimulatedMemory:
    """Memory behind the engine's ports: bytes that Python sees as an array, and the model of their timing.

    Args:
        library: where the model's code is.
        model: timing.
        base: address of the first byte.
        size: bytes; taken from the system only as they are touched.
        handle: an existing model instead of a new one.
    """

    _running: SimulatedMemory | None = None

    def __init__(self, library: Library, model: MemoryModel, base: int, size: int, handle: int | None = None) -> None:
        self._library = library
        self.base, self.size = base, size
        try:
            flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
            space = mmap.mmap(-1, size, flags=flags)
        except (OSError, ValueError, OverflowError) as error:
            raise DeviceError(f"rtl: memory_bytes = {size}: expected what this machine can map: {error}") from error
        # The array, and every view of it, keeps the mapping alive; closing the device cannot pull it away.
        self.array = np.frombuffer(space, np.uint8)
        self._owned = handle is None
        self.handle = handle if handle is not None else library.memory_new()
        library.memory_attach(self.handle, self.array.ctypes.data_as(POINTER(c_uint8)), base, size)
        self.configure(model)

    @classmethod
    def of_running_program(cls, model: MemoryModel, base: int = 0x1000_0000, size: int = 64 << 20) -> SimulatedMemory:
        """The memory of the simulation that this code runs in (cocotb)."""
        library = Library(None)
        memory = cls(library, model, base, size, library.memory_default())
        cls._running = memory  # the simulation goes on after the test that asked has dropped it
        return memory

    def configure(self, model: MemoryModel) -> None:
        """Use another model from now on."""
        values = [getattr(model, name) for name in _PARAMETERS]
        stalls = model.stalls() if model.stall_percent else np.zeros(0, np.uint32)
        expected = self._library.memory_configure(
            self.handle, (c_int64 * len(values))(*values), len(values), stalls.ctypes.data_as(POINTER(c_uint32)),
            len(stalls),
        )  # fmt: skip
        if expected:
            raise DeviceError(f"rtl: memory model: expected {expected} parameters in this library, found {len(values)}")
        self.inject(model.read_errors, model.write_errors)
        self.model = model

    def inject(self, reads: Ranges = (), writes: Ranges = ()) -> None:
        """Answer accesses to these address ranges (first, past the last) with SLVERR, and no others."""
        for write, ranges in enumerate((reads, writes)):
            ends = [end for pair in ranges for end in pair]
            self._library.memory_errors(self.handle, write, (c_uint64 * len(ends))(*ends), len(ranges))

    def freeze(self, on: bool = True) -> None:
        """Let no handshake complete any more: the engine hangs."""
        self._library.memory_freeze(self.handle, on)

    def restart_clock(self) -> None:
        """Let refresh and stalls begin anew, so that what follows takes the same cycles whatever came before.

        Nothing happens while bursts are in flight.
        """
        self._library.memory_restart_clock(self.handle)

    def log(self, on: bool = True) -> None:
        """Record bursts from now on, starting with an empty log."""
        self._library.memory_log(self.handle, on)

    def events(self) -> NDArray[np.void]:
        """What was recorded, a copy of type :data:`EVENT`."""
        pointer = c_void_p()
        count = self._library.memory_events(self.handle, byref(pointer))
        if not count or pointer.value is None:
            return np.zeros(0, EVENT)
        data = (c_uint8 * (count * EVENT.itemsize)).from_address(pointer.value)
        return np.frombuffer(data, EVENT).copy()

    def moved(self, port: int, write: bool = False) -> int:
        """Bytes that a port has read or written so far."""
        return int(self._library.memory_moved(self.handle, write, port))

    def violation(self) -> str:
        """First breach of the AXI4 protocol by the engine, or nothing; asking forgets it."""
        text = self._library.memory_violation(self.handle).decode()
        if text:
            self._library.memory_clear_violation(self.handle)
        return text

    def close(self) -> None:
        if self._owned and self.handle:
            self._library.memory_delete(self.handle)
            self.handle = 0

