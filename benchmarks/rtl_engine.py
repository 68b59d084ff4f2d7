"""What the RTL engine does per layer, per task switch and per frame, in cycles of its Verilator simulation.

    python -m benchmarks.rtl_engine --out rtl_engine.json              # all, two minutes
    python -m benchmarks.rtl_engine layers switching --hardware zcu104

* ``layers``: chains of real-size layers with random weights; per layer the window from its first to its last array beat
  (an MoE layer's begins with its gate), and useful MACs over what the array could have done in it; beside it activation
  load and store, the wait for the first expert, and drain. ``cold``: an MoE layer alone in a program.
* ``switching``: jobs A, A, A, A against A, B, A, B: other weights, other gate tables, equal queues; an absolute bound
  on the former; the same layers as one job, to tell a boundary from any other; and the controls.
* ``frames``: every engine layer of one frame of each workload as a replay program, bits compared with golden.

The memory is the default of ``accel.memory_model``: 48 bytes per cycle, 14.4 GB/s at 300 MHz. Cycle counts are exact
and repeatable; simulation speed is that of this machine. The layers are printed as a table on stderr. Exit code 1 if a
bound is missed or an integer differs.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from accel.bundle import open_bundle, write_bundle
from accel.commands import Flag
from accel.compiler import RecordedFrame
from accel.config import Config, Formats, Hardware, hardware, network
from accel.golden import GoldenEngine, run_frame
from accel.layers import Kind, Layer, engine_layers
from accel.memory_model import MemoryModel
from accel.random_params import random_encoder
from accel.routing import Schedule
from accel.synthetic import (
    SyntheticLayer,
    build_program,
    random_inputs,
    random_weights,
    routing_of_loads,
    skewed_loads,
    uniform_loads,
)
from benchmarks.common import parser, report
from benchmarks.layer_windows import arena_events, around, check_bits, layer_commands, windows
from benchmarks.rtl_switching import measure_switching, switching_misses
from cli.console import note, table
from host.backends.rtl import RtlDevice
from host.driver import Driver
from host.simulated import replay_tasks, run_synthetic

PARTS = ("layers", "switching", "frames")
MOE_UTILIZATION, DENSE_UTILIZATION = 0.95, 0.97
"""Least share of the array's peak in layers that compute limits (m3vit-small)."""
MEMORY_MARGIN = 1.06
"""Most cycles of an MoE layer that memory limits (m3vit-tiny), over the cycles of its weight bytes."""
MOE_OVERHEAD = 1.025
"""Most array cycles of an MoE layer over the dense MLP of equal MACs (m3vit-small)."""
FRAME_MS = {"m3vit-small-pascal": 25.5, "m3vit-small-nyud": 30.0}
"""Most milliseconds of a frame's engine layers at 300 MHz."""
FIRST_EXPERT = 512
"""Most cycles that the array waits between an MoE layer's gate and its first expert (m3vit-small): top-k of the last
tokens, memory's latency, and 256 cycles in which the expert's GELU table is written."""
SPEED = 100_000.0
"""Least simulated cycles per second on ``zcu104``."""


def _layer(shape: Layer, seed: int, loads: Sequence[int] | None, schedule: Schedule) -> SyntheticLayer:
    chosen = None
    if shape.kind is Kind.MOE:
        rng = np.random.default_rng(seed)
        spread = list(loads if loads is not None else uniform_loads(shape.experts, shape.tokens, shape.top_k))
        rng.shuffle(spread)  # which experts are popular is not for the schedule to know
        chosen = routing_of_loads(spread, shape.tokens, shape.top_k, seed)
    x, residual = random_inputs(shape, seed, chosen)
    flags = Flag.NARROW if shape.kind is Kind.LINEAR else Flag(0)
    return SyntheticLayer(shape, random_weights(shape, seed), x, residual, 0, schedule, flags)


def workload_chain(name: str, engine: Hardware, seed: int) -> list[tuple[str, SyntheticLayer]]:
    """Two blocks of a workload twice over: dense, MoE with uniform queues, dense, MoE with skewed queues, and a QKV
    behind them, so that every layer but the first has what runs in the engine before and after it."""
    config = Config(network(name), Formats(), engine)
    layers = {layer.name: layer for layer in engine_layers(config)}
    moe = layers["blocks.1.mlp"]
    skew = skewed_loads(moe.experts, moe.tokens, moe.top_k)
    dense = ["blocks.0.qkv", "blocks.0.proj", "blocks.0.mlp"]
    names = [*dense, "blocks.1.qkv", "blocks.1.proj", "uniform", *dense, "blocks.1.qkv", "blocks.1.proj", "skewed"]
    chain = []
    for index, item in enumerate([*names, "blocks.0.qkv"]):
        shape = layers.get(item, moe)
        loads, schedule = (skew, Schedule.LONGEST_FIRST) if item == "skewed" else (None, Schedule.INDEX)
        label = f"moe {item}" if shape is moe else f"{item.split('.')[-1]}"
        chain.append((label, _layer(shape, seed + index, loads, schedule)))
    return chain


