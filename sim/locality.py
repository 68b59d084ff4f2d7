"""Synthetic routing in which neighbouring tokens choose alike, as trained gates do on objects and surfaces."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from accel.config import Network
from accel.errors import ConfigError

Array = NDArray[Any]
PREFIX = "local:"
"""Of the name of this routing: ``local:0.75``."""


def parse_locality(name: str) -> float:
    """Locality in ``name``; ConfigError unless that is ``local:`` and a number from 0 to 1."""
    try:
        locality = float(name.removeprefix(PREFIX))
    except ValueError:
        locality = -1.0
    if not name.startswith(PREFIX) or not 0 <= locality <= 1:
        raise ConfigError(f"routing {name!r}: expected {PREFIX} and a number from 0 to 1, as {PREFIX}0.75")
    return locality


def local_experts(network: Network, locality: float, rng: np.random.Generator) -> Array:
    """Experts per token [tokens, top_k] of one layer.

    A token looks at its left or upper neighbour, whichever chance picks, and keeps each of its experts with probability
    ``locality``; the rest is drawn from all other experts alike. Every expert is therefore as likely as any other at
    any locality: 0 is uniform routing, 1 the same experts everywhere. The cls token draws for itself.
    """
    experts, top_k = network.experts, network.top_k
    width = network.image_width // network.patch
    chosen = np.empty((network.tokens, top_k), np.int64)
    keeps = rng.random((network.tokens, top_k)) < locality
    upward = rng.random(network.tokens) < 0.5
    for token in range(network.tokens):
        row, column = divmod(token - 1, width)
        if token == 0 or (row == 0 and column == 0):
            chosen[token] = rng.permutation(experts)[:top_k]
            continue
        above = row > 0 and (column == 0 or bool(upward[token]))
        chosen[token] = chosen[token - width if above else token - 1]
        fresh = np.flatnonzero(~keeps[token])
        others = np.setdiff1d(np.arange(experts), chosen[token, keeps[token]])
        chosen[token, fresh] = rng.permutation(others)[: len(fresh)]
    return chosen


def neighbour_overlap(network: Network, chosen: Array) -> float:
    """Mean share of a patch's experts that its left neighbour chose too, of [tokens, top_k]."""
    height, width = network.image_height // network.patch, network.image_width // network.patch
    grid = chosen[1:].reshape(height, width, -1)
    same = (grid[:, 1:, :, None] == grid[:, :-1, None, :]).any(axis=-1)
    return float(same.mean()) if same.size else 1.0
