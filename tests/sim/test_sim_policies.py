"""Policies: what they decide, what it costs, and that nobody beats the optimum."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import pytest
from rtl_cases import CASES, build_case

from accel.commands import Opcode
from accel.config import Config, hardware, network
from accel.errors import ConfigError, DataError
from accel.memory_model import MemoryModel
from accel.routing import Schedule
from accel.usage import ExpertUsage
from sim.comparing import compare, compulsory_bytes, order_extra
from sim.model import Result, simulate, simulate_workload
from sim.plots import policy_cycles
from sim.policies import PLANS, MoeLayer, Plan, Policy, Usage, frames_of, interleave, make_policy, parse_policies
from sim.policies import scheduled as program_of
from sim.shapes import shape_of
from sim.timeline import events
from sim.workload import Workload, workload

DEMO, TINY = Config(network("m3vit-demo")), Config(network("m3vit-tiny-cityscapes"))
MEMORY = MemoryModel()
OWN = [name for name in PLANS if name != "cache"]


def run(work: Workload, name: str, config: Config = DEMO, memory: MemoryModel = MEMORY, usage: Usage | None = None):
    """A workload under a policy by name."""
    program = program_of(work, PLANS[name])
    return simulate_workload(program, config.hardware, memory, policy=make_policy(name, config.hardware, memory, usage))


@pytest.mark.parametrize("name", OWN)
@pytest.mark.parametrize("pattern", ["uniform", "zipf", "one"])
def test_a_policy_changes_when_and_not_what(name: str, pattern: str):
    work = workload(DEMO, ["semseg", "depth", "semseg"], pattern, seed=5)
    index, found = run(work, "index"), run(work, name)
    for counter in ("pairs", "experts", "units", "macs", "bytes_written", "array_cycles", "gate_cycles"):
        assert found.counters[counter] == index.counters[counter]
    unit = next(layer.weight_bytes for layer in index.layers if layer.kind == "moe")
    saved = index.counters["weight_bytes"] - (found.counters["weight_bytes"] - found.loading["wasted_bytes"])
    assert (saved > 0) == (found.loading["units_on_chip"] > 0) and saved < found.loading["units_on_chip"] * unit + 1
    assert sum(found.breakdown.values()) == found.cycles == found.counters["cycles"]
    assert found.loading["wrong_guesses"] <= found.loading["guesses"] <= found.loading["units_wanted"]
    for layer in found.layers:
        used = [expert for expert, load in enumerate(layer.loads) if load]
        assert sorted(expert for expert, _ in layer.order) == used


@pytest.mark.parametrize("schedule", [Schedule.INDEX, Schedule.LONGEST_FIRST])
@pytest.mark.parametrize("case", [case for case in CASES if case.name in ("ci-demo.moe", "ci-chain", "zcu104-chain")],
                         ids=lambda case: case.name)  # fmt: skip
def test_the_engines_own_orders_through_a_policy(case, schedule: Schedule):
    """The same experts in the same order and as many bytes; cycles but for the assumed speed of ordering."""
    program, routing = build_case(case)
    commands = [
        dataclasses.replace(command, schedule=int(schedule)) if command.opcode is Opcode.MOE else command
        for command in program.commands
    ]
    own = simulate(commands, routing, case.hardware, case.memory)
    plan = next(plan for plan in PLANS.values() if plan.schedule is schedule)
    asked = simulate(commands, routing, case.hardware, case.memory, policy=Policy(plan, case.hardware, case.memory))
    assert [layer.order for layer in asked.layers] == [layer.order for layer in own.layers]
    assert asked.counters["weight_bytes"] == own.counters["weight_bytes"]
    assert asked.cycles == pytest.approx(own.cycles, rel=0.01)
    assert make_policy({Schedule.INDEX: "index"}.get(schedule, "longest"), case.hardware, case.memory) is None


def _layer(loads: Sequence[int], on_chip: Sequence[int] = ()) -> MoeLayer:
    command = next(command for command in workload(TINY, ["semseg"]).commands if command.opcode is Opcode.MOE)
    return MoeLayer(shape_of(command, TINY.hardware), 0, 1 << 20, 1 << 17, tuple(loads), frozenset(on_chip))


def test_orders():
    """A load takes 3,157 cycles, a tile of 8 tokens 384: up to 8 tiles an expert loads longer than it computes."""
    loads = [0, 8, 80, 16, 0, 129, 25]

    def order(name: str, on_chip: Sequence[int] = ()) -> list[int]:
        return Policy(PLANS[name], TINY.hardware, MEMORY).order(_layer(loads, on_chip))

    assert order("pinned") == [1, 2, 3, 5, 6] and order("pinned", [6, 3]) == [3, 6, 1, 2, 5]
    # Johnson: 2 and 5 compute longer than they load and go first, the others by falling work.
    assert order("johnson") == [2, 5, 6, 3, 1]
    # What is on chip loads in no time, but belongs to those that compute longer than they load.
    assert order("combined", [1]) == [1, 2, 5, 6, 3]
    longest = Policy(PLANS["longest"], TINY.hardware, MEMORY)
    assert longest.order(_layer([8, 16, 16, 0])) == [1, 2, 0]


def test_guesses_follow_usage():
    usage = Usage()
    usage.expect(0, [0, 60, 1, 30, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], 10)
    policy = Policy(PLANS["speculative"], TINY.hardware, MEMORY, usage)
    assert policy.guesses(_layer([])) == [1, 3, 4] and policy.guesses(_layer([], [3])) == [1, 4]
    assert Policy(PLANS["johnson"], TINY.hardware, MEMORY, usage).guesses(_layer([])) == []
    fresh = Policy(PLANS["speculative"], TINY.hardware, MEMORY)
    assert fresh.guesses(_layer([])) == list(range(16)), "nothing is known: all alike, in index order"
    fresh.observe(_layer([0, 5, 9] + [0] * 12 + [2]))
    assert fresh.guesses(_layer([])) == [2, 1, 15]


def test_pins_are_the_experts_used_most():
    policy = Policy(PLANS["pinned"], TINY.hardware, MEMORY)
    offset = {expert: (1 << 20) + expert * (1 << 17) for expert in range(16)}
    policy.observe(_layer([0, 8, 8]))
    assert [expert for expert in range(16) if policy.keeps(offset[expert])] == [1], "one of five slots"
    for _ in range(2):
        policy.observe(_layer([0, 0, 8]))
    assert policy.keeps(offset[1]), "not for a difference of two"
    policy.observe(_layer([0, 0, 8]))
    assert not policy.keeps(offset[1]) and policy.keeps(offset[2])


def test_pinned_experts_are_loaded_once():
    config = dataclasses.replace(DEMO, hardware=dataclasses.replace(DEMO.hardware, weight_slots=10))
    work = workload(config, ["semseg"] * 4, "one", seed=1)
    index, pinned = run(work, "index", config), run(work, "pinned", config)
    assert pinned.loading["units_on_chip"] >= 2 * 3 > index.loading["units_on_chip"] == 0
    assert pinned.counters["weight_bytes"] < index.counters["weight_bytes"]
    two = dataclasses.replace(DEMO, hardware=dataclasses.replace(DEMO.hardware, weight_slots=2))
    assert run(workload(two, ["semseg"] * 4, "one"), "pinned", two).loading["units_on_chip"] == 0, "two must stream"


def test_wrong_guesses_cost_bytes_until_usage_is_known():
    one = workload(TINY, ["semseg"], "one", seed=2)  # two of 16 experts, 0 and 1 in every layer
    shuffled = {key: chosen + 9 for key, chosen in one.routing.items()}
    work = dataclasses.replace(one, routing=shuffled)
    index, blind = run(work, "index", TINY), run(work, "speculative", TINY)
    assert blind.loading["wrong_guesses"] > 0 and blind.loading["wasted_bytes"] > 0
    assert blind.counters["weight_bytes"] == index.counters["weight_bytes"] + blind.loading["wasted_bytes"]
    known = Usage()
    for command in work.commands:
        if command.opcode is Opcode.MOE:
            known.saw(command.gate, np.bincount(shuffled[0, command.layer].reshape(-1), minlength=16).tolist())
    told = run(work, "speculative", TINY, usage=known)
    assert told.loading["guesses"] > 0 == told.loading["wrong_guesses"] == told.loading["wasted_bytes"]
    assert told.counters["weight_bytes"] == index.counters["weight_bytes"] and told.cycles < index.cycles
    assert told.cycles < blind.cycles
    # Two frames: the second one knows what the first has seen.
    pair = workload(TINY, ["semseg"] * 2, "one", seed=2)
    pair = dataclasses.replace(pair, routing={key: chosen + 9 for key, chosen in pair.routing.items()})
    assert run(pair, "speculative", TINY).loading["wrong_guesses"] == blind.loading["wrong_guesses"]


def test_guessing_pays_where_memory_binds():
    work = workload(TINY, ["semseg"])
    index, guessed = run(work, "index", TINY), run(work, "eager", TINY)
    assert guessed.loading["guesses"] > 6 and guessed.cycles < 0.98 * index.cycles


def test_programs_interleave_layer_by_layer():
    tasks = ["semseg", "depth", "semseg", "edge", "edge"]
    assert frames_of(tasks) == [[0, 1], [2, 3], [4]]
    assert frames_of(["a", "b", "c"], 3) == [[0, 1, 2]] and frames_of(["a", "b", "a"], 3) == [[0, 1], [2]]
    work = workload(DEMO, tasks)
    mixed = interleave(work)
    assert sorted(map(repr, mixed.commands)) == sorted(map(repr, work.commands))
    layers = [command for command in mixed.commands if command.opcode not in (Opcode.JOB_END, Opcode.END)]
    count = len(work.layers)
    assert [(command.job, command.layer) for command in layers[: 2 * count]] == [
        (job, layer) for layer in range(count) for job in (0, 1)
    ]
    assert [command.job for command in mixed.commands if command.opcode is Opcode.JOB_END] == list(range(5))
    assert mixed.commands[-1].opcode is Opcode.END
    for control in ({"barrier_between_jobs": True}, {"prefetch_across_jobs": False}):
        with pytest.raises(ConfigError, match="jobs that do not wait for each other"):
            interleave(workload(DEMO, tasks, **control))


def test_interleaved_jobs_have_tracks_of_their_own():
    work = workload(DEMO, ["semseg", "depth", "semseg"])
    for name, tracks in (("index", 1), ("interleaved", 2)):
        result = simulate_workload(program_of(work, PLANS[name]), DEMO.hardware, timeline=True)
        jobs = [event for event in events(result, work.tasks) if event.get("cat") == "job"]
        assert len(jobs) == 3 and len({event["tid"] for event in jobs}) == tracks
        for event in jobs:
            rivals = [other for other in jobs if other is not event and other["tid"] == event["tid"]]
            later = [other for other in rivals if other["ts"] >= event["ts"]]
            assert all(other["ts"] >= event["ts"] + event["dur"] - 1e-6 for other in later)


def test_tasks_share_weights_where_they_are_interleaved():
    work = workload(TINY, ["semseg", "depth"], "zipf", seed=1)
    cycles = {name: run(work, name, TINY) for name in ("index", "resident", "interleaved", "shared", "combined")}
    assert cycles["resident"].loading["units_on_chip"] == 0 < cycles["interleaved"].loading["units_on_chip"]
    assert cycles["interleaved"].loading["units_on_chip"] < cycles["shared"].loading["units_on_chip"]
    order = [cycles[name].cycles for name in ("combined", "shared", "interleaved", "index")]
    assert order == sorted(order)


def test_compulsory_bytes():
    work = workload(DEMO, ["semseg", "depth"], "zipf", seed=2)
    index = run(work, "index")
    assert compulsory_bytes(work, DEMO.hardware) == index.ddr_bytes
    together = compulsory_bytes(work, DEMO.hardware, 2)
    dense = sum(layer.weight_bytes for layer in index.layers if layer.kind != "moe") // 2
    assert index.ddr_bytes - together > dense
    roomy = dataclasses.replace(DEMO, hardware=dataclasses.replace(DEMO.hardware, weight_slots=64))
    shared = run(work, "shared", roomy)
    assert together <= shared.ddr_bytes < index.ddr_bytes
    alone = workload(DEMO, ["semseg"], "zipf", seed=2)
    assert compulsory_bytes(alone, DEMO.hardware, 2) == compulsory_bytes(alone, DEMO.hardware)


@pytest.mark.parametrize("name", ["combined", "pinned", "johnson"])
@pytest.mark.parametrize("changes", [{"stall_percent": 30}, {"latency": 300, "outstanding": 2}, {"turnaround": 0}])
def test_policies_on_odd_memories(name: str, changes: dict[str, int]):
    memory = dataclasses.replace(MEMORY, **changes)
    found = run(workload(DEMO, ["semseg", "depth"], "zipf"), name, memory=memory)
    assert sum(found.breakdown.values()) == found.cycles


@pytest.mark.parametrize("slots", [2, 3, 16])
def test_policies_on_other_pools(slots: int):
    config = dataclasses.replace(DEMO, hardware=dataclasses.replace(DEMO.hardware, weight_slots=slots))
    work = workload(config, ["semseg", "depth"] * 2)
    found = {name: run(work, name, config).cycles for name in OWN}
    assert found["combined"] < found["interleaved"] <= found["index"] and found["shared"] < found["index"]


def test_experts_of_several_units():
    """Nothing is guessed of them, everything else works."""
    net = dataclasses.replace(DEMO.network, unit_hidden=64, name="cut")
    config = Config(net)
    work = workload(config, ["semseg", "depth"], "zipf")
    assert config.network.expert_units == 2
    index, best = run(work, "index", config), run(work, "combined", config)
    assert best.loading["guesses"] == 0 and best.counters["weight_bytes"] < index.counters["weight_bytes"]


def test_no_order_beats_the_optimum():
    work = workload(TINY, ["semseg"], "zipf", seed=3)
    lost: dict[str, float] = {}
    for name in ("index", "longest", "johnson"):
        result: Result = run(work, name, TINY)
        lost[name], exact = order_extra(program_of(work, PLANS[name]), result, TINY.hardware, MEMORY)
        assert exact and lost[name] >= -1e-6
    assert lost["johnson"] == pytest.approx(0, abs=1e-6) and lost["index"] > 0


def test_compare():
    names = ["cache", "index", "interleaved", "eager"]
    rows = {row.name: row for row in compare(TINY, ["semseg", "depth"], "zipf", policies=names, seed=4)}
    assert rows["index"].ratio == 1 and rows["cache"].ratio > 1.5 and rows["cache"].order_extra is None
    assert rows["eager"].cycles < rows["index"].cycles and rows["eager"].hardware.startswith("no")
    assert rows["interleaved"].roofline_cycles < rows["index"].roofline_cycles == rows["eager"].roofline_cycles
    assert rows["interleaved"].over_jobs_roofline < rows["index"].over_jobs_roofline == rows["index"].over_roofline
    assert rows["interleaved"].hardware == "yes" and 0 < rows["cache"].hit_rate < 1
    for row in rows.values():
        assert row.cycles > row.roofline_cycles and row.milliseconds == pytest.approx(row.cycles / 300e3)
        assert row.to_dict()["name"] == row.name
    picture = policy_cycles(list(rows.values()))
    assert all(f"{row.cycles:,}" in picture for row in rows.values())


def test_usage_of_another_network_is_refused():
    usage = ExpertUsage("m3vit-demo", 1, 65, 2, 8, {})
    with pytest.raises(DataError, match="expected 129 as in m3vit-tiny"):
        compare(TINY, ["semseg"], policies=["eager"], usage=usage)


def test_names():
    assert parse_policies("all") == list(PLANS) and parse_policies("combined, index") == ["combined", "index"]
    for text, message in (("fast", "policy 'fast': expected one of cache, index"), ("index,index", "given twice"),
                          ("", "policy '': expected")):  # fmt: skip
        with pytest.raises(ConfigError, match=message) as caught:
            parse_policies(text)
        assert "\n" not in str(caught.value)
    for name in ("cache", "fast"):
        with pytest.raises(ConfigError, match=f"policy '{name}': expected one of index"):
            make_policy(name, hardware("zcu104"), MEMORY)
    assert all(isinstance(plan, Plan) and plan.hardware.startswith(("yes", "no: ")) for plan in PLANS.values())
