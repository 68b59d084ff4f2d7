"""The simulator's front door: a program, its routing, an engine and a memory go in; cycles and their causes come out.

from accel.config import Config, network
from sim.model import simulate_frames
result = simulate_frames(Config(network("m3vit-small-pascal")), ["semseg", "normals"])
print(result.cycles, result.breakdown)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

from accel.commands import Command, Opcode
from accel.config import Config, Hardware
from accel.errors import ConfigError, DataError, ProgramError
from accel.limits import KINDS
from accel.memory_model import MemoryModel
from accel.routing import Schedule
from accel.usage import ExpertUsage
from sim.held import HeldMachine
from sim.machine import Machine
from sim.policies import Policy
from sim.results import Result, collect
from sim.trace import RoutingTrace
from sim.workload import Workload, workload


def check_routing(commands: Sequence[Command], routing: Mapping[tuple[int, int], NDArray[Any]]) -> None:
    """Raise unless every MoE command has a routing that fits it, and only those have one.

    Raises:
        ProgramError: no END at the end, or a routing is missing.
        DataError: shape, an expert out of range, loads that do not add up.
    """
    if not commands or commands[-1].opcode is not Opcode.END:
        raise ProgramError("program: expected END as its last command")
    for command in commands:
        if command.opcode is not Opcode.MOE:
            continue
        where = f"routing of job {command.job}, layer {command.layer}"
        chosen = routing.get((command.job, command.layer))
        if chosen is None:
            raise ProgramError(f"{where}: missing")
        if chosen.ndim == 2:
            shape = (command.tokens, command.top_k)
            if chosen.shape != shape:
                raise DataError(f"{where}: expected shape {shape}, found {chosen.shape}")
            low, high = int(chosen.min()), int(chosen.max())
            if low < 0 or high >= command.experts:
                wrong = low if low < 0 else high
                raise DataError(f"{where}: expert {wrong}: expected 0 to {command.experts - 1}")
        elif chosen.shape != (command.experts,) or int(chosen.sum()) != command.tokens * command.top_k:
            pairs = command.tokens * command.top_k
            raise DataError(f"{where}: expected {command.experts} loads that add up to {pairs}, found {chosen.shape} "
                            f"with {int(chosen.sum())}")  # fmt: skip
        elif int(chosen.min()) < 0 or int(chosen.max()) > command.tokens:
            raise DataError(f"{where}: expected loads from 0 to {command.tokens}, found {int(chosen.min())} to "
                            f"{int(chosen.max())}")  # fmt: skip


def check_memory(hardware: Hardware, memory: MemoryModel) -> None:
    """Raise ConfigError if the engine cannot work with this memory at all."""
    if memory.burst_beats < hardware.burst_beats:
        raise ConfigError(f"memory model: burst_beats = {memory.burst_beats}: expected at least burst_beats = "
                          f"{hardware.burst_beats} of hardware {hardware.name!r}")  # fmt: skip


def simulate(
    commands: Sequence[Command],
    routing: Mapping[tuple[int, int], NDArray[Any]],
    hardware: Hardware,
    memory: MemoryModel | None = None,
    *,
    names: Sequence[str] = (),
    timeline: bool = False,
    policy: Policy | None = None,
) -> Result:
    """Run a program.

    Args:
        commands: as the engine gets them, ending with END.
        routing: (job, layer) of every MOE command → experts chosen [tokens, top_k], best first, or the loads of its
            experts [experts].
        memory: timing of the memory; the default is that of the RTL bench.
        names: of the layers of a job, for reports.
        timeline: keep begin and end of every load, pass and store.
        policy: a schedule that the engine does not have (``sim.policies``); None: the one in the commands.

    Raises:
        ProgramError, DataError, ConfigError: see :func:`check_routing`, :func:`check_memory`, ``sim.shapes.shape_of``.
    """
    memory = memory or MemoryModel()
    check_memory(hardware, memory)
    check_routing(commands, routing)
    from sim.shapes import shape_of

    for command in commands:
        if command.opcode in KINDS:
            shape_of(command, hardware)
    kind = HeldMachine if memory.stall_percent else Machine
    machine = kind(commands, routing, hardware, memory, timeline)
    machine.policy = policy
    machine.run()
    return collect(machine, names)


def simulate_workload(
    work: Workload, hardware: Hardware, memory: MemoryModel | None = None, *, timeline: bool = False,
    policy: Policy | None = None,
) -> Result:  # fmt: skip
    """Run a workload of whole frames."""
    names = [layer.name for layer in work.layers]
    return simulate(
        work.commands, work.routing, hardware, memory, names=names, timeline=timeline, policy=policy
    )  # fmt: skip


def simulate_frames(
    config: Config, tasks: Sequence[str], routing: str | RoutingTrace | ExpertUsage = "uniform",
    memory: MemoryModel | None = None, *, seed: int = 0, schedule: Schedule = Schedule.INDEX, timeline: bool = False,
) -> Result:  # fmt: skip
    """One frame for each of ``tasks``, chained; see ``sim.workload.workload``."""
    work = workload(config, tasks, routing, seed=seed, schedule=schedule)
    return simulate_workload(work, config.hardware, memory, timeline=timeline)


__all__ = ["Result", "Workload", "check_memory", "check_routing", "simulate", "simulate_frames",
           "simulate_workload", "workload"]  # fmt: skip