def measure_layers(name: str, engine: Hardware, seed: int) -> dict[str, Any]:
    """Windows of a workload's layers in one chained program, one job per layer."""
    chain = workload_chain(name, engine, seed)
    program = build_program([[layer] for _, layer in chain], engine)
    with RtlDevice(engine, Formats()) as device, Driver(device) as driver:
        device.memory.log()
        start = time.perf_counter()
        record, memory = run_synthetic(driver, program)
        seconds = time.perf_counter() - start
        events = arena_events(program, device.memory.events())
    compared, wrong = check_bits(program, memory, engine)
    rows = []
    model = MemoryModel()
    for (label, item), command, (first, last), job in zip(
        chain, layer_commands(program), windows(events), record.jobs, strict=True
    ):
        window = last - first + 1
        weights = job["experts"] * item.layer.expert_bytes
        rows.append({
            "layer": label, "window": window, "array_cycles": job["array_cycles"], "gate_cycles": job["gate_cycles"],
            "utilization": job["macs"] / (window * engine.macs_per_cycle), "busy": job["array_cycles"] / window,
            "ideal_cycles": -(-job["macs"] // engine.macs_per_cycle),
            "weight_load_cycles": weights / model.bytes_per_cycle,
            "over_bound": window / max(job["array_cycles"], weights / model.bytes_per_cycle),
            "boundary_idle": job["boundary_idle"], **around(command, item, (first, last), events),
        })  # fmt: skip
    return {
        "network": name, "compared": compared, "mismatches": wrong, "cycles": record.counters["cycles"],
        "counters": record.counters, "simulated_cycles_per_second": record.counters["cycles"] / seconds,
        "layers": rows,
    }  # fmt: skip


def cold_layer(name: str, engine: Hardware, seed: int) -> dict[str, Any]:
    """An MoE layer alone in a program: everything from the first fetch to the last write."""
    config = Config(network(name), Formats(), engine)
    moe = next(layer for layer in engine_layers(config) if layer.kind is Kind.MOE)
    item = _layer(moe, seed, None, Schedule.INDEX)
    program = build_program([[item]], engine)
    with RtlDevice(engine, Formats()) as device, Driver(device) as driver:
        device.memory.log()
        record, memory = run_synthetic(driver, program)
        events = arena_events(program, device.memory.events())
    compared, wrong = check_bits(program, memory, engine)
    macs, cycles = record.counters["macs"], record.counters["cycles"]
    (window,) = windows(events)
    length = window[1] - window[0] + 1
    return {
        "cycles": cycles, "utilization": macs / (cycles * engine.macs_per_cycle), "window": length,
        "window_utilization": macs / (length * engine.macs_per_cycle),
        **around(layer_commands(program)[0], item, window, events),
        "compared": compared, "mismatches": wrong, "counters": record.counters,
    }  # fmt: skip


def measure_frame(name: str, engine: Hardware, seed: int) -> dict[str, Any]:
    """All engine layers of a frame, for the first task."""
    config = Config(network(name), Formats(), engine)
    rng = np.random.default_rng(seed)
    net = config.network
    image = rng.integers(0, 256, (net.image_height, net.image_width, 3), dtype=np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "bundle"
        write_bundle(path, random_encoder(net, config.formats, seed), engine, {"random": seed})
        bundle = open_bundle(path)
        task = net.task_names[0]
        result = run_frame(bundle.encoder, image, task, GoldenEngine(bundle.encoder), record=True)
        start = time.perf_counter()
        found = replay_tasks(bundle, [RecordedFrame(task, image, result.trace)])
    keys = ("cycles", "milliseconds", "utilization", "overlap", "compared", "mismatches", "counters", "jobs")
    return {"network": name, "seconds": time.perf_counter() - start, **{key: found[key] for key in keys}}


def _misses(results: dict[str, Any]) -> list[str]:
    """What falls short, one line each."""
    lines = []

    def need(ok: bool, line: str) -> None:
        if not ok:
            lines.append(line)

    for chain in results.get("layers", []):
        name = chain["network"]
        need(chain["mismatches"] == 0 and chain["compared"] > 0, f"{name}: {chain['mismatches']} bytes differ")
        need(chain["simulated_cycles_per_second"] >= SPEED, f"{name}: simulated at "
             f"{chain['simulated_cycles_per_second']:.0f} cycles/s, expected {SPEED:.0f}")  # fmt: skip
        for row in chain["layers"][1:]:  # the first starts cold
            moe, where = row["layer"].startswith("moe"), f"{name}: {row['layer']}"
            if "small" in name:
                bound = MOE_UTILIZATION if moe else DENSE_UTILIZATION
                need(row["utilization"] >= bound, f"{where}: utilization {row['utilization']:.4f}, expected {bound}")
                wait = row["first_expert"] or 0
                need(wait <= FIRST_EXPERT, f"{where}: first expert after {wait} cycles, expected {FIRST_EXPERT}")
            elif moe and "tiny" in name:
                need(row["over_bound"] <= MEMORY_MARGIN, f"{where}: {row['over_bound']:.4f} of its bound")
        if "small" in name:
            mlp = next(row for row in chain["layers"] if row["layer"] == "mlp")
            for row in chain["layers"]:
                ratio = row["array_cycles"] / mlp["array_cycles"]
                need(not row["layer"].startswith("moe") or ratio <= MOE_OVERHEAD,
                     f"{name}: {row['layer']}: {ratio:.4f} of the dense MLP's array cycles")  # fmt: skip
    for name, layer in results.get("cold", {}).items():
        need(layer["mismatches"] == 0 and layer["compared"] > 0, f"{name}: alone: {layer['mismatches']} bytes differ")
    for switch in results.get("switching", []):
        lines += switching_misses(switch, bounded="demo" not in switch["network"])
    for frame in results.get("frames", []):
        name, time_ms = frame["network"], frame["milliseconds"]["300"]
        need(frame["mismatches"] == 0 and frame["compared"] > 0, f"{name}: {frame['mismatches']} integers differ")
        need(time_ms <= FRAME_MS.get(name, time_ms), f"{name}: {time_ms:.2f} ms, expected {FRAME_MS.get(name)}")
    return lines


def show(results: dict[str, Any]) -> None:
    """Windows of the layers, and what is around them, as a table on stderr."""
    columns = {
        "layer": "layer", "window": "window", "useful": "utilization", "busy": "busy", "bound": "over_bound",
        "load ahead": "load_ahead", "load": "load_cycles", "first expert": "first_expert", "store": "store_cycles",
        "drain": "drain",
    }  # fmt: skip
    for chain in results.get("layers", []):
        alone = results["cold"][chain["network"]]
        rows = [*chain["layers"], {**alone, "layer": "moe uniform, alone", "utilization": alone["window_utilization"]}]
        note(f"\n{chain['network']}, cycles\n" + table(list(columns), [[row.get(key) for key in columns.values()]
                                                                      for row in rows]))  # fmt: skip
    for switch in results.get("switching", []):
        jobs, whole = (switch["programs"][label]["jobs"] for label in ("AAAA", "AAAA in one job"))
        note(
            f"\n{switch['network']}: a switch costs {switch['switch_extra_cycles']} cycles; AAAA takes "
            f"{switch['programs']['AAAA']['cycles']:,}, at least {switch['least_cycles']:,.0f} by its layers; idle "
            f"between jobs {sum(job['boundary_idle'] for job in jobs)}, at the same places within one job "
            f"{whole[0]['layer_idle']}"
        )


def main() -> int:
    arguments = parser(__doc__.partition("\n")[0] if __doc__ else None)
    arguments.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)} (default: all)")
    arguments.add_argument("--hardware", default="zcu104", help="hardware preset (default: %(default)s)")
    options: argparse.Namespace = arguments.parse_args()
    unknown = set(options.parts) - set(PARTS)
    if unknown:
        arguments.error(f"part {sorted(unknown)[0]!r}: expected some of {', '.join(PARTS)}")
    parts = options.parts or list(PARTS)
    engine, seed = hardware(options.hardware), options.seed
    workloads = ["m3vit-demo"] if options.hardware == "ci" else ["m3vit-small-pascal", "m3vit-tiny-cityscapes"]
    results: dict[str, Any] = {"memory": MemoryModel().to_dict(), "macs_per_cycle": engine.macs_per_cycle}
    if "layers" in parts:
        results["layers"] = [measure_layers(name, engine, seed) for name in workloads]
        results["cold"] = {name: cold_layer(name, engine, seed) for name in workloads}
    if "switching" in parts:
        results["switching"] = [measure_switching(engine, name, seed) for name in workloads[-1:]]
    if "frames" in parts:
        names = workloads if options.hardware == "ci" else ["m3vit-small-pascal", "m3vit-small-nyud", workloads[-1]]
        results["frames"] = [measure_frame(name, engine, seed) for name in names]
    show(results)
    misses = _misses(results)
    results["misses"] = misses
    report("rtl_engine", options, Config(network(workloads[0]), Formats(), engine).hash, results)
    for line in misses:
        print(f"rtl_engine: {line}")
    return 1 if misses else 0


if __name__ == "__main__":
    raise SystemExit(main())
