"""What the commands around the simulator share: which network on which engine, memory, jobs and routing."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accel.config import Config, Hardware, Network
from accel.errors import ConfigError
from accel.memory_model import MemoryModel
from cli.arguments import parse_hardware, parse_network

if TYPE_CHECKING:
    from accel.usage import ExpertUsage
    from sim.trace import RoutingTrace

DEFAULT_HARDWARE = "zcu104"


def open_config(source: str, hardware_name: str | None) -> Config:
    """Configuration of a bundle (a directory) or of a network (a preset, recipe or JSON file).

    Args:
        hardware_name: the engine; None means the bundle's own, or the default one.
    """
    if Path(source).is_dir():
        from accel.bundle import open_bundle

        config = open_bundle(source).config
        return config if hardware_name is None else _config(config.network, config, parse_hardware(hardware_name))
    return _config(parse_network(source), None, parse_hardware(hardware_name or DEFAULT_HARDWARE))


def _config(network: Network, like: Config | None, engine: Hardware) -> Config:
    return Config(network, hardware=engine) if like is None else Config(network, like.formats, engine)


def parse_memory(settings: Sequence[str]) -> MemoryModel:
    """The default memory with ``settings`` of the form name=value; ConfigError for what is not one."""
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


def parse_jobs(text: str, network: Network) -> list[str]:
    """Comma-separated tasks, in order and with repetitions; nothing means every task once."""
    names = [name.strip() for name in text.split(",")] if text else list(network.task_names)
    for name in names:
        network.task_index(name)
    return names


def parse_routing(text: str) -> str | RoutingTrace | ExpertUsage:
    """A pattern's name, a trace (.npz) or expert usage (.json)."""
    from sim.workload import PATTERNS

    if text in PATTERNS:
        return text
    if text.endswith(".npz"):
        from sim.trace import load_trace

        return load_trace(text)
    if text.endswith(".json"):
        from accel.usage import load_usage

        return load_usage(text)
    names = ", ".join(PATTERNS)
    raise ConfigError(f"routing {text!r}: expected one of {names}, a trace (.npz) or expert usage (.json)")
