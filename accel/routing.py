"""Token-queue reordering: from every token's top-k experts to one queue of tokens per non-empty expert."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


class Schedule(IntEnum):
    """Order in which the non-empty experts of a layer are computed. Any order gives the same bits."""

    INDEX = 0
    LONGEST_FIRST = 1
    RESIDENT_FIRST = 2


@dataclass(frozen=True, eq=False)
class Queue:
    """Tokens waiting for one expert, in token order, with their combine weights (u16 fractions of 2^16)."""

    expert: int
    tokens: Array
    weights: Array

    def __len__(self) -> int:
        return len(self.tokens)


@dataclass(frozen=True, eq=False)
class Routing:
    """Result of the gate for one frame, task and layer: chosen experts and weights, both [tokens, k], best first."""

    chosen: Array
    weights: Array

    def queues(self, experts: int) -> list[Queue]:
        """One queue per expert that has tokens, in index order; stable, so each queue is in token order."""
        k = self.chosen.shape[1]
        flat = self.chosen.reshape(-1)
        order = np.argsort(flat, kind="stable")
        counts = np.bincount(flat, minlength=experts)
        ends = np.cumsum(counts)
        weights = self.weights.reshape(-1)
        result = []
        for expert in np.flatnonzero(counts):
            entries = order[ends[expert] - counts[expert] : ends[expert]]
            result.append(Queue(int(expert), entries // k, weights[entries]))
        return result

    def crc(self, crc: int = 0) -> int:
        """CRC-32 of all queue entries in the order the engine appends them: token by token, best expert first.

        Per entry expert u16, token u16, weight u32, little-endian; it fixes every queue, order included.
        """
        entries = np.empty(self.chosen.shape, dtype=[("expert", "<u2"), ("token", "<u2"), ("weight", "<u4")])
        entries["expert"], entries["weight"] = self.chosen, self.weights
        entries["token"] = np.arange(len(self.chosen))[:, None]
        return zlib.crc32(entries.tobytes(), crc)

    def load(self, experts: int) -> Array:
        """Tokens per expert, [experts]."""
        return np.bincount(self.chosen.reshape(-1), minlength=experts)


def schedule(queues: Sequence[Queue], policy: Schedule, resident: Sequence[int] = ()) -> list[Queue]:
    """Queues in the order the engine computes them. ``resident``: experts whose weights are already on chip."""
    if policy is Schedule.LONGEST_FIRST:
        return sorted(queues, key=lambda queue: (-len(queue), queue.expert))
    if policy is Schedule.RESIDENT_FIRST:
        return sorted(queues, key=lambda queue: (queue.expert not in resident, queue.expert))
    return list(queues)
