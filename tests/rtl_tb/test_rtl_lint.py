"""Every module of the engine is free of Verilator's warnings, for every hardware preset."""

from __future__ import annotations

import pytest

from accel.config import HARDWARE
from rtl_tb.lint import lint, lint_all, modules
from rtl_tb.runner import package

pytestmark = pytest.mark.verilator


@pytest.mark.parametrize("preset", HARDWARE)
def test_clean(tools, preset: str) -> None:
    found = lint_all(modules(), preset)
    if found:
        pytest.fail("\n\n".join(found.values()), pytrace=False)


def test_a_warning_is_found(tools, tmp_path) -> None:
    """The check above could not fail if Verilator's answer were lost on the way."""
    path = tmp_path / "careless.sv"
    path.write_text(
        "module careless (input logic [3:0] a, output logic [2:0] b);\n  assign b = a;\nendmodule\n"
    )
    assert "WIDTHTRUNC" in lint(path, [package("ci")])
    path.write_text("module careless (input logic a);\n  assign b = a\nendmodule\n")
    assert "syntax error" in lint(path, [package("ci")])
