"""Coverage report: functional bins of the whole engine's bench, and line coverage where the benches recorded it."""

from __future__ import annotations

import json

import pytest

from rtl_tb import coverage
from rtl_tb.runner import BUILD, HERE, cases, read_bench, run

pytestmark = [pytest.mark.verilator, pytest.mark.slow]


def test_every_bin_is_hit(tools, capsys) -> None:
    """Runs the bench with a seed of its own; what it leaves in functional-<preset>.json is printed."""
    pytest.importorskip("cocotb")
    bench = read_bench(HERE / "test_engine.py")
    for case in cases(bench):
        assert run(case, seed=7, coverage=True)
        report = json.loads((BUILD / f"functional-{case.preset}.json").read_text())
        missed = [name for name, hit in report["bins"].items() if not hit]
        with capsys.disabled():
            print(f"\n{case.preset}: {report['hit']} of {report['of']} functional bins, {report['programs']} programs, "
                  f"{report['integers']:,} integers behind passive monitors")  # fmt: skip
        assert not missed and report["of"] == len(report["bins"]) > 80


def test_line_coverage_is_reported(tools, capsys) -> None:
    """Of this run's recordings; `make test-all` prints the sum of all of them at its end."""
    with capsys.disabled():
        print()
        assert coverage.main([]) == 0
