"""Pins of a unit under test, as integers: what a bench drives is written when it changes, handles are kept."""

from __future__ import annotations

from typing import Any


class Pins:
    """``pins.drive(a=1, b=0)`` writes, ``pins["c"]`` reads; ``pins.slices("d", 8)`` reads a vector's elements."""

    def __init__(self, dut: Any) -> None:
        self.dut = dut
        self._handles: dict[str, Any] = {}
        self._driven: dict[str, int] = {}

    def _handle(self, name: str) -> Any:
        handle = self._handles.get(name)
        if handle is None:
            handle = self._handles[name] = getattr(self.dut, name)
        return handle

    def drive(self, **values: int) -> None:
        for name, value in values.items():
            value = int(value)
            if self._driven.get(name) != value:
                self._driven[name] = value
                self._handle(name).value = value

    def __getitem__(self, name: str) -> int:
        return int(self._handle(name).value)

    def slices(self, name: str, width: int) -> list[int]:
        """Elements of a packed vector, the lowest first."""
        handle = self._handle(name)
        value, mask = int(handle.value), (1 << width) - 1
        return [value >> low & mask for low in range(0, len(handle), width)]
