"""The command path as a whole: programs in memory, every byte of their records against accel/record.py."""

from __future__ import annotations

import dataclasses
import random

import cocotb

from accel.commands import Command, Opcode
from accel.layers import Kind, Layer
from accel.record import JOB_BYTES, JOBS_OFFSET, ErrorCode, Record, record_bytes
from rtl_tb.command_cases import HARDWARE, command_of
from rtl_tb.command_path import Engine

TOPLEVEL = "sequencer"
PRESETS = ("ci", "zcu104")


# ---- programs -------------------------------------------------------------------------


def small_layer() -> Command:
    step, hw = HARDWARE.tile_inputs, HARDWARE
    if random.random() < 0.2:  # two of them are more than 2^32 multiply-accumulates
        return command_of(Layer("", Kind.MOE, hw.max_tokens, 384, 384, 128, 16, 14, 8, hw))
    kind = random.choice(list(Kind))
    hidden, gated = kind in (Kind.MLP, Kind.MOE), kind is Kind.MOE
    layer = Layer("", kind, random.randint(1, 9), step * random.randint(1, 4), random.randint(1, 60),
                  step * random.randint(1, 4) if hidden else 0, random.randint(2, 9) if gated else 1,
                  random.randint(1, 3) if hidden else 1, random.randint(1, 2) if gated else 1, hw)  # fmt: skip
    return command_of(layer)


def some_program(jobs: int, barriers: float = 0.05, layers: int = 3) -> list[bytes]:
    """Jobs with and without layers; END."""
    commands: list[Command] = []
    for _ in range(jobs):
        for _ in range(random.randint(0, layers)):
            commands.append(small_layer())
            if random.random() < barriers:
                commands.append(Command(Opcode.BARRIER))
        commands.append(Command(Opcode.JOB_END, job=random.getrandbits(16)))
    return [command.encode() for command in [*commands, Command(Opcode.END)]]


async def execute(
    engine: Engine, program: list[bytes], error: ErrorCode = ErrorCode.NONE, command: int | None = None,
    detail: int = 0, executed: int | None = None, errors: set[int] | None = None,
    failing: dict[int, str] | None = None, offset: int | None = None, record: int | None = None,
) -> None:  # fmt: skip
    """Run a program and compare its record."""
    jobs = sum(image[0] == Opcode.JOB_END for image in program)
    offset = 64 * random.getrandbits(20) if offset is None else offset
    record = 64 * random.getrandbits(20) if record is None else record
    engine.place(program, offset, record, errors or set(), failing or {})
    await engine.point()
    await engine.run()
    command = len(program) - 1 if command is None else command
    expected = engine.expected(error, command, detail, command + 1 if executed is None else executed)
    assert len(expected.jobs) == jobs or error
    engine.compare(expected)


@cocotb.test()
async def programs(dut):
    engine = Engine(dut)
    await engine.begin()
    await execute(engine, [Command(Opcode.END).encode()])
    for index in range(12):
        engine.lively = (0.1, 0.5, 1.0)[index % 3]
        await execute(engine, some_program(random.randint(1, 6)))


@cocotb.test()
async def many_small_jobs(dut):
    """Jobs of no or one layer, more of them in flight than tags."""
    engine = Engine(dut)
    await engine.begin()
    engine.lively = 1.0
    for layers in (1, 0, 1):
        await execute(engine, some_program(25, 0.0, layers))
    # One job with a layer, then so many without that the first has to be handed out for the last to begin
    empty = [Command(Opcode.JOB_END, job=index).encode() for index in range(12)]
    await execute(engine, [small_layer().encode(), *empty, small_layer().encode(), *some_program(1)])


