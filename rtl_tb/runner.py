"""Builds units of the engine with Verilator and runs their cocotb benches.

A bench is a file ``rtl_tb/test_<unit>.py`` with cocotb tests. It may declare, as plain literals at top level::

    TOPLEVEL = "route"             # module under test; by default <unit>
    PRESETS = ("ci", "zcu104")     # hardware presets to build it for; by default ("ci",)
    PARAMETERS = ({"DEPTH": 4},)   # module parameters, one build for each; by default one build without any
    SOURCES = ("board/model.cpp",) # files of this folder to compile besides; modules of rtl/ and here are found by name
    VISIBLE = True                 # make signals inside the module visible, which is ten times slower
    SLOW = True                    # for `make test-all` only

While it runs, the environment holds the preset's name as ``M3VIT_HARDWARE``, and this folder is on the path::

    python -m rtl_tb.runner test_route --preset zcu104 --seed 7 --waves
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import hashlib
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from accel.config import HARDWARE, Formats, Hardware, hardware
from accel.errors import M3vitError
from accel.generate import SV_PACKAGE, folder_name, write
from host.backends.build_cache import locked
from host.backends.toolchain import find_toolchain

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
RTL, BOARD = HERE / "rtl", HERE / "board"
BUILD = ROOT / "build" / "rtl_tb"
GENERATED = ROOT / "build" / "generated"

BUILD_ARGUMENTS = (
    "-Wall", "-Wno-fatal", "--assert", "-O3",
    # Registers without a reset start with random values: what depends on them fails with some seed.
    "--x-assign", "unique", "--x-initial", "unique",
    # Generated code is fast enough without the hour that g++ spends on optimizing functions that run once.
    "--output-split", "20000",
)  # fmt: skip
OPTIMIZE = ("-O2", "-march=native")


class BenchError(M3vitError):
    """A bench is declared wrongly, does not build, or its tests failed."""


@dataclass(frozen=True)
class Bench:
    """What a bench file declares. See the module's documentation."""

    path: Path
    toplevel: str
    presets: tuple[str, ...] = ("ci",)
    parameters: tuple[Mapping[str, int], ...] = ({},)
    sources: tuple[str, ...] = ()
    visible: bool = False
    slow: bool = False

    @property
    def name(self) -> str:
        return self.path.stem


@dataclass(frozen=True)
class Case:
    """One build of a bench."""

    bench: Bench
    preset: str
    parameters: Mapping[str, int] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """E.g. ``test_fifo-ci-DEPTH4``; names folders and pytest cases."""
        return "-".join((self.bench.name, self.preset, *(f"{key}{value}" for key, value in self.parameters.items())))


_DECLARATIONS = ("TOPLEVEL", "PRESETS", "PARAMETERS", "SOURCES", "VISIBLE", "SLOW")


def read_bench(path: Path) -> Bench:
    """The declarations of a bench file, without executing it."""
    found: dict[str, Any] = {}
    for node in ast.parse(path.read_text(encoding="utf-8"), str(path)).body:
        if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
            name = node.targets[0].id
            if name in _DECLARATIONS:
                try:
                    found[name] = ast.literal_eval(node.value)
                except ValueError as error:
                    raise BenchError(f"{path}: {name}: expected a literal") from error
    bench = Bench(
        path,
        found.get("TOPLEVEL", path.stem.removeprefix("test_")),
        tuple(found.get("PRESETS", ("ci",))),
        tuple(found.get("PARAMETERS", ({},))),
        tuple(found.get("SOURCES", ())),
        bool(found.get("VISIBLE", False)),
        bool(found.get("SLOW", False)),
    )
    unknown = set(bench.presets) - set(HARDWARE)
    if unknown or not bench.presets:
        raise BenchError(f"{path}: PRESETS = {bench.presets!r}: expected some of {', '.join(HARDWARE)}")
    return bench


def discover() -> list[Bench]:
    """Every bench of this folder, by name."""
    return [read_bench(path) for path in sorted(HERE.glob("test_*.py"))]


