"""What the commands around the simulator share: which network on which engine, memory, jobs and routing."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accel.config import Config, Formats, Hardware, Network
from accel.errors import ConfigError
from accel.memory_model import MemoryModel
from cli.arguments import parse_hardware, parse_network

if TYPE_CHECKING:
    from accel.usage import ExpertUsage
    from sim.comparing import PolicyRow
    from sim.policies import Policy
    from sim.trace import RoutingTrace
    from sim.workload import Workload

DEFAULT_HARDWARE = "zcu104"


def open_source(source: str) -> tuple[Network, Formats, Hardware | None]:
    """Network, formats and engine of a bundle (a directory); of a network (a preset, recipe or JSON file) no engine."""
    if Path(source).is_dir():
        from accel.bundle import open_bundle

        config = open_bundle(source).config
        return config.network, config.formats, config.hardware
    return parse_network(source), Formats(), None


def open_config(source: str, hardware_name: str | None) -> Config:
    """Configuration of a bundle or of a network, see :func:`open_source`.

    Args:
        hardware_name: the engine; None means the bundle's own, or the default one.
    """
    network, formats, own = open_source(source)
    if own is not None and hardware_name is None:
        return Config(network, formats, own)
    return Config(network, formats, parse_hardware(hardware_name or DEFAULT_HARDWARE))


def parse_memory(settings: Sequence[str]) -> MemoryModel:
    """The default memory with ``settings`` of the form name=value; ConfigError for what is not one.

    Cycles are those of ``memory_model.CLOCK_MHZ``; ``at_clock`` turns them into an engine's own.
    """
    fields = {item.name for item in dataclasses.fields(MemoryModel) if item.type == "int"}
    values: dict[str, Any] = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals or name not in fields:
            raise ConfigError(f"memory {setting!r}: expected NAME=NUMBER with one of {', '.join(sorted(fields))}")
        if name in values:
            raise ConfigError(f"memory: {name} is given twice")
        try:
            values[name] = int(text)
        except ValueError:
            raise ConfigError(f"memory: {name} = {text!r}: expected an integer") from None
    return dataclasses.replace(MemoryModel(), **values)


def parse_jobs(text: str | None, network: Network) -> list[str]:
    """Comma-separated tasks, in order and with repetitions; None means every task once."""
    if text is None:
        return list(network.task_names)
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if not name:
            raise ConfigError(f"jobs {text!r}: expected some of {', '.join(network.task_names)}, separated by commas, "
                              f"found an empty name")  # fmt: skip
        network.task_index(name)
    return names


def parse_routing(text: str) -> str | RoutingTrace | ExpertUsage:
    """A pattern's name, a trace (.npz) or expert usage (.json)."""
    from sim.locality import PREFIX, parse_locality
    from sim.workload import PATTERNS

    if text in PATTERNS:
        return text
    if text.startswith(PREFIX):
        parse_locality(text)
        return text
    if text.endswith(".npz"):
        from sim.trace import load_trace

        return load_trace(text)
    if text.endswith(".json"):
        from accel.usage import load_usage

        return load_usage(text)
    names = ", ".join(PATTERNS)
    raise ConfigError(f"routing {text!r}: expected one of {names}, {PREFIX} and a number from 0 to 1, a trace "
                      f"(.npz) or expert usage (.json)")  # fmt: skip


def parse_policy(
    name: str | None, work: Workload, config: Config, memory: MemoryModel, usage: ExpertUsage | None
) -> tuple[Workload, Policy | None]:
    """The program of ``work`` under a policy, and what the machine has to ask; nothing changes without a name."""
    from sim.policies import PLANS, make_policy, scheduled, usage_of

    if usage is not None:
        usage.check_network(config.network)
    if name is None:
        return work, None
    policy = make_policy(name, config.hardware, memory, None if usage is None else usage_of(work, usage))
    return scheduled(work, PLANS[name]), policy


def compare_policies(
    config: Config, tasks: Sequence[str], routing: str | RoutingTrace | ExpertUsage, memory: MemoryModel,
    policies: Sequence[str], seed: int, usage: ExpertUsage | None, quiet: bool,
) -> list[PolicyRow]:  # fmt: skip
    """``sim.comparing.compare`` behind a progress bar."""
    from cli.console import progress
    from sim.comparing import compare

    with progress(len(policies), "policies", "run", quiet) as bar:
        return compare(config, tasks, routing, memory, policies, seed=seed, usage=usage, progress=bar.update)
