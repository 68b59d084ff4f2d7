"""What the simulator runs: programs from network dimensions alone, and where their tokens go."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from accel.commands import Command, Flag, Opcode
from accel.compiler import layer_bytes, place_weights
from accel.config import Config
from accel.errors import ConfigError, DataError, ProgramError
from accel.layers import Kind, Layer, engine_layers
from accel.limits import OPCODES
from accel.routing import Schedule
from accel.usage import ExpertUsage
from sim.locality import PREFIX, local_experts, parse_locality
from sim.trace import RoutingTrace

Array = NDArray[Any]
Routing = dict[tuple[int, int], Array]
"""(job, layer) → experts chosen per token [tokens, top_k], or the length of every expert's queue [experts]."""

PATTERNS = ("uniform", "zipf", "one")
ZIPF_EXPONENT = 1.0


@dataclass(frozen=True)
class Workload:
    """A program of the simulator.

    Attributes:
        commands: ending with END.
        routing: of every MoE layer.
        layers: the layers of each job, in the order of their commands.
        tasks: task of each job.
    """

    commands: tuple[Command, ...]
    routing: Routing
    layers: tuple[Layer, ...]
    tasks: tuple[str, ...]


def compile_jobs(
    config: Config, tasks: Sequence[str], *, schedule: Schedule = Schedule.INDEX, barrier_between_jobs: bool = False,
    prefetch_across_jobs: bool = True,
) -> tuple[Command, ...]:  # fmt: skip
    """Commands of all engine layers of one frame per task, as ``accel.compiler.compile_replay`` chains them.

    Activations of all jobs share their addresses: they matter to bits, not to time.
    """
    if not tasks:
        raise ProgramError("jobs: expected at least one task, found none")
    for task in tasks:
        config.network.task_index(task)
    layers = engine_layers(config)
    weights, end = place_weights(config)
    cursor = -(-end // 4096) * 4096
    places: list[dict[str, int]] = []
    for layer in layers:
        places.append({})
        for name, size in layer_bytes(layer).items():
            places[-1][name] = cursor
            cursor += size
    if cursor >= 1 << 32:
        raise ProgramError(f"network {config.network.name!r}: expected an arena below 4 GiB, found {cursor} bytes")
    commands: list[Command] = []
    for job, task in enumerate(tasks):
        if job and barrier_between_jobs:
            commands.append(Command(Opcode.BARRIER, job=job))
        for index, (layer, place) in enumerate(zip(layers, places, strict=True)):
            gated = layer.kind is Kind.MOE
            hold = job > 0 and index == 0 and not prefetch_across_jobs
            flags = (Flag.NARROW if layer.kind is Kind.LINEAR else Flag(0)) | (Flag.NO_PREFETCH if hold else Flag(0))
            commands.append(
                Command(
                    OPCODES[layer.kind], flags, int(schedule) if gated else 0, layer.top_k if gated else 0, 0, job,
                    index, layer.tokens, layer.experts if gated else 0, layer.inputs, layer.outputs, layer.hidden,
                    layer.units, layer.tiles_per_unit, layer.unit_bytes, weights[layer.weight_blobs()[0]],
                    weights[layer.gate_blob(task)] if gated else 0, **place,
                )
            )  # fmt: skip
        commands.append(Command(Opcode.JOB_END, job=job))
    commands.append(Command(Opcode.END))
    return tuple(commands)


def _moe_layers(layers: Sequence[Layer]) -> list[tuple[int, int, Layer]]:
    """Index of each MoE layer in its job, its block, itself."""
    found = []
    for index, layer in enumerate(layers):
        if layer.kind is Kind.MOE:
            found.append((index, int(layer.name.split(".")[1]), layer))
    return found


def draw_experts(shares: Array, tokens: int, top_k: int, rng: np.random.Generator) -> Array:
    """Experts per token [tokens, top_k], drawn without repetition within a token, by their ``shares`` (≥ 0)."""
    used = np.count_nonzero(shares)
    if used < top_k:
        raise ConfigError(f"routing: expected at least top_k = {top_k} experts with a share, found {used}")
    with np.errstate(divide="ignore"):
        keys = np.log(shares)[None, :] + rng.gumbel(size=(tokens, len(shares)))
    return np.argsort(-keys, axis=1)[:, :top_k]


def _shares(pattern: str, experts: int, top_k: int, rng: np.random.Generator) -> Array:
    if pattern == "uniform":
        return np.ones(experts)
    if pattern == "zipf":
        return rng.permutation(1.0 / np.arange(1, experts + 1) ** ZIPF_EXPONENT)
    shares = np.zeros(experts)
    shares[:top_k] = 1.0
    return shares


def pattern_routing(config: Config, tasks: Sequence[str], pattern: str, seed: int = 0) -> Routing:
    """Synthetic routing: ``uniform``, ``zipf`` (shares 1, 1/2, 1/3 …, shuffled per task and block) or ``one`` (every
    token to the same top_k experts, the fewest there can be), or ``local:`` and a number (``sim.locality``). A job
    draws its own tokens."""
    local = parse_locality(pattern) if pattern.startswith(PREFIX) else None
    if local is None and pattern not in PATTERNS:
        raise ConfigError(f"routing {pattern!r}: expected one of {', '.join(PATTERNS)}, or {PREFIX} and a number")
    routing: Routing = {}
    rng = np.random.default_rng(seed)
    shares: dict[tuple[str, int], Array] = {}
    for job, task in enumerate(tasks):
        for index, block, layer in _moe_layers(engine_layers(config)):
            if local is not None:
                routing[job, index] = local_experts(config.network, local, rng)
                continue
            key = (task, block)
            if key not in shares:
                shares[key] = _shares(pattern, layer.experts, layer.top_k, rng)
            routing[job, index] = draw_experts(shares[key], layer.tokens, layer.top_k, rng)
    return routing


def usage_routing(config: Config, tasks: Sequence[str], usage: ExpertUsage, seed: int = 0) -> Routing:
    """Routing drawn from measured expert usage: shares of the experts are those of the counts."""
    usage.check_network(config.network)
    rng = np.random.default_rng(seed)
    routing: Routing = {}
    for job, task in enumerate(tasks):
        for index, block, layer in _moe_layers(engine_layers(config)):
            counts = np.asarray(usage.tokens[task][block], float)
            routing[job, index] = draw_experts(counts, layer.tokens, layer.top_k, rng)
    return routing


def trace_routing(config: Config, tasks: Sequence[str], trace: RoutingTrace) -> Routing:
    """Routing recorded from a run. Jobs take the frames of their task in turn."""
    trace.check_network(config.network)
    taken: dict[str, int] = {}
    routing: Routing = {}
    for job, task in enumerate(tasks):
        frame = taken.get(task, 0)
        taken[task] = frame + 1
        for index, block, layer in _moe_layers(engine_layers(config)):
            chosen = trace.chosen_of(frame % trace.frames, task, block)
            if chosen.min(initial=0) < 0 or chosen.max(initial=0) >= layer.experts:
                raise DataError(f"trace: {task}, block {block}: expected experts 0 to {layer.experts - 1}, "
                                f"found {int(chosen.max(initial=0))}")  # fmt: skip
            routing[job, index] = chosen
    return routing


def workload(
    config: Config, tasks: Sequence[str], routing: str | RoutingTrace | ExpertUsage = "uniform", *, seed: int = 0,
    schedule: Schedule = Schedule.INDEX, barrier_between_jobs: bool = False, prefetch_across_jobs: bool = True,
) -> Workload:  # fmt: skip
    """Everything that one simulation of whole frames needs.

    Args:
        tasks: one job each, in order.
        routing: a name of :data:`PATTERNS`, a recorded trace, or expert usage to draw from.
    """
    commands = compile_jobs(
        config, tasks, schedule=schedule, barrier_between_jobs=barrier_between_jobs,
        prefetch_across_jobs=prefetch_across_jobs,
    )  # fmt: skip
    if isinstance(routing, RoutingTrace):
        chosen = trace_routing(config, tasks, routing)
    elif isinstance(routing, ExpertUsage):
        chosen = usage_routing(config, tasks, routing, seed)
    else:
        chosen = pattern_routing(config, tasks, routing, seed)
    return Workload(commands, chosen, engine_layers(config), tuple(tasks))
