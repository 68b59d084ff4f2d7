"""The whole engine against the functional engine, byte by byte: named corner cases, random programs, memories that make
it wait, resets in the middle."""

from __future__ import annotations

import random
from collections.abc import Iterator

import numpy as np
import pytest
from engine_programs import (
    BUS_EVENTS,
    DONE,
    IDLE,
    MODELS,
    START,
    EngineBench,
    held_back,
    output_values,
    rtl_bench,
)

from accel import numerics, pack
from accel.commands import Flag, Opcode
from accel.compiler import Job, Program
from accel.config import Formats, engine_hash, hardware
from accel.errors import DeviceError
from accel.golden import PreparedGate
from accel.layers import Kind, Layer
from accel.memory_model import CHANNELS, MemoryModel
from accel.record import ErrorCode, Record
from accel.registers import mask
from accel.routing import Schedule
from accel.synthetic import SyntheticProgram, Weights, build_program, synthetic_layer
from host.backends import open_device
from host.backends.rtl import RtlDevice
from host.device import Reg
from host.driver import Driver
from rtl_tb.engine_cases import (
    CASES,
    dense,
    extreme_linear,
    extreme_operands,
    moe,
    random_gate,
    random_program,
    replaced,
    saturated_unit,
    with_commands,
)

pytestmark = pytest.mark.verilator
CI = hardware("ci")


@pytest.fixture(scope="module")
def bench(tools) -> Iterator[EngineBench]:
    yield from rtl_bench("ci")


def every_kind(seed: int = 1) -> SyntheticProgram:
    """Two jobs with a layer of every kind; small."""
    jobs = [
        [
            dense(Kind.LINEAR, 19, 64, 100, CI, seed, flags=Flag.NARROW),
            moe([9, 0, 13, 4], 13, 2, CI, units=2, seed=seed),
        ],
        [dense(Kind.ACCUMULATE, 11, 96, 64, CI, seed), dense(Kind.MLP, 17, 32, 48, CI, seed, hidden=64, units=2)],
    ]
    return build_program(jobs, CI)


# ---- bits


@pytest.mark.parametrize("name", CASES)
def test_named(bench, name: str) -> None:
    program = CASES[name](CI)
    for model in ("default", "choppy"):
        bench.run(program, MODELS[model])


@pytest.mark.parametrize("model", MODELS)
def test_random(bench, model: str) -> None:
    for seed in range(25):
        bench.run(random_program(100 * list(MODELS).index(model) + seed, CI), MODELS[model])


@pytest.mark.slow
@pytest.mark.parametrize("group", range(20))
def test_random_programs_on_random_memories(bench, group: int) -> None:
    draw = random.Random(group)
    for seed in range(50):
        model = MemoryModel(
            stall_percent=draw.choice([0, 5, 50, 75]), stall_run=draw.choice([1, 2, 17, 100]), stall_seed=seed,
            latency=draw.choice([1, 20, 100, 400]), write_latency=draw.choice([1, 60, 700]),
            outstanding=draw.choice([1, 2, 8, 32]), bytes_per_cycle=draw.choice([16, 48, 64, 200]),
            turnaround=draw.choice([0, 16, 50]),
        )  # fmt: skip
        bench.run(random_program(10_000 + 50 * group + seed, CI), model)


