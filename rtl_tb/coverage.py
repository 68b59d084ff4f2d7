"""Line coverage of the engine by its benches: adds up what they recorded and names the lines that nothing reached.

Usage: ``python -m rtl_tb.coverage [folder]`` after ``python -m rtl_tb.runner --coverage`` (or ``make test-all``).
Prints a table; the lines are in ``coverage.txt`` of the folder, build/rtl_tb by default.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from accel.atomic import atomic_write
from rtl_tb.runner import BUILD, RTL

Point = tuple[str, int, str]
"""A block of statements: file name, line, and what it is (``block``, ``if``, ``else``, ...)."""

_KEY = re.compile(r"\x01(\w+)\x02([^\x01]*)")


def read_points(text: str) -> Counter[Point]:
    """How often each block was entered, from a coverage.dat of Verilator's: ``C '^Akey^Bvalue...' count`` per line.

    A block of a module that is used more than once counts all of them.
    """
    points: Counter[Point] = Counter()
    for line in text.splitlines():
        if not line.startswith("C '"):
            continue
        keys, _, count = line[3:].rpartition("' ")
        fields = dict(_KEY.findall(keys))
        if fields.get("page", "").startswith(("v_line", "v_branch")):
            points[Path(fields["f"]).name, int(fields["l"]), fields["o"]] += int(count)
    return points


def merge(files: Iterable[Path]) -> Counter[Point]:
    """Sum over recordings, of the engine's own files only."""
    own = {path.name for path in RTL.glob("*.sv")}
    total: Counter[Point] = Counter()
    for path in files:
        for point, count in read_points(path.read_text(encoding="utf-8", errors="replace")).items():
            if point[0] in own:
                total[point] += count  # also 0: the block exists
    return total


def table(points: Mapping[Point, int]) -> dict[str, tuple[int, int]]:
    """File → blocks entered and blocks in all."""
    found: dict[str, tuple[int, int]] = {}
    for (name, *_), count in sorted(points.items()):
        reached, places = found.get(name, (0, 0))
        found[name] = reached + bool(count), places + 1
    return found


def main(arguments: list[str]) -> int:
    """Command line."""
    folder = Path(arguments[0]) if arguments else BUILD
    files = sorted(folder.glob("*-coverage/coverage.dat"))
    if not files:
        print(f"error: {folder}: found no recordings of `python -m rtl_tb.runner --coverage`", file=sys.stderr)
        return 1
    points = merge(files)
    rows = table(points)
    for name, (reached, places) in rows.items():
        print(f"{name:24} {reached:5} of {places:5}  {reached / places:6.1%}")
    untouched = sorted({path.name for path in RTL.glob("*.sv") if not path.stem.endswith("_pkg")} - set(rows))
    reached, places = (sum(column) for column in zip(*rows.values(), strict=True))
    print(f"{'total':24} {reached:5} of {places:5}  {reached / places:6.1%}")
    if untouched:
        print(f"nothing recorded: {', '.join(untouched)}")
    with atomic_write(folder / "coverage.txt") as temporary:
        missed = [point for point, count in sorted(points.items()) if not count]
        temporary.write_text("".join(f"{name}:{line} {kind}\n" for name, line, kind in missed))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
