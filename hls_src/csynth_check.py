"""Compares a Vitis HLS synthesis report with what the engine needs: one command says whether it meets its figures.

    python -m hls_src.csynth_check solution/syn/report/csynth.xml --hardware zcu104

The report of the top function names clock, resources and device; the reports of the processes beside it
(``array_csynth.xml``, …) their loops. Loops are looked up by the labels that the sources give them, wherever inlining
put them. A loop that no report names is a failure too: a figure that was not read has not been met.
"""

from __future__ import annotations

import argparse
import math
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from accel.config import Hardware, hardware
from accel.errors import M3vitError
from accel.resources import LIMITS, resources

CLOCK_MHZ = 200.0
"""Least clock that the performance model assumes for the HLS engine."""


class ReportError(M3vitError):
    """A report is missing, is not one, or lacks what is asked of it."""


@dataclass(frozen=True)
class Check:
    """One comparison: what was expected, what was found, whether that is good enough."""

    name: str
    expected: str
    found: str
    ok: bool

    def __str__(self) -> str:
        return f"{'ok  ' if self.ok else 'FAIL'} {self.name}: expected {self.expected}, found {self.found}"


INTERVALS: dict[str, int] = {
    "PASS_BEAT": 1,  # the array: one weight row per cycle
    "GATHER_STEP": 1,  # a line in and a beat out
    "DRAIN_TOKEN": 1, "HIDDEN_BEAT": 1,  # drain: a token per cycle
    "LINEAR_TOKEN": 1, "COMBINE_TOKEN": 1, "FINISH_TILE": 1,  # store: an output tile of a token per cycle
    "RECEIVE": 1, "LINES": 1, "ROW_LINE": 1, "RESIDUAL_LINE": 1,  # a line per cycle in
    "LINEAR_LINE": 1, "FINISHED_LINE": 1, "GATHER": 1, "BLOCK_BEATS_OUT": 1,  # and out
    "COLLECT": 1, "TOP_K": 1, "SUM": 1, "SCORED": 1, "WEIGH": 1,  # the gate
    "APPEND": 2, "SCAN": 1, "SCAN_LONGEST": 1, "WALK": 2,  # queues
}  # fmt: skip
"""Label of a loop → largest initiation interval with which the engine keeps its rate: what the sources ask for."""


