"""Stream depths: at the least that is documented nothing waits for ever; below it the deadlock is reported."""

from __future__ import annotations

from pathlib import Path

import pytest
from engine_backends import hls_bench

from accel.config import Formats, hardware
from accel.errors import DeviceError
from accel.layers import Kind
from accel.routing import Schedule
from accel.synthetic import SyntheticProgram, build_program
from host.backends import open_device
from host.backends.hls import HlsLibrary
from host.backends.hls_build import build
from rtl_tb.engine_cases import CASES, dense, moe, random_program

CI = hardware("ci")


@pytest.mark.parametrize("sequential", [True, False], ids=["in turn", "threads"])
def test_least_depths_pass_every_case(library: Path, streams: dict[str, tuple[int, int]], sequential: bool) -> None:
    depths = {name: least for name, (_, least) in streams.items()}
    for bench in hls_bench("ci", library, sequential=sequential, depths=depths):
        for name in CASES:
            bench.run(CASES[name](CI))
        for seed in range(40):
            bench.run(random_program(90_000 + seed, CI))


def test_least_depths_are_no_larger_than_the_depths(streams: dict[str, tuple[int, int]]) -> None:
    assert all(1 <= least <= depth for depth, least in streams.values())


def hard_program() -> SyntheticProgram:
    """Uses every stream: the widest hidden tile, as many experts as there can be, resident ones, a full input store."""
    layers = [
        dense(Kind.LINEAR, 40, 64, 64, CI),
        dense(Kind.MLP, 9, 32, 32, CI, hidden=CI.max_hidden, units=2),
        moe([1] * CI.max_experts, CI.max_experts, 1, CI, width=CI.max_experts, hidden=8),
        moe([9, 5, 4], 9, 2, CI, schedule=Schedule.RESIDENT_FIRST),
    ]
    return build_program([layers], CI)


TIGHT = {"retired": "odd_shapes", "rows_freed": "odd_shapes", "order": "most_experts", "hidden": ""}
"""Streams whose least depth above 1 is exact when all others are at theirs, and the case that shows it."""
SAFE = {
    "weight_lines": "odd_shapes", "input_lines": "all_tokens_to_one_expert",
    "residual_lines": "rows_wider_than_the_store",
}  # fmt: skip
"""Streams as deep as what may be under way, so that the reader never waits with a line in its hands and somebody else's
lines behind it. What that would stop depends on who asks when: half is too little for these programs."""


def test_below_the_least_depth_the_deadlock_is_reported(library: Path, streams: dict[str, tuple[int, int]]) -> None:
    least = {name: low for name, (_, low) in streams.items()}
    assert {name for name, low in least.items() if low > 1} == TIGHT.keys() | SAFE.keys()
    for name, low in least.items():
        case = TIGHT.get(name) or SAFE.get(name)
        program = CASES[case](CI) if case else hard_program()
        lowered = low // 2 if name in SAFE else low - 1
        waits = rf"\w+ waits to (?:read|write) (?:\w+ \(\d+ of \d+\) or )*{name} \(\d+ of {lowered}\)"
        for sequential in (True, False):
            for bench in hls_bench("ci", library, sequential=sequential, depths=least | {name: lowered}):
                with pytest.raises(DeviceError, match=rf"hls: deadlock: (.*; )?{waits}"):
                    bench.run(program)
                bench.compared = 1  # a deadlock is what was to be found


@pytest.mark.slow
def test_slots_given_back_need_room() -> None:
    """With more than two weight slots the stream `freed` has a least depth above 1, and it is exact."""
    engine = hardware("zcu104")
    library = build(engine, Formats())
    least = {item.name: item.least for item in HlsLibrary(library).streams()}
    assert least["freed"] == engine.weight_slots - 1
    for bench in hls_bench("zcu104", library, depths=least):
        for name in CASES:
            bench.run(CASES[name](engine))
    for bench in hls_bench("zcu104", library, depths=least | {"freed": least["freed"] - 1}):
        with pytest.raises(DeviceError, match="drain waits to write freed"):
            bench.run(CASES["one_token_of_every_kind"](engine))
        bench.compared = 1


def test_report_names_processes_and_streams(library: Path) -> None:
    for bench in hls_bench("ci", library, depths={"sums": 0}):
        with pytest.raises(DeviceError, match=r"array waits to write sums \(0 of 0\)") as caught:
            bench.run(hard_program())
        bench.compared = 1
        assert "drain waits to read sums (0 of 0)" in str(caught.value)


def test_unknown_stream(library: Path) -> None:
    with pytest.raises(DeviceError, match="stream 'nothing': expected one of load_layers"):
        open_device("hls", CI, library=library, depths={"nothing": 1})
