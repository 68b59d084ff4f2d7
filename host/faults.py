"""What an engine reports in its record when it stops early, as one sentence for people."""

from __future__ import annotations

from collections.abc import Sequence

from accel.commands import FIELDS, Command
from accel.limits import EngineError
from accel.record import ErrorCode, Record

_MEANING = {
    ErrorCode.OPCODE: "the engine does not know this opcode, or this variant of it",
    ErrorCode.SHAPE: "a shape that the engine's stores cannot hold, or that contradicts the others",
    ErrorCode.ADDRESS: "an offset that is not aligned to a stripe",
    ErrorCode.READ: "a memory port answered a read with an error",
    ErrorCode.WRITE: "a memory port answered a write with an error",
    ErrorCode.PROGRAM: "the program has no END within its length",
}
_FIELD_CODES = frozenset({ErrorCode.OPCODE, ErrorCode.SHAPE, ErrorCode.ADDRESS})


def describe_error(record: Record, commands: Sequence[Command]) -> str:
    """Where and why a program stopped: error code, command with opcode and layer, field and value.

    Args:
        record: a record whose error is not NONE.
        commands: the program that it belongs to.
    """
    code, detail = record.error, record.header["error_detail"]
    where = _place(code, detail, record.header["error_command"], commands)
    port = f" detail {detail}" if code in (ErrorCode.READ, ErrorCode.WRITE) else ""
    return f"engine error {code.name} at {where}{port}: {_MEANING[code]}"


def describe_refusal(error: EngineError, index: int, commands: Sequence[Command], size: int) -> str:
    """Why a command would fail, before it runs, in an arena of ``size`` bytes."""
    where = _place(error.code, error.detail, index, commands)
    if error.code in _FIELD_CODES:
        return f"{where}: {_MEANING[error.code]}"
    what = "its output" if error.code is ErrorCode.WRITE else "everything it reads"
    return f"{where}: expected {what} to end within the arena's {size} bytes"


def _place(code: ErrorCode, detail: int, index: int, commands: Sequence[Command]) -> str:
    """``command 3 of 9 (LINEAR, job 0, layer 1) field inputs = 12``, as far as it is known."""
    parts = [f"command {index} of {len(commands)}"]
    command = commands[index] if index < len(commands) else None
    if command is not None:
        parts.append(f"({command.opcode.name}, job {command.job}, layer {command.layer})")
    # Field 0 is the opcode, which is in the text already: no field in particular.
    if code in _FIELD_CODES and 0 < detail < len(FIELDS):
        name = FIELDS[detail].name
        value = f" = {int(getattr(command, name))}" if command is not None else ""
        parts.append(f"field {name}{value}")
    return " ".join(parts)
