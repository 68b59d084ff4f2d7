"""Outputs that exist completely or not at all: write under a temporary name, then rename.

Temporary files and directories are locked while their writer lives, so that whatever a kill left behind is recognized
and removed by the next writer of the same output.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from accel.errors import M3vitError

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_STALE_SECONDS = 60.0
"""Younger leftovers are left alone: their writer may be about to take its lock."""


def _sync(path: Path) -> None:
    """Flush a file or directory to the disk, so that a rename never outruns the data."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _failed(target: Path, error: OSError) -> M3vitError:
    return M3vitError(f"{target}: cannot write: {error.strerror or error}")


def _prefix(target: Path) -> str:
    return f".{target.name}.tmp-"


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _remove_leftovers(target: Path) -> None:
    """Remove temporary siblings whose writer is dead."""
    for item in target.parent.iterdir():
        if not item.name.startswith(_prefix(target)):
            continue
        with contextlib.suppress(OSError):
            if time.time() - item.stat().st_mtime < _STALE_SECONDS:
                continue
            handle = os.open(item, os.O_RDONLY)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _remove(item)
            finally:
                os.close(handle)


@contextlib.contextmanager
def _locked_temporary(target: Path, directory: bool) -> Iterator[Path]:
    """A locked temporary beside ``target``, removed at the end unless it was renamed away."""
    target.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(target)
    if directory:
        temporary = Path(tempfile.mkdtemp(prefix=_prefix(target), dir=target.parent))
    else:
        handle, name = tempfile.mkstemp(prefix=_prefix(target), dir=target.parent)
        os.close(handle)
        temporary = Path(name)
    lock = os.open(temporary, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield temporary
    finally:
        os.close(lock)
        _remove(temporary)


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; rename it to ``path`` if the block succeeds, else remove it.

    Raises:
        M3vitError: the file system refused (disk full, no permission).
    """
    target = Path(path)
    try:
        with _locked_temporary(target, directory=False) as temporary:
            yield temporary
            _sync(temporary)
            temporary.chmod(0o644)
            temporary.replace(target)
            _sync(target.parent)
    except OSError as error:
        raise _failed(target, error) from error


def _swap(first: Path, second: Path) -> bool:
    """Exchange two directories in one step (Linux renameat2); False where the system cannot."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    return renameat2(_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE) == 0


def _aside(target: Path) -> Path:
    return target.with_name(f".{target.name}.old")


def _exchange(new: Path, old: Path) -> None:
    """Put directory ``new`` in the place of ``old`` and remove what was there.

    Where the system cannot swap, ``old`` steps aside under a name that :func:`recover` undoes if the process dies
    between the two renames.
    """
    if _swap(new, old):
        return  # what was old lies under the temporary name now and is removed with it
    aside = _aside(old)
    _remove(aside)
    old.replace(aside)
    new.replace(old)
    _remove(aside)


def recover(path: str | os.PathLike[str]) -> Path:
    """Undo an exchange of directories that a kill interrupted; returns ``path``, or what it is a link or dots for."""
    target = Path(path)
    with contextlib.suppress(OSError, ValueError):
        if target.name in ("", "..") or target.is_symlink():
            target = target.resolve()
        aside = _aside(target)
        if aside.is_dir() and not target.exists():
            aside.replace(target)
    return target


@contextlib.contextmanager
def atomic_directory(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary directory beside ``path`` that takes its place if the block succeeds.

    An existing directory at ``path`` stays whole until the new one is complete and on disk.

    Raises:
        M3vitError: the file system refused, or ``path`` is an existing file.
    """
    target = recover(path)
    if target.exists() and not target.is_dir():
        raise M3vitError(f"{target}: expected a directory, found a file")
    try:
        with _locked_temporary(target, directory=True) as temporary:
            yield temporary
            for item in temporary.rglob("*"):
                _sync(item)
            _sync(temporary)
            temporary.chmod(0o755)
            try:
                temporary.replace(target)
            except OSError:  # there is a directory already, perhaps since a moment ago by another writer
                if not target.is_dir():
                    raise
                _exchange(temporary, target)
            _sync(target.parent)
    except OSError as error:
        raise _failed(target, error) from error
