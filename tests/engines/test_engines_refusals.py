"""Commands and programs that every engine refuses, each with the error that the functional engine gives; and what they
must ignore."""

from __future__ import annotations

import ast
import inspect
import traceback
from collections.abc import Iterator

import numpy as np
import pytest
from engine_programs import MODELS, EngineBench
from small_programs import operands_program

from accel import limits
from accel.commands import _RESERVED_BITS, FIELDS, RESERVED, Command, Flag, Opcode
from accel.config import hardware
from accel.layers import Kind
from accel.limits import KINDS, EngineError, Limits
from accel.record import ErrorCode
from accel.routing import Schedule
from accel.synthetic import SyntheticProgram, build_program
from rtl_tb.engine_cases import dense, moe, replaced, with_commands, with_image

CI = hardware("ci")


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
    program = operands_program(CI)
    for count in range(len(program.commands)):
        cut = SyntheticProgram(program.memory, program.arena, program.commands[:count], program.outputs)
        found = bench.execute(cut, MODELS["default"])
        header = found.record.header
        assert (found.record.error, header["error_command"], header["commands"]) == (ErrorCode.PROGRAM, count, count)
        bench.compare(cut, found)
        bench.device.reset()


def test_schedules_are_all_known() -> None:
    assert [int(order) for order in Schedule] == [0, 1, 2], "the refusals above count on it"
