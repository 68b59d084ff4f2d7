"""Synthesizes the engine with Yosys for UltraScale+, unit by unit, and compares what it takes with a ZCU104.

Usage: ``python -m rtl_tb.synth --hardware zcu104 [--units array,drain] [--out build/synth/zcu104.json]``; returns 1
after saying why if something does not fit, is a latch, a memory in flip-flops, or has become slower. Any engine that
the RTL can be built for serves: ``--hardware FILE.json``.

A unit is an instance in ``m3vit_engine.sv``; the wiring between them is one more, ``engine``, in which units are
black boxes. Each is synthesized by itself (``synth_xilinx -family xcup -flatten -abc9``), so figures are sums without
optimization across units, and is kept in ``build/synth/`` until a source that it depends on changes.

LUTs and flip-flops are upper bounds. Yosys packs neither the registers nor the post-adder nor the cascade of a DSP48E2,
which Vivado does; what that comes to is counted and stated apart ("in DSP"), and still part of the figures. ``ps`` is
the longest path by ``sta``: cell delays of 7 series, no wires, nothing through DSPs and memories. It tells whether a
change made a unit slower, not its clock.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import importlib.metadata
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accel.atomic import atomic_write
from accel.config import HARDWARE, Formats, Hardware, build_hash
from accel.errors import M3vitError
from benchmarks.common import commit
from cli.arguments import parse_hardware
from host.backends.rtl_build import check_hardware
from rtl_tb import netlist
from rtl_tb.runner import ROOT, RTL, package

BUILD = ROOT / "build" / "synth"
FIGURES = ROOT / "docs" / "figures"
TOP = "m3vit_engine"
GLUE = "engine"
ARRAY = "array"
FAMILY = "synth_xilinx -family xcup -flatten -abc9 -noiopad -noclkbuf"

SUMMED = (*netlist.COUNTS, "dsp_ff", "dsp_lut", "dsp_carry4")
SLOWER = 1.15
"""A unit whose latest arrival grows by more than this over the committed figure fails."""


class SynthesisError(M3vitError):
    """Yosys is missing or refused a unit."""


@dataclass(frozen=True)
class Bound:
    """So much of the XCZU7EV on a ZCU104 (DS891), of which an engine may take a share."""

    name: str
    capacity: int
    share: float

    def used(self, total: Mapping[str, float]) -> float:
        if self.name == "BRAM36":
            return total["ramb36"] + total["ramb18"] / 2
        return total[{"DSP48E2": "dsp", "URAM288": "uram", "LUT": "lut"}[self.name]]


ZCU104 = (Bound("DSP48E2", 1728, 0.98), Bound("BRAM36", 312, 0.95), Bound("URAM288", 96, 0.95),
          Bound("LUT", 230_400, 0.85))  # fmt: skip
"""Rest of each for the platform: interconnect, clocking, debugging."""


@dataclass(frozen=True)
class Unit:
    """What is synthesized at once: a module with parameters, or the top with other modules as black boxes."""

    name: str
    module: str
    parameters: tuple[tuple[str, str], ...] = ()
    boxes: tuple[str, ...] = ()


# ---- what there is to synthesize

def _text(module: str) -> str:
    """Source of a module without comments."""
    return re.sub(r"//[^\n]*|/\*.*?\*/", "", (RTL / f"{module}.sv").read_text(encoding="utf-8"), flags=re.DOTALL)


def _modules() -> list[str]:
    return sorted(path.stem for path in RTL.glob("*.sv") if not path.stem.endswith("_pkg"))


def units() -> list[Unit]:
    """Every instance in the engine, in the order of the source, and the wiring between them."""
    text = _text(TOP)
    local = dict(re.findall(r"localparam int (\w+) = (\d+);", text))
    instance = rf"^  ({'|'.join(_modules())})\s*(?:#\((.*?)\n  \))?\s*u_(\w+)\s*\("
    found = []
    for module, parameters, name in re.findall(instance, text, re.DOTALL | re.MULTILINE):
        pairs = re.findall(r"\.(\w+)\s*\(((?:[^()]|\([^()]*\))*)\)", parameters)
        found.append(Unit(name, module, tuple((key, local.get(value, "".join(value.split()))) for key, value in pairs)))
    boxes = tuple(sorted({unit.module for unit in found}))
    return [*found, Unit(GLUE, TOP, boxes=boxes)]


def sources(unit: Unit, preset: str | Hardware) -> list[Path]:
    """Files of a unit: packages, its module, and whatever that instantiates."""
    modules = _modules()
    instance = re.compile(rf"^\s*({'|'.join(modules)})\s+(?:#\s*\(|\w+\s*\()", re.MULTILINE)
    found: list[str] = []
    left = [unit.module]
    while left:
        module = left.pop()
        if module not in found:
            found.append(module)
            left += sorted(set(instance.findall(_text(module))))
    return [package(preset), RTL / "engine_pkg.sv", *(RTL / f"{module}.sv" for module in sorted(found))]


def script(unit: Unit, files: Sequence[Path], folder: Path) -> str:
    """Yosys commands for a unit; what they write goes to ``folder``."""
    top = unit.module
    run = f"{FAMILY} -top {top} -run "
    boxed = " ".join(f"{top}/t:{name}" for name in unit.boxes)

    def write(name: str) -> list[str]:
        return [f"select {top}", f"write_json -selected {folder / name}", "select -clear"]

    commands = [
        f"read_slang -DSYNTHESIS --top {top} "
        + "".join(f"-G {key}={value} " for key, value in unit.parameters)
        + "".join(f"--blackboxed-module {name} " for name in unit.boxes)
        + " ".join(map(str, files)),
    ]
    if unit.boxes:
        # The reader hands a box everything that is constant inside, which later passes take for parameters.
        constant = re.compile(r"\b(?:localparam|parameter|genvar)\b[^;=]*?(\w+)\s*=")
        names = sorted({name for path in files for name in constant.findall(path.read_text(encoding="utf-8"))})
        commands.append(f"setparam {' '.join(f'-unset {name}' for name in names)} {boxed}")
    commands += [
        "read_verilog -lib -specify +/xilinx/cells_sim.v",
        "read_verilog -lib +/xilinx/cells_xtra.v",
        f"setattr -mod -set top 1 {top}",
        run + "prepare:coarse",
        *write("words.json"),
        run + "coarse:map_memory",
        *write("memories.json"),
        run + "map_memory:map_ffram",
        *write("left.json"),
        run + "map_ffram:check",
        f"tee -q -o {folder / 'stat.json'} stat -json {top}",
        *([f"delete {boxed}"] if unit.boxes else []),
        # Synthesis has used up the timing arcs of the library.
        "read_verilog -overwrite -lib -specify +/xilinx/cells_sim.v",
        f"tee -q -o {folder / 'sta.txt'} sta {top}",
    ]
    return "\n".join(commands) + "\n"


# ---- one unit

_YOSYS = """\
import resource, sys
from pyosys import libyosys
libyosys.run_pass("script " + sys.argv[1], libyosys.Design())
with open(sys.argv[2], "w") as handle:
    handle.write(str(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024))
