"""Policies on the same trace, engine and memory: cycles, bytes, and how far each is from what is possible.

Two bounds stand beside every policy. The **roofline** of a program is the larger of its multiply-accumulates at the
array's peak and its compulsory bytes at the memory's sustained rate: activations, gate tables, and every unit of
weights that a job uses, once per job; where tasks of a frame are interleaved, once per frame. The **optimum** is the
least makespan of each MoE layer's flow shop (``sim.optimum``) from what the policy found on chip.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from accel.commands import COMMAND_BYTES, Command, Opcode
from accel.config import Config, Hardware
from accel.limits import KINDS
from accel.memory_model import MemoryModel
from accel.usage import ExpertUsage
from sim.baseline import cache_workload
from sim.costs import stages
from sim.model import simulate_workload
from sim.optimum import Optimum, Stage, makespan, optimum
from sim.policies import PLANS, TOGETHER, Usage, frames_of, make_policy, scheduled, usage_of
from sim.results import Result
from sim.shapes import shape_of
from sim.trace import RoutingTrace
from sim.workload import Workload, workload

REFERENCE = "index"
"""Policy that the others are compared with."""


@dataclass(frozen=True)
class PolicyRow:
    """One policy.

    Attributes:
        ratio: its cycles over those of :data:`REFERENCE`.
        weight_bytes: weights read; ``wasted_bytes`` of them for wrong guesses.
        hit_rate: share of the weight units wanted that were on chip without having been guessed; of ``cache``, share of
            the pairs of token and expert whose expert was in the cache.
        guesses, wrong_guesses: experts loaded before the gate decided; those that got no token.
        roofline_cycles: of its program.
        over_roofline: by how much of the roofline it is slower than that.
        over_jobs_roofline: the same against the roofline of one job after the other.
        order_extra: cycles that its orders lose against the optimum of each MoE layer; against a bound where
            ``order_exact`` is False. None: tokens are not reordered.
        hardware: whether the RTL engine can run it; if not, what it lacks.
    """

    name: str
    description: str
    cycles: int
    milliseconds: float
    ratio: float
    weight_bytes: int
    wasted_bytes: int
    hit_rate: float
    guesses: int
    wrong_guesses: int
    roofline_cycles: int
    over_roofline: float
    over_jobs_roofline: float
    order_extra: int | None
    order_exact: bool
    hardware: str

    def to_dict(self) -> dict[str, Any]:
        """Plain dictionary, ready for JSON."""
        return dataclasses.asdict(self)


def compulsory_bytes(work: Workload, hardware: Hardware, together: int = 1) -> int:
    """Bytes that a workload must move: weights once for every ``together`` tasks of a frame that follow each other."""
    layers: dict[int, list[Command]] = {}
    for command in work.commands:
        if command.opcode in KINDS:
            layers.setdefault(command.job, []).append(command)
    stripes = 0
    for group in frames_of(work.tasks, together):
        seen: set[tuple[int, int]] = set()
        for job in group:
            for command in layers[job]:
                shape = shape_of(command, hardware)
                stripes += shape.input_stripes + shape.residual_stripes + shape.output_stripes
                if command.opcode is not Opcode.MOE:
                    experts: set[int] = {0}
                else:
                    if (command.gate, -1) not in seen:
                        seen.add((command.gate, -1))
                        stripes += shape.gate_stripes
                    chosen = work.routing[command.job, command.layer]
                    found = chosen.reshape(-1).tolist() if chosen.ndim == 2 else chosen.nonzero()[0].tolist()
                    experts = set(found)
                fresh = {(command.weights, expert) for expert in experts} - seen
                seen |= fresh
                stripes += len(fresh) * shape.units * shape.unit_stripes
    return stripes * hardware.stripe_bytes + COMMAND_BYTES * len(work.commands)


@lru_cache(maxsize=4096)
def _optimum(jobs: tuple[Stage, ...], slots: int) -> Optimum:
    return optimum(jobs, slots)


def order_extra(work: Workload, result: Result, hardware: Hardware, memory: MemoryModel) -> tuple[float, bool]:
    """Cycles by which the orders of a run are longer than the optimum of each MoE layer's flow shop, and whether that
    optimum is known exactly for all of them (a lower bound stands for it where not)."""
    commands = {(command.job, command.layer): command for command in work.commands if command.opcode is Opcode.MOE}
    extra, exact = 0.0, True
    for layer in result.layers:
        if not layer.loads:
            continue
        shape = shape_of(commands[layer.job, layer.layer], hardware)
        there = {expert for expert, on_chip in layer.order if on_chip}
        shop = stages(shape, layer.loads, hardware, memory, there)
        places = {expert: place for place, expert in enumerate(shop)}
        jobs, slots = tuple(shop.values()), max(1, hardware.weight_slots // shape.units)
        best = _optimum(jobs, slots)
        extra += makespan(jobs, [places[expert] for expert, _ in layer.order], slots) - best.cycles
        exact = exact and best.exact
    return extra, exact


def compare(
    config: Config, tasks: Sequence[str], routing: str | RoutingTrace | ExpertUsage = "uniform",
    memory: MemoryModel | None = None, policies: Sequence[str] = tuple(PLANS), *, seed: int = 0,
    usage: ExpertUsage | None = None, progress: Callable[[int], object] = lambda policies: None,
) -> list[PolicyRow]:  # fmt: skip
    """Run ``tasks``, one frame each, under every policy.

    Args:
        routing: as of ``sim.workload.workload``.
        policies: names of ``sim.policies.PLANS``.
        usage: what is known of expert usage beforehand; without, a policy learns from the frames it has seen.
        progress: told of every policy that has been run.
    """
    memory, hw = memory or MemoryModel(), config.hardware
    if usage is not None:
        usage.check_network(config.network)
    work = workload(config, tasks, routing, seed=seed)
    reference = simulate_workload(work, hw, memory)
    rows = []
    for name in policies:
        plan = PLANS[name]
        program = scheduled(work, plan)
        together = TOGETHER if plan.interleaved else 1
        moved = compulsory_bytes(work, hw, together) / memory.bytes_per_cycle
        bound = max(reference.compute_bound, moved)
        if name == "cache":
            pool = hw.weight_slots // config.network.expert_units
            cached = cache_workload(work, config.network, hw, memory, reference, pool)
            experts = sum(layer.loaded_bytes for layer in cached.layers)
            dense = sum(layer.weight_bytes for layer in reference.layers if layer.kind != "moe")
            gates = sum(shape_of(command, hw).gate_stripes * hw.stripe_bytes
                        for command in work.commands if command.opcode is Opcode.MOE)  # fmt: skip
            cycles, weights, hits = round(cached.cycles), experts + dense + gates, cached.hit_rate
            loading = dict.fromkeys(reference.loading, 0)
            extra, exact = None, True
        else:
            known = Usage() if usage is None else usage_of(work, usage)
            policy = make_policy(name, hw, memory, known)
            same = policy is None and program == work
            result = reference if same else simulate_workload(program, hw, memory, policy=policy)
            cycles, weights, loading = result.cycles, result.counters["weight_bytes"], result.loading
            hits = loading["units_on_chip"] / loading["units_wanted"]
            lost, exact = order_extra(program, result, hw, memory)
            extra = round(lost)
        rows.append(
            PolicyRow(
                name, plan.description, cycles, cycles / hw.clock_mhz / 1000, cycles / reference.cycles, weights,
                loading["wasted_bytes"], hits, loading["guesses"], loading["wrong_guesses"], round(bound),
                cycles / bound - 1, cycles / reference.roofline_cycles - 1, extra, exact, plan.hardware,
            )
        )  # fmt: skip
        progress(1)
    return rows
