"""Spaces of engines, what of them is possible, and the configurations that no other beats."""

from __future__ import annotations

import dataclasses
import itertools
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from accel.config import Config, Formats, Hardware, Task, hardware, network
from accel.errors import ConfigError
from accel.layers import engine_layers, head_layers
from accel.memory_model import MemoryModel
from accel.resources import LIMITS, ZCU104, faults, resources
from sim.explore import BUFFERS, DEFAULT_SPACE, SCHEDULES, Candidate, Problem, engines, parse_space
from sim.model import simulate_workload
from sim.pareto import OBJECTIVES, Point, non_dominated, pareto_front
from sim.pareto_plot import pareto_plot
from sim.shapes import holds_tiles
from sim.workload import workload

TINY = dataclasses.replace(
    network("m3vit-demo"), name="tiny", image_height=16, image_width=24, embed_dim=32, depth=2, dense_hidden=64,
    expert_hidden=32, unit_hidden=32, tasks=(Task("depth", 1, "depth"),),
)  # fmt: skip
PROBLEM = Problem(TINY, Formats(), ("depth",))
SMALL = {
    "tile_tokens": [2, 8, 32], "tile_outputs": [16, 48, 96], "tile_inputs": [8], "slot_rows": ["1x", "2x"],
    "slot_groups": ["1x"], "max_tokens": ["1x", 4096], "max_width": ["1x"], "ports": [2, 4], "write_ports": [2, 4],
}  # fmt: skip


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "expected a table of fields and lists of candidates, found \\[\\]"),
        ({}, "expected a table"),
        ({"speed": [1]}, "unknown field 'speed': expected only tile_tokens"),
        ({"name": ["x"]}, "unknown field 'name'"),
        ({"ports": 4}, "ports: expected a list of candidates, found 4"),
        ({"ports": []}, "ports: expected a list of candidates"),
        ({"ports": [4, 4]}, "ports: expected different candidates"),
        ({"ports": ["1x"]}, "ports: expected an integer of at least 1, found '1x'"),
        ({"ports": [0]}, "ports: expected an integer of at least 1, found 0"),
        ({"ports": [True]}, "ports: expected an integer of at least 1, found True"),
        ({"ports": [4.0]}, "ports: expected an integer of at least 1, found 4.0"),
        ({"slot_rows": ["0.5x"]}, 'slot_rows: expected an integer of at least 1 or a multiple such as "1.5x"'),
        ({"slot_rows": ["x"]}, "slot_rows: expected an integer of at least 1 or a multiple"),
        ({"schedule": ["best"]}, "schedule: expected some of index, longest_first, resident_first, found 'best'"),
        ({"schedule": [1]}, "schedule: expected some of index"),
    ],
)
def test_a_space_that_is_none(data: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=f"^here: {message}") as error:
        parse_space(data, "here")
    assert "\n" not in str(error.value)


def test_the_default_space_is_one() -> None:
    space = parse_space(DEFAULT_SPACE)
    assert json.loads(json.dumps({name: list(values) for name, values in space.values.items()})) == DEFAULT_SPACE
    assert space.size == space.engines * len(DEFAULT_SPACE["clock_mhz"]) * len(DEFAULT_SPACE["schedule"])
    assert len(list(space.part(free=True))) * space.engines == space.size


@pytest.mark.parametrize("name", ["m3vit-demo", "m3vit-tiny-cityscapes", "m3vit-small-pascal"])
@pytest.mark.parametrize("outputs", [16, 48])
def test_1x_is_what_the_network_needs_and_no_more(name: str, outputs: int) -> None:
    problem = Problem(network(name), Formats(), ("semseg",))
    engine = problem.candidate({"tile_outputs": outputs, **dict.fromkeys(BUFFERS, "1x")}).hardware
    Config(problem.network, Formats(), engine)
    for field in BUFFERS:
        smaller = getattr(engine, field) - (outputs if field == "max_width" else 1)
        with pytest.raises(ConfigError, match=field):
            Config(problem.network, Formats(), dataclasses.replace(engine, **{field: smaller}))


def test_multiples_are_rounded_up() -> None:
    engine = PROBLEM.candidate({"tile_outputs": 48, "max_tokens": "1.25x", "max_width": "1.5x"}).hardware
    assert (engine.max_tokens, engine.max_width) == (9, 48)  # of 7 tokens and 32 channels
    assert engine.slot_rows == hardware("zcu104").slot_rows  # not in the choice


def test_a_key_is_the_engine_and_the_schedule_and_nothing_else() -> None:
    exact = PROBLEM.candidate({"max_tokens": 7, "schedule": "index"})
    assert exact.key == PROBLEM.candidate({"max_tokens": "1x"}).key
    assert exact.key == Candidate(dataclasses.replace(exact.hardware, name="other"), "index").key
    others = [PROBLEM.candidate({"max_tokens": 7, **change}) for change in
              ({"schedule": "longest_first"}, {"clock_mhz": 200}, {"max_tokens": 8})]  # fmt: skip
    assert len({exact.key, *(other.key for other in others)}) == 4
    assert exact.hardware.name == f"8x48x8-{exact.key[:8]}"


def test_what_is_possible_is_what_the_rules_say() -> None:
    space = parse_space(SMALL)
    found = engines(PROBLEM, space)
    keys = set()
    for values in itertools.product(*SMALL.values()):
        choice = dict(zip(SMALL, values, strict=True))
        try:
            candidate = PROBLEM.candidate(choice)
            config = Config(TINY, Formats(), candidate.hardware)
            assert head_layers(config, "depth")
            layers = engine_layers(config)
        except ConfigError:
            continue
        takes = all(holds_tiles(layer.tokens, layer.inputs, candidate.hardware) for layer in layers)
        if layers and takes and not faults(candidate.hardware):
            keys.add(candidate.key)
    assert {PROBLEM.candidate(choice).key for choice in found.fitting} == keys
    assert len(found.fitting) == len(keys) < found.looked_at == space.engines
    assert {"shape", "dsp", "network"} <= set(found.refused)
    assert f"{found.refused['shape']:,} no such engine" in found.reasons() and "too much DSP" in found.reasons()
    none = engines(PROBLEM, space, lambda engine: "rtl")
    assert not none.fitting and none.refused["rtl"] >= len(keys)


