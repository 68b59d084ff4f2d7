"""The bench runner: declarations, failures that must not pass for success, builds that are made only when needed."""

from __future__ import annotations

import pytest

from rtl_tb import coverage, runner
from rtl_tb.runner import BenchError, Case, cases, read_bench, run

BENCH = '''
import cocotb
from cocotb.triggers import Timer

PARAMETERS = ({"WIDTH": 3},)

@cocotb.test()
async def adds_one(dut):
    dut.a.value = 5
    await Timer(1, "ns")
    assert int(dut.b.value) == 6
'''
MODULE = """
module tiny #(parameter int WIDTH = 1) (input logic [WIDTH-1:0] a, output logic [WIDTH-1:0] b);
  assign b = a + 1'b1;
endmodule
"""


def test_declarations(tmp_path) -> None:
    path = tmp_path / "test_unit.py"
    path.write_text("X = 1\n")
    bench = read_bench(path)
    assert (bench.name, bench.toplevel, bench.presets) == ("test_unit", "unit", ("ci",))
    assert [case.name for case in cases(bench)] == ["test_unit-ci"]
    path.write_text(
        'TOPLEVEL = "top"\nPRESETS = ("ci", "zcu104")\nPARAMETERS = ({"A": 1}, {"A": 2})\nVISIBLE = 0\nSLOW = True\n'
    )
    bench = read_bench(path)
    assert bench.toplevel == "top" and bench.slow and not bench.visible
    assert [case.name for case in cases(bench)] == [
        "test_unit-ci-A1", "test_unit-ci-A2", "test_unit-zcu104-A1", "test_unit-zcu104-A2",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('PRESETS = ("abacus",)', r"PRESETS = \('abacus',\): expected some of"),
        ("PRESETS = ()", "expected some of"),
        ("PARAMETERS = make()", "PARAMETERS: expected a literal"),
    ],
)
def test_wrong_declarations(tmp_path, text: str, message: str) -> None:
    path = tmp_path / "test_unit.py"
    path.write_text(text)
    with pytest.raises(BenchError, match=message):
        read_bench(path)


@pytest.mark.verilator
def test_passes_fails_and_is_built_when_it_changed(tools, tmp_path, monkeypatch) -> None:
    pytest.importorskip("cocotb")
    monkeypatch.setattr(runner, "HERE", tmp_path)
    monkeypatch.setattr(runner, "BUILD", tmp_path / "build")
    path, module = tmp_path / "test_tiny.py", tmp_path / "tiny.sv"
    path.write_text(BENCH)
    module.write_text(MODULE)
    (case,) = cases(read_bench(path))
    assert run(case) == 1
    stamp = tmp_path / "build" / case.name / "stamp.json"
    made = stamp.stat().st_mtime_ns
    assert run(case, seed=3) == 1
    assert stamp.stat().st_mtime_ns == made, "nothing changed, nothing was built"
    module.write_text(MODULE.replace("1'b1", "2'd2"))
    with pytest.raises(BenchError, match=r"test_tiny-ci-WIDTH3: 1 of 1 tests failed with seed 4; see .*test\.log"):
        run(case, seed=4)
    assert stamp.stat().st_mtime_ns != made
    module.write_text(MODULE.replace("assign", "asign"))
    with pytest.raises(BenchError, match=r"does not build: %Error: .*tiny\.sv:3"):
        run(case)
    module.write_text(MODULE)
    path.write_text(BENCH.replace("import cocotb\n", "import cocotb, nothing_of_this_name\n"))
    with pytest.raises(BenchError, match="nothing_of_this_name"):
        run(case)
    path.write_text("import cocotb\n")
    with pytest.raises(BenchError, match="0 of 0 tests|1 of 0 tests"):
        run(Case(read_bench(path), "ci", {"WIDTH": 3}))


def test_command_line_names_what_is_missing(capsys) -> None:
    assert runner.main(["nothing_of_this_name"]) == 1
    assert "no bench" in capsys.readouterr().err


def record(entries: list[tuple[str, int, str, int]]) -> str:
    lines = [
        f"C '\x01f\x02/a/{name}\x01l\x02{line}\x01page\x02v_line/m\x01o\x02{kind}\x01h\x02top' {count}"
        for name, line, kind, count in entries
    ]
    return "\n".join(["# SystemC::Coverage-3", *lines])


def test_coverage_adds_up_recordings(tmp_path, capsys) -> None:
    first = [("fifo.sv", 3, "if", 2), ("fifo.sv", 3, "else", 0), ("fifo.sv", 9, "block", 0), ("foreign.sv", 1, "if", 0)]
    second = [("fifo.sv", 3, "if", 1), ("fifo.sv", 3, "else", 4), ("fifo.sv", 3, "else", 1)]
    for name, entries in (("a-coverage", first), ("b-coverage", second)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "coverage.dat").write_text(record(entries))
    points = coverage.merge(sorted(tmp_path.glob("*/coverage.dat")))
    assert points == {("fifo.sv", 3, "if"): 3, ("fifo.sv", 3, "else"): 5, ("fifo.sv", 9, "block"): 0}
    assert coverage.table(points) == {"fifo.sv": (2, 3)}
    assert coverage.main([str(tmp_path)]) == 0
    assert "66.7%" in capsys.readouterr().out
    assert (tmp_path / "coverage.txt").read_text() == "fifo.sv:9 block\n"


def test_coverage_without_recordings(tmp_path, capsys) -> None:
    assert coverage.main([str(tmp_path)]) == 1
    assert "found no recordings" in capsys.readouterr().err
