"""Continuous integration's script: what its last line and its exit code say, with a stand-in for make."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
GOOD = "===== 1230 passed, 12 skipped, 2 deselected, 1 warning in 500.12s (0:08:20) ====="
BOARD = "============== 71 passed in 44.97s =============="
SUM = "===== 1301 passed, 12 skipped, 2 deselected, 1 warning in 545.09s ====="


def run(folder: Path, test: str, test_pynq: str, python: str = "echo python3") -> tuple[int, list[str]]:
    """Exit code and lines of the script where ``make TARGET`` does what these shell commands say."""
    shutil.copytree(ROOT / ".ci", folder / ".ci", ignore=shutil.ignore_patterns("__pycache__"))
    make = folder / "bin" / "make"
    make.parent.mkdir()
    make.write_text(
        "#!/bin/sh\n"
        f'case "$*" in\n  test) {test} ;;\n  test-pynq) {test_pynq} ;;\n  "-s pynq-python") {python} ;;\n'
        "  *) exit 9 ;;\nesac\n"
    )
    make.chmod(0o755)
    environment = {**os.environ, "PATH": f"{make.parent}:{os.environ['PATH']}", "PYTHON": sys.executable}
    done = subprocess.run([folder / ".ci" / "run"], capture_output=True, text=True, env=environment, timeout=60)
    assert done.stderr == ""
    return done.returncode, done.stdout.splitlines()


def bare(line: str) -> str:
    return line.strip("= ")


def test_both_pass(tmp_path: Path) -> None:
    code, lines = run(tmp_path, f"echo '{GOOD}'", f"echo '{BOARD}'")
    assert code == 0 and bare(lines[-1]) == bare(SUM) and lines[-1].startswith("==") and lines[-1].endswith("==")
    assert lines[:2] == [GOOD, BOARD], "everything that make prints"
    assert lines[-3:-1] == [
        "test: 1230 passed, 12 skipped, 2 deselected, 1 warning in 500.12s", "test-pynq: 71 passed in 44.97s"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("test", "test_pynq", "last"),
    [
        ("echo '== 1 failed, 3 passed in 2.00s =='; exit 2", f"echo '{BOARD}'", "1 failed, 74 passed in 46.97s"),
        (f"echo '{GOOD}'", "echo '= 71 passed, 2 errors in 1.00s ='; exit 2", None),
        (f"echo '{GOOD}'", "echo 'make: error: pip failed twice'; exit 2", "error: test-pynq: expected a closing line"),
        ("echo 'ruff: Found 1 error.'; exit 2", f"echo '{BOARD}'", "error: test: expected a closing line of pytest"),
        ("exit 2", "exit 2", "error: test, test-pynq: expected"),
        ("echo '== 3 skipped in 1.00s =='", "echo '== 3 skipped in 1.00s =='", "6 skipped in 2.00s"),
        ("echo '== 5 passed in 1.00s =='", "echo '== 71 skipped in 1.00s =='", "5 passed, 71 skipped in 2.00s"),
        ("echo '== no tests ran in 1.00s =='", f"echo '{BOARD}'", "71 passed in 45.97s"),
        (f"echo '{GOOD}'; exit 1", f"echo '{BOARD}'", bare(SUM)),
    ],
    ids=["test", "pynq", "installation", "lint", "both", "nothing ran", "one skipped", "one empty", "after the tests"],
)
def test_a_failure_is_seen(tmp_path: Path, test: str, test_pynq: str, last: str | None) -> None:
    code, lines = run(tmp_path, test, test_pynq)
    assert code == 1
    assert bare(lines[-1]).startswith(
        last or "1301 passed, 12 skipped, 2 deselected, 1 warning, 2 errors in 501.12s"
    ), lines[-1]


def test_a_run_that_passed_nothing_is_named(tmp_path: Path) -> None:
    code, lines = run(tmp_path, f"echo '{GOOD}'", "echo '== 71 skipped in 1.00s =='")
    assert code == 1 and lines[-2] == "error: test-pynq: expected at least one test that passed, found none"


def test_python_that_pynq_has_no_packages_for(tmp_path: Path) -> None:
    """Said plainly, and no failure: there is nothing that could be installed."""
    said = "make: error: expected Python 3.10 to 3.12"
    code, lines = run(tmp_path, f"echo '{GOOD}'", "exit 7", f"echo '{said}' >&2; exit 2")
    assert code == 0 and bare(lines[-1]) == bare(GOOD).replace(" (0:08:20)", "")
    assert lines[0] == said and any(line.startswith("make test-pynq: left out") for line in lines)


def test_a_file_stays_in_one_process(request: pytest.FixtureRequest) -> None:
    """xdist appends its group to the name of a test; without, it spreads a file's tests over processes."""
    if not request.config.getoption("loadgroup", False):
        pytest.skip("not spread over processes by group")
    assert request.node.nodeid.endswith("@tests/test_ci.py")
