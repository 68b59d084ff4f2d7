"""More experts at the same work per token: what grows, and what does not.

``top_k`` and the experts' width stay, so every token computes as much with 256 experts as with 4. What a frame then
costs beyond its work (longer gates, short last tiles of more queues, more weights to load) and what the engine needs on
chip are the two questions: cycles come from simulation, memories from ``accel/resources.py``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from accel.config import Config, Hardware
from accel.energy import Range
from accel.errors import ConfigError
from accel.layers import Kind, engine_layers
from accel.memory_model import MemoryModel
from accel.resources import Resources, resources
from accel.routing import Schedule
from accel.usage import ExpertUsage
from sim.energy import energy_estimate
from sim.model import simulate_workload
from sim.results import STALLS
from sim.trace import RoutingTrace
from sim.workload import workload

EXPERTS = (4, 8, 16, 32, 64, 128, 256)
BRAM_BYTES, URAM_BYTES = 4096, 32768
"""Bytes of data that one RAMB36 and one URAM288 hold; the ninth bits count in neither."""


def memory_bytes(taken: Resources) -> int:
    """Capacity of the on-chip memories that an engine takes."""
    return round(taken.bram * BRAM_BYTES + taken.uram * URAM_BYTES)


@dataclass(frozen=True)
class ScalingRow:
    """One number of experts.

    Attributes:
        experts: of every MoE layer.
        cycles, milliseconds: of one frame.
        breakdown: of ``cycles``; ideal, padding, stalls, fill, idle, drain.
        ideal_experts: cycles at the array's peak without the gates: what stays the same.
        gate_cycles: array busy with gates.
        weight_bytes: of all experts of all layers, in memory; ``ddr_bytes`` what a frame moves.
        joules: estimate, (low, high).
    """

    experts: int
    cycles: int
    milliseconds: float
    breakdown: dict[str, int]
    ideal_experts: int
    gate_cycles: int
    weight_bytes: int
    ddr_bytes: int
    joules: Range

    @property
    def stalls(self) -> int:
        """Cycles in which the array waited for a cause that has a name."""
        return sum(self.breakdown[name] for name in STALLS)

    def to_dict(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "stall_cycles": self.stalls}


def with_experts(config: Config, experts: int) -> Config:
    """``config`` with another number of experts, top_k and widths as they are; ConfigError where it cannot have it."""
    network = dataclasses.replace(config.network, experts=experts)
    return Config(network, config.formats, config.hardware)


def expert_counts(config: Config, counts: Sequence[int] = EXPERTS) -> list[int]:
    """Those of ``counts`` that top_k and the engine's ``max_experts`` allow."""
    net, engine = config.network, config.hardware
    allowed = [count for count in counts if net.top_k <= count <= engine.max_experts]
    if not allowed:
        raise ConfigError(f"scaling: experts {list(counts)}: expected one from top_k = {net.top_k} to max_experts = "
                          f"{engine.max_experts}")  # fmt: skip
    return allowed


def scaling_study(
    config: Config, routing: str | RoutingTrace | ExpertUsage = "uniform", memory: MemoryModel | None = None, *,
    counts: Sequence[int] = EXPERTS, task: str | None = None, seed: int = 0, schedule: Schedule = Schedule.INDEX,
) -> list[ScalingRow]:  # fmt: skip
    """One frame of ``task`` (the first, if None) with every number of experts in ``counts`` that the engine takes.

    Args:
        routing: a pattern of ``sim.workload``. Recorded routing, with a number of experts of its own, is refused.

    Raises:
        ConfigError: routing that is no pattern, or no number of experts that fits.
    """
    if not isinstance(routing, str):
        raise ConfigError(f"scaling: routing: expected a pattern, found a recording of network {routing.network!r}, "
                          "which has a number of experts of its own")  # fmt: skip
    rows = []
    for experts in expert_counts(config, counts):
        here = with_experts(config, experts)
        work = workload(here, [task or here.network.task_names[0]], routing, seed=seed, schedule=schedule)
        result = simulate_workload(work, here.hardware, memory)
        moe = [layer for layer in engine_layers(here) if layer.kind is Kind.MOE]
        gates = sum(layer.tokens * layer.inputs * layer.experts for layer in moe)
        rows.append(
            ScalingRow(
                experts, result.cycles, result.milliseconds, result.breakdown,
                round((result.counters["macs"] - gates) / here.hardware.macs_per_cycle),
                result.counters["gate_cycles"], sum(layer.experts * layer.expert_bytes for layer in moe),
                result.ddr_bytes, energy_estimate(result, work.commands).joules,
            )
        )  # fmt: skip
    return rows


def memory_study(hardware: Hardware, counts: Sequence[int] = EXPERTS) -> list[dict[str, Any]]:
    """On-chip memory of engines *built* for at most so many experts: ``max_experts``, RAMB36, URAM288, bytes.

    Modelled by ``accel/resources.py``. One engine takes the same whatever number of experts runs on it.
    """
    found = []
    for count in counts:
        taken = resources(dataclasses.replace(hardware, max_experts=count))
        found.append({"max_experts": count, "bram": taken.bram, "uram": taken.uram,
                      "on_chip_bytes": memory_bytes(taken)})  # fmt: skip
    return found
