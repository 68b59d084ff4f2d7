"""Command-line values that name a part of the configuration: a preset or a JSON file."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from accel.config import (
    HARDWARE,
    NETWORKS,
    ROUTINGS,
    Hardware,
    Network,
    hardware_from_dict,
    network_from_dict,
    parse_json,
)
from accel.errors import ConfigError

T = TypeVar("T")


def _preset_or_file(text: str, presets: Mapping[str, T], read: Callable[[object, str], T], what: str) -> T:
    if text in presets:
        return presets[text]
    path = Path(text)
    if path.suffix != ".json":
        raise ConfigError(f"{what} {text!r}: expected a .json file or one of {', '.join(presets)}")
    try:
        content = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"{path}: cannot read {what}: {reason}") from error
    data = parse_json(content, str(path))
    # A whole configuration file serves, too: its part of that name is taken.
    where = str(path)
    if isinstance(data, Mapping) and isinstance(data.get(what), Mapping | str):
        data, where = data[what], f"{path}: {what}"
        if isinstance(data, str):
            return _preset_or_file(data, presets, read, what)
    try:
        return read(data, where)
    except ConfigError as error:
        # Values are checked by the objects themselves, which do not know where they come from.
        raise error if str(path) in str(error) else ConfigError(f"{path}: {error}") from error


def parse_network(text: str) -> Network:
    """Network by preset name, from a JSON file (a network, or a configuration that contains one) or of a recipe."""
    if text.endswith(".toml") or any(mode in text.split("-") for mode in ("single_task", *ROUTINGS)):
        from cli.recipes import recipe_network  # the recipes' losses need PyTorch
        from model.recipes.loader import load_recipe

        return recipe_network(load_recipe(text))
    return _preset_or_file(text, NETWORKS, network_from_dict, "network")


def parse_hardware(text: str) -> Hardware:
    """Hardware by preset name or from a JSON file (an engine, or a configuration that contains one)."""
    return _preset_or_file(text, HARDWARE, hardware_from_dict, "hardware")


def with_routing(network: Network, routing: str | None, task_embed_dim: int = 16) -> Network:
    """``network`` with another routing; as it is for None or the routing that it has."""
    if routing is None or routing == network.routing:
        return network
    width = task_embed_dim if routing == "task_conditioned" else 0
    return dataclasses.replace(network, routing=routing, task_embed_dim=width)
