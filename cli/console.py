"""What the commands share on the terminal: results on stdout, progress and messages on stderr."""

from __future__ import annotations

import importlib.metadata
import json
import sys
import time
import unicodedata
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])

DISTRIBUTION = "m3vit-codesign"
LINE_SECONDS, LATEST_SECONDS = 5.0, 60.0
"""Least time between two lines of progress in a log, and the time after which one comes between two tenths, too."""


def tool_version() -> str:
    """Version of the installed distribution; a checkout that is only on the path has none."""
    try:
        return importlib.metadata.version(DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def json_option(function: Command) -> Command:
    """Option ``--json``, passed as ``as_json``."""
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")(function)


def quiet_option(function: Command) -> Command:
    """Option ``--quiet``, passed as ``quiet``."""
    return click.option("-q", "--quiet", is_flag=True, help="No progress bars, no messages.")(function)


def emit_json(data: Any) -> None:
    """Print ``data`` as one JSON object. A value that JSON cannot hold is an error, not a guess."""
    print(json.dumps(data, indent=1, allow_nan=False, ensure_ascii=False))


def note(message: str, quiet: bool = False) -> None:
    """A message for whoever watches, on stderr."""
    if not quiet:
        print(message, file=sys.stderr, flush=True)


def bars_hidden(quiet: bool = False) -> bool:
    """Whether progress bars would only clutter: asked for, or stderr is no terminal."""
    return quiet or not sys.stderr.isatty()


class LineProgress:
    """Progress as lines on stderr, for logs: one per tenth of the work or per minute; none of what takes seconds."""

    def __init__(self, total: int, description: str, unit: str = "it") -> None:
        self.total, self.description, self.unit = total, description, unit
        self.n = 0
        self._first: int | None = None
        self._began = self._said = time.monotonic()

    def __enter__(self) -> LineProgress:
        return self

    def __exit__(self, *problem: object) -> None:
        pass

    def set_postfix_str(self, text: str, refresh: bool = False) -> None:
        """A bar shows it; lines do not."""

    def update(self, count: int = 1) -> None:
        """``count`` more are done."""
        self._first = self._first or 0
        self.reach(self.n + count)

    def reach(self, done: int) -> None:
        """``done`` are done in all. If this is the first call, all but one were done before, as when a run goes on."""
        if self._first is None:
            self._first = self.n = done - 1
        before, self.n, now = self.n, done, time.monotonic()
        if self.total < 1 or now - self._said < LINE_SECONDS:
            return
        if 10 * done // self.total > 10 * before // self.total or now - self._said >= LATEST_SECONDS:
            self._said = now
            left = (now - self._began) * (self.total - done) / (done - self._first)
            note(f"{self.description}: {done} of {self.total} {self.unit}s, {now - self._began:.0f} s"
                 + (f", about {left:.0f} s left" if done < self.total else ""))  # fmt: skip


def progress(total: int, description: str, unit: str = "it", quiet: bool = False) -> Any:
    """A tqdm bar on stderr, or lines where that is no terminal, to be used with ``with``; nothing when quiet."""
    if bars_hidden() and not quiet:
        return LineProgress(total, description, unit)
    from tqdm import tqdm

    return tqdm(total=total, desc=description, unit=unit, file=sys.stderr, disable=quiet)


def step_lines(stage: str, steps: int, quiet: bool) -> Callable[[int], None] | None:
    """What to call after every training step, where no bar is shown; None where one is, or nothing shall be."""
    return LineProgress(steps, f"training ({stage})", "step").reach if bars_hidden() and not quiet else None


def _width(text: str) -> int:
    """Columns that ``text`` takes on a terminal."""
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text if not unicodedata.combining(c))


def table(headers: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Text table; a column whose cells are all numbers is aligned to the right."""
    cells = [[_cell(value) for value in row] for row in rows]
    columns = range(len(headers))
    numeric = [bool(rows) and all(row[i] is None or isinstance(row[i], int | float) for row in rows) for i in columns]
    widths = [max(_width(line[i]) for line in [list(headers), *cells]) for i in columns]

    def line(values: Sequence[str]) -> str:
        padded = []
        for value, width, right in zip(values, widths, numeric, strict=True):
            gap = " " * (width - _width(value))
            padded.append(gap + value if right else value + gap)
        return "  ".join(padded).rstrip()

    rule = "  ".join("─" * width for width in widths)
    return "\n".join([line(headers), rule, *(line(row) for row in cells)])


def _cell(value: object) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.3f}" if abs(value) < 10 else f"{value:,.2f}"
    return str(value)