@cocotb.test()
async def refused_commands(dut):
    """What is wrong is reported after all before it; nothing after it is looked at."""
    engine = Engine(dut)
    await engine.begin()
    bad = [
        (b"\x03" + bytes(63), ErrorCode.OPCODE, 0, 0), (b"\xff" + bytes(63), ErrorCode.OPCODE, 0, 0),
        (Command(Opcode.NORM).encode(), ErrorCode.OPCODE, 0, 0),
        (Command(Opcode.ATTENTION).encode(), ErrorCode.OPCODE, 0, 0),
        (Command(Opcode.CONV3X3).encode(), ErrorCode.OPCODE, 0, 0),
        (b"\x00\x04" + bytes(62), ErrorCode.OPCODE, 0, 0), (b"\x02\x80" + bytes(62), ErrorCode.OPCODE, 0, 0),
        (dataclasses.replace(small_layer(), weight_source=1).encode(), ErrorCode.OPCODE, 20, 1),
        (dataclasses.replace(small_layer(), tokens=0).encode(), ErrorCode.SHAPE, 7, 1),
        (dataclasses.replace(small_layer(), input=64).encode(), ErrorCode.ADDRESS, 17, 1),
        (dataclasses.replace(small_layer(), output=0xFFFF_FC00, tokens=256).encode(), ErrorCode.WRITE, 0, 1),
    ]  # fmt: skip
    for bit in (356, 357, 383, 384, 447, 511):
        image = bytearray(random.choice((Command(Opcode.END), small_layer(), Command(Opcode.JOB_END))).encode())
        image[bit // 8] |= 1 << bit % 8
        bad.append((bytes(image), ErrorCode.OPCODE, 0, 0))
    for image, error, detail, counted in bad:
        program = some_program(random.randint(1, 3))[:-1]
        at = random.randrange(len(program) + 1)
        program = [*program[:at], image, *program[at:]]
        await execute(engine, program, error, at, detail, at + counted)


@cocotb.test()
async def programs_without_end(dut):
    engine = Engine(dut)
    await engine.begin()
    for length in (0, 1, 7):
        program = some_program(8)[:length]
        await execute(engine, program, ErrorCode.PROGRAM, length, 0, length)


@cocotb.test()
async def commands_that_memory_does_not_answer(dut):
    """A read error of a command counts when its turn comes, and not at all after END."""
    engine = Engine(dut)
    await engine.begin()
    for _ in range(6):
        program = some_program(3)
        at = random.randrange(len(program))
        await execute(engine, program, ErrorCode.READ, at, 0, at, errors=set(range(at, len(program))))
    program = some_program(1)
    end = len(program) - 1
    await execute(engine, [*program, *[bytes([255] * 64)] * 5], command=end, errors=set(range(end + 1, end + 6)))
    # A command that ends with the arena, and one past it
    program = [Command(Opcode.JOB_END, job=9).encode(), Command(Opcode.END).encode()]
    await execute(engine, program, offset=(1 << 32) - 128)
    await execute(engine, program, ErrorCode.READ, 1, 0, 1, offset=(1 << 32) - 64)
    await execute(engine, program, ErrorCode.ADDRESS, 0, 0, 0, offset=32)


@cocotb.test()
async def bus_errors(dut):
    """Commands before the failing one are complete; then the engine stops. The first in the program's order counts."""
    engine = Engine(dut)
    await engine.begin()
    for index in range(16):
        program = some_program(3)
        layers = [i for i, image in enumerate(program) if image[0] >= Opcode.LINEAR]
        if not layers:
            continue
        engine.lively = (0.2, 1.0)[index % 2]
        failing = {at: random.choice(("read", "write")) for at in random.sample(layers, min(2, len(layers)))}
        at = min(failing)
        error = ErrorCode.READ if failing[at] == "read" else ErrorCode.WRITE
        engine.place(program, 0, 1 << 20, set(), failing)
        await engine.point()
        await engine.run()
        record = Record.decode(b"".join(engine.memory.get((1 << 20) + i, bytes(64)) for i in range(0, 2048, 64)))
        expected = engine.expected(error, at, at % HARDWARE.ports, 0)
        assert Record(record.header) == Record(Record.decode(expected.encode()).header)
        for name in ("cycles", "pairs", "experts", "macs", "units", "bytes_written"):
            assert record.counters[name] == expected.counters[name], name
        assert [job["queue_crc"] for job in record.jobs] == [job["queue_crc"] for job in expected.jobs]
        dut.rst.value = 1
        await engine.bus.cycles(2)
        dut.rst.value = 0
        engine.reset()


@cocotb.test()
async def records_that_cannot_be_written(dut):
    """Not at a multiple of 64: nothing. Past the end of the arena: only what lies within it."""
    engine = Engine(dut)
    await engine.begin()
    program = some_program(2)
    for record in (4, 32, 65):
        engine.place(program, 0, record, set(), {})
        await engine.point()
        await engine.run()
        assert not engine.memory
    engine.place(program, 0, (1 << 32) - JOBS_OFFSET - JOB_BYTES, set(), {})
    await engine.point()
    await engine.run()
    assert len(engine.memory) == record_bytes(1) // 64 and min(engine.memory) == engine.record
