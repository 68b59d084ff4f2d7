"""What the commands share on the terminal: results on stdout, progress and messages on stderr."""

from __future__ import annotations

import importlib.metadata
import json
import sys
import unicodedata
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])

DISTRIBUTION = "m3vit-codesign"


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


def progress(total: int, description: str, unit: str = "it", quiet: bool = False) -> Any:
    """A tqdm bar on stderr, to be used with ``with``; invisible when quiet or not on a terminal."""
    from tqdm import tqdm

    return tqdm(total=total, desc=description, unit=unit, file=sys.stderr, disable=bars_hidden(quiet))


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
