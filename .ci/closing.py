"""Closing line of several pytest runs: what each log ends with, then the sum, in the form of pytest's own.

::

    python3 .ci/closing.py build/ci-test build/ci-test-pynq    # reads the .log files of these names

A log without such a line is of a run that ended before its tests did; the last line then is an error. Exit code 1 in
this case, when tests failed, and when a run passed none.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from pathlib import Path

OUTCOMES = ("failed", "passed", "skipped", "deselected", "xfailed", "xpassed", "warning", "error")
"""In pytest's order."""
CLOSING = re.compile(r"^=+ (.*\b(?:passed|failed|errors?|no tests ran|skipped|deselected)\b.*) in ([\d.]+)s.*=+$", re.M)
COUNT = re.compile(rf"(\d+) ({'|'.join(OUTCOMES)})")


def closing(texts: dict[str, str]) -> tuple[list[str], bool]:
    """Lines to print of these logs, by name, and whether all is well."""
    lines, sums, seconds = [], Counter[str](), 0.0
    missing, idle = [], []
    for name, text in texts.items():
        found = CLOSING.findall(text)
        if not found:
            missing.append(name)
            continue
        counts, took = found[-1]
        lines.append(f"{name}: {counts} in {took}s")
        outcomes = {outcome: int(count) for count, outcome in COUNT.findall(counts)}
        if not outcomes.get("passed"):
            idle.append(name)
        sums.update(outcomes)
        seconds += float(took)
    if missing:
        lines.append(f"error: {', '.join(missing)}: expected a closing line of pytest, found none; see its log")
        return lines, False
    if idle:
        lines.append(f"error: {', '.join(idle)}: expected at least one test that passed, found none")
    parts = [
        f"{sums[name]} {name}{'s' if name in ('warning', 'error') and sums[name] != 1 else ''}"
        for name in OUTCOMES
        if sums[name]
    ]
    total = f" {', '.join(parts) or 'no tests ran'} in {seconds:.2f}s "
    return [*lines, total.center(80, "=")], bool(texts) and not idle and not sums["failed"] + sums["error"]


def main(names: list[str]) -> int:
    texts = {}
    for name in names:
        path = Path(f"{name}.log")
        texts[path.stem.removeprefix("ci-")] = path.read_text(errors="replace") if path.is_file() else ""
    lines, well = closing(texts)
    print("\n".join(lines))
    return 0 if well else 1


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
