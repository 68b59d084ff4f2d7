"""Synthesis: what is read from Yosys' files, the bounds, the cache, and one small unit through Yosys itself."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from typing import Any

import pytest

from accel.config import HARDWARE, hardware, to_dict
from rtl_tb import netlist, synth
from rtl_tb.netlist import NetlistError
from rtl_tb.runner import RTL, package
from rtl_tb.synth import SynthesisError, Unit

ENGINE = hardware("zcu104")


def unit_figures(**changes: Any) -> dict[str, Any]:
    found: dict[str, Any] = dict.fromkeys(synth.SUMMED, 0)
    return {**found, "arrival_ps": 1000, "in_flip_flops": [], "memories": [], **changes}


# ---- the parser

def stat(**types: int) -> dict[str, Any]:
    return {"modules": {"\\unit": {"num_cells_by_type": types}}}


def test_cells_are_counted() -> None:
    found = netlist.cell_counts(
        stat(LUT2=3, LUT6=4, INV=1, SRL16E=2, RAM32M16=5, FDRE=7, FDSE=1, LDCE=1, CARRY4=6, MUXF7=9, DSP48E2=8,
             RAMB18E2=3, RAMB36E2=2, URAM288=4, box=1), "unit", ("box",))  # fmt: skip
    assert found == {
        "lut": 3 + 4 + 1 + 2 + 40, "lut_memory": 42, "ff": 8, "latches": 1, "carry4": 6, "dsp": 8, "ramb18": 3,
        "ramb36": 2, "uram": 4,
    }  # fmt: skip


@pytest.mark.parametrize("name", ["$mem_v2", "$_DFF_P_", "box", "RAM9"])
def test_an_unknown_cell_is_refused(name: str) -> None:
    with pytest.raises(NetlistError, match=re.escape(f"unit: 1 cells of type {name}: expected primitives")):
        netlist.cell_counts(stat(LUT2=1, **{name: 1}), "unit")


def test_memories_are_listed_largest_first() -> None:
    def cell(name: str, width: int, size: int, ports: int, **attributes: str) -> dict[str, Any]:
        numbers = {"MEMID": name, "WIDTH": f"{width:032b}", "SIZE": f"{size:032b}", "WR_PORTS": f"{ports:032b}"}
        return {"type": "$mem_v2", "parameters": numbers, "attributes": attributes, "connections": {}}

    cells = {"a": cell("\\rom", 16, 256, 0), "b": cell("\\ring", 512, 64, 1, ram_style="block"), "c": {"type": "$add"}}
    found = netlist.memories({"modules": {"unit": {"cells": cells}}}, "unit")
    assert [(memory.name, memory.writable) for memory in found] == [("ring", True), ("rom", False)]
    assert found[0].to_dict() == {"name": "ring", "width": 512, "depth": 64, "style": "block"}


def cascade(**changes: Any) -> dict[str, Any]:
    """Two products, each with a register; the second is added to the first's and registered again."""
    directions = {"A": "input", "B": "input", "D": "input", "Q": "output", "Y": "output", "P": "output"}

    def cell(kind: str, **connections: list[int | str]) -> dict[str, Any]:
        return {"type": kind, "connections": connections, "port_directions": directions}

    cells = {
        "dsp0": cell("DSP48E2", P=[10, 11, 12]), "m0": cell("$dffe", D=[10, 11, 12, 12], Q=[20, 21, 22, 23]),
        "p0": cell("$dffe", D=[20, 21, 22, 23], Q=[30, 31, 32, 33]),
        "dsp1": cell("DSP48E2", P=[40, 41, 42]), "m1": cell("$dff", D=[40, 41, 42], Q=[50, 51, 52]),
        "sum": cell("$add", A=[30, 31, 32, 33], B=[50, 51, 52, 52, "0"], Y=[60, 61, 62, 63, 64]),
        "p1": cell("$sdffe", D=[60, 61, 62, 63, 64], Q=[70, 71, 72, 73, 74]),
    }  # fmt: skip
    ports = {"out": {"direction": "output", "bits": [70, 71, 72, 73, 74]}, "in": {"direction": "input", "bits": [10]}}
    for name, (kind, port, bits) in changes.items():
        if name == "ports":
            ports["other"] = {"direction": "output", "bits": bits}
        elif kind:
            cells[name]["type"] = kind
        if port:
            cells[name]["connections"][port] = bits
    return {"modules": {"unit": {"cells": cells, "ports": ports}}}


