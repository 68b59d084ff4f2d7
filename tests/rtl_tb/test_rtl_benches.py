"""Every cocotb bench of ``rtl_tb/``, one test per build. With M3VIT_RTL_COVERAGE=1 line coverage is recorded too."""

from __future__ import annotations

import os

import pytest

from rtl_tb.runner import BOARD, HERE, RTL, Case, cases, discover, run

pytestmark = pytest.mark.verilator


def parameters() -> list[object]:
    return [
        pytest.param(
            case, id=case.name,
            marks=[pytest.mark.xdist_group(case.name), *([pytest.mark.slow] if bench.slow else [])],
        )
        for bench in discover()
        for case in cases(bench)
    ]  # fmt: skip


@pytest.mark.parametrize("case", parameters())
def test_bench(case: Case, tools) -> None:
    pytest.importorskip("cocotb")
    assert run(case, coverage=os.environ.get("M3VIT_RTL_COVERAGE") == "1") > 0


def test_benches_are_found() -> None:
    """Each names a module that exists; without this, a misplaced folder would leave nothing to fail above."""
    benches = discover()
    assert {"test_fifo", "test_m3vit_memory", "test_m3vit_board"} <= {bench.name for bench in benches}
    for bench in benches:
        assert any((folder / f"{bench.toplevel}.sv").is_file() for folder in (RTL, BOARD, HERE)), bench.name