def test_ties_go_to_the_lower_expert(bench) -> None:
    """Tokens with equal logits for all, for pairs and for halves of the experts."""
    layers = []
    for experts, top_k in ((8, 2), (8, 8), (17, 3), (40, 5)):
        item = synthetic_layer(Kind.MOE, 24, 64, 32, CI, experts, hidden=16, experts=experts, top_k=top_k)
        every = np.arange(experts)
        codes = [every * 0, every // 2, -(every // 2), every % 2, every // (experts // 2), every % 3]
        item.x[:, :experts] = np.tile(codes, (4, 1))
        gate = pack.unpack_gate(item.weights.gates[0], item.layer, 0)
        chosen = numerics.top_k(PreparedGate(gate.weight, gate.bias).logits(item.x), top_k)
        assert chosen[0].tolist() == list(range(top_k))
        layers.append(item)
    bench.run(build_program([layers], CI))


def test_saturation_on_both_sides(bench) -> None:
    largest = (1 << 31) - 1
    shapes = [
        (Kind.LINEAR, 64, 64, 0, 1, 1), (Kind.ACCUMULATE, 64, 64, 0, 1, 1),
        (Kind.ACCUMULATE, CI.max_inputs, 48, 0, 1, 1), (Kind.MLP, 64, 64, 64, 15, 1), (Kind.MOE, 64, 64, 64, 14, 8),
    ]  # fmt: skip
    layers = []
    for kind, inputs, outputs, hidden, units, experts in shapes:
        layer = Layer("", kind, 12, inputs, outputs, hidden, experts, units, experts, CI)
        bias = largest - 128 * 127 * inputs
        if hidden:
            blob = np.concatenate([pack.pack_unit(saturated_unit(layer, bias), layer)] * (units * experts))
            item = extreme_operands(layer, Weights(blob))
            if kind is Kind.MOE:
                item.weights.gates.append(np.zeros(layer.gate_bytes, np.uint8))
                item = random_gate(item, 1, 20, 0)  # all experts about equally
            layers.append(item)
            continue
        for shift in (-8, 0, 31):
            linear = extreme_linear(outputs, inputs, shift, bias)
            layers.append(extreme_operands(layer, Weights(pack.pack_plain(linear, layer))))
    layers[0].flags = Flag.NARROW
    program = build_program([layers], CI)
    found = bench.execute(program)
    bench.compare(program, found)
    assert set(np.unique(output_values(program, found.memory, 0, CI))) == {-127, 127}
    assert set(np.unique(output_values(program, found.memory, 1, CI))) == {-128, 127}
    for index in range(3, len(layers)):
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


def test_same_expert_twice_is_loaded_once(bench) -> None:
    """With two slots, one holds the gate table and the other the expert that both layers need."""
    first = moe([0, 0, 33, 0], 33, 1, CI, schedule=Schedule.RESIDENT_FIRST)
    second = moe([0, 0, 33, 0], 33, 1, CI, seed=2, schedule=Schedule.RESIDENT_FIRST, weights=first.weights)
    for jobs in ([[first, second, first]], [[first], [second], [first]]):
        program = build_program(jobs, CI)
        record = bench.run(program)
        saved = bench.expect(program).record.counters["weight_bytes"] - record.counters["weight_bytes"]
        assert saved == 2 * first.layer.unit_bytes
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
    record = bench.run(program)
    saved = bench.expect(program).record.counters["weight_bytes"] - record.counters["weight_bytes"]
    assert saved == 3 * layers[0].layer.unit_bytes


# ---- back-pressure


HELD_BACK = [
    (channel, ports)
    for channel in CHANNELS
    for used in [CI.ports if channel in ("ar", "r") else CI.write_ports]
    for ports in [tuple(range(used)), *((port,) for port in range(used))]
]


@pytest.mark.parametrize(("channel", "ports"), HELD_BACK, ids=str)
def test_back_pressure_on_one_channel(bench, channel: str, ports: tuple[int, ...]) -> None:
    program = every_kind()
    for percent, run in ((50, 1), (80, 3), (60, 90)):
        bench.run(program, held_back([channel], ports, stall_percent=percent, stall_run=run, stall_seed=percent))


def test_back_pressure_everywhere(bench) -> None:
    program = every_kind()
    for seed in range(6):
        bench.run(program, MemoryModel(stall_percent=30 + 10 * seed, stall_run=1 + 3 * seed, stall_seed=seed))


# ---- one program after the other


def test_programs_in_a_row_without_reset(bench) -> None:
    bench.use(MODELS["default"])
    programs = [every_kind(1), CASES["end_alone"](CI), CASES["jobs_without_layers"](CI), every_kind(2), every_kind(1)]
    cycles = [bench.run(program).counters["cycles"] for program in programs]
    assert cycles[0] == cycles[-1], "nothing is left of the programs between"


def test_queues_of_a_job_that_never_closed_stay_out_of_the_next_program(bench) -> None:
    bench.use(MODELS["default"])
    program = every_kind(1)
    left_open = [command for command in program.commands if command.opcode is not Opcode.JOB_END]
    bench.run(with_commands(program, left_open))
    assert any(job["queue_crc"] for job in bench.run(program).jobs)


def test_end_alone_identifies_the_engine(bench) -> None:
    record = bench.run(CASES["end_alone"](CI))
    assert record.header["engine_hash"] == engine_hash(Formats(), CI) and record.counters["bytes_read"] == 64


def test_driver_runs_the_same_program(bench) -> None:
    program = every_kind(4)
    with bench.device.allocate(program.arena.bytes) as buffer:
        buffer.array[:] = program.memory
        plan = Program(program.commands, program.arena, (Job("a", 0), Job("b", 0)))
        Driver(bench.device).start(plan, buffer).wait(60)
        expected = bench.expect(program).memory
        end = program.record_offset
        assert (buffer.array[:end] == expected[:end]).all()


def test_auto_restart(bench) -> None:
    """The program runs again and again until the bit is cleared; every run writes its record."""
    program, device = every_kind(5), bench.device
    expected = bench.expect(program).memory
    buffer, offset = bench.place(program)
    low, high = offset + program.record_offset, offset + program.record_offset + program.arena.sizes["record"]
    restart = mask("AP_CTRL", "auto_restart")
    with buffer:
        bench.start(program, buffer.device_address + offset, START | restart)
        for run in range(4):
            if run == 3:
                device.write_register(Reg.AP_CTRL, 0)  # the run that has begun is the last
            while not device.wait_interrupt(1.0):
                pass
            device.write_register(Reg.ISR, mask("ISR", "done"))
            record = Record.decode(buffer.array[low:high].tobytes())
            assert record.error is ErrorCode.NONE and len(record.jobs) == 2
            buffer.array[low:high] = 0
        assert device.read_register(Reg.AP_CTRL) & (DONE | IDLE | START | restart) == DONE | IDLE
        assert not device.wait_interrupt(0.05), "it has stopped"
        assert not buffer.array[low:high].any()
        assert (buffer.array[offset:low] == expected[: program.record_offset]).all()


# ---- reset


@pytest.mark.parametrize("model", ["default", "choppy", "far"])
def test_reset_at_any_moment(bench, model: str) -> None:
    """In the middle of bursts: the next run is correct and takes the cycles that it takes on a fresh engine."""
    program = every_kind(6)
    cycles = bench.run(program, MODELS[model]).counters["cycles"]
    draw, device = random.Random(model), bench.device
    assert isinstance(device, RtlDevice)
    in_burst = 0
    for _ in range(25):
        buffer, offset = bench.place(program)
        with buffer:
            device.memory.log()
            bench.start(program, buffer.device_address + offset)
            device._library.board_idle(device._board, draw.randrange(cycles))
            counts = np.bincount(device.memory.events()["kind"], minlength=len(BUS_EVENTS))
            in_burst += counts[0] != counts[1] or counts[2] != counts[3]
            device.memory.log(False)
            device.reset()
        assert device.read_register(Reg.AP_CTRL) == IDLE
        assert bench.run(program).counters["cycles"] == cycles
    assert in_burst > 10, "most resets found bursts in flight"


# ---- the bench itself


def test_differences_are_found(bench) -> None:
    """The comparison would fail if a byte, a counter or a job's entry were wrong, or if nothing was compared."""
    program = every_kind(7)
    found = bench.execute(program, MODELS["default"])
    bench.compare(program, found)
    places = [program.outputs[0][0], program.outputs[-1][0] + 5, 17, program.arena.offsets["program"]]
    for place in places:
        found.memory[place] ^= 1
        with pytest.raises(AssertionError, match=f"1 bytes differ, first at {place:#x}"):
            bench.compare(program, found)
        found.memory[place] ^= 1
    counters, jobs = found.record.counters, found.record.jobs
    for table, name in (
        (counters, "pairs"), (counters, "array_cycles"), (counters, "idle_cycles"), (jobs[1], "queue_crc"),
        (jobs[0], "gate_cycles"), (found.record.header, "commands"),
    ):  # fmt: skip
        table[name] += 1
        with pytest.raises(AssertionError):
            bench.compare(program, found)
        table[name] -= 1
    found.around[0] = 1
    with pytest.raises(AssertionError, match="outside the arena"):
        bench.compare(program, found)


def test_golden_back_end_passes_too() -> None:
    golden = EngineBench(lambda: open_device("golden", CI), CI)
    golden.run(every_kind(8))
    golden.run(CASES["program_without_end"](CI))
    assert golden.compared


def test_a_broken_device_is_replaced(bench) -> None:
    assert isinstance(bench.device, RtlDevice)
    broken = bench.device
    bench.device.memory.freeze()
    bench.device._max_cycles = 5000
    with pytest.raises(DeviceError, match="within 5000 cycles"):
        bench.run(every_kind(9))
    assert bench.device is not broken
    bench.run(every_kind(9))
