"""Control registers: AXI4-Lite, laid out as Vitis HLS lays out ``ap_ctrl_hs``, arguments in fixed 16-byte slots.

An HLS kernel cannot show live registers, so identity, counters and the error code go to a record in memory at the end
of a program (``accel.record``); these registers only start, stop and point.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum


class Access(IntEnum):
    """How a register or field behaves on access, after UG1399's control register tables."""

    READ = 0
    READ_WRITE = 1
    CLEAR_ON_READ = 2
    TOGGLE_ON_WRITE = 3
    SELF_CLEARING = 4


@dataclass(frozen=True)
class Bit:
    """One field of a register."""

    name: str
    bit: int
    access: Access
    meaning: str


@dataclass(frozen=True)
class Register:
    """One 32-bit register."""

    name: str
    offset: int
    access: Access
    meaning: str
    bits: tuple[Bit, ...] = ()


def _pointer(name: str, offset: int, meaning: str) -> tuple[Register, Register]:
    return (
        Register(f"{name}_LO", offset, Access.READ_WRITE, f"{meaning}, bits 31:0"),
        Register(f"{name}_HI", offset + 4, Access.READ_WRITE, f"{meaning}, bits 63:32"),
    )


REGISTERS: tuple[Register, ...] = (
    Register("AP_CTRL", 0x00, Access.READ_WRITE, "block control", (
        Bit("start", 0, Access.SELF_CLEARING, "write 1 to start a program; clears when the engine has taken it"),
        Bit("done", 1, Access.CLEAR_ON_READ, "the program has ended and its record is in memory"),
        Bit("idle", 2, Access.READ, "no program is running"),
        Bit("ready", 3, Access.CLEAR_ON_READ, "the next start can be given"),
        Bit("auto_restart", 7, Access.READ_WRITE, "start again whenever a program ends"),
        Bit("interrupt", 9, Access.READ, "state of the interrupt line"),
    )),
    Register("GIER", 0x04, Access.READ_WRITE, "global interrupt enable", (
        Bit("enable", 0, Access.READ_WRITE, "drive the interrupt line"),
    )),
    Register("IER", 0x08, Access.READ_WRITE, "interrupt enable", (
        Bit("done", 0, Access.READ_WRITE, "interrupt at done"),
        Bit("ready", 1, Access.READ_WRITE, "interrupt at ready"),
    )),
    Register("ISR", 0x0C, Access.TOGGLE_ON_WRITE, "interrupt status", (
        Bit("done", 0, Access.TOGGLE_ON_WRITE, "done has interrupted"),
        Bit("ready", 1, Access.TOGGLE_ON_WRITE, "ready has interrupted"),
    )),
    *_pointer("ARENA0", 0x20, "address of the arena as memory port 0 sees it"),
    *_pointer("ARENA1", 0x30, "address of the arena as memory port 1 sees it"),
    *_pointer("ARENA2", 0x40, "address of the arena as memory port 2 sees it"),
    *_pointer("ARENA3", 0x50, "address of the arena as memory port 3 sees it"),
    Register("PROGRAM", 0x60, Access.READ_WRITE, "offset of the first command in the arena, bytes"),
    Register("COMMANDS", 0x70, Access.READ_WRITE, "number of commands"),
    Register("RECORD", 0x80, Access.READ_WRITE, "offset of the record in the arena, bytes"),
)  # fmt: skip

SPAN = 0x1000
"""Bytes of address space."""

UNMAPPED = 0xDEADBEEF
"""Read value of addresses without a register."""

Reg = IntEnum("Reg", {item.name: item.offset for item in REGISTERS})  # type: ignore[misc]
"""Register offsets by name."""


def mask(register: str, field: str) -> int:
    """Bit mask of a named field, e.g. ``mask("AP_CTRL", "start")``."""
    for item in REGISTERS:
        if item.name == register:
            for entry in item.bits:
                if entry.name == field:
                    return 1 << entry.bit
    raise KeyError(f"{register}.{field}")

ARENAS = tuple((item.offset, item.offset + 4) for item in REGISTERS if item.name.endswith("_LO"))
"""Offsets of the low and the high half of the arena's address, port by port."""
