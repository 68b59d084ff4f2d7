"""The Tcl for Vitis HLS, run by a plain interpreter with the tool's commands written down instead of executed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from host.backends.hls_build import SOURCES

COMMANDS = (
    "open_project", "set_top", "add_files", "open_solution", "set_part", "create_clock", "config_interface",
    "config_dataflow", "csynth_design", "csim_design", "cosim_design", "export_design",
)  # fmt: skip


def run(script: str, tmp_path: Path, preset: str) -> list[str]:
    interpreter = shutil.which("tclsh")
    if interpreter is None:
        pytest.skip("tclsh is not installed")
    log = tmp_path / "log"
    stubs = "".join(
        f'proc {name} {{args}} {{ set f [open {{{log}}} a]; puts $f "{name} $args"; close $f }}\n' for name in COMMANDS
    )
    wrapper = tmp_path / "run.tcl"
    wrapper.write_text(stubs + f"source {{{SOURCES / 'tcl' / script}}}\n")
    variables = {**os.environ, "M3VIT_PYTHON": sys.executable, "M3VIT_HARDWARE": preset}
    done = subprocess.run([interpreter, wrapper], capture_output=True, text=True, env=variables, timeout=120)
    # There is no report to check after a synthesis that was written down.
    assert done.returncode == (1 if script == "synthesize.tcl" else 0), done.stdout + done.stderr
    assert "csynth_check: a figure is not met" in done.stdout or script != "synthesize.tcl"
    return log.read_text().splitlines()


@pytest.mark.parametrize("preset", ["ci", "zcu104"])
def test_synthesis(tmp_path: Path, preset: str) -> None:
    lines = run("synthesize.tcl", tmp_path, preset)
    assert any(line.startswith(f"open_project {preset}-w8a8-") for line in lines)
    assert "set_top m3vit_engine" in lines and "csynth_design " in lines
    assert "create_clock -period 5.0 -name default" in lines
    engine = [line for line in lines if line.startswith("add_files /")]
    assert len(engine) == len(list((SOURCES / "engine").glob("*.cpp")))


@pytest.mark.parametrize("preset", ["ci", "zcu104"])
def test_cosimulation_and_export(tmp_path: Path, preset: str) -> None:
    lines = run("cosimulate.tcl", tmp_path, preset)
    assert any(line.startswith("csim_design") for line in lines) and any("cosim_design" in line for line in lines)
    cosimulation = next(line for line in lines if line.startswith("cosim_design"))
    arguments = cosimulation.partition("-argv {")[2].partition("}")[0]
    for case in arguments.split():
        assert (Path(case) / "case.txt").is_file()
    assert any("-format ip_catalog" in line for line in run("export.tcl", tmp_path, preset))
