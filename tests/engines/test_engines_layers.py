"""Every layer of every workload at its real size on the ``zcu104`` engine: all units and experts, random weights and
data, queues of equal length and queues as trained routers make them. The same vectors on every engine."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from engine_backends import PARAMETERS, open_bench
from engine_programs import MODELS, EngineBench

from accel.commands import Flag
from accel.config import NETWORKS, Config, hardware, network
from accel.layers import Kind, Layer, engine_layers
from accel.synthetic import (
    SyntheticLayer,
    build_program,
    routing_of_loads,
    skewed_loads,
    synthetic_layer,
    uniform_loads,
)
from rtl_tb.engine_cases import CASES, random_program

pytestmark = pytest.mark.slow
ZCU104 = hardware("zcu104")
LEAST = 10_000_000
"""Integers that must have been compared when all workloads are through."""
COMPARED: dict[EngineBench, dict[str, int]] = {}
"""Bench → workload → integers."""


@pytest.fixture(scope="module", params=PARAMETERS)
def bench(request: pytest.FixtureRequest) -> Iterator[EngineBench]:
    yield from open_bench(request.param, "zcu104")


def layer_set(layers: list[Layer], seed: int) -> list[SyntheticLayer]:
    """These layers with random operands; those with experts twice, with equal and with unequal queues."""
    made = []
    for index, layer in enumerate(layers):
        shape = (layer.kind, layer.tokens, layer.inputs, layer.outputs, ZCU104, 1000 * seed + 10 * index)
        more = {"hidden": layer.hidden, "units": layer.units, "experts": layer.experts, "top_k": layer.top_k}
        if layer.kind is not Kind.MOE:
            flags = Flag.NARROW if layer.kind is Kind.LINEAR else Flag(0)
            made.append(synthetic_layer(*shape, flags=flags, **more))
            continue
        weights = None
        for loads in (uniform_loads, skewed_loads):
            pairs = loads(layer.experts, layer.tokens, layer.top_k)
            chosen = routing_of_loads(pairs, layer.tokens, layer.top_k, seed)
            made.append(synthetic_layer(*shape, chosen=chosen, weights=weights, **more))
            weights = made[-1].weights
    return made


def blocks(name: str) -> dict[str, list[Layer]]:
    """Layers of a frame by block."""
    found: dict[str, list[Layer]] = {}
    for layer in engine_layers(Config(network(name), hardware=ZCU104)):
        found.setdefault(layer.name.rpartition(".")[0], []).append(layer)
    return found


@pytest.mark.parametrize("name", NETWORKS)
def test_every_layer_of_a_frame(bench, name: str) -> None:
    """Block after block, every layer with weights of its own."""
    before = bench.compared
    for index, layers in enumerate(blocks(name).values()):
        record = bench.run(build_program([layer_set(layers, index)], ZCU104), MODELS["default"])
        assert record.counters["units"] >= sum(layer.units for layer in layers)
    COMPARED.setdefault(bench, {})[name] = bench.compared - before
    print(f"{name}: {COMPARED[bench][name]:,} integers")


def test_enough_was_compared(bench) -> None:
    assert set(COMPARED[bench]) == set(NETWORKS) and sum(COMPARED[bench].values()) >= LEAST


@pytest.mark.parametrize("name", CASES)
def test_named(bench, name: str) -> None:
    """The corner cases of ``test_engines_cases`` on this engine, whose five slots and 48 lanes are other corners."""
    bench.run(CASES[name](ZCU104), MODELS["default"])


@pytest.mark.parametrize("model", MODELS)
def test_random_programs(bench, model: str) -> None:
    for seed in range(25):
        bench.run(random_program(500 * list(MODELS).index(model) + seed, ZCU104), MODELS[model])
