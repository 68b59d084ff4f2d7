"""``benchmarks.scale_sim`` without SCALE-Sim: what it writes, what it reads, what it says when something is wrong."""

from __future__ import annotations

import configparser
import stat
import sys
from pathlib import Path

import pytest

from accel.config import hardware
from accel.errors import ConfigError, DataError, DeviceError
from accel.memory_model import MemoryModel
from benchmarks.scale_sim import NAMES, find_layer, gemms, rows
from benchmarks.scale_sim_files import Gemm, bandwidths, config_text, parse_report, run_scale_sim, topology_text

ENGINE = hardware("zcu104")
HEADER = ("LayerID, Total Cycles (incl. prefetch), Total Cycles, Stall Cycles, Overall Util %, Mapping Efficiency %, "
          "Compute Util %,\n")  # fmt: skip
REPORT = HEADER + "0, 7474, 3623, 12, 42.727021805133866, 67.1875, 42.71523178807947,\n"


def test_products_of_the_layers():
    assert gemms("tiny.qkv", find_layer("tiny.qkv", ENGINE)) == [Gemm("tiny.qkv", 129, 576, 192)]
    first, second = gemms("small.mlp", find_layer("small.mlp", ENGINE))
    assert (first.m, first.n, first.k) == (1025, 1536, 384) and (second.n, second.k) == (384, 1536)
    for name in NAMES:
        layer = find_layer(name, ENGINE)
        assert sum(gemm.macs for gemm in gemms(name, layer)) == layer.tokens * layer.macs_per_pair


def test_rates_add_up():
    for gemm in (Gemm("even", 64, 64, 64), Gemm("weights", 1, 4096, 4096), Gemm("inputs", 4096, 1, 4096)):
        rates = bandwidths(gemm, 48)
        assert sum(rates) == 48 and min(rates) >= 1
    assert bandwidths(Gemm("even", 64, 64, 64), 48) == (16, 16, 16)
    assert bandwidths(Gemm("weights", 1, 4096, 4096), 48)[1] >= 44
    with pytest.raises(ConfigError, match="bytes_per_cycle = 2: expected at least one"):
        bandwidths(Gemm("even", 8, 8, 8), 2)


def test_configuration():
    config = configparser.ConfigParser()
    config.read_string(config_text("run", ENGINE, "ws", (10, 30, 8)))
    array = config["architecture_presets"]
    assert int(array["ArrayHeight"]) * int(array["ArrayWidth"]) == ENGINE.macs_per_cycle
    assert array["Dataflow"] == "ws" and array["Bandwidth"] == "8"
    assert int(array["FilterSramSzkB"]) == 2 * 5 * 768 * 384 // 1024 and int(array["IfmapSramSzkB"]) == 2 * 456
    assert config["layout"]["IfmapSRAMBankBandwidth"] == "10" and config["layout"]["FilterSRAMBankBandwidth"] == "30"
    assert config["run_presets"]["InterfaceBandwidth"] == "USER"


def test_topology():
    assert topology_text([Gemm("a", 1, 2, 3), Gemm("b", 4, 5, 6)]) == "Layer, M, N, K,\na, 1, 2, 3,\nb, 4, 5, 6,\n"


def test_report():
    assert parse_report(REPORT, "r") == [{"cycles": 7474.0, "compute": 3623.0, "stalls": 12.0}]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "r: header: expected LayerID.*found nothing"),
        ("LayerID, Cycles,\n0, 1,\n", "r: header: expected LayerID.*found LayerID, Cycles"),
        (HEADER, "r: expected a row per product, found none"),
        (HEADER + "0, many, 2, 3,\n", "r: row 0: expected three numbers, found many, 2, 3"),
        (HEADER + "0, 1,\n", "r: row 0: expected three numbers"),
    ],
)
def test_broken_reports(text: str, message: str):
    with pytest.raises(DataError, match=message):
        parse_report(text, "r")


def fake_python(folder: Path, body: str) -> str:
    """A program that is called as Python would be: -c, the code, configuration, topology, layout, output folder."""
    path = folder / "python"
    path.write_text(f"#!{sys.executable}\nimport pathlib, sys\nout = pathlib.Path(sys.argv[6])\n{body}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def test_a_run(tmp_path: Path):
    body = (
        "assert pathlib.Path(sys.argv[4]).read_text().startswith('Layer, M, N, K,')\n"
        "(out / 'run').mkdir(parents=True)\n"
        f"(out / 'run' / 'COMPUTE_REPORT.csv').write_text({REPORT!r})\n"
        "print('chatter'); print('seconds 1.5')"
    )
    found = run_scale_sim(fake_python(tmp_path, body), Gemm("a", 8, 8, 8), ENGINE, "os", MemoryModel())
    assert found == {"cycles": 7474.0, "compute": 3623.0, "stalls": 12.0, "seconds": 1.5}


def test_runs_that_fail(tmp_path: Path):
    gemm = Gemm("a", 8, 8, 8)
    with pytest.raises(DeviceError, match="nowhere/python: expected a Python with scalesim"):
        run_scale_sim("nowhere/python", gemm, ENGINE, "os", MemoryModel())
    failing = fake_python(tmp_path, "sys.exit('no module named scalesim')")
    with pytest.raises(DeviceError, match="a: expected COMPUTE_REPORT.csv, found exit code 1: no module named scale"):
        run_scale_sim(failing, gemm, ENGINE, "os", MemoryModel())
    silent = fake_python(tmp_path, "pass")
    with pytest.raises(DeviceError, match="found exit code 0: nothing"):
        run_scale_sim(silent, gemm, ENGINE, "os", MemoryModel())


def test_table():
    run = {"cycles": 10.0, "compute": 8.0, "stalls": 0.0, "seconds": 2.0}
    result = {"gemms": [[1, 2, 3]], "ideal": 4.0, "rtl": {"cycles": 7, "seconds": 0.5},
              "sim": {"cycles": 7, "seconds": 0.01}, "scale_sim": {"os": run}}  # fmt: skip
    header, lines = rows({"a": result})
    assert len(header) == len(lines[0]) and lines[0][:5] == ["a", "1×2×3", 4, 7, 7] and lines[0][-3:] == [10, 8, 2.0]
