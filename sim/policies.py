"""Policies: which expert next, what to load before the gate has decided, what stays on chip.

A :class:`Policy` is asked by the load unit of the machine (``sim.scheduling``) and answers from what it has seen so
far: the sizes of a layer, what is on chip, and, once the gate has decided, the length of every queue. The RTL's own
schedules need none: they are in the commands. What a policy decides changes when things happen, never a bit.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from accel.commands import Flag, Opcode
from accel.config import Hardware
from accel.errors import ConfigError
from accel.memory_model import MemoryModel
from accel.routing import Schedule
from accel.usage import ExpertUsage
from sim.costs import stages
from sim.optimum import johnson_order
from sim.shapes import Shape
from sim.workload import Workload

PINNED_SHARE = 5
"""One weight slot in so many is given to pinned experts, at least one."""
LEAST_LIKELY = 0.5
"""A guess is worth its load if the expert is at least this likely to get a token."""
TOGETHER = 2
"""Tasks of a frame that are interleaved."""


@dataclass(frozen=True)
class MoeLayer:
    """An MoE layer as a policy sees it.

    Attributes:
        gate: arena offset of its gate table, which is one of a task and a block.
        weights: arena offset of its experts.
        expert_bytes: distance of two experts.
        loads: tokens of every expert; empty until the gate has decided.
        on_chip: experts whose weights are in slots, or on their way there.
    """

    shape: Shape
    gate: int
    weights: int
    expert_bytes: int
    loads: tuple[int, ...] = ()
    on_chip: frozenset[int] = frozenset()

    @property
    def used(self) -> list[int]:
        """Non-empty experts, in index order."""
        return [expert for expert, load in enumerate(self.loads) if load]


Order = Callable[[MoeLayer, Hardware, MemoryModel], list[int]]


def index_order(layer: MoeLayer, hardware: Hardware, memory: MemoryModel) -> list[int]:
    """As the engine's INDEX."""
    return layer.used


def longest_order(layer: MoeLayer, hardware: Hardware, memory: MemoryModel) -> list[int]:
    """As the engine's LONGEST_FIRST."""
    return sorted(layer.used, key=lambda expert: (-layer.loads[expert], expert))


def johnson(layer: MoeLayer, hardware: Hardware, memory: MemoryModel) -> list[int]:
    """Johnson's rule: loads are the first machine, the array is the second; see ``sim.optimum``."""
    jobs = stages(layer.shape, layer.loads, hardware, memory, layer.on_chip)
    experts = list(jobs)
    return [experts[position] for position in johnson_order([jobs[expert] for expert in experts])]


@dataclass(frozen=True)
class Plan:
    """What a policy does, by parts.

    Attributes:
        description: one line, for tables.
        order: of the experts of a layer; those on chip go first where ``reuse`` is on.
        schedule: of the commands, if the engine's own unit puts experts in order.
        reuse: weights that are on chip are not loaded again, whatever layer left them there.
        pinned: the experts used most so far keep slots for good.
        speculative: experts are loaded before the gate has decided.
        interleaved: tasks of a frame are computed layer by layer.
        hardware: whether the RTL engine can run it today; if not, what it lacks.
    """

    description: str
    order: Order = index_order
    schedule: Schedule | None = None
    reuse: bool = False
    pinned: bool = False
    speculative: bool = False
    interleaved: bool = False
    hardware: str = "yes"


_CHECKS = "no: load would look up every unit on chip"
_ORDER = "no: order.sv would sort by cost"
_GUESS = "no: load would have to guess, and drop a wrong guess"
PLANS: Mapping[str, Plan] = {
    "cache": Plan("no reordering: tokens in order, LRU cache of the same pool", hardware="no: another machine"),
    "index": Plan("one queue per expert, index order", schedule=Schedule.INDEX),
    "longest": Plan("longest queue first", longest_order, Schedule.LONGEST_FIRST),
    "johnson": Plan("Johnson's rule", johnson, hardware=_ORDER),
    "resident": Plan("experts on chip first", schedule=Schedule.RESIDENT_FIRST),
    "pinned": Plan("on chip first, hot experts pinned", reuse=True, pinned=True, hardware=_CHECKS + " and keep some"),
    "speculative": Plan("on chip first, guesses loaded before the gate decides", reuse=True, speculative=True,
                        hardware=_GUESS),
    "interleaved": Plan("two tasks of a frame layer by layer, experts on chip first", schedule=Schedule.RESIDENT_FIRST,
                        interleaved=True),
    "shared": Plan("two tasks layer by layer, all weights on chip used again", johnson, reuse=True, interleaved=True,
                   hardware=_CHECKS),
    "eager": Plan("Johnson's rule and guesses, task after task", johnson, reuse=True, speculative=True,
                  hardware=_GUESS),
    "combined": Plan("Johnson's rule, guesses, two tasks layer by layer", johnson, reuse=True, speculative=True,
                 interleaved=True, hardware=_GUESS),
}  # fmt: skip
"""Policies by name."""


