"""The simulator beside the RTL on engines that are no preset, as exploration takes it for granted."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
from rtl_cases import LAYERS, Case
from test_sim_rtl import TOTAL, run_both

from accel.config import Formats, Hardware, hardware, hardware_from_dict
from accel.errors import DeviceError
from accel.memory_model import MemoryModel
from host.backends.rtl import RtlDevice
from host.backends.rtl_build import build
from host.backends.toolchain import find_toolchain
from sim.results import STALLS

pytestmark = [pytest.mark.verilator, pytest.mark.slow]

ENGINES = ("2x16x8", "8x16x4", "4x32x8")
"""Of docs/figures/synth-engines.json."""
CAUSE = 0.02
DEMO = ("demo.qkv", "demo.proj", "demo.mlp", "demo.qkv", "demo.proj", "demo.moe")
TINY = ("tiny.qkv", "tiny.proj", "tiny.mlp", "tiny.qkv", "tiny.proj", "tiny.skewed")


@dataclass(frozen=True)
class EngineCase(Case):
    """A case on any engine."""

    engine: Hardware = hardware("ci")

    @property
    def hardware(self) -> Hardware:
        return self.engine


@pytest.mark.parametrize("name", ENGINES)
def test_engines_that_are_no_preset(name: str) -> None:
    """Bits as the functional engine's, cycles within 2 %, every stall within 2 % of them."""
    try:
        find_toolchain()
    except DeviceError as error:
        pytest.skip(str(error))
    figures = Path(__file__).parents[2] / "docs" / "figures" / "synth-engines.json"
    listed = json.loads(figures.read_text(encoding="utf-8"))["engines"]
    engine = hardware_from_dict(next(data["hardware"] for data in listed if data["hardware"]["name"] == name))
    resident = ("demo.resident", "demo.proj")
    cases = (
        EngineCase("demo", name, (DEMO, DEMO), engine=engine),
        EngineCase("tiny", name, (TINY,), engine=engine),
        EngineCase("tiny-200", name, (TINY,), MemoryModel(latency=200), engine=engine),
        EngineCase("demo-held", name, (DEMO,), MemoryModel(stall_percent=30), engine=engine),
        EngineCase("resident", name, (resident, resident), engine=engine),
    )
    assert {layer for case in cases for job in case.jobs for layer in job} <= set(LAYERS)
    with RtlDevice(engine, Formats(), library=build(engine, Formats()), max_cycles=3_000_000) as device:
        for case in cases:
            device.memory.configure(case.memory)
            record, result = run_both(case, device)
            total = record.counters["cycles"]
            assert abs(result.cycles - total) <= TOTAL * total, case.name
            for counter in STALLS:
                assert abs(result.counters[counter] - record.counters[counter]) <= CAUSE * total, (case.name, counter)
