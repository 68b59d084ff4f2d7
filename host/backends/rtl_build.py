"""Builds the simulated board: the engine in SystemVerilog with its memory, as a library that Python can load.

A library is kept under a name made from everything that went into it (configuration, sources, flags, compiler,
processor), so it is built once and found again by every process, and a change of any source builds another.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from accel.config import Formats, Hardware
from accel.emit_sv import emit
from accel.errors import ConfigError, DeviceError
from accel.generate import SV_PACKAGE, folder_name
from host.backends.build_cache import ROOT, Note, build_key, cache_folder, locked, processor, say
from host.backends.toolchain import FAST, Toolchain, find_toolchain

SOURCES = ROOT / "rtl_tb"
LIBRARY = "libm3vit_board.so"
TOP = "m3vit_board"
KEPT = 12
"""Builds that stay when a new one is added; older ones are removed once a day has passed since their last use."""
_DAY = 86_400.0
_SMALL = 1024
"""Multiply-accumulates per cycle of an engine that is built fast."""


def _estimate(hardware: Hardware) -> str:
    """How long a build takes: `ci` 13 to 96 s, `zcu104` 2 to 6 min in logs of a machine with two cores."""
    return "about a minute" if hardware.macs_per_cycle <= _SMALL else "two to six minutes"


def trace_format(path: str | os.PathLike[str]) -> str:
    """``fst`` or ``vcd``, from the end of a file name."""
    suffix = Path(path).suffix
    if suffix not in (".fst", ".vcd"):
        raise DeviceError(f"{os.fspath(path)}: expected a name that ends in .fst or .vcd")
    if suffix == ".fst" and not find_toolchain().writes_fst:
        raise DeviceError(
            f"{os.fspath(path)}: FST needs the headers lz4.h and zlib.h, which are not there; "
            "install them (Debian: liblz4-dev zlib1g-dev) or give a name that ends in .vcd"
        )
    return suffix[1:]


def arguments(*, trace: str | None, assertions: bool, coverage: bool) -> list[str]:
    """Verilator's arguments, paths excluded."""
    chosen = [
        "--cc", "--exe", "--top-module", TOP, "--threads", "1", "-O3", "--x-assign", "fast", "--x-initial", "fast",
        "--assert" if assertions else "--no-assert", "-Wno-fatal", "-Wno-lint", "-Wno-style",
        # Several files, so that several processors compile them.
        "--output-split", "20000",
        "-o", LIBRARY,
        "-CFLAGS", "-std=gnu++17 -fPIC -DVL_USER_STOP -DVL_USER_FATAL -DVL_USER_FINISH",
        "-LDFLAGS", "-shared",
    ]  # fmt: skip
    if trace:
        chosen.append(f"--trace-{trace}")
    if coverage:
        chosen.append("--coverage-line")
    return chosen


