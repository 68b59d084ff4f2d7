"""Memory of simulated engines: NumPy arrays of this process, with addresses in the engine's address space."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from host.device import Buffer, first_fit

BASE = 0x1000_0000
"""Address of the first byte."""


class Owner(Protocol):
    """A device that hands out buffers."""

    def _release(self, buffer: PlainBuffer) -> None: ...


class PlainBuffer(Buffer):
    """An array with an address. There are no caches to flush.

    Args:
        owner: told when the buffer is closed.
        address: of the first byte.
        array: uint8.
    """

    def __init__(self, owner: Owner, address: int, array: NDArray[np.uint8]) -> None:
        self._owner, self.device_address, self.array = owner, address, array

    def flush(self, offset: int = 0, size: int | None = None) -> None:
        pass

    def invalidate(self, offset: int = 0, size: int | None = None) -> None:
        pass

    def close(self) -> None:
        self._owner._release(self)


def place(owner: Owner, memory: NDArray[np.uint8], buffers: Iterable[PlainBuffer], size: int) -> PlainBuffer:
    """A new buffer in ``memory``, which begins at :data:`BASE`, beside those that are there; not in their list yet.

    Raises:
        DeviceError: it does not fit.
    """
    taken = ((buffer.device_address - BASE, buffer.size) for buffer in buffers)
    offset = first_fit(taken, size, len(memory))
    array = memory[offset : offset + size]
    array[:] = 0  # may have been in use before
    return PlainBuffer(owner, BASE + offset, array)
