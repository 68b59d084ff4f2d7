"""Builds the engine in HLS C++ as a library that Python can load, or as the test bench that replays recorded cases.

Like the RTL's, a build is kept under a name made from everything that went into it. The fast build needs a compiler and
nothing else; the bit-true one, with the widths of the hardware, the open ``ap_int`` headers that hls4ml brings.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from accel.config import Formats, Hardware
from accel.emit_cpp import emit
from accel.errors import DeviceError
from accel.generate import folder_name
from host.backends.build_cache import ROOT, Note, build_key, cache_folder, locked, processor, say
from host.backends.toolchain import first_error

SOURCES = ROOT / "hls_src"
HEADER = "m3vit_config.h"
LIBRARY, BENCH = "libm3vit_hls.so", "m3vit_bench"
WARNINGS = (
    "-Wall", "-Wextra", "-Werror",
    "-Wno-unknown-pragmas",  # HLS
    "-Wno-unused-label",  # loops have names for the synthesis report
)  # fmt: skip
FAST = ("-O3", "-march=native")
BIT_TRUE = (
    "-O2", "-DM3VIT_AP_TYPES",
    # Inside the open ap_int headers, whose constructors leave a value unset on purpose.
    "-Wno-uninitialized", "-Wno-maybe-uninitialized", "-Wno-unknown-warning-option",
)  # fmt: skip
SANITIZE = ("-O1", "-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
RACES = ("-O1", "-g1", "-fsanitize=thread")
KEPT = 48
"""Builds that stay when a new one is added: those used last. They are small."""
_AP_TYPES = "templates/vivado/ap_types"


def find_compiler(names: Sequence[str] = ("g++", "c++", "clang++")) -> str:
    """Path of the first of these programs; raises DeviceError if there is none."""
    for name in names:
        found = shutil.which(name)
        if found:
            return found
    raise DeviceError(f"hls: {names[0]}: expected on the PATH, found nothing; install it (Debian: g++ or clang)")


def ap_types() -> Path:
    """Folder of the open ``ap_int`` headers, in the hls4ml package."""
    spec = importlib.util.find_spec("hls4ml")
    for folder in (spec.submodule_search_locations if spec else None) or ():
        headers = Path(folder) / _AP_TYPES
        if (headers / "ap_int.h").is_file():
            return headers
    raise DeviceError(
        "hls: ap_int.h: expected in the Python package hls4ml, found no such package; "
        "install it: pip install --no-deps hls4ml"
    )


def source_files(sources: Path = SOURCES) -> list[Path]:
    """C++ files and headers of the engine, its simulation and its test bench."""
    folders = [sources / name for name in ("engine", "simulation", "bench")]
    if not (folders[0] / "engine.cpp").is_file():
        raise DeviceError(f"hls: {sources}: expected the folder hls_src of a checkout of the repository")
    return [path for folder in folders for path in sorted(folder.glob("*.[ch]*"))]


def build(
    hardware: Hardware,
    formats: Formats,
    *,
    flags: Sequence[str] = FAST,
    bench: bool = False,
    compiler: str | None = None,
    note: Note = say,
    sources: Path = SOURCES,
    cache: Path | None = None,
) -> Path:
    """Path of the library for an engine, built if it is not there yet.

    Args:
        flags: :data:`FAST`, :data:`BIT_TRUE`, :data:`SANITIZE` or :data:`RACES`.
        bench: build the test bench program instead of the library.
        compiler: by default the first of g++, c++ and clang++.
        note: told before a build starts.
        sources: folder with ``engine/``, ``simulation/`` and ``bench/``.
        cache: folder of the builds, by default ``cache_folder("hls")``.

    Raises:
        DeviceError: no compiler or no sources, or the build failed; one line, the log named in it.
    """
    compiler = compiler or find_compiler()
    files = source_files(sources)
    header = emit(formats, hardware)
    product = BENCH if bench else LIBRARY
    options = ["-std=c++17", *WARNINGS, *flags, "-pthread", "-fPIC", *([] if bench else ["-shared"])]
    includes = ["-isystem", str(ap_types())] if "-DM3VIT_AP_TYPES" in flags else []
    key = build_key([compiler, _version(compiler), product, *options, *includes, header, processor()], files)
    name = f"{folder_name(formats, hardware)}-{key}"
    cache = cache or cache_folder("hls")
    target = cache / name
    try:
        with locked(cache / f".{name}.lock"):
            if not (target / product).is_file():
                note(f"hls: building the {hardware.name!r} engine in C++, once; log: {cache / name}.log")
                units = [path for path in files if path.suffix == ".cpp" and _part_of(path, bench)]
                _build([compiler, *options, f"-I{sources}", *includes], header, units, target, product)
                _prune(cache, target)
            os.utime(target)
    except OSError as error:
        raise DeviceError(f"hls: {target}: cannot build: {error.strerror or error}") from error
    return target / product


def _part_of(path: Path, bench: bool) -> bool:
    return path.name != "binding.cpp" if bench else path.parent.name != "bench"


def _version(compiler: str) -> str:
    try:
        done = subprocess.run([compiler, "--version"], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise DeviceError(f"hls: {compiler}: does not run: {error}") from error
    return next(iter(done.stdout.splitlines()), "")


def _build(command: Sequence[str], header: str, units: Sequence[Path], target: Path, product: str) -> None:
    log = target.with_name(f"{target.name}.log")
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as name:
        folder = Path(name)
        (folder / HEADER).write_text(header, encoding="utf-8")
        whole = [*command, f"-I{folder}", *map(str, units), "-o", str(folder / product)]
        done = subprocess.run(whole, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        text = done.stdout + done.stderr
        log.write_text(f"$ {' '.join(whole)}\n{text}", encoding="utf-8")
        if done.returncode:
            raise DeviceError(f"hls: compiler: {first_error(text, done.returncode)}; see {log}")
        target.mkdir(exist_ok=True)
        for file in (HEADER, product):
            (folder / file).replace(target / file)
    log.replace(target / "build.log")


def _prune(cache: Path, newest: Path) -> None:
    """Keep the builds used last."""
    builds = [path for path in cache.iterdir() if path.is_dir() and path != newest and not path.name.startswith(".")]
    builds.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    for path in builds[KEPT:]:
        shutil.rmtree(path, ignore_errors=True)
