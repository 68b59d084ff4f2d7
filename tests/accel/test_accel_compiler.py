"""Programs: where everything lies, what the commands say, and that replay gives the golden model's integers."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from accel_cases import CONDITIONED, NETWORK, image_of, memory_of
from hypothesis import given
from hypothesis import strategies as st

from accel import pack
from accel.bundle import Bundle, write_bundle
from accel.commands import COMMAND_BYTES, Command, Flag, Opcode, decode_program
from accel.compiler import (
    Job,
    Program,
    RecordedFrame,
    compile_replay,
    identify_program,
    layer_bytes,
    layer_tensors,
    live_arena,
    live_program,
    place_weights,
)
from accel.config import build_hash, hardware
from accel.errors import ConfigError, ProgramError
from accel.functional import FunctionalEngine
from accel.golden import FrameResult, GoldenEngine, run_frame
from accel.layers import Kind, Layer, engine_layers
from accel.limits import KINDS, Limits
from accel.memory_map import ARENA_ALIGNMENT, REGIONS, ArenaMap
from accel.random_params import random_encoder
from accel.record import ErrorCode, Record, record_bytes
from accel.routing import Schedule

JOBS = (("depth", 1), ("semseg", 1), ("edge", 2), ("edge", 2), ("depth", 3))
"""Task and image: one image for two tasks, the same job twice in a row, a task that returns."""


@pytest.fixture(scope="module", params=["multi_gate-ci", "task_conditioned-zcu104"])
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    routing, engine = request.param.split("-")
    network = CONDITIONED if routing == "task_conditioned" else NETWORK
    path = tmp_path_factory.mktemp("compiler") / "b"
    return write_bundle(path, random_encoder(network, seed=7), hardware(engine))


@pytest.fixture(scope="module")
def results(bundle: Bundle) -> list[FrameResult]:
    engine = GoldenEngine(bundle.encoder)
    net = bundle.config.network
    return [run_frame(bundle.encoder, image_of(net, seed), task, engine, record=True) for task, seed in JOBS]


@pytest.fixture(scope="module")
def frames(bundle: Bundle, results: list[FrameResult]) -> list[RecordedFrame]:
    net = bundle.config.network
    return [
        RecordedFrame(task, image_of(net, seed), result.trace)
        for (task, seed), result in zip(JOBS, results, strict=True)
    ]


# ---- arena ----------------------------------------------------------------------------


@given(st.dictionaries(st.sampled_from([name for name, _ in REGIONS]), st.integers(0, 1 << 24)))
def test_regions_are_aligned_in_order_and_apart(sizes: dict[str, int]) -> None:
    arena = ArenaMap.layout(**sizes)
    end = 0
    for name, _ in REGIONS:
        assert arena.sizes[name] == sizes.get(name, 0)
        assert arena.offsets[name] % ARENA_ALIGNMENT == 0
        assert end <= arena.offsets[name] < end + ARENA_ALIGNMENT
        end = arena.offsets[name] + arena.sizes[name]
    assert arena.bytes % ARENA_ALIGNMENT == 0 and end <= arena.bytes < end + ARENA_ALIGNMENT


def test_weights_are_contiguous(bundle: Bundle) -> None:
    base = 3 * 4096
    offsets, end = place_weights(bundle.config, base)
    plain, _ = place_weights(bundle.config)
    assert {name: offset - base for name, offset in offsets.items()} == plain
    cursor = base
    for name, offset in offsets.items():
        assert offset == cursor and offset % bundle.config.hardware.stripe_bytes == 0
        cursor += len(bundle.blob(name))
    assert cursor == end
    not_placed = {name for name in bundle.blob_names if name not in offsets}
    assert not_placed == {name for name in bundle.blob_names if name.startswith("heads.") or name == "host"}
    for layer in engine_layers(bundle.config):
        first = offsets[layer.weight_blobs()[0]]
        found = [offsets[name] for name in layer.weight_blobs()]
        assert found == [first + e * layer.units * layer.unit_bytes for e in range(layer.experts)]


def test_layer_bytes_hold_the_packed_rows(bundle: Bundle) -> None:
    for layer in engine_layers(bundle.config):
        sizes = layer_bytes(layer)
        shapes = {"input": (layer.inputs, np.int8), "output": (layer.outputs, np.int16)}
        if layer.kind is Kind.LINEAR:
            shapes["output"] = (layer.outputs, np.int8)
        else:
            shapes["residual"] = (layer.outputs, np.int16)
        assert set(sizes) == set(shapes)
        for name, (width, dtype) in shapes.items():
            assert sizes[name] == len(pack.pack_tokens(np.zeros((layer.tokens, width), dtype), layer.hardware))


# ---- operands of whole programs -------------------------------------------------------


def inside(span: tuple[int, int], region: str, arena: ArenaMap) -> bool:
    start, end = span
    low = arena.offsets[region]
    return low <= start < end <= low + arena.sizes[region]


def disjoint(spans: list[tuple[int, int]]) -> bool:
    ordered = sorted(spans)
    return all(a[1] <= b[0] for a, b in zip(ordered, ordered[1:], strict=False))


def operand_spans(command: Command, layer: Layer) -> dict[str, tuple[int, int]]:
    """First and past-the-last byte of every operand, from the command and the hardware's byte counts."""
    hw = layer.hardware

    def rows(width: int, itemsize: int) -> int:
        lines = command.tokens * -(-width * itemsize // hw.line_bytes)
        return -(-lines // hw.burst_beats) * hw.stripe_bytes

    wide = 1 if command.opcode is Opcode.LINEAR else 2
    sizes = {
        "weights": max(command.experts, 1) * command.units * command.unit_bytes,
        "input": rows(command.inputs, 1),
        "output": rows(command.outputs, wide),
    }
    if wide == 2:
        sizes["residual"] = rows(command.outputs, 2)
    if command.opcode is Opcode.MOE:
        sizes["gate"] = layer.gate_bytes
    return {name: (getattr(command, name), getattr(command, name) + size) for name, size in sizes.items()}


@pytest.mark.parametrize("barriers", [False, True])
def test_every_operand_has_a_place_of_its_own(bundle: Bundle, frames: list[RecordedFrame], barriers: bool) -> None:
    program = compile_replay(bundle, frames, barrier_between_jobs=barriers)
    layers = engine_layers(bundle.config)
    arena, weights = program.arena, place_weights(bundle.config)[0]
    activations: list[tuple[int, int]] = []
    held: dict[tuple[int, int], str] = {}
    computed = 0
    for command in program.commands:
        if command.opcode not in (Opcode.LINEAR, Opcode.ACCUMULATE, Opcode.MLP, Opcode.MOE):
            continue
        layer = layers[command.layer]
        task = program.jobs[command.job].task
        for name, span in operand_spans(command, layer).items():
            assert span[0] % bundle.config.hardware.stripe_bytes == 0
            weight = name in ("weights", "gate")
            assert inside(span, "weights" if weight else "activations", arena), name
            if weight:
                blob = layer.gate_blob(task) if name == "gate" else layer.weight_blobs()[0]
                assert span[0] == weights[blob]
                assert held.setdefault(span, blob) == blob
            else:
                activations.append(span)
        computed += 1
    assert computed == len(layers) * len(frames)
    assert disjoint(activations) and disjoint(list(held))
    # Together they fill their regions: nothing is reserved that no command uses.
    assert sum(end - start for start, end in activations) == arena.sizes["activations"]
    gates = {layer.gate_blob(task) for layer in layers if layer.gate for task in bundle.config.network.task_names}
    assert gates <= set(held.values()), "every task has a job here"
    assert sum(end - start for start, end in held) == arena.sizes["weights"]
    placed = [(offset, offset + len(data)) for offset, data in program.placements]
    outputs = [
        (item.offset, item.offset + len(pack.pack_tokens(item.values, bundle.config.hardware)))
        for item in program.expected
    ]
    assert sorted(placed + outputs) == sorted(activations)
    assert arena.sizes["record"] == record_bytes(len(frames))
    assert arena.sizes["program"] == len(program.image) == len(program.commands) * COMMAND_BYTES


def test_commands_of_a_replay(bundle: Bundle, frames: list[RecordedFrame]) -> None:
    layers = engine_layers(bundle.config)
    plain = compile_replay(bundle, frames)
    program = compile_replay(bundle, frames, schedule=Schedule.LONGEST_FIRST, barrier_between_jobs=True)
    assert tuple(decode_program(program.image)) == program.commands
    assert program.jobs == tuple(Job(task, index) for index, (task, _) in enumerate(JOBS))
    kinds = {Kind.LINEAR: Opcode.LINEAR, Kind.ACCUMULATE: Opcode.ACCUMULATE, Kind.MLP: Opcode.MLP, Kind.MOE: Opcode.MOE}
    expected: list[tuple[Opcode, int, int]] = []
    for job in range(len(JOBS)):
        expected += [(Opcode.BARRIER, job, 0)] if job else []
        expected += [(kinds[layer.kind], job, index) for index, layer in enumerate(layers)]
        expected.append((Opcode.JOB_END, job, 0))
    expected.append((Opcode.END, 0, 0))
    assert [(c.opcode, c.job, c.layer) for c in program.commands] == expected
    assert [c.opcode for c in plain.commands] == [opcode for opcode, _, _ in expected if opcode is not Opcode.BARRIER]
    for command in program.commands:
        assert command.flags == (Flag.NARROW if command.opcode is Opcode.LINEAR else Flag(0))
        if command.opcode is Opcode.MOE:
            name = layers[command.layer].gate_blob(program.jobs[command.job].task)
            assert command.gate_shift == bundle.manifest["gates"][name]["shift"]
            assert (command.schedule, command.top_k, command.experts) == (Schedule.LONGEST_FIRST, 2, 5)
        else:
            unused = ("schedule", "top_k", "experts", "gate", "gate_shift")
            assert all(getattr(command, name) == 0 for name in unused), "fields an opcode does not use are zero"
        if command.opcode is Opcode.LINEAR:
            assert command.residual == 0
        if command.opcode in (Opcode.LINEAR, Opcode.ACCUMULATE):
            assert command.hidden == 0
        assert command.weight_source == 0


def test_every_command_is_within_the_limits(bundle: Bundle, frames: list[RecordedFrame]) -> None:
    program = compile_replay(bundle, frames)
    layers = engine_layers(bundle.config)
    limits = Limits(bundle.config.hardware)
    for command in program.commands:
        if command.opcode in KINDS:
            found = limits.check(command, program.arena.bytes)
            assert dataclasses.replace(found, name="") == dataclasses.replace(layers[command.layer], name="")


def test_loads_of_later_jobs_can_be_held_back(bundle: Bundle, frames: list[RecordedFrame]) -> None:
    """The first layer of every job but the first gets the flag; nothing else differs from the plain program."""
    plain, held = compile_replay(bundle, frames), compile_replay(bundle, frames, prefetch_across_jobs=False)
    assert held.arena == plain.arena and held.jobs == plain.jobs and len(held.commands) == len(plain.commands)
    flagged = []
    for index, (a, b) in enumerate(zip(plain.commands, held.commands, strict=True)):
        assert Flag.NO_PREFETCH not in a.flags
        if Flag.NO_PREFETCH in b.flags:
            flagged.append((b.job, b.layer))
            assert held.commands[index - 1].opcode is Opcode.JOB_END
        assert dataclasses.replace(b, flags=b.flags & ~Flag.NO_PREFETCH) == a
    assert flagged == [(job, 0) for job in range(1, len(JOBS))]
    both = compile_replay(bundle, frames, prefetch_across_jobs=False, barrier_between_jobs=True)
    assert [c for c in both.commands if c.opcode is not Opcode.BARRIER] == list(held.commands)
    memory = memory_of(bundle, held)
    assert execute(bundle, held, memory).error is ErrorCode.NONE
    assert different(bundle, held, memory) == 0


def test_a_larger_weights_region_moves_what_follows(bundle: Bundle, frames: list[RecordedFrame]) -> None:
    _, end = place_weights(bundle.config)
    plain = compile_replay(bundle, frames[:1])
    moved = compile_replay(bundle, frames[:1], weights_bytes=end + 4 * ARENA_ALIGNMENT)
    assert moved.arena.offsets["weights"] == 0
    for a, b in zip(plain.commands, moved.commands, strict=True):
        assert (a.weights, a.gate) == (b.weights, b.gate)
        step = 4 * ARENA_ALIGNMENT if a.input else 0
        assert (a.input + step, a.output + step) == (b.input, b.output)


def test_programs_that_cannot_be(bundle: Bundle, frames: list[RecordedFrame]) -> None:
    with pytest.raises(ProgramError, match="expected at least one frame, found none"):
        compile_replay(bundle, [])
    with pytest.raises(ProgramError, match="expected an arena below 4 GiB, found 4295"):
        compile_replay(bundle, frames, weights_bytes=1 << 32)
    _, end = place_weights(bundle.config)
    with pytest.raises(ProgramError, match=f"weights region: expected at least {end} bytes, found {end - 1}"):
        compile_replay(bundle, frames, weights_bytes=end - 1)
    unknown = frames[0]._replace(task="flow")
    for jobs in ([unknown], [*frames, unknown]):
        with pytest.raises(ConfigError, match="task 'flow': expected one of semseg, depth, edge"):
            compile_replay(bundle, jobs)


# ---- execution ------------------------------------------------------------------------


def execute(bundle: Bundle, program: Program, memory: np.ndarray) -> Record:
    engine = FunctionalEngine(bundle.config.hardware, bundle.config.formats)
    arena = program.arena
    record = engine.execute(memory, arena.offsets["program"], len(program.commands), arena.offsets["record"])
    written = Record.decode(memory[arena.offsets["record"] :][: record_bytes(len(record.jobs))].tobytes())
    assert written.counters == {name: record.counters.get(name, 0) for name in written.counters}
    return record


def different(bundle: Bundle, program: Program, memory: np.ndarray) -> int:
    """Integers that are not the golden model's."""
    hw = bundle.config.hardware
    wrong = 0
    for item in program.expected:
        tokens, width = item.values.shape
        data = memory[item.offset :][: pack.token_bytes(tokens, width, item.values.itemsize, hw)]
        wrong += int((pack.unpack_tokens(data, tokens, width, item.values.dtype.type, hw) != item.values).sum())
    return wrong


@pytest.mark.parametrize("barriers", [False, True])
@pytest.mark.parametrize("policy", list(Schedule))
def test_replay_gives_the_golden_integers(
    bundle: Bundle, frames: list[RecordedFrame], results: list[FrameResult], policy: Schedule, barriers: bool
) -> None:
    net = bundle.config.network
    layers = engine_layers(bundle.config)
    program = compile_replay(bundle, frames, schedule=policy, barrier_between_jobs=barriers)
    memory = memory_of(bundle, program)
    assert different(bundle, program, memory) > 0, "outputs are not there beforehand"
    record = execute(bundle, program, memory)
    assert record.error is ErrorCode.NONE
    assert record.header["commands"] == len(program.commands) == len(JOBS) * (len(layers) + 1 + barriers) - barriers + 1
    assert len(program.expected) == len(JOBS) * len(layers)
    per_frame = 6 * 16 + 4 * 7 * (48 + 16 + 16)
    assert sum(item.values.size for item in program.expected) == len(JOBS) * per_frame
    assert different(bundle, program, memory) == 0
    # Job entries, from the golden routing.
    assert len(record.jobs) == len(JOBS)
    for index, (entry, result) in enumerate(zip(record.jobs, results, strict=True)):
        crc = pairs = experts = macs = 0
        for layer in layers:
            pairs += layer.tokens * layer.top_k
            macs += layer.tokens * layer.top_k * layer.macs_per_pair
            if layer.kind is not Kind.MOE:
                experts += 1
                continue
            routing = result.routing[int(layer.name.split(".")[1])]
            experts += int(np.count_nonzero(routing.load(net.experts)))
            crc = routing.crc(crc)
            macs += layer.tokens * layer.inputs * net.experts
        assert entry == {"job": index, "pairs": pairs, "experts": experts, "macs": macs, "queue_crc": crc}
    for name in ("pairs", "experts", "macs"):
        assert record.counters[name] == sum(entry[name] for entry in record.jobs)
    assert record.jobs[2]["queue_crc"] == record.jobs[3]["queue_crc"], "the same job twice"
    assert record.jobs[0]["queue_crc"] != record.jobs[1]["queue_crc"], "another task on the same image"


def test_a_wrong_gate_or_weight_would_be_noticed(bundle: Bundle, frames: list[RecordedFrame]) -> None:
    program = compile_replay(bundle, frames[:2])
    offsets, _ = place_weights(bundle.config)
    for name in ("patch", "blocks.3.proj", "blocks.0.mlp"):
        memory = memory_of(bundle, program)
        memory[offsets[name] : offsets[name] + 64] ^= 0x40  # biases, or entries of the GELU table
        execute(bundle, program, memory)
        assert different(bundle, program, memory) > 0, name
    tasks = dataclasses.replace(program, commands=compile_replay(bundle, [frames[1], frames[0]]).commands)
    memory = memory_of(bundle, tasks)
    execute(bundle, tasks, memory)
    assert different(bundle, tasks, memory) > 0


def test_every_layer_runs_live(bundle: Bundle, frames: list[RecordedFrame]) -> None:
    arena = live_arena(bundle.config)
    hw = bundle.config.hardware
    frame = frames[0]
    for index, layer in enumerate(engine_layers(bundle.config)):
        program, operands = live_program(bundle, layer, "depth", arena, schedule=Schedule.LONGEST_FIRST, index=index)
        assert [c.opcode for c in program.commands[1:]] == [Opcode.JOB_END, Opcode.END]
        assert program.commands[0].layer == index and program.jobs == (Job("depth", 0),)
        assert arena.sizes["program"] >= len(program.image) and arena.sizes["record"] == record_bytes(1)
        spans = operand_spans(program.commands[0], layer)
        rows = [span for name, span in spans.items() if name not in ("weights", "gate")]
        assert disjoint(rows) and all(inside(span, "activations", arena) for span in rows)
        assert {name: spans[name][0] for name in operands} == operands
        tensors = layer_tensors(bundle.encoder, layer.name, frame.image, frame.trace)
        memory = memory_of(bundle, program)
        for name in operands:
            if name != "output":
                data = pack.pack_tokens(tensors[name], hw)
                memory[operands[name] : operands[name] + len(data)] = data
        record = execute(bundle, program, memory)
        assert record.error is ErrorCode.NONE and len(record.jobs) == 1
        expected = tensors["output"]
        data = memory[operands["output"] :][: layer_bytes(layer)["output"]]
        found = pack.unpack_tokens(data, layer.tokens, layer.outputs, expected.dtype.type, hw)
        assert np.array_equal(found, expected), layer.name


def test_layer_tensors_are_what_the_golden_engine_turns_into_each_other(
    bundle: Bundle, frames: list[RecordedFrame]
) -> None:
    engine = GoldenEngine(bundle.encoder)
    for frame in (frames[0], frames[2]):
        for layer in engine_layers(bundle.config):
            tensors = layer_tensors(bundle.encoder, layer.name, frame.image, frame.trace)
            assert tensors["input"].shape == (layer.tokens, layer.inputs) and tensors["input"].dtype == np.int8
            if layer.kind is Kind.LINEAR:
                assert set(tensors) == {"input", "output"}
                found = engine.linear(layer.name, tensors["input"])
            elif layer.kind is Kind.ACCUMULATE:
                found = engine.accumulate(layer.name, tensors["input"], tensors["residual"])
            else:
                found, _ = engine.mixture(layer.name, tensors["input"], tensors["residual"], frame.task)
            assert found.dtype == tensors["output"].dtype
            assert np.array_equal(found, tensors["output"]), layer.name


def test_identify(bundle: Bundle) -> None:
    program = identify_program()
    assert [c.opcode for c in program.commands] == [Opcode.END] and program.jobs == ()
    memory = np.full(program.arena.bytes, 0xA5, np.uint8)
    start = program.arena.offsets["program"]
    memory[start : start + len(program.image)] = np.frombuffer(program.image, np.uint8)
    before = memory.copy()
    record = execute(bundle, program, memory)
    assert record.header["engine_hash"] == bundle.config.engine_hash and record.header["commands"] == 1
    assert record.header["build_hash"] == build_hash(bundle.config.formats, bundle.config.hardware)
    assert record.counters["bytes_read"] == COMMAND_BYTES
    assert not any(value for name, value in record.counters.items() if name != "bytes_read")
    low = program.arena.offsets["record"]
    outside = np.ones(len(memory), bool)
    outside[low : low + record_bytes(0)] = False
    assert np.array_equal(memory[outside], before[outside])


def test_bundle_of_another_size_does_not_move_the_live_arena(bundle: Bundle, tmp_path: Path) -> None:
    """The live arena depends on the configuration alone, so that weights can be exchanged under it."""
    again = write_bundle(tmp_path / "b", random_encoder(bundle.config.network, seed=99), bundle.config.hardware)
    assert live_arena(again.config) == live_arena(bundle.config)