def test_what_a_dsp_takes_in() -> None:
    assert netlist.absorbable(cascade(), "unit") == {"ff": 4 + 4 + 3 + 5, "lut": 5, "carry4": 2}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        pytest.param({"m1": ("$adff", "", [])}, {"ff": 8, "lut": 0, "carry4": 0}, id="asynchronous reset"),
        pytest.param({"ports": ("", "", [41])}, {"ff": 8, "lut": 0, "carry4": 0}, id="product read elsewhere"),
        pytest.param({"sum": ("$xor", "", [])}, {"ff": 11, "lut": 0, "carry4": 0}, id="no adder"),
        pytest.param({"p1": ("", "Q", list(range(100, 149)))}, {"ff": 11, "lut": 5, "carry4": 2}, id="wide"),
        pytest.param({"m0": ("", "Q", [50, 51, 52, 52])}, {"ff": 7, "lut": 5, "carry4": 2}, id="shared"),
    ],
)
def test_what_it_does_not(changes: dict[str, Any], expected: dict[str, int]) -> None:
    found = netlist.absorbable(cascade(**changes), "unit")
    assert found["ff"] <= 16 and found["lut"] <= 5
    if changes.keys() != {"m0"}:
        assert found == expected


def test_arrival() -> None:
    assert netlist.arrival("x\nLatest arrival time in 'unit' is 2201:\n") == 2201
    assert netlist.arrival("No timing paths found.\n") is None
    with pytest.raises(NetlistError, match="no arrival time"):
        netlist.arrival("")
    assert netlist.read_json('3. Printing statistics.\n{"a": 1}\n') == {"a": 1}


# ---- the bounds

@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dsp": 1694}, r"DSP48E2 = 1,694: expected at most 98% of 1,728"),
        ({"ramb36": 200, "ramb18": 193}, r"BRAM36 = 296.5: expected at most 95% of 312"),
        ({"uram": 92}, r"URAM288 = 92: expected at most 95% of 96"),
        ({"lut": 195_841}, r"LUT = 195,841: expected at most 85% of 230,400"),
        ({"latches": 1}, r"route: 1 latches: expected none"),
        ({"in_flip_flops": ["ring", "tags"]}, r"route: memories in flip-flops: ring, tags: expected none"),
        ({"arrival_ps": 1151}, r"route: arrival_ps = 1151: expected at most 1150 \(1000 in docs/figures"),
    ],
)
def test_a_bound_that_is_exceeded_is_a_fault(changes: dict[str, Any], message: str) -> None:
    before = {"route": unit_figures()}
    (found,) = synth.faults({"route": unit_figures(**changes), "load": unit_figures()}, ENGINE, before=before)
    assert re.match(message, found) and "\n" not in found


def test_bounds_are_inclusive_and_sums_over_units() -> None:
    full = {"dsp": 1693, "ramb36": 296, "uram": 91, "lut": 195_840}
    assert not synth.faults({"route": unit_figures(**full)}, ENGINE)
    assert len(synth.faults({"route": unit_figures(**full), "load": unit_figures(**full)}, ENGINE)) == 4


@pytest.mark.parametrize("dsp", [1535, 1537, 3072])
def test_two_macs_per_dsp(dsp: int) -> None:
    (found,) = synth.faults({"array": unit_figures(dsp=dsp)}, ENGINE, bounds=())
    assert found == f"array: dsp = {dsp}: expected 1536, two MACs each"


def test_a_unit_without_paths_or_history_is_no_slower() -> None:
    for now, old in ((None, 1000), (5000, None)):
        assert not synth.faults({"a": unit_figures(arrival_ps=now)}, ENGINE, before={"a": {"arrival_ps": old}})
    assert not synth.faults({"new": unit_figures()}, ENGINE, before={"a": unit_figures()})


def test_the_committed_figures_fit() -> None:
    figures = json.loads((synth.FIGURES / "synth-zcu104.json").read_text(encoding="utf-8"))
    results = figures["units"]
    assert set(results) == {unit.name for unit in synth.units()}, "run make synth with ARGS=--update"
    assert figures["total"] == synth.total(results)
    assert not synth.faults(results, ENGINE)
    assert 2 * results["array"]["dsp"] == figures["macs_per_cycle"] == ENGINE.macs_per_cycle
    lines = synth.table(results).splitlines()
    assert len(lines) == len(results) + 3 and len({len(line) for line in lines}) == 1


# ---- the units

def test_every_instance_of_the_engine_is_a_unit() -> None:
    text = (RTL / f"{synth.TOP}.sv").read_text(encoding="utf-8")
    names = re.findall(r"\bu_(\w+) \($", text, re.MULTILINE)
    assert [unit.name for unit in synth.units()] == [*names, synth.GLUE]
    assert len(set(names)) == len(names) > 15
    by_name = {unit.name: unit for unit in synth.units()}
    assert ("STYLE", '"ultra"') in by_name["weights"].parameters
    assert by_name["residual_rows"].parameters[0] == ("CAPACITY", "engine_pkg::RESIDUAL_LINES")
    stems = {path.stem for path in synth.sources(by_name["drain"], "ci")}
    assert stems == {"m3vit_pkg", "engine_pkg", "drain", "fifo", "gelu_table", "ram", "requantize"}