"""


def version() -> str:
    """Version of Yosys."""
    try:
        return "pyosys " + importlib.metadata.version("pyosys")
    except importlib.metadata.PackageNotFoundError:
        raise SynthesisError("pyosys: not installed; pip install -c constraints.txt -e '.[synth]'") from None


def key(unit: Unit, files: Sequence[Path]) -> str:
    """Hash of everything that a unit's figures depend on."""
    digest = hashlib.sha256()
    commands = script(unit, files, Path())
    for path in files:
        commands = commands.replace(str(path), path.name)
    for part in (version(), commands, str(netlist.VERSION)):
        digest.update(part.encode() + b"\0")
    for path in files:
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def kept(unit: Unit, folder: Path, current: str) -> dict[str, Any] | None:
    """Figures of a former run with the same sources, if there are any."""
    try:
        found: dict[str, Any] = json.loads((folder / f"{unit.name}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if found.get("key") == current else None


def synthesize(unit: Unit, preset: str | Hardware, folder: Path, say: Callable[[str], object] = lambda line: None,
               files: Sequence[Path] | None = None) -> dict[str, Any]:  # fmt: skip
    """Figures of one unit, from ``folder`` if nothing has changed since they were made.

    Raises:
        SynthesisError: Yosys refused the unit; the message names the log.
    """
    files = sources(unit, preset) if files is None else files
    current = key(unit, files)
    found = kept(unit, folder, current)
    if found is not None:
        return found
    say(f"{unit.name}: Yosys …")
    work = folder / unit.name
    work.mkdir(parents=True, exist_ok=True)
    for name in ("words.json", "memories.json", "left.json", "stat.json", "sta.txt", "rss.txt"):
        (work / name).unlink(missing_ok=True)
    (work / "script.ys").write_text(script(unit, files, work), encoding="utf-8")
    log, start = work / "yosys.log", time.monotonic()
    with log.open("wb") as handle:
        process = subprocess.Popen(
            [sys.executable, "-c", _YOSYS, str(work / "script.ys"), str(work / "rss.txt")],
            stdout=handle, stderr=subprocess.STDOUT,
        )  # fmt: skip
        try:
            while _running(process):
                say(f"{unit.name}: {time.monotonic() - start:.0f} s, {_stage(log)}")
        finally:
            process.kill()  # nothing if it has ended
            process.wait()
    if process.returncode or not (work / "rss.txt").exists():
        errors = [line for line in log.read_text(errors="replace").splitlines() if "ERROR" in line or "error:" in line]
        silent = f"returned {process.returncode}"
        if process.returncode < 0:
            silent = f"killed by {signal.Signals(-process.returncode).name}"
        raise SynthesisError(f"{unit.name}: Yosys failed: {(errors or [silent])[0].strip()}; see {log}")
    result = {"key": current, "seconds": round(time.monotonic() - start), **figures(unit, work)}
    with atomic_write(folder / f"{unit.name}.json") as path:
        path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    for name in ("words.json", "memories.json", "left.json"):
        (work / name).unlink()
    say(f"{unit.name}: {_line(result)}, {result['seconds']} s, {result['rss_mib']} MiB")
    return result


def _running(process: subprocess.Popen[bytes]) -> bool:
    """Whether a process still runs half a minute later."""
    try:
        process.wait(timeout=30)
    except subprocess.TimeoutExpired:
        return True
    return False


def _stage(log: Path) -> str:
    """What Yosys is doing: the last pass that its log names."""
    with log.open("rb") as handle:
        handle.seek(max(0, log.stat().st_size - 100_000))
        passes = re.findall(rb"Executing (\w+) pass", handle.read())
    return passes[-1].decode() if passes else "reading"


def figures(unit: Unit, work: Path) -> dict[str, Any]:
    """What Yosys left in a unit's folder, as figures."""

    def load(name: str) -> Any:
        return netlist.read_json((work / name).read_text(encoding="utf-8"))

    inside = netlist.absorbable(load("words.json"), unit.module)
    left = [memory for memory in netlist.memories(load("left.json"), unit.module) if memory.writable]
    return {
        **netlist.cell_counts(load("stat.json"), unit.module, unit.boxes),
        **{f"dsp_{name}": count for name, count in inside.items()},
        "arrival_ps": netlist.arrival((work / "sta.txt").read_text(encoding="utf-8")),
        "memories": [memory.to_dict() for memory in netlist.memories(load("memories.json"), unit.module)],
        "in_flip_flops": [memory.name for memory in left],
        "rss_mib": int((work / "rss.txt").read_text()),
    }


def _line(result: Mapping[str, Any]) -> str:
    names = {"dsp": "DSP", "ramb18": "RAMB18", "ramb36": "RAMB36", "uram": "URAM", "lut": "LUT", "ff": "FF"}
    return ", ".join(f"{result[key]} {name}" for key, name in names.items() if result[key]) or "nothing"


# ---- all of them

def total(results: Mapping[str, Mapping[str, Any]]) -> dict[str, int]:
    """Sum over units."""
    return {name: sum(result[name] for result in results.values()) for name in SUMMED}


def faults(results: Mapping[str, Mapping[str, Any]], engine: Hardware, bounds: Sequence[Bound] = ZCU104,
           before: Mapping[str, Any] | None = None) -> list[str]:  # fmt: skip
    """What is not as it must be, a line each.

    Args:
        before: figures of units as they were (``arrival_ps``), to notice what has become slower.
    """
    found = []
    summed = total(results)
    for bound in bounds:
        used = bound.used(summed)
        if used > bound.share * bound.capacity:
            found.append(
                f"{bound.name} = {used:,g}: expected at most {bound.share:.0%} of {bound.capacity:,}"
            )
    for name, result in results.items():
        if result["latches"]:
            found.append(f"{name}: {result['latches']} latches: expected none")
        if result["in_flip_flops"]:
            found.append(f"{name}: memories in flip-flops: {', '.join(result['in_flip_flops'])}: expected none")
        old = (before or {}).get(name, {}).get("arrival_ps")
        if old and (result["arrival_ps"] or 0) > SLOWER * old:
            found.append(f"{name}: arrival_ps = {result['arrival_ps']}: expected at most {SLOWER * old:.0f} "
                         f"({old} in docs/figures; --update if it is worth it)")  # fmt: skip
    if ARRAY in results and 2 * results[ARRAY]["dsp"] != engine.macs_per_cycle:
        found.append(f"{ARRAY}: dsp = {results[ARRAY]['dsp']}: expected {engine.macs_per_cycle // 2}, two MACs each")
    return found


def summary(engine: Hardware, results: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Everything that was found, ready for JSON, without what differs from run to run."""
    summed = total(results)
    short = ("key", "seconds", "rss_mib", "memories")
    return {
        "benchmark": "synthesis",
        "hardware": engine.name,
        "config_hash": f"{build_hash(Formats(), engine):08x}",
        "commit": commit(),
        "tool": version(),
        "macs_per_cycle": engine.macs_per_cycle,
        "total": summed,
        "share": {bound.name: round(bound.used(summed) / bound.capacity, 4) for bound in ZCU104},
        "units": {name: {key: value for key, value in result.items() if key not in short}
                  for name, result in results.items()},
    }  # fmt: skip


_COLUMNS = {
    "DSP": "dsp", "RAMB18": "ramb18", "RAMB36": "ramb36", "URAM": "uram", "LUT": "lut", "as memory": "lut_memory",
    "in DSP": "dsp_lut", "FF": "ff", "FF in DSP": "dsp_ff", "CARRY4": "carry4", "ps": "arrival_ps",
}  # fmt: skip


def table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Markdown table of all units and their sum."""
    summed = {**total(results), "arrival_ps": max((r["arrival_ps"] or 0 for r in results.values()), default=0)}
    rows = [["unit", *_COLUMNS], ["---", *("---:" for _ in _COLUMNS)]]
    for name, result in (*results.items(), ("sum", summed)):
        rows.append([name, *(f"{result[key]:,}" if result[key] else "–" for key in _COLUMNS.values())])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def fit(results: Mapping[str, Mapping[str, Any]]) -> str:
    """A line per bound, and what the LUT figure leaves out."""
    summed = total(results)
    lines = [
        f"{bound.name}: {bound.used(summed):,g} of {bound.capacity:,} ({bound.used(summed) / bound.capacity:.1%}, "
        f"at most {bound.share:.0%})"
        for bound in ZCU104
    ]
    lines[-1] += f"; {summed['dsp_lut']:,} of them, and {summed['dsp_ff']:,} flip-flops, fit into DSPs"
    return "\n".join(lines)


def _say(place: str, line: str) -> None:
    print(place, line, file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m rtl_tb.synth", description="Synthesize the engine with Yosys.")
    parser.add_argument("--hardware", metavar="NAME|FILE.json", default="zcu104",
                        help=f"{', '.join(HARDWARE)}, or a file")  # fmt: skip
    parser.add_argument("--units", help="names separated by commas; default: all")
    parser.add_argument("--out", type=Path, help="JSON; default: build/synth/HARDWARE.json")
    parser.add_argument("--update", action="store_true", help="write docs/figures/synth-HARDWARE.json as well")
    options = parser.parse_args(arguments)
    chosen, names = units(), (options.units or "").split(",")
    try:
        engine = parse_hardware(options.hardware)
        check_hardware(engine)
        if options.units:
            unknown = sorted(set(names) - {unit.name for unit in chosen})
            if unknown:
                raise SynthesisError(f"unit {unknown[0]!r}: expected some of {', '.join(unit.name for unit in chosen)}")
            chosen = [unit for unit in chosen if unit.name in names]
        results = {}
        for number, unit in enumerate(chosen, 1):
            say = functools.partial(_say, f"[{number}/{len(chosen)}]")
            results[unit.name] = synthesize(unit, engine, BUILD / engine.name, say)
        data = summary(engine, results)
        committed = FIGURES / f"synth-{engine.name}.json"
        before = None if options.update or not committed.exists() else json.loads(committed.read_text())["units"]
        found = faults(results, engine, before=before)
        text = json.dumps(data, indent=1) + "\n"
        out = options.out or BUILD / f"{engine.name}.json"
        out.parent.mkdir(parents=True, exist_ok=True)
        for path in (out, *([committed] if options.update and not options.units else [])):
            with atomic_write(path) as temporary:
                temporary.write_text(text, encoding="utf-8")
    except M3vitError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{data['tool']}, {engine.name} {data['config_hash']}, commit {data['commit']}\n\n{table(results)}\n")
    print(fit(results))
    for line in found:
        print(f"error: {line}", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
