"""The energy model: ranges with sources, parts that add up, and the published engines it must be plausible beside."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from accel.config import Config, hardware, network
from accel.energy import (
    ALWAYS,
    CONSTANTS,
    ESTIMATE,
    IDLE_WATTS,
    PUBLISHED_WATTS,
    amounts,
    estimate_energy,
)
from accel.layers import Kind, engine_layers
from accel.resources import resources

ENGINE = hardware("zcu104")
NOTHING = {"cycles": 0, "array_cycles": 0, "macs": 0, "bytes_read": 0, "bytes_written": 0, "weight_bytes": 0}
STATIC = ("pl_static", "ps", "auxiliary", "ddr_idle")


def test_every_constant_is_a_range_and_says_where_it_is_from():
    for constant in CONSTANTS.values():
        assert 0 < constant.low < constant.high and constant.source
        assert constant.assumed == constant.source.startswith("assumed")
    assert set(ALWAYS) < set(CONSTANTS)
    assert {name for name, constant in CONSTANTS.items() if constant.unit == "W"} == set(STATIC)


def test_the_static_parts_hold_an_idle_board():
    low, high = (sum(getattr(CONSTANTS[name], end) for name in STATIC) for end in ("low", "high"))
    assert low < IDLE_WATTS < high


def test_published_engines_lie_in_the_range():
    """A second of a busy array of the large engine, its memory at 14.4 GB/s."""
    cycles = ENGINE.clock_mhz * 1_000_000
    counters = {**NOTHING, "cycles": cycles, "array_cycles": cycles, "macs": cycles * ENGINE.macs_per_cycle,
                "bytes_read": 14_400_000_000, "weight_bytes": 14_400_000_000}  # fmt: skip
    found = estimate_energy(counters, [], ENGINE, 1)
    assert found is not None and found.seconds == pytest.approx(1.0)
    low, high = found.watts
    assert low < min(PUBLISHED_WATTS.values()) and max(PUBLISHED_WATTS.values()) < high


def test_amounts_follow_from_shapes():
    """A network small enough to count by hand: one MLP, one MoE layer, what surrounds them."""
    layers = engine_layers(Config(network("m3vit-demo")))
    net = network("m3vit-demo")
    mlp = next(layer for layer in layers if layer.kind is Kind.MLP)
    pairs = net.tokens * 2  # units
    found = amounts(NOTHING, [mlp], ENGINE)
    assert found["gelu"] == pairs * 128 and found["combine"] == pairs * 64
    assert found["requantize"] == pairs * (128 + 64)
    assert found["bram"] == (net.tokens + pairs) * 64
    assert found["uram"] == 2 * found["combine"] * 4.5
    moe = next(layer for layer in layers if layer.kind is Kind.MOE)
    chosen = amounts(NOTHING, [moe], ENGINE)
    assert chosen["gelu"] == net.tokens * net.top_k * 128
    assert chosen["requantize"] == found["requantize"] + net.tokens * net.experts, "equal work, and the gate's logits"
    assert amounts(NOTHING, [mlp, moe], ENGINE)["bram"] == found["bram"] + chosen["bram"]
    linear = next(layer for layer in layers if layer.kind is Kind.LINEAR)
    assert amounts(NOTHING, [linear], ENGINE)["combine"] == 0


def test_without_work_only_time_costs():
    found = estimate_energy({**NOTHING, "cycles": 300_000}, [], ENGINE, 1)
    assert found is not None
    assert {name for name, part in found.parts.items() if part != (0.0, 0.0)} == set(ALWAYS)
    low, high = found.joules
    clock = 300_000 * resources(ENGINE).dsp * 1e-12
    assert low == pytest.approx(1e-3 * sum(CONSTANTS[name].low for name in STATIC) + CONSTANTS["clock"].low * clock)
    assert high == pytest.approx(1e-3 * sum(CONSTANTS[name].high for name in STATIC) + CONSTANTS["clock"].high * clock)


def test_parts_add_up_and_frames_share():
    counters = {"cycles": 600_000, "array_cycles": 500_000, "macs": 1_000_000_000, "bytes_read": 20_000_000,
                "bytes_written": 1_000_000, "weight_bytes": 15_000_000}  # fmt: skip
    layers = engine_layers(Config(network("m3vit-demo")))
    one, two = (estimate_energy(counters, layers, ENGINE, jobs) for jobs in (1, 2))
    assert one is not None and two is not None
    assert one.joules == two.joules and one.watts == two.watts
    assert two.joules_per_frame == pytest.approx([value / 2 for value in one.joules])
    data = two.to_dict()
    assert data["kind"] == ESTIMATE and set(data["parts"]) == set(CONSTANTS) == set(data["constants"])
    for end in (0, 1):
        assert data["joules_per_frame"][end] == pytest.approx(sum(part[end] for part in data["parts"].values()))
    assert data["joules"][0] < data["joules"][1]
    json.dumps(data, allow_nan=False)
    half = estimate_energy(counters, layers, ENGINE, 1, 150)
    assert half is not None and half.seconds == pytest.approx(2 * one.seconds)
    assert half.parts["mac"] == one.parts["mac"] and half.parts["ps"][0] == pytest.approx(2 * one.parts["ps"][0])
    assert half.parts["clock"] == one.parts["clock"], "per cycle, not per second"


def test_no_cycles_no_estimate():
    assert estimate_energy({**NOTHING, "macs": 5}, [], ENGINE, 1) is None
    assert estimate_energy({**NOTHING, "cycles": 5}, [], ENGINE, 0) is None


def test_the_documentation_names_every_constant():
    text = (Path(__file__).parents[2] / "docs" / "simulator.md").read_text(encoding="utf-8")
    for name, constant in CONSTANTS.items():
        row = f"| `{name}` | {constant.low:g} to {constant.high:g} | {constant.unit} | {constant.source} |"
        assert row in text, row