def test_arrays_are_declared_as_memories() -> None:
    """An array that Yosys' reader takes for registers would never show up as a memory in flip-flops."""
    array = re.compile(r"^.*\blogic\b[^;=()]*\s\w+\s*\[[^\]]+\]\s*;", re.MULTILINE)
    found = [line for path in sorted(RTL.glob("*.sv")) for line in array.findall(path.read_text(encoding="utf-8"))]
    assert len(found) >= 4
    assert not [line for line in found if "ram_style" not in line]


# ---- Yosys

BAD = """
module careless (
    input  logic       clk,
    input  logic       open,
    input  logic [3:0] address,
    input  logic [7:0] data,
    input  logic       other,
    output logic [7:0] held,
    output logic [7:0] read_data
);
  logic [7:0] memory[16];
  always_latch if (open) held = data;
  always_ff @(posedge clk) memory[address] <= data;
  always_ff @(posedge clk) if (other) memory[~address] <= ~data;
  assign read_data = memory[address];
endmodule
"""


@pytest.mark.parametrize("preset", HARDWARE)
def test_yosys_reads_the_engine(preset: str) -> None:
    """Seconds, while `make synth` takes a while: Yosys minds what Verilator does not, like a name used before its
    declaration."""
    pytest.importorskip("pyosys")
    files = " ".join(map(str, synth.sources(Unit("engine", synth.TOP), preset)))
    code = (
        "from pyosys import libyosys\n"
        f"libyosys.run_pass('read_slang -DSYNTHESIS --top {synth.TOP} {files}', libyosys.Design())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    errors = [line for line in done.stdout.splitlines() + done.stderr.splitlines() if "ERROR" in line]
    assert done.returncode == 0 and not errors, errors


def test_a_unit_is_synthesized_once(tmp_path, monkeypatch) -> None:
    pytest.importorskip("pyosys")
    said: list[str] = []
    source = tmp_path / "fifo.sv"
    source.write_text((RTL / "fifo.sv").read_text(encoding="utf-8"), encoding="utf-8")
    unit = Unit("queue", "fifo", (("WIDTH", "engine_pkg::TOKEN_BITS+7"), ("DEPTH", "16")))
    files = [package("ci"), RTL / "engine_pkg.sv", source]
    found = synth.synthesize(unit, "ci", tmp_path, said.append, files)
    assert said and not any(found[name] for name in ("dsp", "ramb18", "ramb36", "uram", "latches", "in_flip_flops"))
    assert found["memories"] == [{"name": "memory", "width": 16, "depth": 16, "style": "distributed"}]
    assert found["lut_memory"] == 2 * 8 < found["lut"] < 60 and 10 <= found["ff"] < 16
    assert 300 < found["arrival_ps"] < 5000
    assert not synth.faults({"queue": found}, ENGINE)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("synthesized again")

    with monkeypatch.context() as patch:
        patch.setattr(synth.subprocess, "Popen", refuse)
        said.clear()
        assert synth.synthesize(unit, "ci", tmp_path, said.append, files) == found and not said
        other = Unit("queue", "fifo", (("WIDTH", "8"), ("DEPTH", "16")))
        source.write_text(source.read_text() + "\n// changed\n")
        for changed in (unit, other):
            with pytest.raises(AssertionError, match="again"):
                synth.synthesize(changed, "ci", tmp_path, said.append, files)


def test_latch_and_memory_in_flip_flops_are_found(tmp_path) -> None:
    pytest.importorskip("pyosys")
    source = tmp_path / "careless.sv"
    source.write_text(BAD)
    found = synth.synthesize(Unit("careless", "careless"), "ci", tmp_path, files=[source])
    assert found["latches"] == 8 and found["in_flip_flops"] == ["memory"]
    assert len(synth.faults({"careless": found}, ENGINE)) == 2
    source.write_text(BAD.replace("endmodule", ""))
    with pytest.raises(SynthesisError, match=r"careless: Yosys failed: .*; see .*yosys\.log") as error:
        synth.synthesize(Unit("careless", "careless"), "ci", tmp_path, files=[source])
    assert "\n" not in str(error.value)


def test_command_line_refuses_an_unknown_unit(capsys) -> None:
    assert synth.main(["--hardware", "ci", "--units", "array,nothing"]) == 1
    assert capsys.readouterr().err.startswith("error: unit 'nothing': expected some of sequencer, ")


def test_any_engine_of_a_file(tmp_path, capsys) -> None:
    engine = dataclasses.replace(hardware("ci"), name="wide", tile_outputs=32)
    unit = next(unit for unit in synth.units() if unit.name == "array")
    generated = synth.sources(unit, engine)[0]
    assert generated.parent.name.startswith("wide-w8a8-") and "TILE_OUTPUTS = 32" in generated.read_text()
    file = tmp_path / "one.json"
    file.write_text(json.dumps(to_dict(dataclasses.replace(engine, ports=1, write_ports=1))))
    assert synth.main(["--hardware", str(file), "--units", "array"]) == 1
    assert capsys.readouterr().err == "error: hardware 'wide': ports = 1: expected at least 2 for the RTL engine\n"
