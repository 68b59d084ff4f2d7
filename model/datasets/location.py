"""Where a data set lies: one rule for options, environment variables and ``m3vit data check``."""

from __future__ import annotations

import os
from pathlib import Path

from accel.errors import DataError
from model.datasets.common import DatasetSpec

DATA_ROOT = "M3VIT_DATA_ROOT"


def locate(spec: DatasetSpec, root: str | os.PathLike[str] | None = None) -> Path:
    """The data set's folder, or its one-file release.

    Looked for at the argument, else at the data set's own variable, else at ``M3VIT_DATA_ROOT``. Each may be the data
    set's folder, the folder that has it under its usual name (``NYUD_MT`` …), the one-file release (any .mat file) or
    the folder that has that; ``~`` is expanded. A folder with nothing known in it is taken as the data set's own, so
    that what it lacks can be named.

    Raises:
        DataError: none of the three is given, or there is nothing, or a file that is no such release.
    """
    if root is not None:
        path, origin = Path(root), "root"
    elif os.environ.get(spec.variable):
        path, origin = Path(os.environ[spec.variable]), spec.variable
    elif os.environ.get(DATA_ROOT):
        path, origin = Path(os.environ[DATA_ROOT]), DATA_ROOT
    else:
        raise DataError(f"data set {spec.name!r}: root: expected a directory, {spec.variable} or {DATA_ROOT}; "
                        "found none of them")  # fmt: skip
    path = path.expanduser()
    found = find_in(spec, path)
    if found is not None:
        return found
    inner = path / spec.folder
    if inner.is_dir():
        return inner
    if origin == DATA_ROOT:
        path = inner  # which holds several data sets, so it is not this one's
    if not path.is_dir():
        here = "a file" if path.exists() else "nothing"
        raise DataError(f"{path}: {origin}: expected the directory of data set {spec.name!r}, found {here}")
    return path


def find_in(spec: DatasetSpec, path: Path) -> Path | None:
    """The data set if ``path`` is it, or holds it under its usual name; None if there is no trace of it."""
    if spec.one_file is not None and path.suffix == ".mat" and path.is_file():
        return path
    for place in (path, path / spec.folder):
        if spec.one_file is not None and (place / spec.one_file).is_file() and not (place / spec.marks[0]).exists():
            return place / spec.one_file
        if any((place / mark).exists() for mark in spec.marks):
            return place
    return None
