"""Energy of simulated programs, and the scaling study: what grows with experts and what does not."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from accel.config import Config, hardware, network
from accel.energy import CONSTANTS
from accel.errors import ConfigError, ProgramError
from accel.layers import Kind, engine_layers
from accel.resources import resources
from accel.usage import ExpertUsage
from host.power import estimate
from sim.energy import energy_estimate
from sim.model import simulate_workload
from sim.plots import save_plots
from sim.scaling import EXPERTS, ScalingRow, expert_counts, memory_bytes, memory_study, scaling_study, with_experts
from sim.workload import workload

DEMO = Config(network("m3vit-demo"), hardware=hardware("ci"))


@pytest.fixture(scope="module")
def rows() -> list[ScalingRow]:
    return scaling_study(DEMO)


def test_energy_of_a_program():
    work = workload(DEMO, ["semseg", "depth", "edge"])
    result = simulate_workload(work, DEMO.hardware)
    found = energy_estimate(result, work.commands)
    assert found.jobs == 3 and found.seconds == pytest.approx(result.milliseconds / 1000)
    assert set(found.parts) == set(CONSTANTS)
    assert found.parts["mac"] == pytest.approx(
        [result.counters["macs"] * 1e-12 * end for end in (CONSTANTS["mac"].low, CONSTANTS["mac"].high)]
    )
    one = workload(DEMO, ["semseg"])
    alone = energy_estimate(simulate_workload(one, DEMO.hardware), one.commands)
    assert found.joules_per_frame[1] < alone.joules_per_frame[1], "chained frames hide each other's loads"
    with pytest.raises(ProgramError, match="expected the 57 layers that were simulated, found 19"):
        energy_estimate(result, one.commands)


def test_benchmark_and_simulator_have_one_model():
    """The same counters give the same joules, whether they come from a record or from the simulator."""
    work = workload(DEMO, ["semseg", "depth"])
    result = simulate_workload(work, DEMO.hardware)
    found = energy_estimate(result, work.commands)
    bench = estimate(result.counters, DEMO, 2, (DEMO.hardware.clock_mhz,))
    assert bench is not None
    entry = bench["per_clock_mhz"][str(DEMO.hardware.clock_mhz)]
    assert entry["joules_per_frame"] == pytest.approx(list(found.joules_per_frame))


def test_constant_work_and_memory(rows: list[ScalingRow]):
    assert [row.experts for row in rows] == list(EXPERTS)
    assert len({row.ideal_experts for row in rows}) == 1
    for row in rows:
        assert sum(row.breakdown.values()) == row.cycles
        assert 0 <= row.stalls < row.cycles and row.joules[0] < row.joules[1]
        moe = [layer for layer in engine_layers(with_experts(DEMO, row.experts)) if layer.kind is Kind.MOE]
        assert row.weight_bytes == len(moe) * row.experts * moe[0].expert_bytes
    assert rows[-1].gate_cycles > rows[0].gate_cycles and rows[-1].ddr_bytes > rows[0].ddr_bytes
    assert rows[-1].cycles > 2 * rows[0].cycles, "64 tokens cannot hide 256 experts"


def test_engines_built_for_more_experts():
    found = memory_study(hardware("zcu104"))
    assert [row["max_experts"] for row in found] == list(EXPERTS)
    assert len({row["on_chip_bytes"] for row in found}) == 1, "queues are lists over tokens, logits fit the least block"
    taken = resources(hardware("zcu104"))
    assert found[-1]["bram"] == taken.bram, "the preset is built for 256"
    assert found[-1]["on_chip_bytes"] == memory_bytes(taken) == round(taken.bram * 4096 + taken.uram * 32768) > 0


def test_counts_that_fit():
    assert expert_counts(DEMO, (1, 2, 3)) == [2, 3]
    small = dataclasses.replace(hardware("ci"), max_experts=16)
    assert expert_counts(Config(DEMO.network, hardware=small)) == [4, 8, 16]
    with pytest.raises(ConfigError, match=r"scaling: experts \[1\]: expected one from top_k = 2 to max_experts = 256"):
        scaling_study(DEMO, counts=(1,))


def test_recorded_routing_is_refused():
    net = DEMO.network
    tokens = {task: {block: [net.tokens * net.top_k // 8] * 8 for block in net.moe_blocks} for task in net.task_names}
    usage = ExpertUsage(net.name, 1, net.tokens, net.top_k, net.experts, tokens)
    with pytest.raises(ConfigError, match="expected a pattern, found a recording of network 'm3vit-demo'"):
        scaling_study(DEMO, usage)
    with pytest.raises(ConfigError, match="routing 'nothing'"):
        scaling_study(DEMO, "nothing")


def test_plot(rows: list[ScalingRow], tmp_path: Path):
    work = workload(DEMO, ["semseg"])
    result = simulate_workload(work, DEMO.hardware)
    files = save_plots(tmp_path, result, rows)
    assert [file.stem for file in files] == ["roofline", "layers", "experts", "scaling"]
    text = files[-1].read_text(encoding="utf-8")
    assert text.count(" cycles<") == len(rows) and "256 experts" in text and f"{rows[-1].cycles:,} cycles" in text
    json.dumps([row.to_dict() for row in rows], allow_nan=False)
    assert np.isfinite([row.milliseconds for row in rows]).all()
