"""The Vivado script, run in a Tcl interpreter with stubbed commands, builds the block design that drivers expect."""

from __future__ import annotations

import dataclasses
import re
import shutil
import subprocess
from pathlib import Path
from xml.etree import ElementTree

import pytest

from accel.config import HARDWARE, Formats, hardware
from accel.errors import DeviceError
from bitstreams import manifest
from bitstreams.check import SCRIPT, CheckError, catalogue, check, main, problems, understand
from bitstreams.generate import ROOT, parameters, tcl
from bitstreams.wrapper import MODULE, interfaces, wrapper
from host.backends.toolchain import find_toolchain
from host.handoff import handoff
from host.overlay import ENGINE_VLNV, SLAVES, check_overlay

ENGINES = list(ENGINE_VLNV)
CI = hardware("ci")
needs_tcl = pytest.mark.skipif(shutil.which("tclsh") is None, reason="tclsh is not installed")


@needs_tcl
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("preset", list(HARDWARE))
def test_design_is_as_configured(engine, preset):
    design, found = check(engine, hardware(preset))
    assert found == []
    assert len(design.cells) == 15 and len(design.addresses) == 11


@needs_tcl
def test_design_follows_the_configuration():
    """Two ports of 8 bytes at another clock: nothing of the usual numbers is in the script itself."""
    narrow = dataclasses.replace(CI, name="narrow", ports=2, write_ports=1, port_bytes=8, clock_mhz=123)
    design, found = check("rtl", narrow)
    assert found == []
    ps = design.settings
    assert ps["zynq_ultra_ps_e_0", "CONFIG.PSU__CRL_APB__PL0_REF_CTRL__FREQMHZ"] == "123"
    assert ps["zynq_ultra_ps_e_0", "CONFIG.PSU__SAXIGP3__DATA_WIDTH"] == "64"
    assert ("zynq_ultra_ps_e_0", "CONFIG.PSU__USE__S_AXI_GP4") not in ps and "gate_2" not in design.cells
    assert problems(design, "rtl", CI), "another configuration does not fit it"


MUTANTS = {
    "pin that does not exist": ("pl_ps_irq0", "pl_ps_irq9", "pl_ps_irq9: expected one of"),
    "interface that does not exist": ("/M00_AXI $ps", "/M07_AXI $ps", "M07_AXI: expected one of"),
    "cell that does not exist": ("gate_$port/run", "gait_$port/run", "gait_0/run: expected one of the cells"),
    "processor's port off": (
        "PSU__USE__S_AXI_GP$number 1", "PSU__USE__S_AXI_GP$number 0", "S_AXI_HP0_FPD: expected one of",
    ),
    "ports swapped": ("S_AXI_HP${port}_FPD\n", "S_AXI_HP[expr {3 - $port}]_FPD\n", "S_AXI_HP0_FPD: expected memory_0"),
    "width of a port": ("__DATA_WIDTH $m3vit(port_bits)", "__DATA_WIDTH 64", "DATA_WIDTH: expected 128, found 64"),
    "width of the gates": ("CONFIG.DATA_BITS $m3vit(port_bits)", "CONFIG.DATA_BITS 32", "DATA_BITS: expected 128"),
    "clock": ("FREQMHZ $m3vit(clock_mhz)", "FREQMHZ 100", "FREQMHZ: expected 300, found 100"),
    "parameter that does not exist": ("CONFIG.C_ALL_OUTPUTS 1", "CONFIG.C_ALL_OUTPUT 1", "C_ALL_OUTPUT = 1: expected"),
    "engine starts in reset": ("C_DOUT_DEFAULT 0x00000001", "C_DOUT_DEFAULT 0x00000000", "C_DOUT_DEFAULT: expected"),
    "reset of the wrong polarity": ("C_AUX_RESET_HIGH 0", "C_AUX_RESET_HIGH 1", "C_AUX_RESET_HIGH: expected 0"),
    "engine not reset by the GPIO": (
        "connect_pins engine_reset/per", "connect_pins system_reset/per", "engine/ap_rst_n: expected engine_reset",
    ),
    "gates reset with the engine": (
        "connect_pins $reset gate_$port/ap_rst_n", "connect_pins engine_reset/peripheral_aresetn gate_$port/ap_rst_n",
        "gate_0/ap_rst_n: expected system_reset",
    ),
    "gates not told": ("    connect_pins $run gate_$port/run\n", "", "gate_0/run: expected a connection"),
    "clock missing": ("connect_pins $clock $engine/ap_clk\n", "", "engine/ap_clk: expected a connection"),
    "input driven by an input": ("connect_pins $clock $engine/ap_clk", "connect_pins $ps/maxihpm0_fpd_aclk "
                                 "$engine/ap_clk", "expected output zynq_ultra_ps_e_0/maxihpm0_fpd_aclk"),
    "two drivers": ("# ---- interrupt", "connect_pins $ps/pl_resetn0 $engine/ap_rst_n\n", "expected one driver, found"),
    "interrupt open": (
        "connect_pins $engine/$m3vit(interrupt_pin) $m3vit(interrupt_cell)/intr\n", "", "intr: expected a connection",
    ),
    "interrupt bus": ("CONFIG.C_IRQ_CONNECTION 1", "CONFIG.C_IRQ_CONNECTION 0", "C_IRQ_CONNECTION: expected 1"),
    "interrupt on edges": ("CONFIG.C_IRQ_IS_LEVEL 1", "CONFIG.C_IRQ_IS_LEVEL 0", "C_IRQ_IS_LEVEL: expected 1"),
    "registers elsewhere": ("-offset $offset -range", "-offset 0xB0000000 -range",
                            r"0xb0000000 \+ 0x1000: expected none"),
    "memory cut": ("-range $m3vit(memory_bytes) \\\n        -target_address_space [get_bd_addr_spaces gate",
                   "-range 0x1000 \\\n        -target_address_space [get_bd_addr_spaces gate", r"0x0 \+ 0x1000"),
    "another port's memory": ("HP${port}_DDR_LOW", "HP0_DDR_LOW", "address of .*HP1_DDR_LOW"),
    "addresses forgotten": ("assign_bd_address -offset $offset -range $range", "set x [list -offset", None),
    "engine of another kind": ("-reference $m3vit(engine_module)", "-reference m3vit_engine", "cell engine: expected"),
    "sources forgotten": ("add_files -norecurse $m3vit(sources)\n", "", "expected a known block"),
    "not validated": ("validate_bd_design\n", "", "validate_bd_design: expected a call"),
    "built before it is saved": ("save_bd_design\n", "", "save_bd_design: expected a call"),
    "timing not read": ("get_timing_paths -delay_type", "list", "get_timing_paths: expected a call"),
    "command that Vivado does not have": ("validate_bd_design", "validate_design_bd", None),
    "option that the command does not have": ("-to_step", "-until_step", None),
    "parameter that is not generated": ("$m3vit(clock_mhz) MHz", "$m3vit(clock) MHz", r"\$m3vit\(clock\): expected"),
}  # fmt: skip


