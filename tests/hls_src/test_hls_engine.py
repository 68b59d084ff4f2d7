"""The HLS engine on the RTL's programs: every byte and every counter as the functional engine has them."""

from __future__ import annotations

from pathlib import Path

import pytest
import test_rtl_engine
import test_rtl_errors
from conftest import open_bench
from engine_programs import EngineBench

from accel.config import Formats, hardware
from accel.errors import DeviceError
from accel.layers import Kind
from accel.synthetic import build_program, routing_of_loads, skewed_loads, synthetic_layer
from host.backends.hls_build import BIT_TRUE, ap_types, build
from rtl_tb.engine_cases import CASES, random_program

CI = hardware("ci")

# Collected here once more, they run with the fixture `bench` of this folder. Cases of bus errors, resets in mid-burst
# and back-pressure are the RTL's alone; so is auto-restart as tested there, where time stands still between calls.
for _module, _names in (
    (test_rtl_engine, (
        "test_named", "test_ties_go_to_the_lower_expert", "test_saturation_on_both_sides",
        "test_order_of_experts_changes_no_bit", "test_same_expert_twice_is_loaded_once", "test_residents_come_first",
        "test_programs_in_a_row_without_reset", "test_end_alone_identifies_the_engine",
        "test_driver_runs_the_same_program",
    )),
    (test_rtl_errors, (
        "test_refusal", "test_fields_that_a_command_does_not_use_are_ignored", "test_unknown_opcodes",
        "test_unknown_flags_and_reserved_bits", "test_program_error",
    )),
):  # fmt: skip
    for _name in _names:
        globals()[_name] = getattr(_module, _name)


@pytest.mark.parametrize("group", range(5))
def test_random_programs(bench: EngineBench, group: int) -> None:
    for seed in range(40):
        bench.run(random_program(1000 * group + seed, CI))


@pytest.mark.slow
@pytest.mark.parametrize("group", range(20))
def test_more_random_programs(bench: EngineBench, group: int) -> None:
    for seed in range(100):
        bench.run(random_program(10_000 + 1000 * group + seed, CI))


@pytest.fixture(scope="module")
def bit_true(compiler: str) -> Path:
    """With ap_int wherever widths matter and the packed multiplier: the types that synthesis sees."""
    try:
        ap_types()
    except DeviceError as error:
        pytest.skip(str(error))
    return build(CI, Formats(), flags=BIT_TRUE)


def test_widths_of_the_hardware_give_the_same_bits(bit_true: Path) -> None:
    names = (
        "one_token_of_every_kind", "odd_shapes", "random_logits", "fourteen_and_fifteen_units",
        "queues_of_every_length", "jobs_with_and_without_layers", "nothing_prefetched",
    )  # fmt: skip
    for bench in open_bench("ci", bit_true):
        for name in names:
            bench.run(CASES[name](CI))
        test_rtl_engine.test_saturation_on_both_sides(bench)
        for seed in range(5):
            bench.run(random_program(77_000 + seed, CI))


@pytest.mark.slow
def test_layers_at_full_size(compiler: str) -> None:
    """The zcu104 engine: one MoE layer of m3vit-small-pascal with unequal queues, then programs of every shape."""
    engine = hardware("zcu104")
    for bench in open_bench("zcu104", build(engine, Formats())):
        chosen = routing_of_loads(skewed_loads(16, 1025, 4), 1025, 4)
        layer = synthetic_layer(
            Kind.MOE, 1025, 384, 384, engine, 1, hidden=384, experts=16, top_k=4, chosen=chosen
        )  # fmt: skip
        record = bench.run(build_program([[layer]], engine))
        assert record.counters["macs"] == 1025 * 4 * 2 * 384 * 384 + 1025 * 384 * 16
        for name in CASES:
            bench.run(CASES[name](engine))
        for seed in range(60):
            bench.run(random_program(50_000 + seed, engine))


@pytest.mark.slow
def test_one_layer_takes_seconds(compiler: str) -> None:
    """C simulation must stay useful at the size of real layers."""
    import time

    engine = hardware("zcu104")
    layer = synthetic_layer(Kind.MOE, 1025, 384, 384, engine, 1, hidden=384, experts=16, top_k=4)
    program = build_program([[layer]], engine)
    for bench in open_bench("zcu104", build(engine, Formats())):
        begun = time.monotonic()
        bench.execute(program)
        taken = time.monotonic() - begun
        bench.run(program)
    assert taken < 60, f"{taken:.1f} s"
