"""What the RTL does when memory answers with an error: it stops at the command, says so, and runs on after a reset."""

from __future__ import annotations

import dataclasses
import itertools
import random
from collections.abc import Iterator
from typing import Any

import pytest
from engine_backends import rtl_bench
from engine_programs import (
    MODELS,
    EngineBench,
    Outcome,
    layer_of,
)
from small_programs import operands_program

from accel import pack
from accel.commands import COMMAND_BYTES, Command, Opcode
from accel.config import hardware
from accel.layers import Kind
from accel.limits import KINDS
from accel.record import ErrorCode, Record
from accel.synthetic import SyntheticProgram
from rtl_tb.engine_cases import random_program

pytestmark = pytest.mark.verilator
CI = hardware("ci")


@pytest.fixture(scope="module")
def bench(tools) -> Iterator[EngineBench]:
    yield from rtl_bench("ci")


PROGRAM = operands_program(CI)
LAYERS = [index for index, command in enumerate(PROGRAM.commands) if command.opcode in KINDS]


def spans(command: Command) -> dict[str, tuple[int, int]]:
    """Operands that the command reads: offset and bytes."""
    layer = layer_of(command, CI)
    found = {
        "weights": (command.weights, layer.expert_bytes),
        "input": (command.input, pack.token_bytes(layer.tokens, layer.inputs, 1, CI)),
    }
    if layer.kind is not Kind.LINEAR:
        found["residual"] = (command.residual, pack.token_bytes(layer.tokens, layer.outputs, 2, CI))
    if layer.kind is Kind.MOE:
        found["gate"] = (command.gate, layer.gate_bytes)
        for expert in (2, 3):
            found[f"expert {expert}"] = (command.weights + expert * layer.expert_bytes, layer.expert_bytes)
    return found


READS = [(index, name) for index in LAYERS for name in spans(PROGRAM.commands[index])]


def output_span(index: int) -> tuple[int, int]:
    return PROGRAM.outputs[LAYERS.index(index)]


def check_stop(
    bench: EngineBench, code: ErrorCode, index: int, detail: int | None, program: SyntheticProgram = PROGRAM,
    **faults: Any,
) -> None:
    """Run a program with faults in memory: it stops at a command, and after a reset it runs as ever."""
    found = bench.execute(program, **faults)
    header = found.record.header
    assert (found.record.error, header["error_command"]) == (code, index)
    assert detail is None or header["error_detail"] == detail
    check_stopped(bench, program, found)


def check_stopped(bench: EngineBench, program: SyntheticProgram, found: Outcome) -> None:
    """All before the command that failed is complete, nothing else is touched but outputs; the next run is correct."""
    header = found.record.header
    index = header["error_command"]
    assert header["commands"] == index
    expected = bench.expect_until(program, index)
    for later in program.commands[index:]:
        if later.opcode in KINDS:  # undefined
            offset, size = later.output, output_bytes(later)
            found.memory[offset : offset + size] = expected.memory[offset : offset + size]
    bench.compare_memory(program, found, expected.memory)
    wanted = [command.job for command in program.commands[:index] if command.opcode is Opcode.JOB_END]
    assert [job["job"] for job in found.record.jobs] == wanted
    bench.device.reset()
    bench.run(program)


def output_bytes(command: Command) -> int:
    layer = layer_of(command, CI)
    return pack.token_bytes(layer.tokens, layer.outputs, layer.output_bytes_per_value, CI)


