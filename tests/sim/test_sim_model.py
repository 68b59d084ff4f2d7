"""The simulator by itself: results add up, errors are one line, controls do what they say."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from rtl_cases import CASES, build_case

from accel.commands import Opcode
from accel.config import Config, Formats, hardware, network
from accel.errors import ConfigError, DataError, M3vitError, ProgramError
from accel.functional import FunctionalEngine
from accel.memory_model import IDEAL, MemoryModel
from accel.record import COUNTERS, JOB
from accel.routing import Schedule
from accel.synthetic import routing_of_loads, uniform_loads
from sim import computing, leaping, machine
from sim.explore import Problem
from sim.model import Result, simulate, simulate_frames, simulate_workload
from sim.results import STALLS
from sim.shapes import holds_tiles
from sim.state import RESIDUAL, Entry
from sim.switching import switch_extra_cycles, switching_report
from sim.timeline import events, save_timeline
from sim.trace import RoutingTrace, load_trace, network_hash, save_trace
from sim.workload import PATTERNS, draw_experts, workload

DEMO = Config(network("m3vit-demo"))
QUICK = [case for case in CASES if not case.slow]


@pytest.fixture(scope="module")
def frames() -> Result:
    return simulate_frames(DEMO, ["semseg", "depth"], timeline=True)


def test_names_are_those_of_the_record(frames: Result):
    assert list(frames.counters) == [slot.name for slot in COUNTERS]
    assert all(list(job) == [slot.name for slot in JOB] for job in frames.jobs)


def test_the_parts_add_up(frames: Result):
    counters = frames.counters
    assert sum(frames.breakdown.values()) == frames.cycles == counters["cycles"]
    assert min(frames.breakdown.values()) >= 0
    parts = ("load_only_cycles", "compute_only_cycles", "overlap_cycles", "idle_cycles")
    assert sum(counters[name] for name in parts) == frames.cycles
    assert counters["compute_only_cycles"] + counters["overlap_cycles"] == counters["array_cycles"]
    for layer in frames.layers:
        assert layer.cycles == pytest.approx(layer.array_cycles + sum(layer.stalls.values()) + layer.idle)
    total = sum(layer.cycles for layer in frames.layers) + frames.breakdown["drain"]
    assert total == pytest.approx(frames.cycles, abs=2)
    assert 0 < frames.utilization < 1 and frames.roofline_cycles < frames.cycles
    json.dumps(frames.to_dict(), allow_nan=False)


@pytest.mark.parametrize("case", QUICK, ids=lambda case: case.name)
def test_what_is_no_cycle_equals_the_functional_engine(case):
    program, routing = build_case(case)
    record = FunctionalEngine(case.hardware).execute(
        program.memory, program.program_offset, len(program.commands), program.record_offset
    )
    counters = simulate(program.commands, routing, case.hardware, case.memory).counters
    resident = any(command.schedule == Schedule.RESIDENT_FIRST for command in program.commands)
    for name in ("bytes_written", "pairs", "experts", "units", "macs"):
        assert counters[name] == record.counters[name]
    for name in ("bytes_read", "weight_bytes"):
        assert counters[name] == record.counters[name] or (resident and counters[name] < record.counters[name])


@pytest.mark.parametrize("case", QUICK[::4], ids=lambda case: case.name)
def test_shortcuts_change_nothing(case, monkeypatch: pytest.MonkeyPatch):
    """Passing over periodic tiles gives the same; streaming units nearly: another source may have come earlier."""
    program, routing = build_case(case)
    fast = simulate(program.commands, routing, case.hardware, case.memory)
    monkeypatch.setattr(computing, "STEADY", 1 << 30)
    assert simulate(program.commands, routing, case.hardware, case.memory).counters == fast.counters
    monkeypatch.setattr(machine, "BULK", 1 << 30)
    slow = simulate(program.commands, routing, case.hardware, case.memory)
    assert slow.cycles == pytest.approx(fast.cycles, rel=0.005)


def test_leaps_change_next_to_nothing(monkeypatch: pytest.MonkeyPatch):
    """What is no cycle, and the work of the array, equals; cycles of a layer are as near as the rate of its traffic."""
    small = Config(network("m3vit-small-pascal"))
    work = workload(small, ["semseg"], "zipf")
    found = machine.Machine(work.commands, work.routing, small.hardware, MemoryModel())
    found.run()
    passed_over = sum(leap.cycles for leap in found.leaps)
    fast = simulate_workload(work, small.hardware)
    monkeypatch.setattr(leaping.Leaping, "leaps_allowed", False)
    slow = simulate_workload(work, small.hardware)
    assert passed_over > 0.2 * slow.cycles
    assert fast.cycles == pytest.approx(slow.cycles, rel=2e-4)
    names = {*STALLS, "cycles", "load_only_cycles", "compute_only_cycles", "overlap_cycles", "idle_cycles"}
    assert {name: value for name, value in fast.counters.items() if name not in names} == {
        name: value for name, value in slow.counters.items() if name not in names
    }
    for name in names:
        assert abs(fast.counters[name] - slow.counters[name]) <= 0.005 * slow.cycles
    for one, other in zip(fast.layers, slow.layers, strict=True):
        assert one.cycles == pytest.approx(other.cycles, rel=0.005)
        assert one.array_cycles == other.array_cycles


@pytest.mark.parametrize("clock", [150, 300])
def test_leaps_with_the_next_layers_rows(clock: int, monkeypatch: pytest.MonkeyPatch):
    """Engine 2x16x8 with 2 slots: a leap while residual rows are read for a layer behind the one being finished."""
    problem = Problem(DEMO.network, Formats(), ("depth",))
    fields = {"tile_tokens": 2, "tile_outputs": 16, "weight_slots": 2, "slot_rows": "4x", "slot_groups": "4x",
              "max_tokens": 65, "max_width": "1x", "ports": 4, "clock_mhz": clock}  # fmt: skip
    engine = problem.candidate(fields).hardware
    work = workload(Config(DEMO.network, Formats(), engine), ["depth"])
    ahead = []
    move = leaping.Leaping._move

    def watched(self: machine.Machine, entry: Entry, tiles: int, moved: leaping.Progress, final: bool) -> None:
        ahead.append(moved.residual and self.source_entry[RESIDUAL] > self.finish_entry)
        move(self, entry, tiles, moved, final)

    monkeypatch.setattr(leaping.Leaping, "_move", watched)
    monkeypatch.setattr(leaping, "PACE", 1)  # the network is small
    fast = simulate_workload(work, engine, MemoryModel().at_clock(clock))
    assert any(ahead)
    monkeypatch.setattr(leaping.Leaping, "leaps_allowed", False)
    assert fast.cycles == pytest.approx(simulate_workload(work, engine, MemoryModel().at_clock(clock)).cycles, rel=1e-3)


def test_an_input_store_takes_the_rows_of_a_tile():
    """Whole stripes of them; an engine that waits for ever is refused, and the explorer does not propose it."""
    store = dataclasses.replace(hardware("zcu104"), name="small", max_tokens=65, max_width=192, ports=2, write_ports=2)
    wide = dataclasses.replace(DEMO.network, name="wide", patch=32, image_height=256, image_width=256)
    narrow = dataclasses.replace(store, max_inputs=3072)  # 65 * 6 lines; a tile has 8 * 96
    work = workload(Config(wide, Formats(), narrow), ["depth"])
    _raises(ProgramError, "the input store of hardware 'small' .390 lines. takes 8 at a time",
            lambda: simulate_workload(work, narrow))  # fmt: skip
    _raises(ConfigError, "max_tokens = 65", lambda: Problem(wide, Formats(), ("depth",)).check(narrow))
    lines = [input_lines for input_lines in range(1, 60) if holds_tiles(64, 32 * input_lines, store)]
    assert lines == [*range(1, 48), 48]  # 8 rows of 48 lines are 384, 24 stripes: they fit 390 lines


def test_simulation_is_deterministic():
    assert (
        simulate_frames(DEMO, ["edge"], "zipf", seed=3).to_dict()
        == simulate_frames(DEMO, ["edge"], "zipf", seed=3).to_dict()
    )


def test_slower_memory_is_never_faster():
    memories = [MemoryModel(bytes_per_cycle=rate) for rate in (48, 24, 12)]
    cycles = [simulate_frames(DEMO, ["semseg"], memory=memory).cycles for memory in memories]
    assert cycles == sorted(cycles)
    assert simulate_frames(DEMO, ["semseg"], memory=IDEAL).cycles <= cycles[0]


def test_loads_do_as_well_as_tokens():
    work = workload(DEMO, ["semseg"])
    loads = {key: np.bincount(chosen.reshape(-1), minlength=8) for key, chosen in work.routing.items()}
    exact = simulate_workload(work, DEMO.hardware).cycles
    assert simulate(work.commands, loads, DEMO.hardware).cycles == pytest.approx(exact, rel=0.005)


def test_negative_controls_cost_cycles():
    tiny, tasks = Config(network("m3vit-tiny-cityscapes")), ["semseg", "depth"]
    plain, held, barrier = (
        simulate_workload(workload(tiny, tasks, **control), tiny.hardware)
        for control in ({}, {"prefetch_across_jobs": False}, {"barrier_between_jobs": True})
    )
    assert plain.cycles < held.cycles < barrier.cycles
    assert plain.jobs[0]["boundary_idle"] < barrier.jobs[0]["boundary_idle"]


def test_switching_costs_nothing():
    rows = switching_report(DEMO, ["semseg", "depth"], "uniform", jobs=4)
    assert [row.sequence for row in rows] == ["A→A", "A→B", "alternating", "random"]
    assert [row.extra for row in rows] == [0, 0, 0, 0]
    assert rows[0].switches == 0 and rows[2].switches == 3
    work = workload(DEMO, ["semseg", "depth"])
    assert switch_extra_cycles(work, simulate_workload(work, DEMO.hardware)) == 0
    with pytest.raises(ConfigError, match="two different tasks"):
        switching_report(DEMO, ["semseg"], "uniform")


@pytest.mark.parametrize("pattern", PATTERNS)
def test_patterns(pattern: str):
    work = workload(DEMO, ["semseg"], pattern)
    for chosen in work.routing.values():
        assert chosen.shape == (65, 2) and (np.sort(chosen)[:, 0] < np.sort(chosen)[:, 1]).all()
        used = len(np.unique(chosen))
        assert used == 2 if pattern == "one" else used > 2


def test_drawing_needs_enough_experts():
    with pytest.raises(ConfigError, match="at least top_k = 2 experts"):
        draw_experts(np.array([1.0, 0.0]), 4, 2, np.random.default_rng(0))


def test_timeline(frames: Result, tmp_path: Path):
    found = [event for event in events(frames, ("semseg", "depth")) if event["ph"] == "X"]
    tracks = {event["cat"] for event in found}
    assert tracks == {"job", "load", "compute", "store"}
    passes = [event for event in found if event["cat"] == "compute"]
    ends = [event["ts"] + event["dur"] for event in passes]
    assert all(event["ts"] >= end - 1e-6 for event, end in zip(passes[1:], ends, strict=False))
    save_timeline(tmp_path / "run.json", frames)
    assert json.loads((tmp_path / "run.json").read_text())["traceEvents"]


def _trace(**changes) -> RoutingTrace:
    net = DEMO.network
    rng = np.random.default_rng(0)
    chosen = np.array([[[draw_experts(np.ones(8), 65, 2, rng) for _ in net.moe_blocks] for _ in net.tasks]])
    fields = dict(network=net.name, network_hash=network_hash(net), tasks=tuple(net.task_names),
                  blocks=tuple(net.moe_blocks), chosen=chosen.astype(np.uint16))  # fmt: skip
    return RoutingTrace(**{**fields, **changes})


def test_traces_survive_a_file(tmp_path: Path):
    save_trace(tmp_path / "t.npz", _trace())
    loaded = load_trace(tmp_path / "t.npz")
    np.testing.assert_array_equal(loaded.chosen, _trace().chosen)
    assert simulate_frames(DEMO, ["depth"], loaded).cycles == simulate_frames(DEMO, ["depth"], _trace()).cycles


def _raises(error: type[M3vitError], match: str, call) -> None:
    with pytest.raises(error, match=match) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_bad_input_is_one_line(tmp_path: Path):
    other = Config(network("m3vit-tiny-cityscapes"))
    _raises(DataError, "expected a trace of m3vit-tiny", lambda: simulate_frames(other, ["semseg"], _trace()))
    outside = _trace()
    outside.chosen[0, 0, 0, 0, 0] = 8
    _raises(DataError, "expert 8: expected 0 to 7", lambda: simulate_frames(DEMO, ["semseg"], outside))
    twice = _trace()
    twice.chosen[0, 0, 0, 0] = 3
    _raises(DataError, "found one twice", lambda: simulate_frames(DEMO, ["semseg"], twice))
    work = workload(DEMO, ["semseg"])
    key = next(iter(work.routing))
    wrong = {**work.routing, key: np.full((65, 2), -1)}
    _raises(DataError, "expert -1: expected", lambda: simulate(work.commands, wrong, DEMO.hardware))
    _raises(ProgramError, "missing", lambda: simulate(work.commands, {}, DEMO.hardware))
    _raises(ConfigError, "bytes_per_cycle = 0", lambda: MemoryModel(bytes_per_cycle=0))
    _raises(ConfigError, "latency = -1", lambda: MemoryModel(latency=-1))
    _raises(ConfigError, "burst_beats = 8", lambda: simulate(work.commands, work.routing, DEMO.hardware,
                                                            MemoryModel(burst_beats=8)))  # fmt: skip
    small = dataclasses.replace(hardware("zcu104"), slot_rows=4)
    _raises(ProgramError, "the buffers of hardware 'zcu104'", lambda: simulate(work.commands, work.routing, small))
    _raises(ConfigError, "slot_rows = 4", lambda: Config(network("m3vit-demo"), hardware=small))
    (tmp_path / "bad.npz").write_bytes(b"no archive")
    _raises(DataError, "cannot read as a routing trace", lambda: load_trace(tmp_path / "bad.npz"))
    _raises(ConfigError, "routing 'nothing'", lambda: simulate_frames(DEMO, ["semseg"], "nothing"))


def test_programs_need_an_end():
    work = workload(DEMO, ["semseg"])
    with pytest.raises(ProgramError, match="expected END"):
        simulate(work.commands[:-1], work.routing, DEMO.hardware)
    assert work.commands[-1].opcode is Opcode.END


@pytest.mark.parametrize("changes", [
    {"outstanding": 1}, {"outstanding": 2, "latency": 300, "write_latency": 500, "write_batch": 1, "turnaround": 40},
    {"stall_percent": 70, "stall_run": 4, "outstanding": 2}, {"bytes_per_cycle": 8, "bucket_bytes": 64,
     "refresh_period": 300, "refresh_cycles": 60}, {"turnaround": 0}, {"refresh_cycles": 0},
])  # fmt: skip
def test_odd_memories_come_to_an_end(changes: dict[str, int]):
    result = simulate_frames(DEMO, ["semseg", "depth"], memory=dataclasses.replace(MemoryModel(), **changes))
    assert sum(result.breakdown.values()) == result.cycles
    assert set(STALLS) <= set(result.breakdown)


def test_uniform_loads_of_synthetic_programs():
    chosen = routing_of_loads(uniform_loads(8, 65, 2), 65, 2)
    assert np.bincount(chosen.reshape(-1)).max() - np.bincount(chosen.reshape(-1)).min() <= 1
