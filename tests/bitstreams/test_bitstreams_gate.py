"""Wrapper and gates around the real engine, in the simulated board: the same bits, and any moment is good for a reset.

The memory behind the gates is not reset with the engine, as on the board, and checks AXI4 on every port.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from accel import pack
from accel.bundle import write_bundle
from accel.compiler import RecordedFrame, layer_bytes, live_program
from accel.config import Formats, Network, Task, hardware
from accel.errors import DeviceError
from accel.golden import GoldenEngine, run_frame
from accel.layers import engine_layers
from accel.memory_model import MemoryModel
from accel.random_params import random_encoder
from bitstreams.generate import ROOT
from bitstreams.wrapper import MODULE, read_pins, wrapper, write_pins
from host.backends.rtl import RtlDevice
from host.backends.rtl_build import build
from host.backends.toolchain import find_toolchain
from host.driver import Driver
from host.overlay import ENGINE, memory_port
from host.runner import EncoderRunner

pytestmark = [pytest.mark.verilator, pytest.mark.slow]

CI = hardware("ci")
NETWORK = Network(
    "gated", 16, 24, patch=8, embed_dim=16, depth=2, heads=2, dense_hidden=32, experts=4, top_k=2, expert_hidden=32,
    unit_hidden=16, tasks=(Task("semseg", 5, "labels"), Task("depth", 1, "log_depth")), head_hidden=24,
)  # fmt: skip
CORE = "m3vit_engine_core"


def overlay(board: str, gated: bool) -> str:
    """A module with the ports of the engine, made of the wrapper and (if gated) the gates, as in the block design."""
    header = re.search(r"m3vit_engine engine \((.*?)\n  \);", board, re.DOTALL)
    assert header is not None
    control = [name for name in re.findall(r"\.(\w+)", header[1]) if name.startswith(ENGINE.interface)]
    driven = {f"{ENGINE.interface}_{name}" for name in
              ("awready", "wready", "bresp", "bvalid", "arready", "rdata", "rresp", "rvalid")}  # fmt: skip
    widths = {"awaddr": 12, "araddr": 12, "wdata": 32, "rdata": 32, "wstrb": 4, "bresp": 2, "rresp": 2}
    lines = ["module m3vit_overlay (", "    input logic ap_clk, awake, ap_rst_n, output logic interrupt"]
    for name in control:
        bits = widths.get(name.rpartition("_")[2], 1)
        lines.append(f"    , {'output' if name in driven else 'input'} logic [{bits - 1}:0] {name}")
    channels = ((CI.ports, *read_pins(CI)), (CI.write_ports, *write_pins(CI)))
    for count, outputs, inputs in channels:
        for direction, pins in (("output", outputs), ("input", inputs)):
            lines += [f"    , {direction} logic [{count * bits - 1}:0] m_axi_{pin}" for pin, bits in pins]
    lines.append(");")
    wires = [f".{name}" for name in ("ap_clk", "ap_rst_n", "interrupt", *control)]
    for port in range(CI.ports):
        name = memory_port(port)
        connections = [".ap_clk", ".ap_rst_n(awake)", ".run(ap_rst_n)"]
        for count, outputs, inputs in channels:
            for pin, bits in (*outputs, *inputs):
                outside = f"m_axi_{pin}[{port * bits}+:{bits}]"
                if port < count:
                    lines.append(f"  wire [{bits - 1}:0] {name}_{pin};")
                    wires.append(f".{name}_{pin}")
                    connections += [f".s_axi_{pin}({name}_{pin})", f".m_axi_{pin}({outside})"]
                    if not gated:
                        into = (name + "_" + pin, outside) if (pin, bits) in inputs else (outside, name + "_" + pin)
                        lines.append(f"  assign {into[0]} = {into[1]};")
                else:
                    connections += [f".s_axi_{pin}({'0' if (pin, bits) in outputs else ''})"]
                    connections += [f".m_axi_{pin}({'' if (pin, bits) in outputs else '0'})"]
        if gated:
            lines.append(f"  m3vit_axi_gate #(.DATA_BITS({8 * CI.port_bytes})) gate_{port} ({', '.join(connections)});")
    lines += [f"  {MODULE} engine ({', '.join(wires)});", "endmodule", ""]
    return "\n".join(lines)


def gated_sources(folder: Path, gated: bool) -> Path:
    """A folder of sources like ``rtl_tb``, whose board holds the overlay in the place of the bare engine."""
    shutil.copytree(ROOT / "rtl_tb" / "rtl", folder / "rtl")
    shutil.copytree(ROOT / "rtl_tb" / "board", folder / "board")
    engine = folder / "rtl" / "m3vit_engine.sv"
    engine.write_text(re.sub(r"\bmodule m3vit_engine\b", f"module {CORE}", engine.read_text()))
    (folder / "rtl" / f"{MODULE}.sv").write_text(wrapper(CI).replace("m3vit_engine u_engine", f"{CORE} u_engine"))
    gate = (ROOT / "bitstreams" / "rtl" / "m3vit_axi_gate.v").read_text()
    (folder / "rtl" / "m3vit_axi_gate.sv").write_text(gate)
    path = folder / "board" / "m3vit_board.sv"
    board = path.read_text()
    (folder / "rtl" / "m3vit_overlay.sv").write_text(overlay(board, gated))
    power_on = (
        "  logic [3:0] since = 0;\n  logic awake;\n  assign awake = &since;\n"
        "  always_ff @(posedge ap_clk) if (!awake) since <= since + 1;\n\n"
    )
    board = board.replace("  m3vit_engine engine (", power_on + "  m3vit_overlay engine (.awake,")
    board = board.replace(".rst_n(ap_rst_n)", ".rst_n(awake)")
    notes = board.index("  // Beats of the array for the memory's log")
    path.write_text(board[:notes] + "endmodule\n")
    return folder


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return write_bundle(tmp_path_factory.mktemp("bundles") / "gated", random_encoder(NETWORK, seed=1), CI)


def library(folder: Path, gated: bool) -> Path:
    try:
        find_toolchain()
    except DeviceError as error:
        pytest.skip(str(error))
    return build(CI, Formats(), assertions=True, sources=gated_sources(folder, gated), cache=folder / "cache")


def recorded(bundle):
    image = np.random.default_rng(3).integers(0, 256, (16, 24, 3), dtype=np.uint8)
    engine = GoldenEngine(bundle.encoder)
    results = [run_frame(bundle.encoder, image, task, engine, record=True) for task in NETWORK.task_names]
    return [RecordedFrame(item.task, image, item.trace) for item in results]


def interrupted(device: RtlDevice, driver: Driver, loaded, moments) -> int:
    """Start a layer, reset the engine after so many cycles, then run it whole; returns how often that went wrong."""
    layer = next(item for item in engine_layers(loaded.bundle.config) if item.name == "blocks.1.qkv")
    program, offsets = live_program(loaded.bundle, layer, "semseg", loaded.arena)
    x = np.random.default_rng(0).integers(-128, 128, (layer.tokens, layer.inputs)).astype(np.int8)
    expected = GoldenEngine(loaded.bundle.encoder).linear(layer.name, x)
    size, wrong = layer_bytes(layer)["output"], 0
    loaded.write(offsets["input"], pack.pack_tokens(x, CI))
    for cycles in moments:
        loaded.write(offsets["output"], np.full(size, 0x5A, np.uint8))
        try:
            loaded.start(program)
            device._library.board_idle(device._board, int(cycles))
            driver.reset()
            loaded.run(program, 30)
            data = loaded.read(offsets["output"], size)
            found = pack.unpack_tokens(data, layer.tokens, layer.outputs, np.int8, CI)
            wrong += not (found == expected).all()
        except DeviceError:
            wrong += 1
            break  # an engine or memory that is out of step stays so
    return wrong


def test_same_bits_and_any_moment_for_a_reset(bundle, tmp_path):
    path = library(tmp_path, gated=True)
    moments = np.random.default_rng(7).integers(1, 900, 150)
    for model in (MemoryModel(), MemoryModel(latency=200, stall_percent=30, stall_seed=4)):
        with RtlDevice(CI, Formats(), model, library=path, memory_bytes=64 << 20, max_cycles=500_000) as device:
            with Driver(device) as driver, driver.load(bundle) as loaded:
                result = EncoderRunner(loaded).replay(recorded(bundle))
                assert result.compared > 1000 and result.mismatches == 0
                assert interrupted(device, driver, loaded, moments) == 0


def test_without_the_gates_a_reset_does_harm(bundle, tmp_path):
    """What the test above guards against exists: engine and memory fall out of step."""
    path = library(tmp_path, gated=False)
    moments = np.random.default_rng(7).integers(1, 900, 150)
    with RtlDevice(CI, Formats(), library=path, memory_bytes=64 << 20, max_cycles=500_000) as device:
        driver = Driver(device)
        loaded = driver.load(bundle)
        assert EncoderRunner(loaded).replay(recorded(bundle)).mismatches == 0
        assert interrupted(device, driver, loaded, moments) > 0
