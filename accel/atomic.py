"""Outputs that exist completely or not at all: write under a temporary name, then rename."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from accel.errors import M3vitError


def _sync(path: Path) -> None:
    """Flush a file or directory to the disk, so that a rename never outruns the data."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _failed(action: str, path: Path, error: OSError) -> M3vitError:
    return M3vitError(f"{path}: cannot {action}: {error.strerror or error}")


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; rename it to ``path`` if the block succeeds, else remove it.

    Raises:
        M3vitError: the file system refused (disk full, no permission, missing parent).
    """
    target = Path(path)
    temporary = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
        os.close(handle)
        temporary = Path(name)
        yield temporary
        _sync(temporary)
        temporary.chmod(0o644)
        temporary.replace(target)
        _sync(target.parent)
    except OSError as error:
        raise _failed("write", target, error) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def _exchange(new: Path, old: Path) -> None:
    """Put directory ``new`` in the place of ``old``.

    A directory cannot be renamed onto a full one, so ``old`` steps aside under a name that
    :func:`recover` knows how to undo if the process dies between the two renames.
    """
    aside = old.with_name(f".{old.name}.old")
    if aside.exists():
        shutil.rmtree(aside)
    old.replace(aside)
    new.replace(old)
    shutil.rmtree(aside)


def recover(path: str | os.PathLike[str]) -> Path:
    """Undo an exchange of directories that a kill interrupted; returns ``path``."""
    target = Path(path)
    aside = target.with_name(f".{target.name}.old")
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
    temporary = None
    try:
        if target.exists() and not target.is_dir():
            raise M3vitError(f"{target}: expected a directory, found a file")
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        yield temporary
        for item in temporary.rglob("*"):
            _sync(item)
        _sync(temporary)
        temporary.chmod(0o755)
        if target.exists():
            _exchange(temporary, target)
        else:
            temporary.replace(target)
        _sync(target.parent)
    except OSError as error:
        raise _failed("write", target, error) from error
    finally:
        if temporary is not None and temporary.exists():
            shutil.rmtree(temporary, ignore_errors=True)
