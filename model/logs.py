"""Training logs: a CSV file always, TensorBoard event files where tensorboard is installed."""

from __future__ import annotations

import csv
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from accel.atomic import atomic_write


class TrainingLog:
    """Rows of numbers by step.

    Args:
        path: the CSV file. Its columns are ``step`` and ``columns``.
        start: rows after this step are dropped first: they belong to work that was lost in a kill.
        active: False makes every method do nothing (processes other than the first).
        tensorboard: write event files beside the CSV, under ``tensorboard/<stage>``.
    """

    def __init__(
        self,
        path: Path,
        columns: list[str],
        start: int = 0,
        active: bool = True,
        tensorboard: bool = True,
        stage: str = "float",
    ) -> None:
        self.path, self.columns, self.start, self.active = path, columns, start, active
        self._tensorboard, self._stage = tensorboard, stage
        self._file: IO[str] | None = None
        self._events: Any = None

    def __enter__(self) -> TrainingLog:
        if not self.active:
            return self
        kept = _rows_until(self.path, self.columns, self.start)
        with atomic_write(self.path) as temporary, temporary.open("w", newline="") as file:
            csv.writer(file).writerows([["step", *self.columns], *kept])
        self._file = self.path.open("a", newline="")
        if self._tensorboard and importlib.util.find_spec("tensorboard"):
            from torch.utils.tensorboard import SummaryWriter

            folder = self.path.parent / "tensorboard" / self._stage
            self._events = SummaryWriter(str(folder), purge_step=self.start + 1)
        return self

    def write(self, step: int, row: Mapping[str, float]) -> None:
        """Append one row; it is on its way to the disk when this returns."""
        if self._file is None:
            return
        csv.writer(self._file).writerow([step, *(repr(row[name]) for name in self.columns)])
        self._file.flush()
        if self._events is not None:
            for name in self.columns:
                self._events.add_scalar(name, row[name], step)

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()
        if self._events is not None:
            self._events.close()


def _rows_until(path: Path, columns: list[str], step: int) -> list[list[str]]:
    """Complete rows of an existing log up to ``step``; none if it has other columns."""
    if step == 0 or not path.exists():
        return []
    with path.open(newline="") as file:
        rows = list(csv.reader(file))
    if not rows or rows[0] != ["step", *columns]:
        return []
    complete = [row for row in rows[1:] if len(row) == len(columns) + 1 and row[0].isdigit()]
    return [row for row in complete if int(row[0]) <= step]


def read_log(path: Path) -> list[dict[str, float]]:
    """Rows of a CSV log as numbers."""
    with path.open(newline="") as file:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]
