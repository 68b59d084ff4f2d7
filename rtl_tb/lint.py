"""Lints every module of the engine with Verilator, all warnings on, for every hardware preset.

Usage: ``python -m rtl_tb.lint [module ...]``; prints what was found and returns 1 if anything was.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from accel.atomic import atomic_write
from accel.config import HARDWARE
from accel.errors import M3vitError
from host.backends.toolchain import find_toolchain
from rtl_tb.runner import BOARD, BUILD, HERE, RTL, package

ARGUMENTS = (
    "--lint-only", "-Wall", "+libext+.sv",
    # The port "interrupt" is named by Vitis HLS; Verilator minds that the word means something to C++ compilers.
    "-Wno-SYMRSVDWORD",
)  # fmt: skip


def modules() -> list[Path]:
    """Files to lint: every module of the engine and of the board around it."""
    found = [*sorted(RTL.glob("*.sv")), *sorted(BOARD.glob("*.sv")), *sorted(HERE.glob("*.sv"))]
    return [path for path in found if not path.stem.endswith("_pkg")]


def lint(path: Path, packages: Sequence[Path]) -> str:
    """What Verilator says about a module and those below it; nothing if all is well."""
    tools = find_toolchain()
    folders = [item for folder in (RTL, BOARD, HERE) for item in ("-y", str(folder))]
    sources = list(dict.fromkeys(map(str, [*packages, RTL / "engine_pkg.sv", path])))
    done = subprocess.run(
        [tools.verilator, *ARGUMENTS, *folders, "--top-module", path.stem, *sources],
        capture_output=True, text=True, env=tools.environment(),
    )  # fmt: skip
    said = (done.stdout + done.stderr).strip()
    # Its report at the end is no warning.
    said = "\n".join(line for line in said.splitlines() if not line.startswith("- "))
    return said or (f"Verilator returned {done.returncode}" if done.returncode else "")


def lint_all(paths: Sequence[Path], preset: str) -> dict[str, str]:
    """Module → what Verilator says, for those that it says something about; every warning once.

    What was found clean is remembered by content and not looked at again.
    """
    packages = [package(preset)]
    stamp = BUILD / f"lint-{preset}.stamp"
    state = _state([*packages, *modules(), RTL / "engine_pkg.sv"], paths)
    if stamp.is_file() and stamp.read_text() == state:
        return {}
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        said = list(pool.map(lambda path: lint(path, packages), paths))
    seen: set[str] = set()
    found = {path.stem: "\n".join(_new(text, seen)) for path, text in zip(paths, said, strict=True)}
    found = {name: text for name, text in found.items() if text}
    if not any(said):
        with atomic_write(stamp) as temporary:
            temporary.write_text(state)
    return found


def _new(text: str, seen: set[str]) -> list[str]:
    """The messages of a run that were not seen before; a message starts with %."""
    kept: list[str] = []
    keep = True
    for line in text.splitlines():
        if line.startswith("%"):
            keep = line not in seen and "Exiting due to" not in line
            seen.add(line)
        if keep:
            kept.append(line)
    return kept


def _state(files: Sequence[Path], paths: Sequence[Path]) -> str:
    """Hash of everything that the outcome depends on."""
    digest = hashlib.sha256()
    for part in (find_toolchain().version, *ARGUMENTS, *(path.stem for path in paths)):
        digest.update(part.encode() + b"\0")
    for path in files:
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def main(names: Sequence[str]) -> int:
    """Command line."""
    paths = [path for path in modules() if not names or path.stem in names]
    unknown = sorted(set(names) - {path.stem for path in paths})
    if unknown:
        print(f"error: no module {unknown[0]}", file=sys.stderr)
        return 1
    status = 0
    try:
        for preset in HARDWARE:
            for name, text in lint_all(paths, preset).items():
                print(f"== {name} ({preset})\n{text}", file=sys.stderr)
                status = 1
    except M3vitError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if not status:
        print(f"Verilator: {len(paths)} modules clean for {', '.join(HARDWARE)}")
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