def cases(bench: Bench) -> list[Case]:
    """Every build of a bench."""
    return [Case(bench, preset, parameters) for preset in bench.presets for parameters in bench.parameters]


def package(preset: str | Hardware) -> Path:
    """The generated ``m3vit_pkg.sv`` of a preset, or of any engine."""
    formats, engine = Formats(), hardware(preset) if isinstance(preset, str) else preset
    with locked(GENERATED / f".{folder_name(formats, engine)}.lock"):
        return write(GENERATED, formats, engine) / SV_PACKAGE


def _sources(case: Case) -> list[str]:
    """SystemVerilog files to name: packages, what the bench lists, and the module under test, which comes last."""
    extra = [str(HERE / name) for name in case.bench.sources if name.endswith(".sv")]
    top = [folder / f"{case.bench.toplevel}.sv" for folder in (RTL, BOARD, HERE)]
    found = [str(path) for path in top if path.is_file()]
    return list(dict.fromkeys([str(package(case.preset)), str(RTL / "engine_pkg.sv"), *extra, *found]))


def _digest(path: str) -> str:
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()
    except OSError:
        return "missing"


def _dependencies(folder: Path) -> list[str]:
    """Source files that Verilator read, from its own list."""
    listed = (folder / "Vtop__ver.d").read_text().replace("\\\n", " ").partition(":")[2].split()
    return sorted(name for name in listed if name.endswith((".sv", ".vlt", ".cpp", ".h")))


def _current(folder: Path, arguments: Sequence[str]) -> bool:
    """Whether the build in ``folder`` was made with these arguments from these very files."""
    try:
        stamp = json.loads((folder / "stamp.json").read_text())
        files: dict[str, str] = stamp["files"]
        return stamp["arguments"] == list(arguments) and all(_digest(name) == sha for name, sha in files.items())
    except (OSError, ValueError, KeyError):
        return False


def _runner(visible: bool) -> Any:
    from cocotb_tools.runner import Verilator

    tools = find_toolchain()

    class Tuned(Verilator):
        """cocotb's runner with our tools, and without the flag that makes every signal visible."""

        def _set_env_build(self) -> None:
            super()._set_env_build()
            self.env.update(tools.environment(OPTIMIZE))

        def _set_env_test(self) -> None:
            super()._set_env_test()
            self.env["PYTHONPATH"] = os.pathsep.join([str(HERE), str(ROOT), self.env["PYTHONPATH"]])

        def _simulator_in_path_build_only(self) -> None:
            self.executable = tools.verilator

        def _build_command(self) -> Any:
            verilate, make = super()._build_command()
            if not visible:
                verilate = [item for item in verilate if item != "--public-flat-rw"]
            return [verilate, [tools.make, *make[1:]]]

    return Tuned()


def build(case: Case, folder: Path, *, coverage: bool = False, waves: bool = False) -> Any:
    """Build a bench's simulator in ``folder`` unless the one there is up to date; returns cocotb's runner."""
    bench = case.bench
    folder.mkdir(parents=True, exist_ok=True)
    # Without public variables cocotb finds no root handle. The file must come first, or cocotb mistakes the language.
    control = folder / "visible.vlt"
    control.write_text(f'`verilator_config\npublic_flat_rw -module "{bench.toplevel}" -var "*"\n')
    sources = _sources(case)
    arguments = [*BUILD_ARGUMENTS, "+libext+.sv"]
    for path in (RTL, BOARD, HERE):
        arguments += ["-y", str(path)]
    # C++ can be reached from the bench (ctypes) if the program exports its symbols.
    native = [str(HERE / name) for name in bench.sources if name.endswith(".cpp")]
    arguments += [*native, "-LDFLAGS", "-rdynamic"] if native else []
    arguments += ["--coverage-line"] if coverage else []
    arguments += ["--trace-fst"] if waves and find_toolchain().writes_fst else []
    runner = _runner(bench.visible)
    description = [find_toolchain().version, *OPTIMIZE, *arguments, *sources, bench.toplevel, str(bench.visible),
                   *(f"{name}={value}" for name, value in case.parameters.items())]  # fmt: skip
    if not _current(folder, description):
        (folder / "stamp.json").unlink(missing_ok=True)
        log = folder / "build.log"
        try:
            runner.build(
                sources=[*([] if bench.visible else [control]), *sources],
                hdl_toplevel=bench.toplevel,
                build_dir=folder,
                build_args=arguments,
                parameters=case.parameters,
                timescale=("1ns", "1ps"),
                waves=waves,
                log_file=log,
            )
        except (Exception, SystemExit) as error:
            raise BenchError(f"{case.name}: does not build: {_telling(log)}; see {log}") from error
        files = {name: _digest(name) for name in _dependencies(folder)}
        (folder / "stamp.json").write_text(json.dumps({"arguments": description, "files": files}))
    return runner


