"""HLS back end: the engine in Vitis HLS C++, simulated as C++, behind the driver's interface.

Registers, waiting and the interrupt are those of the golden back end; what a start runs is the C++ engine. It has no
clock, so its record has no cycle counters.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Mapping
from ctypes import POINTER, byref, c_char_p, c_int, c_uint8, c_uint32, c_uint64, c_void_p
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from accel.config import Formats, Hardware
from accel.errors import DeviceError
from accel.registers import ARENAS
from host.backends.build_cache import Note, say
from host.backends.golden import Faults, GoldenDevice
from host.backends.hls_build import build
from host.backends.plain_memory import BASE, PlainBuffer, place
from host.device import Reg

SLACK = 1 << 32
"""Address space behind the memory that reads as zeros: offsets of a program have 32 bits, and reads past the memory,
which answer with an error in hardware, must not reach foreign bytes here."""

_FINISHED, _DEADLOCK, _STOPPED, _FAILED = range(4)
_SIGNATURES: dict[str, tuple[object, list[object]]] = {
    "new": (c_void_p, []),
    "delete": (None, [c_void_p]),
    "sequential": (None, [c_void_p, c_int]),
    "depth": (c_int, [c_void_p, c_char_p, c_int]),
    "stream": (c_int, [c_int, POINTER(c_char_p), POINTER(c_int), POINTER(c_int)]),
    "build_hash": (c_uint32, []),
    "run": (c_int, [c_void_p, POINTER(c_uint8), POINTER(c_uint64), c_uint32, c_uint32, c_uint32]),
    "report": (c_char_p, [c_void_p]),
    "stop": (None, [c_void_p, c_int]),
}


@dataclass(frozen=True)
class StreamDepth:
    """A stream between two processes: its depth, and the least that cannot deadlock."""

    name: str
    depth: int
    least: int


class HlsLibrary:
    """The engine's C interface (``hls_src/simulation/binding.cpp``)."""

    def __init__(self, path: Path) -> None:
        try:
            self._library = ctypes.CDLL(str(path))
        except OSError as error:
            raise DeviceError(f"hls: {path}: cannot load: {error}") from error
        for name, (result, arguments) in _SIGNATURES.items():
            function = getattr(self._library, f"m3vit_hls_{name}")
            function.restype, function.argtypes = result, arguments
            setattr(self, name, function)

    def __getattr__(self, name: str) -> Any:
        raise DeviceError(f"hls: the library has no function m3vit_hls_{name}")

    def streams(self) -> list[StreamDepth]:
        """All streams of the engine."""
        found: list[StreamDepth] = []
        name, depth, least = c_char_p(), c_int(), c_int()
        while self.stream(len(found), byref(name), byref(depth), byref(least)) == 0:
            found.append(StreamDepth((name.value or b"").decode(), depth.value, least.value))
        return found


class HlsDevice(GoldenDevice):
    """The engine as Vitis HLS would be given it.

    The first use of a configuration compiles it, which takes some seconds.

    Args:
        hardware, formats: what the engine is built with.
        memory_bytes: memory that can be allocated in all; taken from the system only as it is touched.
        sequential: run the engine's processes in turn on one thread, which is faster, instead of a thread each; same
            bits.
        depths: stream → another depth than its own.
        library: a library built already.
        note: told before a build starts.
    """

    name = "hls"

    def __init__(
        self,
        hardware: Hardware,
        formats: Formats,
        memory_bytes: int = 4 << 30,
        sequential: bool = True,
        depths: Mapping[str, int] | None = None,
        library: Path | None = None,
        note: Note = say,
    ) -> None:
        super().__init__(hardware, formats, memory_bytes, Faults())
        self._library = HlsLibrary(library or build(hardware, formats, note=note))
        self._handle = self._library.new()
        self._library.sequential(self._handle, sequential)
        for stream, depth in (depths or {}).items():
            if self._library.depth(self._handle, stream.encode(), depth):
                known = ", ".join(item.name for item in self._library.streams())
                raise DeviceError(f"hls: stream {stream!r}: expected one of {known}")
        try:
            flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
            space = mmap.mmap(-1, memory_bytes + SLACK, flags=flags)
        except (OSError, ValueError, OverflowError) as error:
            raise DeviceError(f"hls: memory_bytes = {memory_bytes}: expected what can be mapped: {error}") from error
        self._space: NDArray[np.uint8] = np.frombuffer(space, np.uint8)
        self.memory = self._space[:memory_bytes]

    def allocate(self, size: int) -> PlainBuffer:
        self._check_open()
        made = place(self, self.memory, self._buffers, size)
        self._buffers.append(made)
        return made

    def _execute(self, arguments: dict[int, int]) -> None:
        arenas = [arguments[low] + (arguments[high] << 32) - BASE for low, high in ARENAS]
        used = arenas[: self.hardware.ports]
        if any(not 0 <= arena < len(self.memory) for arena in used):
            return  # hardware could not write its record there either
        result = self._library.run(
            self._handle, self._space.ctypes.data_as(POINTER(c_uint8)), (c_uint64 * len(arenas))(*arenas),
            arguments[Reg.PROGRAM], arguments[Reg.COMMANDS], arguments[Reg.RECORD],
        )  # fmt: skip
        if result in (_DEADLOCK, _FAILED):
            raise DeviceError(self._library.report(self._handle).decode())

    def _stop(self) -> None:
        self._library.stop(self._handle, 1)
        super()._stop()
        self._library.stop(self._handle, 0)

    def _check_open(self) -> None:
        if self._closed:
            raise DeviceError("hls: expected an open device, found a closed one")

    def _check_alive(self) -> None:
        self._check_open()
        if self._failure is not None:
            raise DeviceError(f"hls: {self._failure}") from self._failure

    def close(self) -> None:
        if not self._closed:
            super().close()
            self._library.delete(self._handle)