def check_hardware(hardware: Hardware) -> None:
    """Raise ConfigError for what the RTL is not written for, although a configuration may hold it."""
    lines = -(-hardware.max_inputs // hardware.line_bytes)
    stored = hardware.max_tokens * -(-hardware.max_width // hardware.line_bytes)
    words = hardware.tile_outputs // hardware.port_bytes
    rules = (
        ("ports", hardware.ports >= 2, "at least 2"),
        ("port_bytes", hardware.port_bytes == 16, "16 (128-bit HP ports)"),
        ("burst_beats", hardware.burst_beats >= 2, "at least 2"),
        ("outstanding", hardware.outstanding >= 2, "at least 2"),
        ("max_experts", hardware.max_experts >= 2, "at least 2"),
        ("max_top_k", hardware.max_top_k >= 2, "at least 2"),
        ("topk_lanes", hardware.topk_lanes >= 2 and hardware.tile_outputs % hardware.topk_lanes == 0,
         f"at least 2 and a divisor of tile_outputs = {hardware.tile_outputs}"),
        ("tile_outputs", hardware.tile_outputs % hardware.port_bytes == 0 and words <= hardware.ports,
         f"a multiple of port_bytes = {hardware.port_bytes}, at most {hardware.ports} of them"),
        ("tile_tokens", hardware.tile_tokens % 2 == 0, "an even number (two tokens share a DSP)"),
        # Rows are asked for in whole stripes: one that does not fit entirely would keep the tile waiting for ever.
        ("max_tokens", hardware.tile_tokens * lines + hardware.burst_beats - 1 <= stored < 1 << 15,
         f"{hardware.tile_tokens} rows of max_inputs and a stripe to fit the input store, and less than 32768 lines in "
         "it"),
        ("max_top_k", hardware.max_tokens * hardware.max_top_k < 1 << 17, "fewer than 131072 pairs with max_tokens"),
    )  # fmt: skip
    for name, ok, expected in rules:
        if not ok:
            value = getattr(hardware, name)
            raise ConfigError(f"hardware {hardware.name!r}: {name} = {value}: expected {expected} for the RTL engine")


def build(
    hardware: Hardware,
    formats: Formats,
    *,
    trace: str | None = None,
    assertions: bool = False,
    coverage: bool = False,
    note: Note = say,
    sources: Path = SOURCES,
    cache: Path | None = None,
) -> Path:
    """Path of the library for an engine, built if it is not there yet.

    Args:
        trace: ``fst`` or ``vcd``: able to write waveforms of this format, which makes it slower.
        assertions: with the assertions of the RTL, which makes it slower.
        coverage: able to record line coverage, which makes it slower.
        note: told before a build starts.
        sources: folder with ``rtl/`` and ``board/``.
        cache: folder of the builds, by default ``cache_folder("rtl")``.

    Raises:
        ConfigError: the RTL is not written for this hardware.
        DeviceError: a tool or the sources are missing, or the build failed; one line, the log named in it.
    """
    check_hardware(hardware)
    tools = find_toolchain()
    files = source_files(sources)
    package = emit(formats, hardware)
    flags = arguments(trace=trace, assertions=assertions, coverage=coverage)
    name = f"{folder_name(formats, hardware)}-{build_key([package, *flags, *FAST, tools.version, processor()], files)}"
    cache = cache or cache_folder("rtl")
    target = cache / name
    try:
        with locked(cache / f".{name}.lock"):
            if not (target / LIBRARY).is_file():
                note(
                    f"rtl: building the {hardware.name!r} engine with Verilator, once, {_estimate(hardware)}; "
                    f"log: {cache / name}.log"
                )
                _build(tools, files, package, flags, target)
                _prune(cache, target)
            os.utime(target)
    except OSError as error:
        raise DeviceError(f"rtl: {target}: cannot build: {error.strerror or error}") from error
    return target / LIBRARY


def source_files(sources: Path) -> list[Path]:
    """What the library is made of, besides the generated package; packages first."""
    board = sources / "board"
    found = [*sorted((sources / "rtl").glob("*.sv")), *sorted(board.glob("*.sv")), *sorted(board.glob("*.[ch]*"))]
    if not (board / "board.cpp").is_file() or not (sources / "rtl").is_dir():
        raise DeviceError(f"rtl: {sources}: expected rtl/ and board/ of a checkout of the repository, found neither")
    return sorted(found, key=lambda path: not path.name.endswith("_pkg.sv"))


def _build(tools: Toolchain, files: Sequence[Path], package: str, flags: Sequence[str], target: Path) -> None:
    log = target.with_name(f"{target.name}.log")
    log.write_text("")
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as name:
        folder = Path(name)
        (folder / SV_PACKAGE).write_text(package, encoding="utf-8")
        objects = folder / "objects"
        unique = [] if "clang" in tools.version else ["-CFLAGS", "-fno-gnu-unique"]  # two libraries in one process
        sources = [str(path) for path in files if path.suffix in (".sv", ".cpp")]
        tools.run(
            [tools.verilator, *flags, *unique, "--Mdir", str(objects), str(folder / SV_PACKAGE), *sources],
            log, "rtl: Verilator",
        )  # fmt: skip
        jobs = len(os.sched_getaffinity(0))
        tools.run([tools.make, "-C", str(objects), "-f", f"V{TOP}.mk", f"-j{jobs}"], log, "rtl: compiler")
        done = folder / "done"
        done.mkdir()
        shutil.move(objects / LIBRARY, done / LIBRARY)
        shutil.move(folder / SV_PACKAGE, done / SV_PACKAGE)
        done.replace(target)
    log.replace(target / "build.log")


def _prune(cache: Path, newest: Path) -> None:
    """Remove builds that nobody has used for long, so that the folder does not grow for ever."""
    builds = [path for path in cache.iterdir() if (path / LIBRARY).is_file() and path != newest]
    builds.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    for path in builds[KEPT:]:
        if time.time() - path.stat().st_mtime > _DAY:
            shutil.rmtree(path, ignore_errors=True)
