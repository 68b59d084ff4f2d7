"""What the driver looks at before a program starts, so that an engine is never started on what it would refuse."""

from __future__ import annotations

from accel.commands import COMMAND_BYTES
from accel.compiler import Program
from accel.errors import DeviceError
from accel.limits import KINDS, EngineError, Limits
from accel.memory_map import ARENA_ALIGNMENT
from accel.record import record_bytes
from host.device import Buffer
from host.faults import describe_refusal


def check_program(program: Program, memory: Buffer, limits: Limits) -> None:
    """Sizes, alignments and the spans of every command, before any register is written.

    Raises:
        DeviceError: something does not fit ``memory``, or the engine would refuse a command.
    """

    def require(ok: bool, what: str, found: int, expected: str) -> None:
        if not ok:
            raise DeviceError(f"program: {what} = {found}: expected {expected}")

    arena, address = program.arena, memory.device_address
    aligned = f"a multiple of {ARENA_ALIGNMENT}"
    require(address % ARENA_ALIGNMENT == 0, "arena address", address, aligned)
    require(arena.bytes <= memory.size, "arena", arena.bytes, f"at most {memory.size} bytes")
    for name in ("program", "record"):
        offset = arena.offsets[name]
        require(offset % COMMAND_BYTES == 0, f"{name} offset", offset, f"a multiple of {COMMAND_BYTES}")
    sizes = {"program": len(program.image), "record": record_bytes(len(program.jobs))}
    for name, size in sizes.items():
        room = arena.sizes[name]
        require(size <= room, f"{name} bytes", size, f"at most {room} in this arena")
    # An engine knows no bounds: an operand that ends past the arena would reach foreign memory.
    for index, command in enumerate(program.commands):
        if command.opcode in KINDS:
            try:
                limits.check(command, arena.bytes)
            except EngineError as error:
                refusal = describe_refusal(error, index, program.commands, arena.bytes)
                raise DeviceError(f"program: {refusal}") from None


