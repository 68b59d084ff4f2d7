"""What reordering is compared with: tokens in order, one at a time, through an LRU cache of experts of the same size.

M³ViT (NeurIPS 2022, §3.3) compares its reordering with a design that computes token after token and caches experts.
Here that design gets this engine's array, memory and weight pool, and every doubt is decided for it:

* An expert that is missing may be loaded as soon as a place is free, however far ahead of the array; loads follow each
  other without a gap, and the array starts with the first row.
* Requests, hence loads and evictions, are known for the whole layer once its gate has been computed.
* What surrounds the experts (dense layers, gates, activations) costs what it costs the reordering engine; a layer that
  is bound by loads hides nothing of the next layer's.

Its price is what it does: a token is alone in its tile, so a pair of token and expert takes the cycles of a whole tile,
and an expert comes back as often as the cache has lost it. ``tests/sim`` runs the same requests through the whole
simulator on small layers and compares.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from accel.commands import Command, Opcode
from accel.config import Config, Hardware, Network
from accel.errors import ConfigError
from accel.memory_model import MemoryModel
from accel.usage import ExpertUsage
from sim import latencies as c
from sim.costs import expert_load, expert_work, first_row, gate_window
from sim.model import simulate_workload
from sim.results import Result
from sim.shapes import shape_of
from sim.trace import RoutingTrace
from sim.workload import Workload, workload

Array = NDArray[Any]


def lru_requests(chosen: Array, pool: int, hits_first: bool = False) -> list[tuple[int, int]]:
    """Experts in the order of use, each with the request whose place it takes.

    Args:
        chosen: experts per token [tokens, top_k], best first.
        pool: experts that the cache holds; it is empty at first.
        hits_first: a token takes what is in the cache first, instead of its best expert.

    Returns:
        per request the expert and what makes room for it: −2 for a hit, −1 for an empty place, otherwise the number of
        the request that used the evicted expert last.
    """
    cache: dict[int, int] = {}  # expert → last request, least recently used first
    requests: list[tuple[int, int]] = []
    for token in chosen.tolist():
        if hits_first:
            token = sorted(token, key=lambda expert: expert not in cache)
        for expert in token:
            if expert in cache:
                del cache[expert]
                room = -2
            elif len(cache) < pool:
                room = -1
            else:
                room = cache.pop(next(iter(cache)))
            cache[expert] = len(requests)
            requests.append((expert, room))
    return requests


@dataclass(frozen=True)
class CachedLayer:
    """One MoE layer without reordering.

    Attributes:
        pairs: requests: tokens × top_k.
        misses: requests that had to load their expert.
        loaded_bytes: read for them.
        cycles: from the layer's first gate beat to its last beat.
        gate_cycles: of them, before the first expert is known.
        load_cycles: in which the memory moves expert weights.
        compute_cycles: in which the array works on the experts.
    """

    pairs: int
    misses: int
    loaded_bytes: int
    cycles: float
    gate_cycles: float
    load_cycles: float
    compute_cycles: float

    @property
    def hit_rate(self) -> float:
        return 1 - self.misses / self.pairs


def _require_pool(pool: int) -> None:
    if pool < 2:
        raise ConfigError(f"cache: pool = {pool}: expected at least 2 experts, one to compute and one to load")


def cached_layer(
    chosen: Array, command: Command, hardware: Hardware, memory: MemoryModel, pool: int, hits_first: bool = False
) -> CachedLayer:
    """Cycles of one MoE layer in token order with an LRU cache; see :func:`lru_requests`."""
    _require_pool(pool)
    shape = shape_of(command, hardware)
    load = expert_load(shape, hardware, memory)
    work = expert_work(shape, 1, hardware)
    lead = (c.ORDER_TO_ACQUIRE + c.ACQUIRE_TO_REQUEST + c.TAKE_TO_PUSH + c.PUSH_TO_ISSUE + memory.latency
            + c.MOVE_TO_LINE)  # fmt: skip
    early = first_row(shape, hardware, memory)
    gate = gate_window(shape, hardware)
    ends: list[float] = []
    here: dict[int, tuple[float, float]] = {}  # expert → its first and last row usable
    over = loaded = float(gate)  # array free, last load complete
    misses = 0
    for expert, room in lru_requests(chosen, pool, hits_first):
        if room != -2:
            free = gate if room < 0 else ends[room] + c.BEAT_TO_RESULT + c.RESULT_TO_FREE
            begin = max(loaded, free + lead)
            loaded = begin + load
            here[expert] = (begin + early, loaded + c.LINE_TO_ROW)
            misses += 1
        first, last = here[expert]
        over = max(max(over, first) + work, last)
        ends.append(over)
    loaded_bytes = misses * shape.units * shape.unit_stripes * hardware.stripe_bytes
    return CachedLayer(len(ends), misses, loaded_bytes, over, gate, misses * load, len(ends) * work)


def attention_cycles(network: Network, hardware: Hardware) -> float:
    """Cycles of Q·Kᵀ and P·V of a frame at the array's peak: what the host computes today, granted to both designs."""
    return network.depth * 2 * network.tokens**2 * network.embed_dim / hardware.macs_per_cycle