def parse_policies(text: str) -> list[str]:
    """Comma-separated names of :data:`PLANS`, or ``all``; ConfigError for any other and for one given twice."""
    names = list(PLANS) if text == "all" else [name.strip() for name in text.split(",")]
    for position, name in enumerate(names):
        if name not in PLANS:
            raise ConfigError(f"policy {name!r}: expected one of {', '.join(PLANS)}, or all")
        if name in names[:position]:
            raise ConfigError(f"policy {name!r} is given twice")
    return names


class Usage:
    """What is known of expert usage: per gate table, how likely an expert is to be used."""

    def __init__(self) -> None:
        self.likely: dict[int, NDArray[np.float64]] = {}

    def expect(self, gate: int, counts: Sequence[int] | NDArray[np.int64], tokens: int) -> None:
        """Expect of the next frame what was counted of earlier ones: ``counts`` in ``tokens`` tokens per frame."""
        shares = np.asarray(counts, float) / max(1, int(np.sum(counts)))
        self.likely[gate] = 1 - (1 - shares) ** tokens

    def saw(self, gate: int, loads: Sequence[int]) -> None:
        """A frame's queues. The last frame weighs as much as all before; of two equally likely experts, the one with
        the longer queue comes first."""
        now = np.asarray(loads, float)
        seen = (now > 0) * (1 - 1e-3) + 1e-3 * now / max(1.0, float(now.max(initial=0)))
        before = self.likely.get(gate)
        self.likely[gate] = seen if before is None or len(before) != len(seen) else (before + seen) / 2

    def of(self, gate: int, experts: int) -> NDArray[np.float64]:
        """Probability of each expert to get a token; where nothing is known, the same for all."""
        return self.likely.get(gate, np.full(experts, 0.5))


