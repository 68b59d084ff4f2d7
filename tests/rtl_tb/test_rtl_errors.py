"""What the engine does when memory answers with an error, or when a command is not one that it can run."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
import random
import traceback
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from engine_programs import (
    MODELS,
    EngineBench,
    Outcome,
    layer_of,
    rtl_bench,
)

from accel import limits, pack
from accel.commands import _RESERVED_BITS, COMMAND_BYTES, FIELDS, RESERVED, Command, Flag, Opcode
from accel.config import hardware
from accel.layers import Kind
from accel.limits import KINDS, EngineError, Limits
from accel.record import ErrorCode, Record
from accel.routing import Schedule
from accel.synthetic import SyntheticProgram, build_program
from rtl_tb.engine_cases import dense, moe, random_program, replaced, with_commands, with_image

pytestmark = pytest.mark.verilator
CI = hardware("ci")


@pytest.fixture(scope="module")
def bench(tools) -> Iterator[EngineBench]:
    yield from rtl_bench("ci")


def operands_program() -> SyntheticProgram:
    """Every kind of layer, in two jobs; expert 1 of the MoE layer is empty."""
    jobs = [
        [dense(Kind.LINEAR, 19, 64, 200, CI, units=4), moe([19, 0, 23, 14], 28, 2, CI, units=2)],
        [dense(Kind.ACCUMULATE, 21, 96, 80, CI), dense(Kind.MLP, 27, 64, 48, CI, hidden=64, units=2)],
    ]
    return build_program(jobs, CI)


PROGRAM = operands_program()
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


# ---- commands that the engine refuses


def base_program(kind: Kind) -> SyntheticProgram:
    """A layer that is complete before the one in question, that one, and one that must not be begun."""
    first = dense(Kind.LINEAR, 5, 64, 64, CI)
    if kind is Kind.MOE:
        item = moe([18, 10, 20], 24, 2, CI, units=2)
    elif kind is Kind.MLP:
        item = dense(kind, 24, 64, 64, CI, hidden=32, units=2)
    else:
        item = dense(kind, 24, 64, 300, CI, units=3)
    return build_program([[first, item, first]], CI)


def mutations(kind: Kind, command: Command) -> Iterator[dict[str, int]]:
    """Fields with other values: out of range one by one, and shapes that contradict each other or fit no store."""
    beyond = 0x1_0000_0000 - CI.stripe_bytes
    values: dict[str, list[int]] = {
        "weight_source": [1, 8, 15], "tokens": [0, CI.max_tokens + 1, 65535],
        "inputs": [0, 4, 12, 63, CI.max_inputs + 8, CI.max_width + 8, 65535, 65528],
        "outputs": [0, CI.max_width + 1, 65535], "units": [0, 15, 16, 254, 255],
        "hidden": [0, 4, 8, 12, CI.max_hidden, CI.max_hidden + 8, 65528, 65535],
        "experts": [0, CI.max_experts + 1, 1, 65535], "top_k": [0, 4, 9, 15], "schedule": [3, 8, 15],
        "gate_shift": [-17, -128, 32, 127],
        "tiles_per_unit": [0, command.tiles_per_unit - 1, command.tiles_per_unit + 1, 255],
        "unit_bytes": [0, command.unit_bytes - CI.stripe_bytes, command.unit_bytes + 64, 0xFFFF_FFFF],
    }  # fmt: skip
    for name in ("weights", "gate", "input", "residual", "output"):
        values[name] = [getattr(command, name) + step for step in (1, 64, 512)] + [beyond, beyond + 1]
    for name, candidates in values.items():
        yield from ({name: value} for value in candidates)
    if kind in (Kind.LINEAR, Kind.ACCUMULATE):
        yield {"units": 1, "tiles_per_unit": 19, "inputs": CI.max_inputs}  # rows
        yield {"units": 1, "tiles_per_unit": 65, "outputs": 65 * 16, "inputs": 8}  # groups (LINEAR), width
        yield {"units": 6, "tiles_per_unit": 4, "outputs": 300}  # the last unit has no tile
    else:
        yield {"hidden": CI.max_hidden, "inputs": CI.max_width}


def mutants(kind: Kind) -> list[tuple[Command, EngineError]]:
    """Commands that are refused, with the refusal."""
    program = base_program(kind)
    good, found = program.commands[1], []
    for fields in mutations(kind, good):
        bad = replaced(good, **fields)
        try:
            Limits(CI).check(bad, 1 << 32)
        except EngineError as error:
            found.append((bad, error))
    return found


@pytest.mark.parametrize("kind", Kind)
def test_refusal(bench, kind: Kind) -> None:
    program, refused = base_program(kind), mutants(kind)
    bench.run(program, MODELS["default"])
    for bad, error in refused:
        first, _, last, *rest = program.commands
        found = bench.execute(with_commands(program, (first, bad, last, *rest)))
        header = found.record.header
        assert (found.record.error, header["error_command"]) == (error.code, 1), (bad, error.code)
        if error.code in (ErrorCode.SHAPE, ErrorCode.ADDRESS):
            assert header["error_detail"] == error.detail, (FIELDS[error.detail].name, bad)
        bench.compare(with_commands(program, (first, bad, last, *rest)), found)
        bench.device.reset()
    assert len(refused) >= 35
    bench.run(program)


def test_every_rule_is_broken_by_some_mutant() -> None:
    """Every line of accel/limits.py that refuses is reached above, but for gates that fit no slot: on this engine, the
    largest gate table of the widest input does."""
    source = inspect.getsource(limits)
    lines = {
        node.lineno
        for node in ast.walk(ast.parse(source))
        if (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "_require")
        or (isinstance(node, ast.Raise) and "READ" in ast.unparse(node))
    }
    text = source.splitlines()
    reached = set()
    for kind in Kind:
        for _, error in mutants(kind):
            stack = traceback.extract_tb(error.__traceback__)
            reached |= {frame.lineno for frame in stack if frame.filename == limits.__file__} & lines
    missing = {text[line - 1].strip() for line in lines - reached}
    assert missing == {next(line.strip() for line in text if "layer.gate.rows <= hw.slot_rows" in line)}
    assert -(-CI.max_experts // CI.tile_outputs) * (CI.max_width // CI.tile_inputs) <= CI.slot_rows


def test_fields_that_a_command_does_not_use_are_ignored(bench) -> None:
    junk = {"schedule": 15, "top_k": 0, "gate_shift": 100, "experts": 999, "gate": 17}
    kinds = {Kind.LINEAR: 0, Kind.ACCUMULATE: 0, Kind.MLP: 16}
    program = build_program([[dense(kind, 9, 64, 64, CI, hidden=hidden) for kind, hidden in kinds.items()]], CI)
    commands = []
    for command in program.commands:
        more = {"residual": 33} if command.opcode is Opcode.LINEAR else {}
        more |= {} if command.opcode in KINDS else {"tokens": 9999, "output": 1}
        commands.append(replaced(command, **junk, **more))
    bench.run(with_commands(program, commands), MODELS["default"])


def raw(command: Command, word: int, bits: int) -> bytes:
    words = np.frombuffer(command.encode(), "<u4").copy()
    words[word] ^= bits
    return words.tobytes()


def check_raw(bench: EngineBench, image: bytes) -> None:
    """A command that no Command object can hold, behind one that is complete, is refused as OPCODE."""
    program = build_program([[dense(Kind.LINEAR, 1, 8, 8, CI)]], CI)
    first, *rest = program.commands
    whole = with_image(
        program, first.encode() + image + b"".join(command.encode() for command in rest), (first, *rest, first)
    )
    found = bench.execute(whole)
    header = found.record.header
    assert (found.record.error, header["error_command"], header["commands"]) == (ErrorCode.OPCODE, 1, 1), image.hex()
    bench.compare_memory(whole, found, bench.expect_until(whole, 1).memory)
    bench.device.reset()


def test_unknown_opcodes(bench) -> None:
    bench.use(MODELS["default"])
    known = set(Opcode) - RESERVED
    for opcode in sorted(set(range(256)) - known):
        check_raw(bench, bytes([opcode]) + bytes(63))


def test_unknown_flags_and_reserved_bits(bench) -> None:
    bench.use(MODELS["default"])
    commands = [Command(opcode) for opcode in (Opcode.END, Opcode.JOB_END, Opcode.BARRIER)]
    commands.append(build_program([[moe([3, 3], 3, 2, CI)]], CI).commands[0])
    unknown = [(0, 1 << (8 + bit)) for bit in range(8) if not (1 << bit) & sum(Flag)]
    bits = [(word, 1 << bit) for word, mask in enumerate(_RESERVED_BITS) for bit in range(32) if mask >> bit & 1]
    for index, (word, bit) in enumerate(unknown + bits):
        check_raw(bench, raw(commands[index % len(commands)], word, bit))
    for command in commands:
        check_raw(bench, raw(command, *unknown[0]))
        check_raw(bench, raw(command, *bits[-1]))


def test_program_error(bench) -> None:
    """No END within COMMANDS, whatever comes after; no command at all."""
    program = PROGRAM
    for count in range(len(program.commands)):
        cut = SyntheticProgram(program.memory, program.arena, program.commands[:count], program.outputs)
        found = bench.execute(cut, MODELS["default"])
        header = found.record.header
        assert (found.record.error, header["error_command"], header["commands"]) == (ErrorCode.PROGRAM, count, count)
        bench.compare(cut, found)
        bench.device.reset()


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


def test_schedules_are_all_known() -> None:
    assert [int(order) for order in Schedule] == [0, 1, 2], "the refusals above count on it"