@needs_tcl
@pytest.mark.parametrize("name", MUTANTS)
def test_mistakes_in_the_script_are_found(name, tmp_path):
    old, new, pattern = MUTANTS[name]
    text = SCRIPT.read_text()
    assert old in text, "the script has changed: mend this mutant"
    script = tmp_path / "mutant.tcl"
    script.write_text(text.replace(old, new))
    if pattern is None:
        with pytest.raises(CheckError, match="mutant.tcl"):
            check("rtl", hardware("zcu104"), script)
        return
    found = check("rtl", hardware("zcu104"), script)[1]
    assert any(re.search(pattern, line) for line in found), found


@needs_tcl
def test_hls_engine_has_the_same_interfaces():
    """What the catalogue says of the HLS engine comes from its pragmas."""
    design, found = check("hls", CI)
    assert found == []
    block = catalogue(design)["engine"]
    assert block is not None and set(block.interfaces) == set(interfaces(CI))


@needs_tcl
@pytest.mark.parametrize("engine", ENGINES)
def test_simulated_handoff_says_the_same(engine):
    """Blocks, addresses and the interrupt of the file that the simulated board gives PYNQ are those of the script."""
    zcu104 = hardware("zcu104")
    design, _ = check(engine, zcu104)
    root = ElementTree.fromstring(handoff(zcu104, engine))
    modules = {item.get("INSTANCE"): item for item in root.iter("MODULE")}
    kinds = {name: (item.get("VLNV") or "").split(":") for name, item in modules.items()}
    assert set(modules) < set(design.cells)
    for name, kind in kinds.items():
        vlnv = design.cells[name]
        built = ["xilinx.com", "module_ref", vlnv[7:], "1.0"] if vlnv.startswith("module:") else vlnv.split(":")
        assert kind[: len(built)] == built, name
    ranges = [item for item in modules["zynq_ultra_ps_e_0"].iter("MEMRANGE")]
    mapped = {
        (item.get("INSTANCE"), item.get("SLAVEBUSINTERFACE"), int(item.get("BASEVALUE") or "", 16)) for item in ranges
    }
    addresses = {(*segment.split("/")[:2], offset) for space, segment, offset, _ in design.addresses if "Data" in space}
    assert mapped == addresses == {(item.cell, item.interface, item.address) for item in SLAVES}
    wires = {
        (item.get("INSTANCE"), pin.get("NAME"), to.get("INSTANCE"), to.get("PORT"))
        for item in modules.values()
        for pin in item.iter("PORT")
        for to in pin.iter("CONNECTION")
        if pin.get("SIGIS") == "INTERRUPT"
    }
    ends = ("intr", "pl_ps_irq0")
    built = {(*source.split("/"), *sink.split("/")) for source, sink in design.nets if sink.endswith(ends)}
    assert len(built) == 2 and built == {wire for wire in wires if wire[3] in ends}