class Policy:
    """A plan at work on one engine; remembers the layers it has seen."""

    def __init__(self, plan: Plan, hardware: Hardware, memory: MemoryModel, usage: Usage | None = None) -> None:
        self.plan, self.hardware, self.memory = plan, hardware, memory
        self.usage = usage or Usage()
        self.counts: dict[int, int] = {}  # offset of an expert → frames that used it
        self.pinned: set[int] = set()  # offsets of experts
        self.pins: set[int] = set()  # of their units

    @property
    def reuse(self) -> bool:
        return self.plan.reuse

    def order(self, layer: MoeLayer) -> list[int]:
        """Non-empty experts in the order of loading and computing, those on chip first."""
        order = self.plan.order(layer, self.hardware, self.memory)
        return sorted(order, key=lambda expert: expert not in layer.on_chip)

    def guesses(self, layer: MoeLayer) -> list[int]:
        """Experts worth loading before the gate has decided, likeliest first."""
        if not self.plan.speculative:
            return []
        likely = self.usage.of(layer.gate, layer.shape.experts)
        ranked = np.argsort(-likely, kind="stable").tolist()
        return [expert for expert in ranked if likely[expert] >= LEAST_LIKELY and expert not in layer.on_chip]

    def observe(self, layer: MoeLayer) -> None:
        """The gate has decided."""
        self.usage.saw(layer.gate, layer.loads)
        if not self.plan.pinned:
            return
        for expert in layer.used:
            offset = layer.weights + expert * layer.expert_bytes
            self.counts[offset] = self.counts.get(offset, 0) + 1
        slots = self.hardware.weight_slots
        room = max(1, slots // PINNED_SHARE) // layer.shape.units if slots > 2 else 0  # two keep streaming
        # A pinned expert stays until another has been used more often by two frames.
        hot = sorted(self.counts, key=lambda offset: (-self.counts[offset] - 2 * (offset in self.pinned), offset))
        self.pinned, unit = set(hot[:room]), layer.expert_bytes // layer.shape.units
        self.pins = {offset + unit * number for offset in self.pinned for number in range(layer.shape.units)}

    def keeps(self, offset: int) -> bool:
        """Whether the unit at an arena offset must not be evicted."""
        return offset in self.pins

    def worth(self, layer: MoeLayer | None, offset: int) -> float:
        """What evicting a unit would lose, 0 to 1: the probability that ``layer``, which is waiting, needs it."""
        if layer is None or not layer.weights <= offset < layer.weights + layer.shape.experts * layer.expert_bytes:
            return 0.0
        likely = self.usage.of(layer.gate, layer.shape.experts)
        return float(likely[(offset - layer.weights) // layer.expert_bytes])


def make_policy(
    name: str, hardware: Hardware, memory: MemoryModel, usage: Usage | None = None
) -> Policy | None:  # fmt: skip
    """Policy by name; None where the engine's own schedule is all there is.

    Raises:
        ConfigError: no such policy, or one that is not of this machine (``cache``).
    """
    if name not in PLANS or name == "cache":
        expected = ", ".join(plan for plan in PLANS if plan != "cache")
        raise ConfigError(f"policy {name!r}: expected one of {expected}")
    plan = PLANS[name]
    return None if plan.schedule is not None else Policy(plan, hardware, memory, usage)


def usage_of(work: Workload, usage: ExpertUsage) -> Usage:
    """Measured expert usage (``m3vit experts usage``) as a policy's expectation."""
    found = Usage()
    for command in work.commands:
        if command.opcode is Opcode.MOE:
            task, block = work.tasks[command.job], int(work.layers[command.layer].name.split(".")[1])
            found.expect(command.gate, usage.tokens[task][block], command.tokens)
    return found


def frames_of(tasks: Sequence[str], together: int = TOGETHER) -> list[list[int]]:
    """Jobs that are different tasks of one frame, as far as they follow each other: at most ``together`` of them."""
    groups: list[list[int]] = []
    for job, task in enumerate(tasks):
        if not groups or len(groups[-1]) == together or task in {tasks[other] for other in groups[-1]}:
            groups.append([])
        groups[-1].append(job)
    return groups


def interleave(work: Workload, together: int = TOGETHER) -> Workload:
    """The same jobs, tasks of a frame layer by layer: every layer of one is followed by the same layer of the next.

    The engine runs this program as any other. Each task needs activations of its own, which here, as in every workload,
    are addresses; all jobs of a group end together, so the record counts their layers under the first of them.

    Raises:
        ConfigError: the jobs wait for each other.
    """
    if any(command.opcode is Opcode.BARRIER or Flag.NO_PREFETCH & command.flags for command in work.commands):
        raise ConfigError("interleaving: expected jobs that do not wait for each other, found a barrier or NO_PREFETCH")
    by_job: dict[int, list[int]] = {}
    for position, command in enumerate(work.commands):
        if command.opcode not in (Opcode.JOB_END, Opcode.END, Opcode.BARRIER):
            by_job.setdefault(command.job, []).append(position)
    ends = {command.job: command for command in work.commands if command.opcode is Opcode.JOB_END}
    commands = []
    for group in frames_of(work.tasks, together):
        for row in zip(*(by_job[job] for job in group), strict=True):
            commands += [work.commands[position] for position in row]
        commands += [ends[job] for job in group]
    return dataclasses.replace(work, commands=(*commands, work.commands[-1]))


def scheduled(work: Workload, plan: Plan) -> Workload:
    """The program for a plan: schedule of its MoE commands, order of its layers."""
    schedule = Schedule.INDEX if plan.schedule is None else plan.schedule
    commands = tuple(
        dataclasses.replace(command, schedule=int(schedule)) if command.opcode is Opcode.MOE else command
        for command in work.commands
    )
    work = dataclasses.replace(work, commands=commands)
    return interleave(work) if plan.interleaved else work
