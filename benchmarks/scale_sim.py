"""Beside SCALE-Sim v3: the same dense layers in its systolic array, in this simulator and in the RTL.

    python -m venv build/venv-scalesim
    build/venv-scalesim/bin/pip install -c constraints-scalesim.txt scalesim
    python -m benchmarks.scale_sim --python build/venv-scalesim/bin/python --out scale_sim.json   # half an hour, 1 GiB
    python -m benchmarks.scale_sim --python build/venv-scalesim/bin/python --layers tiny.qkv tiny.proj --report

SCALE-Sim 3.0.0 does not run with the NumPy of this project's environment (2.4), so it has one of its own. What it is
given is as near to the engine as its inputs allow, and not equal: see ``DIFFERENCES``. The RTL's output is compared
byte by byte with the functional engine. Exit code 1 if the simulator is off the RTL by more than 2 % or a byte differs.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from accel.commands import Flag
from accel.config import Config, Formats, Hardware, hardware, network
from accel.errors import M3vitError
from accel.layers import Kind, Layer, engine_layers
from accel.memory_model import MemoryModel
from accel.synthetic import build_program, synthetic_layer
from benchmarks.common import parser, report
from benchmarks.rtl_engine import check_bits
from benchmarks.scale_sim_files import VERSION, Gemm, run_scale_sim
from cli.console import table
from host.backends.rtl import RtlDevice
from host.driver import Driver
from host.simulated import run_synthetic
from sim.model import simulate

NETWORKS = {"tiny": "m3vit-tiny-cityscapes", "small": "m3vit-small-pascal"}
LAYERS = {"patch": "patch", "qkv": "blocks.0.qkv", "proj": "blocks.0.proj", "mlp": "blocks.0.mlp"}
NAMES = tuple(f"{size}.{layer}" for size in NETWORKS for layer in LAYERS)
DATAFLOWS = ("os", "ws")
AGREEMENT = 0.02
DIFFERENCES = (
    "array: a 2-D systolic array of 64 × 48 one-multiplier elements (tokens × outputs with `os`, inputs × outputs with "
    "`ws`), which fills and empties for every fold; the engine's 8 tokens × 48 outputs × 8 inputs is a broadcast "
    "array with adder chains and does neither",
    "memory: a fixed rate per operand, here 48 bytes per cycle divided by the operands' sizes in the layer, no "
    "latency, refresh or turnaround; the engine's operands share the 48, whoever needs them",
    "prefetch: half of each buffer, as large as the engine's store, is filled before the first cycle and the output is "
    "written out after the last; the engine computes from the first row on and stores while it computes",
    "outputs are bytes, without residual: the engine reads and writes 16-bit rows for patch, projection and MLP",
    "the MLP is two products in SCALE-Sim, whose hidden rows go to memory and come back; on the engine they never do",
)


def gemms(name: str, layer: Layer) -> list[Gemm]:
    """The products of a dense layer; an MLP has two."""
    if not layer.hidden:
        return [Gemm(name, layer.tokens, layer.outputs, layer.inputs)]
    hidden = layer.units * layer.hidden
    return [Gemm(f"{name}.fc1", layer.tokens, hidden, layer.inputs),
            Gemm(f"{name}.fc2", layer.tokens, layer.outputs, hidden)]  # fmt: skip


def find_layer(name: str, engine: Hardware) -> Layer:
    """The dense layer called ``size.layer`` (one of :data:`NAMES`) on ``engine``."""
    size, _, layer = name.partition(".")
    wanted = LAYERS[layer]
    config = Config(network(NETWORKS[size]), Formats(), engine)
    return next(item for item in engine_layers(config) if item.name == wanted)


def run_engine(layer: Layer, engine: Hardware, memory: MemoryModel, device: RtlDevice, seed: int) -> dict[str, Any]:
    """A layer alone in a program, in the RTL and in the simulator: cycles, seconds, bytes compared."""
    flags = Flag.NARROW if layer.kind is Kind.LINEAR else Flag(0)
    item = synthetic_layer(
        layer.kind, layer.tokens, layer.inputs, layer.outputs, engine, seed, hidden=layer.hidden, units=layer.units,
        flags=flags,
    )  # fmt: skip
    program = build_program([[item]], engine)
    with Driver(device) as driver:
        begin = time.perf_counter()
        record, found = run_synthetic(driver, program)
        rtl_seconds = time.perf_counter() - begin
    compared, wrong = check_bits(program, np.asarray(found), engine)
    begin = time.perf_counter()
    result = simulate(program.commands, {}, engine, memory)
    seconds = time.perf_counter() - begin
    alone = result.layers[0]
    return {
        "rtl": {"cycles": record.counters["cycles"], "array_cycles": record.counters["array_cycles"],
                "seconds": rtl_seconds, "compared": compared, "mismatches": wrong},
        "sim": {"cycles": result.cycles, "window": alone.last_beat - alone.first_beat + 1, "seconds": seconds},
    }  # fmt: skip


def measure(
    name: str, engine: Hardware, python: str, dataflows: Sequence[str], device: RtlDevice, seed: int
) -> dict[str, Any]:
    """One layer in all of them."""
    memory = MemoryModel()
    layer = find_layer(name, engine)
    products = gemms(name, layer)
    result: dict[str, Any] = {
        "gemms": [[gemm.m, gemm.n, gemm.k] for gemm in products],
        "ideal": sum(gemm.macs for gemm in products) / engine.macs_per_cycle,
        **run_engine(layer, engine, memory, device, seed), "scale_sim": {},
    }  # fmt: skip
    for dataflow in dataflows:
        runs = [run_scale_sim(python, gemm, engine, dataflow, memory) for gemm in products]
        result["scale_sim"][dataflow] = {key: sum(run[key] for run in runs) for key in runs[0]}
    return result


def rows(results: Mapping[str, Mapping[str, Any]]) -> tuple[list[str], list[list[object]]]:
    """Header and rows of the table."""
    dataflows = list(next(iter(results.values()))["scale_sim"])
    header = ["layer", "M × N × K", "peak", "RTL", "simulator", "RTL s", "sim s"]
    for dataflow in dataflows:
        header += [f"SCALE-Sim {dataflow}", f"{dataflow}, array only", f"{dataflow} s"]
    lines: list[list[object]] = []
    for name, result in results.items():
        shape = " + ".join("×".join(map(str, gemm)) for gemm in result["gemms"])
        line: list[object] = [name, shape, round(result["ideal"]), result["rtl"]["cycles"], result["sim"]["cycles"],
                              round(result["rtl"]["seconds"], 2), round(result["sim"]["seconds"], 3)]  # fmt: skip
        for dataflow in dataflows:
            run = result["scale_sim"][dataflow]
            line += [round(run["cycles"]), round(run["compute"]), round(run["seconds"], 1)]
        lines.append(line)
    return header, lines


def main() -> int:
    arguments = parser(__doc__)
    arguments.formatter_class = argparse.RawDescriptionHelpFormatter
    arguments.add_argument("--python", required=True, help="a Python that has scalesim")
    arguments.add_argument("--layers", nargs="+", choices=NAMES, default=list(NAMES), metavar="NAME",
                           help=f"of {', '.join(NAMES)}")  # fmt: skip
    arguments.add_argument("--dataflows", nargs="+", choices=DATAFLOWS, default=list(DATAFLOWS),
                           help="of SCALE-Sim (default: both)")  # fmt: skip
    arguments.add_argument("--report", action="store_true", help="print a table instead of JSON")
    chosen = arguments.parse_args()
    engine = hardware("zcu104")
    results: dict[str, Any] = {}
    try:
        with RtlDevice(engine, Formats()) as device:
            for name in chosen.layers:
                print(f"scale_sim: {name}", file=sys.stderr, flush=True)
                results[name] = measure(name, engine, chosen.python, chosen.dataflows, device, chosen.seed)
    except M3vitError as error:
        print(f"scale_sim: error: {error}", file=sys.stderr)
        return 1
    if chosen.report:
        print(table(*rows(results)))
    if chosen.out is not None or not chosen.report:
        hashes = Config(network(NETWORKS["small"]), Formats(), engine).hash
        report("scale_sim", chosen, hashes, {"version": VERSION, "differences": DIFFERENCES, "layers": results})
    faults = [f"{name}: {result['rtl']['mismatches']} bytes differ" for name, result in results.items()
              if result["rtl"]["mismatches"] or not result["rtl"]["compared"]]  # fmt: skip
    faults += [f"{name}: simulator {result['sim']['cycles']}, RTL {result['rtl']['cycles']} cycles"
               for name, result in results.items()
               if abs(result["sim"]["cycles"] / result["rtl"]["cycles"] - 1) > AGREEMENT]  # fmt: skip
    for line in faults:
        print(f"scale_sim: {line}", file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