def test_command_line(capsys, monkeypatch):
    if shutil.which("tclsh") is not None:
        assert main(["--engine", "hls", "--hardware", "ci"]) == 0
        assert "as configured" in capsys.readouterr().out
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert main([]) == 1
    assert capsys.readouterr().err.startswith("error: tclsh: expected on the PATH")


def test_tcl_words():
    assert tcl("plain") == "plain" and tcl("two words") == "{two words}" and tcl("") == "{}"
    assert tcl(7) == "7" and tcl([1, ["a b", 2]]) == "{1 {{a b} 2}}"


def test_sources_are_complete():
    values = parameters("rtl", CI, Formats(), ROOT / "build" / "x")
    names = [Path(name).name for name in values["sources"]]
    assert names[:2] == ["m3vit_pkg.sv", "engine_pkg.sv"], "packages first"
    assert {path.name for path in (ROOT / "rtl_tb" / "rtl").glob("*.sv")} <= set(names)
    assert f"{MODULE}.v" in names and "m3vit_axi_gate.v" in names
    assert understand([]).cells == {}


# ---- the wrapper and the gate


def lint(top: str, *files: str) -> str:
    try:
        tools = find_toolchain()
    except DeviceError as error:
        pytest.skip(str(error))
    done = subprocess.run(
        [tools.verilator, "--lint-only", "-Wall", "-Wno-SYMRSVDWORD", "+libext+.sv", "-y", str(ROOT / "rtl_tb" / "rtl"),
         "--top-module", top, *files],
        capture_output=True, text=True, env=tools.environment(),
    )  # fmt: skip
    return "\n".join(line for line in (done.stdout + done.stderr).splitlines() if not line.startswith("- "))


@pytest.mark.verilator
@pytest.mark.parametrize("bits", [32, 128])
def test_gate_is_clean(bits):
    assert lint("m3vit_axi_gate", str(ROOT / "bitstreams" / "rtl" / "m3vit_axi_gate.v"), f"-GDATA_BITS={bits}") == ""


@pytest.mark.verilator
@pytest.mark.parametrize("preset", list(HARDWARE))
def test_wrapper_is_clean(preset, tmp_path):
    from bitstreams.generate import write

    folder = write("rtl", hardware(preset), Formats(), tmp_path / "overlay")
    engine = str(ROOT / "rtl_tb" / "rtl" / "engine_pkg.sv")
    assert lint(MODULE, str(folder / "m3vit_pkg.sv"), engine, str(folder / f"{MODULE}.v")) == ""


def test_wrapper_names_its_interfaces():
    text = wrapper(CI)
    assert text.count("X_INTERFACE_INFO") == 3 + CI.ports
    assert text.count("READ_ONLY") == CI.ports - CI.write_ports
    assert "m_axi_port3_rdata, m_axi_port2_rdata, m_axi_port1_rdata, m_axi_port0_rdata" in text, "port p in slice p"


# ---- the manifest


def test_manifest_of_a_build(tmp_path, capsys):
    (tmp_path / "m3vit.bit").write_bytes(b"bits")
    (tmp_path / "m3vit.hwh").write_text("handoff")
    arguments = ["--hardware", "ci", "--out", str(tmp_path)]
    assert manifest.main(arguments) == 1 and "expected what overlay.tcl writes" in capsys.readouterr().err
    (tmp_path / "build.txt").write_text("tool Vivado 2022.2\nclock_mhz 300\nsetup_slack_ns 0.012\n")
    assert manifest.main(arguments) == 1 and "'hold_slack_ns'" in capsys.readouterr().err
    (tmp_path / "build.txt").write_text("tool Vivado 2022.2\nclock_mhz 300\nsetup_slack_ns 0.012\nhold_slack_ns 0.01\n")
    assert manifest.main(arguments) == 0
    found = check_overlay(tmp_path / "m3vit.bit", CI, Formats())
    assert found.tool == "Vivado 2022.2" and found.engine == "rtl"
    assert found.reports == {"clock_mhz": 300.0, "setup_slack_ns": 0.012, "hold_slack_ns": 0.01}
    (tmp_path / "m3vit.bit").write_bytes(b"others")
    with pytest.raises(DeviceError, match="SHA-256"):
        check_overlay(tmp_path / "m3vit.bit", CI, Formats())