def block(offset: int, size: int, draw: random.Random) -> tuple[tuple[int, int], int]:
    """A few bytes of a random burst of an operand, and the port that the burst belongs to."""
    at = offset + draw.randrange(size // CI.burst_bytes) * CI.burst_bytes
    first = at + draw.randrange(CI.burst_bytes // CI.port_bytes) * CI.port_bytes
    return (first, first + CI.port_bytes), at // CI.burst_bytes % CI.ports


# ---- memory errors


@pytest.mark.parametrize(("index", "name"), READS)
def test_read_error(bench, index: int, name: str) -> None:
    draw = random.Random(f"{index} {name}")
    offset, size = spans(PROGRAM.commands[index])[name]
    if (index, name) == (LAYERS[1], "weights"):
        size //= 4  # expert 0
    for model in ("default", "choppy", "far"):
        fault, port = block(offset, size, draw)
        check_stop(bench, ErrorCode.READ, index, port, model=MODELS[model], reads=[fault])


@pytest.mark.parametrize("index", range(len(PROGRAM.commands)))
def test_read_error_at_a_command(bench, index: int) -> None:
    offset = PROGRAM.program_offset + COMMAND_BYTES * index
    for beat in (0, 16, 48):
        check_stop(
            bench, ErrorCode.READ, index, 0, model=MODELS["default"], reads=[(offset + beat, offset + beat + 1)]
        )


@pytest.mark.parametrize("index", LAYERS)
def test_write_error(bench, index: int) -> None:
    draw = random.Random(index)
    offset, size = output_span(index)
    for model in ("default", "choppy", "far"):
        fault, port = block(offset, size, draw)
        check_stop(bench, ErrorCode.WRITE, index, port % CI.write_ports, model=MODELS[model], writes=[fault])


def test_whole_operands_unreadable(bench) -> None:
    """Errors on every beat of all ports: the lowest port is reported."""
    for index, name in READS:
        offset, size = spans(PROGRAM.commands[index])[name]
        check_stop(bench, ErrorCode.READ, index, 0, model=MODELS["default"], reads=[(offset, offset + size)])


def test_earliest_command_is_reported(bench) -> None:
    """Whatever is prefetched and fails first: the error of the oldest command counts."""
    bench.use(MODELS["default"])
    for first, second in itertools.combinations(LAYERS, 2):
        late = spans(PROGRAM.commands[second])["weights"]
        offset, size = output_span(first)
        reads = [(late[0], late[0] + 1)]
        check_stop(bench, ErrorCode.WRITE, first, None, writes=[(offset + size - 1, offset + size)], reads=reads)
        early = spans(PROGRAM.commands[first])["input"]
        reads.append((early[0] + early[1] - 1, early[0] + early[1]))
        check_stop(bench, ErrorCode.READ, first, None, reads=reads)


@pytest.mark.parametrize("model", MODELS)
def test_faults_anywhere(bench, model: str) -> None:
    """Random programs, a few bytes that cannot be read or written: whoever needs them is reported, else nobody."""
    draw, hit = random.Random(model), 0
    for seed in range(30):
        program = random_program(1000 + seed, CI)
        at = draw.randrange(program.record_offset)
        if draw.random() < 0.5:  # else most programs would not notice
            command = draw.choice([command for command in program.commands if command.opcode in KINDS])
            at = getattr(command, draw.choice(["output", "input", "weights"])) + draw.randrange(CI.stripe_bytes)
        fault = [(at, min(at + draw.choice([1, 16, 5000]), program.record_offset))]
        found = bench.execute(program, MODELS[model], reads=fault, writes=fault)
        if found.record.error is ErrorCode.NONE:
            bench.compare(program, found)
        else:
            assert found.record.error in (ErrorCode.READ, ErrorCode.WRITE)
            check_stopped(bench, program, found)
            hit += 1
    assert hit > 8


def test_empty_experts_are_not_read(bench) -> None:
    """Nor is what lies behind the program's END, nor anything that no command names."""
    command = PROGRAM.commands[LAYERS[1]]
    layer = layer_of(command, CI)
    assert layer.experts == 4
    empty = command.weights + layer.expert_bytes
    found = bench.execute(PROGRAM, MODELS["default"], reads=[(empty, empty + layer.expert_bytes)])
    bench.compare(PROGRAM, found)


def test_error_in_the_record_does_not_hang(bench) -> None:
    """Nobody can be told; the program ends and the next run is correct."""
    with pytest.raises(Exception, match="magic|version|jobs"):
        bench.execute(PROGRAM, MODELS["default"], writes=[(PROGRAM.record_offset, PROGRAM.record_offset + 64)])
    bench.device.reset()
    bench.run(PROGRAM)


@pytest.mark.parametrize(("offset", "code"), [(4, ErrorCode.ADDRESS), (1 << 30, ErrorCode.READ)])
def test_program_at_a_place_where_none_can_be(bench, offset: int, code: ErrorCode) -> None:
    """The driver places programs at multiples of 64 in the arena; an engine told otherwise says so."""
    offsets = dict(PROGRAM.arena.offsets) | {"program": PROGRAM.program_offset + offset}
    lost = dataclasses.replace(PROGRAM, arena=dataclasses.replace(PROGRAM.arena, offsets=offsets))
    buffer, start = bench.place(PROGRAM)
    with buffer:
        bench.start(lost, buffer.device_address + start)
        bench.finish()
        record = Record.decode(buffer.array[start + PROGRAM.record_offset :].tobytes())
    assert (record.error, record.header["error_command"], record.header["commands"]) == (code, 0, 0)
    bench.device.reset()
    bench.run(PROGRAM)