def test_too_many_engines_are_not_listed() -> None:
    with pytest.raises(ConfigError, match="space: 250,000 engines: expected at most 200,000"):
        engines(PROBLEM, parse_space({"slot_rows": list(range(1, 501)), "max_tokens": list(range(1, 501))}))


def test_figures_are_the_simulators() -> None:
    candidate = PROBLEM.candidate({"tile_tokens": 2, "tile_outputs": 16, "clock_mhz": 200, "schedule": "longest_first"})
    two = dataclasses.replace(PROBLEM, tasks=("depth", "depth"))
    from accel.routing import Schedule

    config = Config(TINY, Formats(), candidate.hardware)
    work = workload(config, two.tasks, schedule=Schedule.LONGEST_FIRST)
    result = simulate_workload(work, candidate.hardware, MemoryModel().at_clock(200))
    figures = two.evaluate(candidate)
    assert figures["cycles"] == result.cycles
    assert figures["milliseconds"] == result.cycles / 200_000 / 2
    assert figures["millijoules"][0] < figures["millijoules"][1]
    json.dumps(figures)


def test_memory_at_another_clock_is_the_same_memory() -> None:
    memory = MemoryModel()
    assert memory.at_clock(300) is memory
    slow = memory.at_clock(200)
    assert (slow.bytes_per_cycle, slow.latency, slow.refresh_period) == (72, 67, 1560)
    assert (slow.burst_beats, slow.outstanding, slow.write_batch) == (16, 8, 16)
    assert MemoryModel(bytes_per_cycle=200).at_clock(150).bucket_bytes == 400
    assert memory.at_clock(1).bytes_per_cycle == 4096 and memory.at_clock(1).latency == 1


# ---- the front


def naive_front(values: list[tuple[float, ...]]) -> list[int]:
    """Straight from the definition."""
    return [
        i for i, a in enumerate(values)
        if not any(all(y <= x for x, y in zip(a, b, strict=True)) and any(y < x for x, y in zip(a, b, strict=True))
                   for b in values)
    ]  # fmt: skip


@given(st.integers(1, 4).flatmap(
    lambda width: st.lists(st.tuples(*[st.integers(0, 6).map(float)] * width), min_size=1, max_size=40)
))  # fmt: skip
def test_non_dominated_is_the_definition(values: list[tuple[float, ...]]) -> None:
    found = non_dominated(np.array(values))
    assert list(found) == naive_front(values)
    for row in values:  # nothing is lost: every point is beaten or equalled by one of the front
        assert any(all(values[i][k] <= row[k] for k in range(len(row))) for i in found)


def point(milliseconds: float, **changes: Any) -> Point:
    engine = dataclasses.replace(hardware("ci"), **changes)
    figures = {"milliseconds": milliseconds, "millijoules": [1.0, 2.0]}
    return Point(Candidate(engine, "index"), figures, ZCU104, None)


def test_the_front_has_one_point_of_equals_the_one_that_takes_least() -> None:
    small, large = point(1.0), point(1.0, weight_slots=8)
    assert sum(large.shares.values()) > sum(small.shares.values())
    assert pareto_front([large, small], ["ms"]) == [small]
    assert pareto_front([large, small], ["ms", "dsp"]) == [small]
    slow = point(2.0, tile_tokens=2)
    assert pareto_front([slow, large, small], ["ms", "dsp"]) == [small, slow]
    assert pareto_front([slow, small], ["ms"]) == [small]
    assert pareto_front([], ["ms"]) == []


def test_objectives_are_what_they_are_called() -> None:
    one = point(3.0, clock_mhz=250)
    shares = resources(one.candidate.hardware).shares(ZCU104)
    assert one.values(("ms", "resources", "uram", "clock", "energy")) == (
        3.0, max(shares.values()), shares["uram"], 250, 2.0
    )  # fmt: skip
    assert set(LIMITS) < set(OBJECTIVES)
    assert one.to_dict()["rtl"] is True and json.dumps(one.to_dict())


def test_plot_shows_every_point_once_and_stays_inside() -> None:
    made = ((1.0, 8, 2), (2.0, 4, 2), (3.0, 2, 2), (2.5, 8, 3))
    points = [point(ms, tile_tokens=tokens, weight_slots=slots, clock_mhz=clock)
              for clock in (200, 300) for ms, tokens, slots in made]  # fmt: skip
    front = pareto_front(points, ("ms", "dsp", "clock"))
    unbuilt = dataclasses.replace(front[0], rtl_refusal="ports = 1")
    text = pareto_plot(points, [unbuilt, *front[1:]], ("ms", "dsp", "clock"), point(2.0), "<title>")
    assert "&lt;title&gt;" in text and "200 MHz" in text and "not for the RTL" in text
    circles = [line for line in text.splitlines() if "<circle" in line and "MHz, " in line]
    assert len(circles) == len(points) + 2  # two more for the ring
    for line in circles:
        x, y = (float(line.partition(f"c{axis}='")[2].partition("'")[0]) for axis in "xy")
        assert 60 <= x <= 590 and 40 <= y <= 392


def test_schedules_are_those_of_the_engine() -> None:
    assert SCHEDULES == ("index", "longest_first", "resident_first")
    assert isinstance(PROBLEM.base, Hardware)