@dataclass(frozen=True)
class CachedFrame:
    """Frames with and without reordering, on the same trace, engine, memory and pool.

    Attributes:
        pool: experts that the weight pool holds, of both.
        cycles, reordered_cycles: the engine's layers, without and with reordering (schedule INDEX).
        moe_cycles, reordered_moe_cycles: the MoE layers of them.
        attention_cycles: of attention at the array's peak, not in the above.
        layers: the MoE layers without reordering, job by job.
    """

    pool: int
    cycles: float
    reordered_cycles: int
    moe_cycles: float
    reordered_moe_cycles: float
    attention_cycles: float
    layers: tuple[CachedLayer, ...]

    @property
    def pairs(self) -> int:
        return sum(layer.pairs for layer in self.layers)

    @property
    def misses(self) -> int:
        return sum(layer.misses for layer in self.layers)

    @property
    def hit_rate(self) -> float:
        """Share of the requests whose expert was in the cache."""
        return 1 - self.misses / self.pairs

    @property
    def ratio(self) -> float:
        """How often the reordered frame fits into the other: the engine's layers."""
        return self.cycles / self.reordered_cycles

    @property
    def moe_ratio(self) -> float:
        """The same of the MoE layers alone."""
        return self.moe_cycles / self.reordered_moe_cycles

    @property
    def encoder_ratio(self) -> float:
        """The same of the whole encoder, attention included in both."""
        return (self.cycles + self.attention_cycles) / (self.reordered_cycles + self.attention_cycles)

    def to_dict(self) -> dict[str, Any]:
        """Plain dictionary, ready for JSON; layers are left out."""
        data = {item.name: getattr(self, item.name) for item in dataclasses.fields(self) if item.name != "layers"}
        for name in ("pairs", "misses", "hit_rate", "ratio", "moe_ratio", "encoder_ratio"):
            data[name] = getattr(self, name)
        return data


def cache_workload(
    work: Workload, network: Network, hardware: Hardware, memory: MemoryModel, reordered: Result, pool: int,
    hits_first: bool = False,
) -> CachedFrame:  # fmt: skip
    """:class:`CachedFrame` of a workload whose reordered run is known (on a pool of the same size)."""
    layers = []
    for command in work.commands:
        if command.opcode is Opcode.MOE:
            chosen = work.routing[command.job, command.layer]
            if chosen.ndim != 2:
                raise ConfigError("cache: routing: expected experts per token, found lengths of queues only")
            layers.append(cached_layer(chosen, command, hardware, memory, pool, hits_first))
    there = sum(layer.cycles for layer in reordered.layers if layer.kind == "moe")
    moe = sum(layer.cycles for layer in layers)
    attention = attention_cycles(network, hardware) * len(work.tasks)
    return CachedFrame(pool, reordered.cycles - there + moe, reordered.cycles, moe, there, attention, tuple(layers))


def pool_hardware(config: Config, pool: int) -> Hardware:
    """The engine of ``config`` with a weight pool of ``pool`` experts."""
    units = config.network.expert_units
    hw = config.hardware
    return hw if hw.weight_slots == pool * units else dataclasses.replace(hw, weight_slots=pool * units)


def cached_frame(
    config: Config, tasks: Sequence[str], routing: str | RoutingTrace | ExpertUsage = "uniform",
    memory: MemoryModel | None = None, *, pool: int | None = None, seed: int = 0, hits_first: bool = False,
) -> CachedFrame:  # fmt: skip
    """Frames with reordering against the same frames in token order with an LRU cache of the same pool.

    Args:
        routing: as of ``sim.workload.workload``; ``local:0.75`` keeps three quarters of a neighbour's experts.
        pool: experts that the weight pool of both holds; None: what the slots of the hardware hold.
        hits_first: in the order that suits the cache best within a token.

    Raises:
        ConfigError: a pool of fewer than two experts, or routing that is not known token by token.
    """
    memory = memory or MemoryModel()
    if pool is None:
        pool = config.hardware.weight_slots // config.network.expert_units
    _require_pool(pool)
    engine = pool_hardware(config, pool)
    work = workload(Config(config.network, config.formats, engine), tasks, routing, seed=seed)
    reordered = simulate_workload(work, engine, memory)
    return cache_workload(work, config.network, engine, memory, reordered, pool, hits_first)
