"""Reads what Yosys writes about a unit: cells, memories, what a DSP48E2 could still take in, latest arrival."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from accel.errors import M3vitError


class NetlistError(M3vitError):
    """Yosys wrote something that is not understood; counting it as nothing would hide it."""


VERSION = 1
"""Raise this when the same files would give other figures: those kept of former runs are then made anew."""

LUTS = {f"LUT{inputs}": 1 for inputs in range(1, 7)} | {"INV": 1}
MEMORY_LUTS = {
    "SRL16E": 1, "SRLC32E": 1, "RAM32X1S": 1, "RAM64X1S": 1, "RAM32X1D": 2, "RAM64X1D": 2, "RAM128X1S": 2,
    "RAM128X1D": 4, "RAM32M": 4, "RAM64M": 4, "RAM32M16": 8, "RAM64M8": 8, "RAM256X1S": 4, "RAM256X1D": 8,
    "RAM512X1S": 8, "RAM64X8SW": 8,
}  # fmt: skip
"""LUTs that a memory or shift register primitive of UltraScale+ occupies (UG574)."""
FLIP_FLOPS = ("FDRE", "FDSE", "FDCE", "FDPE", "FDRE_1", "FDSE_1", "FDCE_1", "FDPE_1")
LATCHES = ("LDCE", "LDPE")
FREE = ("MUXF7", "MUXF8", "MUXF9", "BUFG")
"""Multiplexers that come with a slice's LUTs, and clock buffers."""
COUNTED = {"CARRY4": "carry4", "DSP48E2": "dsp", "RAMB18E2": "ramb18", "RAMB36E2": "ramb36", "URAM288": "uram"}
COUNTS = ("dsp", "ramb18", "ramb36", "uram", "lut", "lut_memory", "ff", "carry4", "latches")


def cell_counts(stat: Mapping[str, Any], top: str, ignored: Iterable[str] = ()) -> dict[str, int]:
    """Primitives of a mapped unit, from ``stat -json``. ``lut`` includes ``lut_memory``.

    Raises:
        NetlistError: a cell is none of those that synthesis is expected to end with.
    """
    types: Mapping[str, int] = stat["modules"]["\\" + top]["num_cells_by_type"]
    found = dict.fromkeys(COUNTS, 0)
    for name, count in types.items():
        if name in COUNTED:
            found[COUNTED[name]] += count
        elif name in LUTS or name in MEMORY_LUTS:
            luts = count * (LUTS | MEMORY_LUTS)[name]
            found["lut"] += luts
            found["lut_memory"] += luts if name in MEMORY_LUTS else 0
        elif name in FLIP_FLOPS:
            found["ff"] += count
        elif name in LATCHES:
            found["latches"] += count
        elif name not in FREE and name not in ignored:
            raise NetlistError(f"{top}: {count} cells of type {name}: expected primitives of UltraScale+")
    return found


@dataclass(frozen=True)
class Memory:
    """A memory as the RTL declares it, after Yosys has gathered its ports."""

    name: str
    width: int
    depth: int
    style: str
    writable: bool

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name, "width": self.width, "depth": self.depth, "style": self.style}


def memories(netlist: Mapping[str, Any], top: str) -> list[Memory]:
    """Memory cells of a netlist in Yosys' JSON, largest first."""
    found = []
    for cell in _module(netlist, top)["cells"].values():
        if cell["type"] != "$mem_v2":
            continue
        numbers = cell["parameters"]
        found.append(
            Memory(
                str(numbers["MEMID"]).lstrip("\\"), _number(numbers["WIDTH"]), _number(numbers["SIZE"]),
                str(cell.get("attributes", {}).get("ram_style", "")), _number(numbers["WR_PORTS"]) > 0,
            )
        )  # fmt: skip
    return sorted(found, key=lambda memory: (-memory.width * memory.depth, memory.name))


_REGISTERS = ("$dff", "$dffe", "$sdff", "$sdffe", "$sdffce")
_ADDERS = ("$add", "$sub")
_DSP_WIDTH = 48


def absorbable(netlist: Mapping[str, Any], top: str) -> dict[str, int]:
    """Registers and adders behind multipliers that a DSP48E2 has room for, but Yosys leaves in the fabric.

    Behind a product that nothing else reads: a register (M), an adder (the post-adder, which takes the cascade or C)
    and a register behind that (P). Registers in front, shared between several DSPs, are not counted.
    """
    cells: dict[str, Any] = _module(netlist, top)["cells"]
    readers: dict[int, set[tuple[str, str]]] = {}
    for port, about in _module(netlist, top)["ports"].items():
        if about["direction"] != "input":
            for bit in about["bits"]:
                readers.setdefault(bit, set()).add(("", port))
    for name, cell in cells.items():
        directions = cell.get("port_directions", {})
        for port, bits in cell["connections"].items():
            if directions.get(port) != "output":
                for bit in bits:
                    readers.setdefault(bit, set()).add((name, port))

    def next_cell(bits: Iterable[int | str], types: tuple[str, ...], ports: tuple[str, ...]) -> Any:
        """The only reader of a bus, if it is of such a type and reads it at such a port."""
        found = {reader for bit in bits if isinstance(bit, int) for reader in readers.get(bit, ())}
        if len(found) != 1:
            return None
        name, port = found.pop()
        if not name or name in taken or cells[name]["type"] not in types or port not in ports:
            return None
        width = len(cells[name]["connections"]["Q" if "Q" in cells[name]["connections"] else "Y"])
        return name if width <= _DSP_WIDTH else None

    taken: set[str] = set()
    total = {"ff": 0, "lut": 0, "carry4": 0}
    for cell in list(cells.values()):
        if cell["type"] != "DSP48E2":
            continue
        bits = cell["connections"]["P"]
        register = next_cell(bits, _REGISTERS, ("D",))
        if register:
            taken.add(register)
            bits = cells[register]["connections"]["Q"]
            total["ff"] += len(bits)
        adder = next_cell(bits, _ADDERS, ("A", "B"))
        if adder:
            taken.add(adder)
            bits = cells[adder]["connections"]["Y"]
            total["lut"] += len(bits)
            total["carry4"] += math.ceil(len(bits) / 4)
        register = next_cell(bits, _REGISTERS, ("D",))
        if register:
            taken.add(register)
            total["ff"] += len(cells[register]["connections"]["Q"])
    return total


def arrival(report: str) -> int | None:
    """Latest arrival in ps, from the output of ``sta``; None for a unit without a path between registers.

    Raises:
        NetlistError: the report says neither.
    """
    found = re.search(r"^Latest arrival time in '.*' is (\d+)", report, re.MULTILINE)
    if found:
        return int(found[1])
    if "No timing paths found" in report:
        return None
    raise NetlistError("sta: no arrival time in its report")


def read_json(text: str) -> Any:
    """JSON with whatever a pass prints in front of it."""
    start = text.find("{")
    if start < 0:
        raise NetlistError("Yosys: expected JSON")
    return json.loads(text[start:])


def _module(netlist: Mapping[str, Any], top: str) -> Any:
    return netlist["modules"][top]


def _number(bits: str | int) -> int:
    """A parameter, which Yosys writes as a string of bits."""
    return bits if isinstance(bits, int) else int(bits, 2)
