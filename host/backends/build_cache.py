"""What the builders of simulated engines share.

A build is kept under a name made from everything that went into it, so it is built once and found again by every
process, and a change of any source builds another.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import platform
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

Note = Callable[[str], object]
"""Called with one line when a build starts."""


def say(line: str) -> None:
    """Say on stderr that something will take a while."""
    print(line, file=sys.stderr, flush=True)


def cache_folder(kind: str) -> Path:
    """``build/KIND`` of the checkout, or a folder of the user's where the checkout cannot be written."""
    if os.access(ROOT, os.W_OK):
        return ROOT / "build" / kind
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "m3vit" / kind


def build_key(parts: Sequence[str], files: Sequence[Path]) -> str:
    """Hash of everything a build depends on: flags and versions, and the names and texts of its sources."""
    digest = hashlib.sha256()
    for part in (*parts, *(text for path in files for text in (path.name, path.read_text(encoding="utf-8")))):
        digest.update(part.encode() + b"\0")
    return digest.hexdigest()[:16]


def processor() -> str:
    """What ``-march=native`` depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.machine())


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock file: the second of two processes waits, then finds what the first has built."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
