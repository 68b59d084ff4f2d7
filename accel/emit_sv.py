"""The SystemVerilog package of an engine.

Kept to constructs that Verilator, Yosys (``read_verilog -sv``, names used as ``m3vit_pkg::NAME``) and
Vivado share: typed scalar localparams, packed vectors, packed structs and enumerations. Tables are
packed vectors, entry i in bits ``16·i +: 16``, because Yosys has no unpacked array parameters.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from enum import IntEnum

from accel import commands, numerics, record, tables
from accel.config import Formats, Hardware
from accel.emit_constants import TABLES, Constant, ascii_comment, flag_constants, headed, members, preamble
from accel.routing import Schedule

PACKAGE = "m3vit_pkg"

_MEMBERS = {"input": "input_rows", "output": "output_rows"}
"""Fields whose names are SystemVerilog keywords."""


def _constant(item: Constant) -> str:
    digits = (item.bits + 3) // 4
    kind = f"logic [{item.bits - 1}:0]" if item.bits else "int"
    value = f"{item.bits}'h{item.value:0{digits}x}" if item.bits else str(item.value)
    line = f"  localparam {kind} {item.name} = {value};"
    return f"{line}  // {ascii_comment(item.meaning)}" if item.meaning else line


def _heading(title: str) -> Iterator[str]:
    yield ""
    yield f"  // {ascii_comment(title)}"


def _enumeration(name: str, prefix: str, bits: int, cls: type[IntEnum]) -> Iterator[str]:
    """Typedef whose members carry a prefix, because a package has one name space."""
    entries = members(cls)
    yield f"  typedef enum logic [{bits - 1}:0] {{"
    for index, (member, value, meaning) in enumerate(entries):
        comma = "," if index < len(entries) - 1 else ""
        note = f"  // {ascii_comment(meaning)}" if meaning else ""
        yield f"    {prefix}_{member} = {bits}'d{value}{comma}{note}"
    yield f"  }} {name};"


def _command() -> Iterator[str]:
    """Bit positions in the 512-bit command and the number by which an error names a field, then the same as a packed
    struct from the top bit down."""
    total = 8 * commands.COMMAND_BYTES
    yield from _heading("Command: bits of the little-endian 512-bit word at a command's address")
    yield _constant(Constant("COMMAND_BITS", total, ""))
    for index, item in enumerate(commands.FIELDS):
        name = f"FIELD_{item.name.upper()}"
        yield _constant(Constant(f"{name}_LSB", 32 * item.word + item.low, item.meaning))
        yield _constant(Constant(f"{name}_BITS", item.bits, ""))
        yield _constant(Constant(f"{name}_INDEX", index, ""))
    yield ""
    yield "  typedef struct packed {"
    top = total
    for item in sorted(commands.FIELDS, key=lambda entry: -(32 * entry.word + entry.low)):
        low = 32 * item.word + item.low
        if low + item.bits < top:
            yield f"    logic [{top - low - item.bits - 1}:0] reserved_{low + item.bits};"
        sign = " signed" if item.signed else ""
        yield f"    logic{sign} [{item.bits - 1}:0] {_MEMBERS.get(item.name, item.name)};"
        top = low
    if top:
        yield f"    logic [{top - 1}:0] reserved_0;"
    yield "  } command_t;"


def _table(name: str, values: Sequence[int], meaning: str) -> Iterator[str]:
    yield ""
    yield f"  // {ascii_comment(meaning)}; entry i is {name}[16*i +: 16]."
    yield f"  // SHA-256 of the little-endian words: {tables.SHA256[name]}"
    yield f"  localparam logic [{16 * len(values) - 1}:0] {name} = {{"
    words = [f"16'h{int(value):04x}" for value in reversed(values)]
    for start in range(0, len(words), 8):
        end = "," if start + 8 < len(words) else ""
        yield f"    {', '.join(words[start : start + 8])}{end}"
    yield "  };"


def _lines(formats: Formats, hardware: Hardware) -> Iterator[str]:
    yield from preamble(formats, hardware)
    yield ""
    yield "// No module uses every constant of its contract."
    yield "/* verilator lint_off UNUSEDPARAM */"
    yield f"package {PACKAGE};"
    for group in headed(formats, hardware):
        yield from _heading(group.title)
        yield from map(_constant, group.constants)
    yield ""
    yield from _enumeration("opcode_e", "OP", 8, commands.Opcode)
    yield ""
    yield from _enumeration("schedule_e", "SCHEDULE", 4, Schedule)
    yield ""
    yield from _enumeration("error_e", "ERROR", 32, record.ErrorCode)
    yield from _heading("Flags of a command")
    yield from map(_constant, flag_constants())
    yield from _command()
    for name, values, meaning in TABLES:
        yield from _table(name, values, meaning)
    yield ""
    yield f"endpackage : {PACKAGE}"
    yield "/* verilator lint_on UNUSEDPARAM */"


def emit(formats: Formats, hardware: Hardware) -> str:
    """Text of ``m3vit_pkg.sv``."""
    assert numerics.COMBINE_ONE < 1 << 31, "plain constants are 32-bit signed"
    return "\n".join(_lines(formats, hardware)) + "\n"
