"""Task switching in RTL: jobs A, A, A, A against A, B, A, B, for ``benchmarks.rtl_engine``.

B has other weights and other gate tables at other addresses, but equal inputs and queues, so whatever differs is the
switch. What A, A, A, A may take is bounded by itself, so that both cannot be slow, and the same layers as one job show
what a boundary between jobs adds to one between layers. Controls: a barrier between jobs, weights not loaded ahead.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from accel.compiler import layer_bytes
from accel.config import Config, Formats, Hardware, network
from accel.layers import Kind, engine_layers
from accel.memory_model import MemoryModel
from accel.synthetic import (
    SyntheticLayer,
    build_program,
    random_weights,
    routing_of_loads,
    skewed_loads,
    synthetic_layer,
)
from benchmarks.layer_windows import array_cycles, check_bits
from host.backends.rtl import RtlDevice
from host.driver import Driver
from host.simulated import run_synthetic

BOUNDARY_SLACK = 8
"""Most idle cycles of the array between two jobs over those between the same two layers within a job, on average; and
of each over the longest wait between two layers of the same chain as one job."""
SWITCHING_MARGIN = 1.06
"""Most cycles of jobs A, A, A, A over :func:`least_cycles` (memory's refresh alone takes 3.3 %), cold start apart."""
CONTROLS = ("ABAB with barriers", "ABAB without prefetch")
"""Programs that must cost cycles."""


def switching_jobs(engine: Hardware, name: str, seed: int) -> tuple[list[SyntheticLayer], list[SyntheticLayer]]:
    """Tasks A and B: the same shapes, inputs and queues; other weights, other gate tables, other addresses."""
    config = Config(network(name), Formats(), engine)
    shapes = [layer for layer in engine_layers(config) if layer.name.startswith(("blocks.0.", "blocks.1."))]
    first: list[SyntheticLayer] = []
    second: list[SyntheticLayer] = []
    for index, shape in enumerate(shapes):
        gates = 2 if shape.kind is Kind.MOE else 1
        chosen = None
        if gates == 2:
            loads = skewed_loads(shape.experts, shape.tokens, shape.top_k)
            chosen = routing_of_loads(loads, shape.tokens, shape.top_k, seed)
        item = synthetic_layer(
            shape.kind, shape.tokens, shape.inputs, shape.outputs, engine, seed + index, hidden=shape.hidden,
            units=shape.units, experts=shape.experts, top_k=shape.top_k, chosen=chosen, gates=gates,
        )  # fmt: skip
        first.append(item)
        other = random_weights(item.layer, seed + 100 + index, gates=gates)
        second.append(SyntheticLayer(item.layer, other, item.x, item.residual, gates - 1))
    return first, second


def measure_switching(engine: Hardware, name: str, seed: int) -> dict[str, Any]:
    """Cycles of AAAA, ABAB and both controls."""
    a, b = switching_jobs(engine, name, seed)
    programs = {
        "AAAA in one job": build_program([a * 4], engine),
        "AAAA": build_program([a, a, a, a], engine),
        "ABAB": build_program([a, b, a, b], engine),
        CONTROLS[0]: build_program([a, b, a, b], engine, barrier_between_jobs=True),
        CONTROLS[1]: build_program([a, b, a, b], engine, prefetch_across_jobs=False),
    }
    results: dict[str, Any] = {}
    keys = ("cycles", "array_cycles", "boundary_idle", "bytes_ahead", "layer_idle", "layer_idle_max", "queue_crc")
    with RtlDevice(engine, Formats()) as device, Driver(device) as driver:
        for label, program in programs.items():
            record, memory = run_synthetic(driver, program)
            compared, wrong = check_bits(program, memory, engine)
            results[label] = {
                "cycles": record.counters["cycles"], "compared": compared, "mismatches": wrong,
                "jobs": [{key: job[key] for key in keys} for job in record.jobs],
            }  # fmt: skip
    extra = results["ABAB"]["cycles"] - results["AAAA"]["cycles"]
    # The array's cycles and idle cycles of the whole chain, with job boundaries and without.
    jobs, whole = results["AAAA"]["jobs"], results["AAAA in one job"]["jobs"][0]
    between = [sum(job[key] for job in jobs) for key in ("layer_idle", "boundary_idle")]
    beats, bound = least_cycles(a, engine)
    first, later = (jobs[index]["cycles"] for index in (0, 1))
    return {
        "network": name, "switch_extra_cycles": extra, "boundary_over_layer_idle": sum(between) - whole["layer_idle"],
        "least_array_cycles": 4 * beats, "least_cycles": 4 * bound, "cold_cycles": max(0, first - later),
        "programs": results,
    }  # fmt: skip


def least_cycles(job: Sequence[SyntheticLayer], engine: Hardware) -> tuple[int, float]:
    """Array cycles of a job of :func:`switching_jobs`, and cycles if every layer takes the longer of computing and of
    moving its bytes (weights in use, gate table, activations) at the memory's full rate, one layer after the other."""
    beats, total = 0, 0.0
    for item in job:
        layer = item.layer
        gated = layer.kind is Kind.MOE
        loads = skewed_loads(layer.experts, layer.tokens, layer.top_k) if gated else [layer.tokens]
        weights = layer.gate_bytes + sum(load > 0 for load in loads) * layer.expert_bytes
        moved = weights + sum(layer_bytes(layer).values())
        busy = array_cycles(item, loads, engine)
        beats += busy
        total += max(busy, moved / MemoryModel().bytes_per_cycle)
    return beats, total


def switching_misses(switch: dict[str, Any], bounded: bool = True) -> list[str]:
    """What falls short of a result of :func:`measure_switching`, one line each; without ``bounded`` A, A, A, A may take
    its time (two weight slots and small layers, as ``ci`` has them, cannot hide every load)."""
    lines = []

    def need(ok: bool, line: str) -> None:
        if not ok:
            lines.append(f"{switch['network']}: {line}")

    programs = switch["programs"]
    same = programs["AAAA"]
    need(all(item["mismatches"] == 0 and item["compared"] > 0 for item in programs.values()), "switching: bytes differ")
    need(same == programs["ABAB"], "ABAB differs from AAAA")
    for label in CONTROLS:
        need(programs[label]["cycles"] > programs["ABAB"]["cycles"], f"{label} costs nothing")
    boundaries, extra = len(same["jobs"]) - 1, switch["boundary_over_layer_idle"]
    need(extra <= boundaries * BOUNDARY_SLACK, f"{boundaries} boundaries between jobs idle {extra} cycles more "
         f"than within one, expected at most {BOUNDARY_SLACK} each")  # fmt: skip
    whole = programs["AAAA in one job"]["jobs"][0]
    for index, job in enumerate(same["jobs"][:-1]):
        idle, most_idle = job["boundary_idle"], whole["layer_idle_max"] + BOUNDARY_SLACK
        need(idle <= most_idle, f"boundary {index} between jobs: the array idles {idle} cycles, expected at most "
             f"{most_idle}: {BOUNDARY_SLACK} more than between any two layers within one")  # fmt: skip
    busy = sum(job["array_cycles"] for job in same["jobs"])
    need(busy == switch["least_array_cycles"], f"{busy} array cycles, expected {switch['least_array_cycles']}")
    most = SWITCHING_MARGIN * switch["least_cycles"] + switch["cold_cycles"]
    need(not bounded or same["cycles"] <= most, f"AAAA takes {same['cycles']} cycles, expected at most {most:.0f}")
    return lines
