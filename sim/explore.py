"""Design-space exploration: which engines a network could run on, what each takes of a device, how fast it is.

A **space** lists candidates for fields of :class:`accel.config.Hardware` and for ``schedule``. Fields that it does not
list stay as they are in a base engine. For buffers a candidate may be a multiple of the least that the network needs
on that array, written ``"1x"`` or ``"1.5x"``. Whether an engine is possible (its own rules, what the network demands,
the resource model) costs a fraction of a millisecond, so it is known before anything is simulated.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from accel.config import Config, Formats, Hardware, Network, demands, digest, hardware
from accel.errors import ConfigError
from accel.layers import Kind, TileGeometry, engine_layers, head_layers
from accel.memory_model import MemoryModel
from accel.resources import LIMITS, ZCU104, Resources, resources
from accel.routing import Schedule
from accel.usage import ExpertUsage
from sim.energy import energy_estimate
from sim.model import simulate_workload
from sim.shapes import holds_tiles
from sim.trace import RoutingTrace
from sim.workload import workload

Choice = dict[str, "int | str"]
"""Field → candidate."""
Refusal = Callable[[Hardware], "str | None"]
"""Why an engine is not wanted, or None."""

SCHEDULES = tuple(item.name.lower() for item in Schedule)
BUFFERS = (
    "max_width", "max_tokens", "max_inputs", "max_hidden", "max_experts", "max_top_k", "slot_rows", "slot_groups",
)  # fmt: skip
"""Fields that may be multiples of what the network needs, in the order in which they depend on each other."""
FREE = ("clock_mhz", "schedule")
"""What takes nothing of a device."""
NUMBERS = tuple(item.name for item in dataclasses.fields(Hardware) if item.name != "name")

DEFAULT_SPACE: dict[str, list[int | str]] = {
    "tile_tokens": [2, 4, 8, 16, 32],
    "tile_outputs": [16, 32, 48, 64, 96],
    "tile_inputs": [2, 4, 8],
    "weight_slots": [2, 3, 4, 5, 8],
    "slot_rows": ["1x", "2x"],
    "slot_groups": ["1x"],
    "max_tokens": ["1x", "2x", "8x"],
    "max_width": ["1x"],
    "max_inputs": ["1x"],
    "max_hidden": ["1x"],
    "ports": [2, 4],
    "write_ports": [1, 2],
    "clock_mhz": [200, 250, 300],
    "schedule": list(SCHEDULES),
}
_MULTIPLE = re.compile(r"(\d+(?:\.\d+)?)x")
MOST_ENGINES = 200_000
"""Engines of a space that are looked at one by one; larger spaces are only sampled."""


@dataclass(frozen=True)
class Space:
    """Candidates by field. Make one with :func:`parse_space`."""

    values: dict[str, tuple[int | str, ...]]

    @cached_property
    def engines(self) -> int:
        """Combinations of what takes something of a device."""
        return math.prod(len(values) for name, values in self.values.items() if name not in FREE)

    @property
    def size(self) -> int:
        """All combinations."""
        return math.prod(map(len, self.values.values()))

    def part(self, free: bool) -> Iterator[Choice]:
        """All combinations of the fields that are in :data:`FREE`, or of those that are not."""
        names = [name for name in self.values if (name in FREE) == free]
        for values in itertools.product(*(self.values[name] for name in names)):
            yield dict(zip(names, values, strict=True))


def parse_space(data: object, where: str = "space") -> Space:
    """Space from a plain dictionary of lists; ConfigError, one line, for anything that is not one."""
    if not isinstance(data, Mapping) or not data:
        raise ConfigError(f"{where}: expected a table of fields and lists of candidates, found {data!r:.60}")
    for name, values in data.items():
        if name not in (*NUMBERS, "schedule"):
            raise ConfigError(f"{where}: unknown field {name!r}: expected only {', '.join((*NUMBERS, 'schedule'))}")
        if not isinstance(values, list) or not values:
            raise ConfigError(f"{where}: {name}: expected a list of candidates, found {values!r:.60}")
        for value in values:
            _check_candidate(name, value, where)
        if len(set(values)) < len(values):
            raise ConfigError(f"{where}: {name}: expected different candidates, found {values!r:.60}")
    return Space({name: tuple(values) for name, values in data.items()})


def _check_candidate(name: str, value: object, where: str) -> None:
    if name == "schedule":
        if value not in SCHEDULES:
            raise ConfigError(f"{where}: schedule: expected some of {', '.join(SCHEDULES)}, found {value!r:.60}")
        return
    if isinstance(value, int) and not isinstance(value, bool) and value >= 1:
        return
    found = _MULTIPLE.fullmatch(value) if isinstance(value, str) else None
    if name in BUFFERS and found is not None and float(found[1]) >= 1:
        return
    wanted = "an integer of at least 1" + (' or a multiple such as "1.5x" of at least 1' if name in BUFFERS else "")
    raise ConfigError(f"{where}: {name}: expected {wanted}, found {value!r:.60}")


@dataclass(frozen=True)
class Candidate:
    """An engine and the order of its experts."""

    hardware: Hardware
    schedule: str

    @cached_property
    def key(self) -> str:
        """Identity, whatever the engine is called: 16 hexadecimal digits."""
        fields = {name: getattr(self.hardware, name) for name in NUMBERS}
        return digest({"hardware": fields, "schedule": self.schedule})[:16]


@dataclass(frozen=True)
class Problem:
    """What an exploration asks for.

    Attributes:
        tasks: one frame for each, chained.
        routing, seed: as for ``sim.workload.workload``.
        memory: in cycles of ``memory_model.CLOCK_MHZ``; every candidate sees the same nanoseconds.
        base: engine whose values hold for fields that the space does not list.
        device: what there is.
    """

    network: Network
    formats: Formats
    tasks: tuple[str, ...]
    routing: str | RoutingTrace | ExpertUsage = "uniform"
    seed: int = 0
    memory: MemoryModel = dataclasses.field(default_factory=MemoryModel)
    base: Hardware = dataclasses.field(default_factory=lambda: hardware("zcu104"))
    device: Resources = ZCU104

    def candidate(self, choice: Mapping[str, int | str]) -> Candidate:
        """The engine of a choice, named after its array and its key; ConfigError if there can be none."""
        plain = {name: value for name, value in choice.items() if isinstance(value, int)}
        wide = int(plain.get("tile_outputs", self.base.tile_outputs)) << 20
        open_: dict[str, Any] = {name: wide for name in BUFFERS if name in choice and name not in plain}
        limited: dict[str, Any] = {
            name: getattr(self.base, name) for name in ("max_experts", "max_top_k") if name in open_
        }
        given: dict[str, Any] = {**open_, **limited, **plain}
        engine = dataclasses.replace(self.base, **given)
        for names in (("max_width",), BUFFERS[1:]):  # what a slot must hold depends on max_width
            asked = demands(self.network, engine)
            sizes: dict[str, Any] = {}
            for name in names:
                if name in open_:
                    least = max(value for _, value, limit in asked if limit == name)
                    sizes[name] = math.ceil(least * float(str(choice[name])[:-1]))
            if "max_width" in sizes:
                sizes["max_width"] = -(-sizes["max_width"] // engine.tile_outputs) * engine.tile_outputs
            if sizes:
                engine = dataclasses.replace(engine, **sizes)
        found = Candidate(engine, str(choice.get("schedule", SCHEDULES[0])))
        array = f"{engine.tile_tokens}x{engine.tile_outputs}x{engine.tile_inputs}"
        return Candidate(dataclasses.replace(engine, name=f"{array}-{found.key[:8]}"), found.schedule)

    def check(self, engine: Hardware) -> None:
        """Raise ConfigError unless the network runs on this engine, heads included (their weights share its format)."""
        config = Config(self.network, self.formats, engine)
        for layer in engine_layers(config):
            if not holds_tiles(layer.tokens, layer.inputs, engine):
                tile = f"{engine.tile_tokens} rows of {layer.inputs} channels"
                raise ConfigError(
                    f"hardware {engine.name!r}: max_tokens = {engine.max_tokens}: expected to hold {tile}"
                )
        for task in self.network.task_names:
            head_layers(config, task)

    def excess(self, engine: Hardware) -> dict[str, float]:
        """By how much an engine exceeds its share of the device, by name; 0 or less fits."""
        shares = resources(engine).shares(self.device)
        return {name: shares[name] / limit - 1 for name, limit in LIMITS.items()}

    def refusal(self, engine: Hardware, refuses: Refusal) -> str | None:
        """Why an engine is out: a resource, ``network``, or what ``refuses`` says; None if it is in."""
        for name, value in self.excess(engine).items():
            if value > 0:
                return name
        try:
            self.check(engine)
        except ConfigError:
            return "network"
        return refuses(engine)

    def estimate(self, engine: Hardware) -> float:
        """Milliseconds per frame without simulating, to decide where a search begins.

        Layer by layer the larger of the array's beats, queues all equal, and of all bytes at the memory's rate.
        """
        rate = min(self.memory.at_clock(engine.clock_mhz).bytes_per_cycle, engine.line_bytes)
        cycles = 0.0
        for layer in engine_layers(Config(self.network, self.formats, engine)):
            pairs = layer.tokens * layer.top_k if layer.kind is Kind.MOE else layer.tokens
            unit_rows = layer.second.rows + (layer.first.rows if layer.first is not None else 0)
            rows = layer.units * unit_rows if layer.hidden else TileGeometry(layer.outputs, layer.inputs, engine).rows
            beats = layer.experts * math.ceil(pairs / layer.experts / engine.tile_tokens) * rows
            if layer.gate is not None:
                beats += math.ceil(layer.tokens / engine.tile_tokens) * layer.gate.rows
            moved = layer.experts * layer.expert_bytes + layer.gate_bytes
            moved += layer.tokens * (layer.inputs + layer.outputs * layer.output_bytes_per_value)
            cycles += max(beats, moved / rate)
        return cycles / engine.clock_mhz / 1000

    def evaluate(self, candidate: Candidate) -> dict[str, Any]:
        """Simulate; figures by name, ready for JSON. Those of a frame are averages over all frames."""
        engine, frames = candidate.hardware, len(self.tasks)
        config = Config(self.network, self.formats, engine)
        schedule = Schedule[candidate.schedule.upper()]
        work = workload(config, self.tasks, self.routing, seed=self.seed, schedule=schedule)
        result = simulate_workload(work, engine, self.memory.at_clock(engine.clock_mhz))
        joules = energy_estimate(result, work.commands).joules_per_frame
        return {
            "cycles": result.cycles,
            "milliseconds": result.milliseconds / frames,
            "utilization": result.utilization,
            "roofline": result.roofline_cycles / result.cycles,
            "ddr_bytes": result.ddr_bytes,
            "millijoules": [1000 * joules[0], 1000 * joules[1]],
        }


@dataclass(frozen=True)
class Engines:
    """What a space holds.

    Attributes:
        looked_at: combinations of fields, those of :data:`FREE` apart.
        fitting: a choice for each different engine that is possible.
        refused: reason → how many.
    """

    looked_at: int
    fitting: tuple[Choice, ...]
    refused: dict[str, int]

    def reasons(self) -> str:
        """What was refused and why, for people."""
        named = {"shape": "no such engine", "network": "too small for the network", "rtl": "not for the RTL"}
        found = [f"{count:,} {named.get(name, f'too much {name.upper()}')}" for name, count in self.refused.items()]
        return ", ".join(found) or "none refused"


def engines(problem: Problem, space: Space, refuses: Refusal = lambda engine: None) -> Engines:
    """Look at every engine of a space; ConfigError if there are more than :data:`MOST_ENGINES`."""
    if space.engines > MOST_ENGINES:
        raise ConfigError(f"space: {space.engines:,} engines: expected at most {MOST_ENGINES:,}")
    fitting: dict[str, Choice] = {}
    refused: dict[str, int] = {}
    for choice in space.part(free=False):
        try:
            candidate = problem.candidate(choice)
            reason = problem.refusal(candidate.hardware, refuses)
        except ConfigError:
            reason = "shape"
        if reason is not None:
            refused[reason] = refused.get(reason, 0) + 1
        else:
            fitting.setdefault(candidate.key, choice)
    return Engines(space.engines, tuple(fitting.values()), refused)
