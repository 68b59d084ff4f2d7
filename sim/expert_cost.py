"""What experts cost over dense layers of equal work: a frame with a dense MLP in the place of every MoE layer."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from accel.commands import Opcode
from accel.config import Config
from accel.memory_model import MemoryModel
from sim.baseline import attention_cycles
from sim.model import simulate_workload
from sim.policies import PLANS, MoeLayer, Policy
from sim.results import LayerResult, Result
from sim.workload import Workload, workload


def dense_twin(work: Workload) -> Workload:
    """The same jobs with a dense MLP of equal work in place of every MoE layer: ``top_k`` experts that every token
    passes, their weights those of the first experts, no gate."""
    commands = []
    for command in work.commands:
        if command.opcode is Opcode.MOE:
            command = dataclasses.replace(
                command, opcode=Opcode.MLP, units=command.units * command.top_k, experts=0, top_k=0, gate=0,
                gate_shift=0, schedule=0,
            )  # fmt: skip
        commands.append(command)
    return dataclasses.replace(work, commands=tuple(commands), routing={})


def _sum(layers: Sequence[LayerResult], value: Callable[[LayerResult], float]) -> float:
    return sum(value(layer) for layer in layers)


class OneGuess(Policy):
    """Reads at most one expert before the gate has decided: more would hold up the layer's input rows."""

    def guesses(self, layer: MoeLayer) -> list[int]:
        return super().guesses(layer)[:1]


def experts_over_dense(config: Config, pattern: str, seed: int = 0, guess: bool = False) -> dict[str, Any]:
    """What the experts of a frame cost over dense MLPs of equal work, in cycles, by cause.

    Two frames are chained and the first one is looked at, so that what follows the last layer is another layer, as it
    is in use; what a single frame's end costs is given by itself (``alone``).

    Args:
        pattern: routing.
        guess: one expert per layer is loaded before the gate has decided; else the schedule is the RTL's, by index.

    Returns:
        cycles of all MoE layers and of their dense twins, ``gate`` (array busy with gates), ``padding`` (array cycles
        of tiles that are not full, beyond those of the dense layer), ``bubbles`` (array idle, beyond the dense layer's,
        by cause); shares of the layer and of the encoder, whose cycles are those of the dense frame plus attention at
        the array's peak.
    """
    task = config.network.task_names[0]
    work = workload(config, [task, task], pattern, seed=seed)

    def run(item: Workload) -> Result:
        policy = OneGuess(PLANS["speculative"], config.hardware, MemoryModel()) if guess else None
        return simulate_workload(item, config.hardware, policy=policy)

    experts, dense = run(work), run(dense_twin(work))
    moe = [layer for layer in experts.layers if layer.job == 0 and layer.kind == "moe"]
    places = {layer.layer for layer in moe}
    twins = [layer for layer in dense.layers if layer.job == 0 and layer.layer in places]
    cost, base = _sum(moe, lambda layer: layer.cycles), _sum(twins, lambda layer: layer.cycles)
    gate = _sum(moe, lambda layer: layer.gate_cycles)
    array, base_array = _sum(moe, lambda layer: layer.array_cycles), _sum(twins, lambda layer: layer.array_cycles)
    stalls = {
        name: _sum(moe, lambda layer: layer.stalls[name]) - _sum(twins, lambda layer: layer.stalls[name])  # noqa: B023
        for name in moe[0].stalls
    }
    stalls["idle"] = _sum(moe, lambda layer: layer.idle) - _sum(twins, lambda layer: layer.idle)
    encoder = _frame_cycles(dense) + attention_cycles(config.network, config.hardware)
    single = workload(config, [task], pattern, seed=seed)
    alone = [run(item).cycles for item in (single, dense_twin(single))]
    return {
        "routing": pattern, "schedule": "one guess" if guess else "index", "moe_layers": len(moe), "cycles": cost,
        "dense_cycles": base,
        "gate": gate, "padding": array - gate - base_array, "bubbles": sum(stalls.values()), "bubbles_by_cause": stalls,
        "layer_share": cost / base - 1, "array_share": array / base_array - 1,
        "encoder_cycles": encoder, "encoder_share": (cost - base) / encoder,
        "array_encoder_share": (array - base_array) / encoder,
        "alone": {"cycles": alone[0], "dense_cycles": alone[1], "encoder_share": (alone[0] - alone[1]) / encoder},
    }  # fmt: skip


def _frame_cycles(result: Result) -> float:
    """Cycles of the first job's layers."""
    return _sum([layer for layer in result.layers if layer.job == 0], lambda layer: layer.cycles)
