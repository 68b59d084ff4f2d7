"""What the tests of the command line share: a small network, and the command in other processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
TINY = {
    "name": "tiny",
    "image_height": 16,
    "image_width": 24,
    "patch": 8,
    "embed_dim": 16,
    "depth": 4,
    "heads": 2,
    "dense_hidden": 32,
    "experts": 4,
    "top_k": 2,
    "expert_hidden": 16,
    "unit_hidden": 16,
    "tasks": [
        {"name": "semseg", "channels": 8, "kind": "labels"},
        {"name": "depth", "channels": 1, "kind": "log_depth"},
    ],
    "head_hidden": 16,
}


@dataclass
class Outcome:
    """What a command printed, and how it ended."""

    code: int
    out: str
    err: str

    def json(self) -> dict:
        """The one JSON object on stdout."""
        data = json.loads(self.out)
        assert isinstance(data, dict)
        return data

    def error(self) -> str:
        """The one line of a failure, without its prefix."""
        assert self.code == 1, self.err
        assert self.out == ""
        lines = [line for line in self.err.splitlines() if line.startswith("m3vit: ")]
        assert len(lines) == 1 and self.err.splitlines()[-1] == lines[0], self.err
        return lines[0].removeprefix("m3vit: error: ")


def environment() -> dict[str, str]:
    """Of a sub-process: the checkout on the path, one thread."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def start(*arguments: object, **options: object) -> subprocess.Popen[str]:
    """Start ``m3vit`` as a process of its own."""
    command = [sys.executable, "-m", "cli", *map(str, arguments)]
    return subprocess.Popen(
        command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    )  # type: ignore[call-overload]


def finish(process: subprocess.Popen[str]) -> Outcome:
    """Wait for a started process."""
    out, err = process.communicate(timeout=300)
    return Outcome(process.returncode, out, err)