def latencies(engine: Hardware) -> dict[str, int]:
    """Label of a loop → most cycles from the start to the end of one iteration.

    Drain has to be through with an output tile, its T tokens and the beats that it sends back, before the array has the
    next one: as many beats as the largest layers are wide. Combine has no beats to send. The array's own pipeline runs
    empty twice per tile (docs/hls.md): a twentieth of the beats of such a layer's tile.
    """
    beats = engine.max_hidden // engine.tile_inputs
    outputs = -(-engine.max_hidden // engine.tile_outputs)
    drained = beats - engine.tile_tokens - engine.tile_outputs // engine.tile_inputs
    return {
        "DRAIN_TOKEN": drained, "COMBINE_TOKEN": beats - engine.tile_tokens, "PASS_BEAT": beats * outputs // 20,
    }  # fmt: skip


REST_DSP = 32
"""Multipliers for addresses, counts and the weights of experts."""


def dsp_bound(engine: Hardware) -> int:
    """DSP blocks: two multiply-accumulates each, one multiplier per lane in combine, and the rest."""
    return engine.macs_per_cycle // 2 + engine.tile_outputs + REST_DSP


def share(name: str) -> float:
    """Share of a resource of the device, as the report names it, that can be placed and routed."""
    return LIMITS.get({"BRAM_18K": "bram"}.get(name, name.lower()), 1.0)


def _read(path: Path) -> ElementTree.Element:
    try:
        return ElementTree.parse(path).getroot()
    except (OSError, ElementTree.ParseError) as error:
        raise ReportError(f"{path}: expected a Vitis HLS synthesis report, found {error}") from error


def _number(text: str | None) -> float | None:
    """Figure of a report; None for ``?``, ``undef``, ``-`` and the like, which stand for "depends on data"."""
    try:
        value = float((text or "").strip())
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _loops(root: ElementTree.Element) -> Iterator[tuple[str, ElementTree.Element]]:
    """Label and entry of every loop of a report. A label may carry a prefix from inlining or flattening."""
    for summary in root.iter("SummaryOfLoopLatency"):
        for loop in summary.iter():
            figures = (loop.find("PipelineII"), loop.find("IterationLatency"))
            if loop is not summary and any(figure is not None for figure in figures):
                yield (loop.findtext("Name") or loop.tag), loop


def _named(label: str, name: str) -> bool:
    """Whether a loop called ``name`` in the report is the loop ``label``, inlined or flattened into others or not.

    What is in front of the label are outer loops or callers: ``GATHER_LINE_GATHER_STEP`` is GATHER_STEP;
    ``WALK_EXPERT`` is not WALK.
    """
    return name == label or name.endswith(f"_{label}")


def _table(root: ElementTree.Element, where: str) -> dict[str, float]:
    found = root.find(f"AreaEstimates/{where}")
    return {} if found is None else {item.tag: value for item in found if (value := _number(item.text)) is not None}


def check_report(path: Path, engine: Hardware, clock_mhz: float = CLOCK_MHZ) -> list[Check]:
    """Everything that can be read from a report folder.

    Args:
        path: ``csynth.xml`` of the top function; reports beside it are read too.
        engine: what was synthesized.
        clock_mhz: least clock.
    """
    root = _read(path)
    checks = []
    period = _number(root.findtext("PerformanceEstimates/SummaryOfTimingAnalysis/EstimatedClockPeriod"))
    reached = 1000 / period if period else 0.0
    found = f"{reached:.0f} MHz" if period else "no estimate"
    checks.append(Check("clock", f"at least {clock_mhz:.0f} MHz", found, reached >= clock_mhz))
    used, there = _table(root, "Resources"), _table(root, "AvailableResources")
    for name, available in there.items():
        if available > 0:
            amount = used.get(name)
            shown = "no estimate" if amount is None else f"{amount:.0f} of {available:.0f}"
            fits = amount is not None and amount <= share(name) * available
            checks.append(Check(name, f"at most {share(name):.0%} of the device", shown, fits))
    dsp, bound = used.get("DSP"), dsp_bound(engine)
    shown = "no estimate" if dsp is None else f"{dsp:.0f}"
    ok = dsp is not None and 0 < dsp <= bound
    checks.append(Check("DSP packing", f"at most {bound} (two products per block)", shown, ok))

    uram, expected = used.get("URAM"), resources(engine).uram
    shown = "no estimate" if uram is None else f"{uram:.0f}"
    ok = uram is not None and uram <= expected
    checks.append(Check("UltraRAM as meant", f"at most {expected:.0f} (weights, accumulators)", shown, ok))

    loops = [entry for report in sorted({path, *path.parent.glob("*_csynth.xml")}) for entry in _loops(_read(report))]
    for element, limits in (("PipelineII", INTERVALS), ("IterationLatency", latencies(engine))):
        what = "II" if element == "PipelineII" else "latency"
        for label, limit in limits.items():
            values = [_number(loop.findtext(element)) for name, loop in loops if _named(label, name)]
            known = [value for value in values if value is not None]
            shown = f"{max(known):.0f}" if known else "no such loop in the reports"
            ok = bool(known) and len(known) == len(values) and max(known) <= limit
            checks.append(Check(f"{what} of {label}", f"at most {limit}", shown, ok))
    return checks


def main(arguments: Sequence[str] | None = None) -> int:
    """Print every comparison; 0 if all are good, 1 if one is not, 2 if there is no report."""
    parser = argparse.ArgumentParser(prog="python -m hls_src.csynth_check")
    parser.add_argument("report", type=Path, help="csynth.xml of the top function")
    parser.add_argument("--hardware", default="zcu104", help="preset that was synthesized")
    parser.add_argument("--clock", type=float, default=CLOCK_MHZ, help="least clock in MHz")
    chosen = parser.parse_args(arguments)
    try:
        checks = check_report(chosen.report, hardware(chosen.hardware), chosen.clock)
    except M3vitError as error:
        print(error, file=sys.stderr)
        return 2
    for check in checks:
        print(check)
    failed = sum(not check.ok for check in checks)
    print(f"{len(checks)} figures, {failed} not met")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
