"""What every back end offers the driver: memory, registers, an interrupt and a reset. Nothing else."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from types import TracebackType
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from accel import registers
from accel.config import Formats, Hardware
from accel.errors import DeviceError
from accel.layers import round_up
from accel.memory_map import ARENA_ALIGNMENT
from accel.registers import SPAN

Array = NDArray[Any]
Reg: Any = registers.Reg
"""``accel.registers.Reg``; its members are made at run time, so type checkers cannot know them."""
C = TypeVar("C", bound="Closing")


class Closing(ABC):
    """Something to close, usable as a context manager that does so."""

    @abstractmethod
    def close(self) -> None:
        """Give everything back. Closing twice is harmless."""

    def __enter__(self: C) -> C:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class Buffer(Closing):
    """Memory that host and engine both reach.

    Attributes:
        array: uint8 view for the host.
        device_address: address of the first byte as the engine sees it.
    """

    array: NDArray[np.uint8]
    device_address: int

    @property
    def size(self) -> int:
        """Bytes."""
        return int(self.array.size)

    @abstractmethod
    def flush(self, offset: int = 0, size: int | None = None) -> None:
        """Make what the host wrote to this range visible to the engine."""

    @abstractmethod
    def invalidate(self, offset: int = 0, size: int | None = None) -> None:
        """Make what the engine wrote to this range visible to the host."""


class Device(Closing):
    """One engine; closing it releases every buffer too.

    Attributes:
        name: of the back end.
        hardware, formats: what the engine is believed to be built with; only its identity record proves
            it (:meth:`host.driver.Driver.identify`).
        simulated: no board is behind it: seconds are those of this machine, and power rails not the engine's.
        build_hash: hash of everything that the engine was built with, where something vouches for it; else None.
    """

    name = "device"
    simulated = True
    build_hash: int | None = None

    def __init__(self, hardware: Hardware, formats: Formats) -> None:
        self.hardware, self.formats = hardware, formats

    @abstractmethod
    def allocate(self, size: int) -> Buffer:
        """Zeroed memory of ``size`` bytes, aligned to 4096; raises DeviceError if there is none left."""

    @abstractmethod
    def read_register(self, offset: int) -> int:
        """32-bit register; offsets are those of ``accel.registers.Reg``."""

    @abstractmethod
    def write_register(self, offset: int, value: int) -> None:
        """Write a 32-bit register."""

    @abstractmethod
    def wait_interrupt(self, timeout: float) -> bool:
        """Wait until the interrupt line is high, at most ``timeout`` seconds.

        Returns whether it is. A back end without an interrupt sleeps for a short while and returns False:
        the driver looks at the registers after every return.
        """

    @abstractmethod
    def reset(self) -> None:
        """Stop whatever runs and put all registers back to zero. Memory keeps its content."""


def check_register(offset: int, value: int = 0) -> None:
    """Raise DeviceError unless this is an aligned offset in the register space and a 32-bit value."""
    if offset % 4 or not 0 <= offset < SPAN:
        raise DeviceError(f"register {offset:#x}: expected a multiple of 4 below {SPAN:#x}")
    if not 0 <= value < 1 << 32:
        raise DeviceError(f"register {offset:#x}: value {value:#x}: expected 32 bits")


def first_fit(taken: Iterable[tuple[int, int]], size: int, room: int) -> int:
    """Offset of the first gap of ``size`` bytes in ``room`` bytes of memory; raises DeviceError if there is none.

    Args:
        taken: offset and size of what is in use; every piece keeps whole multiples of the arena's alignment.
    """
    gaps, start = [], 0
    for offset, used in sorted(taken):
        gaps.append((start, offset - start))
        start = offset + round_up(used, ARENA_ALIGNMENT)
    gaps.append((start, max(0, room - start)))
    largest = max(space for _, space in gaps)
    if size < 1 or size > largest:
        raise DeviceError(f"allocate: {size} bytes: expected 1 to {largest} bytes")
    return next(start for start, space in gaps if space >= size)
