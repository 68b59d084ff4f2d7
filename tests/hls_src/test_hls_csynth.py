"""The reader of synthesis reports, on a report written by hand after the documented schema: Vitis has not been run."""

from __future__ import annotations

from pathlib import Path

import pytest

from accel.config import hardware
from hls_src.csynth_check import INTERVALS, check_report, dsp_bound, latencies, main

ZCU104 = hardware("zcu104")
TOP = """<?xml version="1.0"?>
<profile>
  <UserAssignments><TopModelName>m3vit_engine</TopModelName><TargetClockPeriod>4.50</TargetClockPeriod></UserAssignments>
  <PerformanceEstimates>
    <SummaryOfTimingAnalysis><unit>ns</unit><EstimatedClockPeriod>4.321</EstimatedClockPeriod></SummaryOfTimingAnalysis>
    <SummaryOfOverallLatency><Best-caseLatency>undef</Best-caseLatency></SummaryOfOverallLatency>
  </PerformanceEstimates>
  <AreaEstimates>
    <Resources><BRAM_18K>410</BRAM_18K><DSP>{dsp}</DSP><FF>210000</FF><LUT>190000</LUT><URAM>{uram}</URAM></Resources>
    <AvailableResources>
      <BRAM_18K>624</BRAM_18K><DSP>1728</DSP><FF>460800</FF><LUT>230400</LUT><URAM>96</URAM>
    </AvailableResources>
  </AreaEstimates>
</profile>
"""
OUTER = {
    "GATHER_STEP": "GATHER_LINE_GATHER_STEP", "WALK": "WALK_EXPERT_WALK_UNIT_WALK", "SUM": "SCORE_SUM",
}  # fmt: skip
"""Loops that Vitis has merged into others or inlined: their label is the end of a longer name then."""
NESTS = ("WALK_EXPERT", "WALK_EXPERT_WALK_UNIT", "GATHER_LINE", "SCAN_RESIDENT")
"""Loops around others, which are no pipelines and have no interval; their names begin like those of loops that have."""
LOOP = (
    "<{name}><Name>{name}</Name><PipelineII>{interval}</PipelineII>"
    "<IterationLatency>{latency}</IterationLatency></{name}>"
)


def write(
    folder: Path, *, dsp: int = 1600, uram: int = 91, changed: dict[str, tuple[str, str]] | None = None,
    left_out: str = "",
) -> Path:
    """Reports of a design that meets everything but what is changed."""
    loops = {name: (str(interval), "12") for name, interval in INTERVALS.items()} | (changed or {})
    text = "".join(
        LOOP.format(name=OUTER.get(name, name), interval=interval, latency=latency)
        for name, (interval, latency) in loops.items() if name != left_out
    )  # fmt: skip
    text += "".join(LOOP.format(name=name, interval="", latency="undef") for name in NESTS)
    body = f"<PerformanceEstimates><SummaryOfLoopLatency>{text}</SummaryOfLoopLatency></PerformanceEstimates>"
    (folder / "csynth.xml").write_text(TOP.format(dsp=dsp, uram=uram))
    (folder / "processes_csynth.xml").write_text(f"<profile>{body}</profile>")
    return folder / "csynth.xml"


def failures(path: Path) -> list[str]:
    return [check.name for check in check_report(path, ZCU104) if not check.ok]


def test_a_good_report(tmp_path: Path, capsys) -> None:
    path = write(tmp_path)
    assert failures(path) == []
    assert main([str(path)]) == 0
    shown = capsys.readouterr().out
    assert "ok   clock: expected at least 200 MHz, found 231 MHz" in shown
    assert f"{1 + 5 + 2 + len(INTERVALS) + len(latencies(ZCU104))} figures, 0 not met" in shown


@pytest.mark.parametrize(
    ("change", "failed"),
    [
        ({"dsp": 3200}, ["DSP", "DSP packing"]),
        ({"dsp": dsp_bound(ZCU104) + 1}, ["DSP packing"]),
        ({"changed": {"PASS_BEAT": ("2", "12")}}, ["II of PASS_BEAT"]),
        ({"changed": {"COMBINE_TOKEN": ("1", "49")}}, ["latency of COMBINE_TOKEN"]),
        ({"changed": {"WALK": ("undef", "12")}}, ["II of WALK"]),
        ({"left_out": "TOP_K"}, ["II of TOP_K"]),
        ({"left_out": "WALK"}, ["II of WALK"]),
        ({"uram": 92}, ["URAM", "UltraRAM as meant"]),
    ],
)
def test_what_is_not_met_is_named(tmp_path: Path, change: dict, failed: list[str]) -> None:
    path = write(tmp_path, **change)
    assert failures(path) == failed
    assert main([str(path)]) == 1


def test_a_faster_clock_can_be_asked_for(tmp_path: Path) -> None:
    assert main([str(write(tmp_path)), "--clock", "300"]) == 1


def test_no_report(tmp_path: Path, capsys) -> None:
    (tmp_path / "csynth.xml").write_text("<profile>")
    for name in ("csynth.xml", "none.xml"):
        assert main([str(tmp_path / name)]) == 2
        assert f"{name}: expected a Vitis HLS synthesis report" in capsys.readouterr().err


def test_labels_are_those_of_the_sources() -> None:
    from host.backends.hls_build import source_files

    text = "".join(path.read_text(encoding="utf-8") for path in source_files())
    for label in {*INTERVALS, *latencies(ZCU104)}:
        assert f"\n{label}:\n" in text.replace("  ", ""), label
