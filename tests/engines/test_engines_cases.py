"""What every engine must compute, written once and run on each: the functional model behind registers, the RTL and the
HLS engine. The same vectors on all of them, compared byte by byte with the functional engine, and every counter."""

from __future__ import annotations

import random

import numpy as np
import pytest
from engine_programs import MODELS, layer_of
from small_programs import every_kind, output_values

from accel import numerics, pack
from accel.commands import Opcode
from accel.compiler import Job, Program
from accel.config import Formats, engine_hash, hardware
from accel.golden import PreparedGate
from accel.memory_model import MemoryModel
from accel.routing import Schedule
from accel.synthetic import SyntheticProgram, build_program
from host.driver import Driver
from rtl_tb.engine_cases import (
    CASES,
    moe,
    random_program,
    replaced,
    with_commands,
)

CI = hardware("ci")


@pytest.mark.parametrize("name", CASES)
def test_named(bench, name: str) -> None:
    program = CASES[name](CI)
    for model in bench.models("default", "choppy"):
        bench.run(program, model)


@pytest.mark.parametrize("model", MODELS)
def test_random(bench, model: str) -> None:
    for seed in range(25):
        bench.run(random_program(100 * list(MODELS).index(model) + seed, CI), MODELS[model])


@pytest.mark.slow
@pytest.mark.parametrize("group", range(20))
def test_random_programs_on_random_memories(bench, group: int) -> None:
    draw = random.Random(group)
    for seed in range(50 if bench.timed else 100):  # engines without a clock are quicker
        model = MemoryModel(
            stall_percent=draw.choice([0, 5, 50, 75]), stall_run=draw.choice([1, 2, 17, 100]), stall_seed=seed,
            latency=draw.choice([1, 20, 100, 400]), write_latency=draw.choice([1, 60, 700]),
            outstanding=draw.choice([1, 2, 8, 32]), bytes_per_cycle=draw.choice([16, 48, 64, 200]),
            turnaround=draw.choice([0, 16, 50]),
        )  # fmt: skip
        bench.run(random_program(10_000 + 100 * group + seed, CI), model)


def test_ties_go_to_the_lower_expert(bench) -> None:
    """Tokens with equal logits for all, for pairs and for halves of the experts: the lower index, in this order."""
    program = CASES["ties"](CI)
    bench.run(program)
    for command, experts in zip(program.commands, (8, 8, 17, 40), strict=False):
        layer = layer_of(command, CI)
        gate = pack.unpack_gate(program.memory[command.gate :][: layer.gate_bytes], layer, command.gate_shift)
        rows = program.memory[command.input :][: pack.token_bytes(layer.tokens, layer.inputs, 1, CI)]
        logits = PreparedGate(gate.weight, gate.bias).logits(
            pack.unpack_tokens(rows, layer.tokens, layer.inputs, np.int8, CI)
        )
        assert layer.experts == experts and (logits[0] == logits[0, 0]).all()
        assert numerics.top_k(logits, layer.top_k)[0].tolist() == list(range(layer.top_k))


def test_saturation_reaches_both_ends(bench) -> None:
    program = CASES["saturation"](CI)
    found = bench.execute(program)
    bench.compare(program, found)
    assert set(np.unique(output_values(program, found.memory, 0, CI))) == {-127, 127}
    assert set(np.unique(output_values(program, found.memory, 1, CI))) == {-128, 127}
    for index in range(3, len(program.outputs)):
        values = output_values(program, found.memory, index, CI)
        assert values.min() == -32768 and values.max() == 32767, index


def test_order_of_experts_changes_no_bit(bench) -> None:
    loads = [0, 31, 2, 17, 5, 0, 9, 8]
    outputs = []
    for order in Schedule:
        items = [moe(loads, 36, 2, CI, hidden=48, units=2, seed=3, schedule=order) for _ in range(2)]
        items[1].weights = items[0].weights
        program = build_program([items], CI)
        found = bench.execute(program)
        bench.compare(program, found)
        outputs.append(output_values(program, found.memory, 1, CI))
    assert (outputs[0] == outputs[1]).all() and (outputs[0] == outputs[2]).all()


# ---- weights that stay on chip


def again(bench) -> int:
    """1 where weights on chip are used again, 0 in the functional engine, which has no slots."""
    return int(bench.device.name != "golden")


def saved_bytes(bench, program: SyntheticProgram) -> int:
    """Bytes of weights that the engine did not read again."""
    return bench.expect(program).record.counters["weight_bytes"] - bench.run(program).counters["weight_bytes"]


def test_same_expert_twice_is_loaded_once(bench) -> None:
    """With two slots, one holds the gate table and the other the expert that both layers need."""
    first = moe([0, 0, 33, 0], 33, 1, CI, schedule=Schedule.RESIDENT_FIRST)
    second = moe([0, 0, 33, 0], 33, 1, CI, seed=2, schedule=Schedule.RESIDENT_FIRST, weights=first.weights)
    for jobs in ([[first, second, first]], [[first], [second], [first]]):
        program = build_program(jobs, CI)
        assert saved_bytes(bench, program) == again(bench) * 2 * first.layer.unit_bytes
    # Another order asks for no weights on chip, and a new program finds none there.
    plain = with_commands(program, [replaced(command, schedule=Schedule.INDEX) for command in program.commands])
    bench.run(plain)
    record = bench.run(build_program([[second]], CI))
    assert record.counters["weight_bytes"] == second.layer.gate_bytes + second.layer.unit_bytes


def test_residents_come_first(bench) -> None:
    """Two experts in turn: the one that ends a layer begins the next."""
    layers = [moe([9, 9], 9, 2, CI, seed=seed, schedule=Schedule.RESIDENT_FIRST) for seed in range(4)]
    for item in layers:
        item.weights = layers[0].weights
    program = build_program([layers], CI)
    assert saved_bytes(bench, program) == again(bench) * 3 * layers[0].layer.unit_bytes


# ---- one program after the other


def test_programs_in_a_row_without_reset(bench) -> None:
    bench.use(MODELS["default"])
    empty = [CASES[name](CI) for name in ("end_alone", "jobs_without_layers")]
    programs = [every_kind(CI, 1), *empty, every_kind(CI, 2), every_kind(CI, 1)]
    cycles = [bench.run(program).counters["cycles"] for program in programs]
    assert cycles[0] == cycles[-1], "nothing is left of the programs between"


def test_queues_of_a_job_that_never_closed_stay_out_of_the_next_program(bench) -> None:
    bench.use(MODELS["default"])
    program = every_kind(CI, 1)
    left_open = [command for command in program.commands if command.opcode is not Opcode.JOB_END]
    bench.run(with_commands(program, left_open))
    assert any(job["queue_crc"] for job in bench.run(program).jobs)


def test_end_alone_identifies_the_engine(bench) -> None:
    record = bench.run(CASES["end_alone"](CI))
    assert record.header["engine_hash"] == engine_hash(Formats(), CI) and record.counters["bytes_read"] == 64


def test_driver_runs_the_same_program(bench) -> None:
    program = every_kind(CI, 4)
    with bench.device.allocate(program.arena.bytes) as buffer:
        buffer.array[:] = program.memory
        plan = Program(program.commands, program.arena, (Job("a", 0), Job("b", 0)))
        Driver(bench.device).start(plan, buffer).wait(60)
        expected = bench.expect(program).memory
        end = program.record_offset
        assert (buffer.array[:end] == expected[:end]).all()
