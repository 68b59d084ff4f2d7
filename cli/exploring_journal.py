"""The journal of an exploration: every simulation once, safe from kills, and only for what it was made for."""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from accel.config import digest, parse_json, to_dict
from accel.errors import ConfigError, DataError, M3vitError
from cli.training import refuse_other, write_json
from sim.explore import Problem

JOURNAL, PLAN = "simulations.jsonl", "plan.json"

Figures = dict[str, Any]


def _sources() -> str:
    """Digest of the simulator's sources and of those that it uses: figures of another version are not these figures."""
    import accel
    import sim

    found = hashlib.sha256()
    for package in (accel, sim):
        for path in sorted(Path(str(package.__file__)).parent.rglob("*.py")):
            found.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return found.hexdigest()[:16]


def identity(problem: Problem) -> dict[str, Any]:
    """Everything that a simulation depends on besides the candidate, ready for JSON."""
    routing: Any = problem.routing
    if not isinstance(routing, str):
        parts = dataclasses.asdict(routing)
        routing = digest({name: value.tolist() if isinstance(value, np.ndarray) else value
                          for name, value in parts.items()})[:16]  # fmt: skip
    return {
        "network": to_dict(problem.network), "formats": to_dict(problem.formats), "jobs": list(problem.tasks),
        "routing": routing, "seed": problem.seed, "memory": problem.memory.to_dict(), "simulator": _sources(),
    }  # fmt: skip


class Journal:
    """Simulations of one folder, a line of JSON each; open it with ``with``.

    Whoever has it open holds it alone. A line that a kill cut off is dropped; any other damage is a DataError.

    Args:
        folder: made if missing.
        plan: what its simulations depend on; ConfigError if those there depend on something else.
        resume: False throws away what is there.
    """

    def __init__(self, folder: Path, plan: Mapping[str, Any], resume: bool = True) -> None:
        self.figures: dict[str, Figures] = {}
        self.path = folder / JOURNAL
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("a+b")
        except OSError as error:
            raise M3vitError(f"{folder}: cannot write: {error.strerror or error}") from error
        try:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise ConfigError(f"{folder}: another exploration is writing here: use another folder") from None
            if not resume:
                self._file.truncate(0)
            elif (folder / PLAN).exists():
                refuse_other(folder / PLAN, _plan(folder / PLAN), plan)
            self._read()
            write_json(folder / PLAN, plan)
        except BaseException:
            self._file.close()
            raise

    def _read(self) -> None:
        self._file.seek(0)
        whole = 0
        for number, line in enumerate(self._file.readlines(), 1):
            if not line.endswith(b"\n"):
                break
            try:
                entry = json.loads(line)
                self.figures[str(entry["key"])] = dict(entry["figures"])
            except (ValueError, KeyError, TypeError) as error:
                raise DataError(f"{self.path}: line {number}: damaged: expected a simulation, found {line[:40]!r}; "
                                f"--no-resume starts anew") from error  # fmt: skip
            whole += len(line)
        self._file.truncate(whole)

    def add(self, key: str, figures: Figures) -> None:
        """Keep a simulation, on the disk before this returns."""
        try:
            self._file.write(json.dumps({"key": key, "figures": figures}).encode() + b"\n")
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise M3vitError(f"{self.path}: cannot write: {error.strerror or error}") from error
        self.figures[key] = figures

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:  # fmt: skip
        self._file.close()


def _plan(path: Path) -> dict[str, Any]:
    try:
        found = parse_json(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot read: {error}") from error
    return found if isinstance(found, dict) else {}
