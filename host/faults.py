"""What an engine reports in its record when it stops early, as one sentence for people."""

from __future__ import annotations

from collections.abc import Sequence

from accel.commands import FIELDS, Command
from accel.record import ErrorCode, Record

_MEANING = {
    ErrorCode.OPCODE: "the engine does not know this opcode",
    ErrorCode.SHAPE: "a shape that the engine's stores cannot hold, or that contradicts the others",
    ErrorCode.ADDRESS: "an offset that is not aligned to a stripe",
    ErrorCode.READ: "a memory port answered a read with an error",
    ErrorCode.WRITE: "a memory port answered a write with an error",
    ErrorCode.PROGRAM: "the program has no END within its length",
}
_FIELD_CODES = frozenset({ErrorCode.SHAPE, ErrorCode.ADDRESS})


def describe_error(record: Record, commands: Sequence[Command]) -> str:
    """Where and why a program stopped: error code, command with opcode and layer, field and value.

    Args:
        record: a record whose error is not NONE.
        commands: the program that it belongs to.
    """
    index, detail = record.header["error_command"], record.header["error_detail"]
    parts = [f"engine error {record.error.name} at command {index} of {len(commands)}"]
    command = commands[index] if index < len(commands) else None
    if command is not None:
        parts.append(f"({command.opcode.name}, job {command.job}, layer {command.layer})")
    # Field 0 is the opcode, which is in the text already: no field in particular.
    if record.error in _FIELD_CODES and 0 < detail < len(FIELDS):
        name = FIELDS[detail].name
        value = f" = {int(getattr(command, name))}" if command is not None else ""
        parts.append(f"field {name}{value}")
    elif record.error in (ErrorCode.READ, ErrorCode.WRITE):
        parts.append(f"detail {detail}")
    return f"{' '.join(parts)}: {_MEANING[record.error]}"
