"""Energy of a simulated program, by the one model of ``accel/energy.py``: an estimate, and a range."""

from __future__ import annotations

from collections.abc import Sequence

from accel.commands import Command, Opcode
from accel.energy import EnergyEstimate, estimate_energy
from accel.errors import ProgramError
from accel.limits import KINDS
from sim.results import Result
from sim.shapes import shape_of


def energy_estimate(result: Result, commands: Sequence[Command]) -> EnergyEstimate:
    """Estimate for a simulated program at the clock of its hardware.

    Args:
        result: of the simulation.
        commands: the program; it must be the one that ``result`` is of.

    Raises:
        ProgramError: the program has no job, or another number of layers than the result.
    """
    layers = [shape_of(command, result.hardware) for command in commands if command.opcode in KINDS]
    if len(layers) != len(result.layers):
        raise ProgramError(f"energy: expected the {len(result.layers)} layers that were simulated, found {len(layers)}")
    jobs = sum(command.opcode is Opcode.JOB_END for command in commands)
    found = estimate_energy(result.counters, layers, result.hardware, jobs)
    if found is None:
        raise ProgramError("energy: expected a program with a job and cycles, found none")
    return found