def _telling(log: Path, tail: int = 1) -> str:
    """The first error in a log, or its last lines."""
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    errors = [line for line in lines if line.startswith("%Error") or " error: " in line]
    return "\n".join(errors[:1] or lines[-tail:])


def run(
    case: Case, *, seed: int | None = None, coverage: bool = False, waves: bool = False, testcase: str | None = None
) -> int:
    """Build a bench and run its tests; returns how many passed.

    Raises:
        BenchError: it does not build, a test failed, or there is none. The message ends with the end of the log.
    """
    from cocotb_tools.check_results import get_results

    folder = BUILD / (case.name + ("-coverage" if coverage else "") + ("-waves" if waves else ""))
    seed = int.from_bytes(os.urandom(4), "little") if seed is None else seed
    log, results = folder / "test.log", folder / "results.xml"
    with locked(BUILD / f".{folder.name}.lock"):
        runner = build(case, folder, coverage=coverage, waves=waves)
        results.unlink(missing_ok=True)
        with contextlib.suppress(SystemExit, RuntimeError):  # how the runner says that a test failed or crashed
            runner.test(
                test_module=case.bench.name,
                hdl_toplevel=case.bench.toplevel,
                hdl_toplevel_lang="verilog",
                build_dir=folder,
                results_xml=str(results),
                seed=seed,
                testcase=testcase,
                waves=waves,
                plusargs=["+verilator+rand+reset+2", f"+verilator+seed+{seed & 0x7FFFFFFF or 1}"],
                extra_env={"M3VIT_HARDWARE": case.preset},
                log_file=log,
            )
        try:
            tests, failed = get_results(results)
        except RuntimeError:
            tests, failed = 0, 1
    if failed or not tests:
        end = "\n".join(log.read_text(errors="replace").splitlines()[-60:]) if log.exists() else ""
        raise BenchError(f"{case.name}: {failed} of {tests} tests failed with seed {seed}; see {log}\n{end}")
    return tests


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns 1 after printing why a bench failed."""
    parser = argparse.ArgumentParser(prog="python -m rtl_tb.runner", description="Run cocotb benches.")
    parser.add_argument("bench", nargs="*", help="test_<unit>, or <unit>; default: all")
    parser.add_argument("--preset", choices=sorted(HARDWARE), help="only this one (default: those that it declares)")
    parser.add_argument("--seed", type=int, help="default: a new one, printed")
    parser.add_argument("--testcase", help="only this test of the bench")
    parser.add_argument("--waves", action="store_true", help="write dump.fst or dump.vcd to the build folder")
    parser.add_argument("--coverage", action="store_true", help="record line coverage")
    options = parser.parse_args(arguments)
    wanted = {name if name.startswith("test_") else f"test_{name}" for name in options.bench}
    status = 0
    for name in sorted(wanted - {bench.name for bench in discover()}):
        print(f"error: no bench {HERE / name}.py", file=sys.stderr)
        status = 1
    for bench in discover():
        for case in cases(bench):
            if (wanted and bench.name not in wanted) or options.preset not in (None, case.preset):
                continue
            try:
                count = run(case, seed=options.seed, coverage=options.coverage, waves=options.waves,
                            testcase=options.testcase)  # fmt: skip
                print(f"{case.name}: {count} passed")
            except M3vitError as error:
                print(f"error: {error}", file=sys.stderr)
                status = 1
    return status


if __name__ == "__main__":
    sys.exit(main())
