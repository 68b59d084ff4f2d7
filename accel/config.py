"""One frozen, validated configuration, split by reason to change.

* :class:`Network`: dimensions of the model and its tasks (changes with the experiment),
* :class:`Formats`: number formats that training and hardware agree on,
* :class:`Hardware`: parallelism, on-chip buffers and memory interface of the engine.

:class:`Config` joins the three, checks that they fit each other, and gives the name and hash that travel
in bundles, generated headers, the engine's identity record and benchmark results.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from accel import identity
from accel.errors import ConfigError
from accel.identity import digest

TASK_KINDS = ("labels", "depth", "log_depth", "normals", "binary")
ROUTINGS = ("multi_gate", "task_conditioned")
HEADS = ("light", "pup")

T = TypeVar("T")


def _require(condition: bool, where: str, field_name: str, found: object, expected: str) -> None:
    if not condition:
        raise ConfigError(f"{where}: {field_name} = {found!r}: expected {expected}")


_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def _named(part: Any, where: str) -> None:
    """Names become parts of file names and generated identifiers."""
    ok = isinstance(part.name, str) and _NAME.fullmatch(part.name) is not None
    _require(ok, where, "name", part.name, "letters, digits, '.', '_' and '-', the first a letter or a digit")


def _positive(part: Any, where: str, *names: str) -> None:
    for name in names:
        value = getattr(part, name)
        ok = isinstance(value, int) and not isinstance(value, bool) and value >= 1
        _require(ok, where, name, value, "an integer of at least 1")


@dataclass(frozen=True)
class Task:
    """One task: its output channels and what they mean.

    Kinds: ``labels`` (class logits), ``depth`` (metres), ``log_depth`` (natural logarithm of metres),
    ``normals`` (unnormalized x, y, z), ``binary`` (one logit).
    """

    name: str
    channels: int
    kind: str

    def __post_init__(self) -> None:
        where = f"task {self.name!r}"
        _require(bool(self.name) and self.name.isidentifier(), where, "name", self.name, "an identifier")
        _positive(self, where, "channels")
        _require(self.kind in TASK_KINDS, where, "kind", self.kind, f"one of {', '.join(TASK_KINDS)}")
        fixed = {"depth": 1, "log_depth": 1, "binary": 1, "normals": 3}.get(self.kind, self.channels)
        _require(self.channels == fixed, where, "channels", self.channels, f"{fixed} for {self.kind}")


@dataclass(frozen=True)
class Network:
    """Dimensions of a multi-task MoE vision transformer. Every odd block is a MoE block (M³ViT, §3.1).

    Attributes:
        image_height, image_width: pixels.
        patch: side of a square patch, pixels.
        embed_dim: D, channels of a token.
        depth: transformer blocks.
        heads: attention heads.
        dense_hidden: hidden width of the MLP in even blocks.
        experts, top_k: experts per MoE block and how many each token uses.
        expert_hidden: hidden width of one expert.
        unit_hidden: widest hidden slice that the engine treats at once. MLPs and experts are cut into such
            units; each unit's output is rounded by itself, so this is part of the numeric contract.
        tasks: the tasks, in the order of their gates.
        routing: ``multi_gate`` (a gate per task) or ``task_conditioned`` (one gate fed a task embedding).
        task_embed_dim: width of the task embedding, 0 with ``multi_gate``.
        head: ``light`` (two linear layers per token) or ``pup`` (SETR progressive up-sampling).
        head_hidden: hidden width of the light head.
    """

    name: str
    image_height: int
    image_width: int
    patch: int
    embed_dim: int
    depth: int
    heads: int
    dense_hidden: int
    experts: int
    top_k: int
    expert_hidden: int
    unit_hidden: int
    tasks: tuple[Task, ...]
    routing: str = "multi_gate"
    task_embed_dim: int = 0
    head: str = "light"
    head_hidden: int = 128

    def __post_init__(self) -> None:
        where = f"network {self.name!r}"
        _named(self, where)
        _positive(
            self, where, "image_height", "image_width", "patch", "embed_dim", "depth", "heads", "dense_hidden",
            "experts", "top_k", "expert_hidden", "unit_hidden", "head_hidden",
        )  # fmt: skip
        for side in ("image_height", "image_width"):
            value = getattr(self, side)
            _require(value % self.patch == 0, where, side, value, f"a multiple of patch = {self.patch}")
        _require(self.embed_dim % self.heads == 0, where, "heads", self.heads, f"a divisor of {self.embed_dim}")
        _require(self.embed_dim <= 1024, where, "embed_dim", self.embed_dim, "at most 1024 (LayerNorm's 51 bits)")
        _require(self.head_dim <= 512, where, "head_dim", self.head_dim, "at most 512 (score differences below 2^24)")
        _require(self.experts <= 256, where, "experts", self.experts, "at most 256")
        _require(self.top_k <= min(8, self.experts), where, "top_k", self.top_k, f"1 to {min(8, self.experts)}")
        for name in ("dense_hidden", "expert_hidden"):
            value = getattr(self, name)
            _require(value % self.unit_hidden == 0, where, name, value, f"a multiple of {self.unit_hidden}")
        _require(self.dense_units <= 15, where, "dense_hidden", self.dense_hidden, "at most 15 units (36-bit combine)")
        # One less than dense: the combine weights of a token may add up to a little more than 1.0.
        _require(self.expert_units <= 14, where, "expert_hidden", self.expert_hidden, "at most 14 units")
        _require(len(self.tasks) >= 1, where, "tasks", [], "at least one task")
        names = [task.name for task in self.tasks]
        _require(len(set(names)) == len(names), where, "tasks", names, "distinct names")
        _require(self.routing in ROUTINGS, where, "routing", self.routing, f"one of {', '.join(ROUTINGS)}")
        conditioned = self.routing == "task_conditioned"
        embed = self.task_embed_dim
        _require(
            isinstance(embed, int) and (embed >= 1 if conditioned else embed == 0),
            where, "task_embed_dim", embed, "at least 1" if conditioned else "0 for multi_gate",
        )  # fmt: skip
        _require(self.head in HEADS, where, "head", self.head, f"one of {', '.join(HEADS)}")

    @property
    def grid_h(self) -> int:
        return self.image_height // self.patch

    @property
    def grid_w(self) -> int:
        return self.image_width // self.patch

    @property
    def tokens(self) -> int:
        """Patches plus the cls token, which is token 0 and is routed like any other."""
        return self.grid_h * self.grid_w + 1

    @property
    def patch_dim(self) -> int:
        return 3 * self.patch * self.patch

    @property
    def head_dim(self) -> int:
        return self.embed_dim // self.heads

    @property
    def dense_units(self) -> int:
        return self.dense_hidden // self.unit_hidden

    @property
    def expert_units(self) -> int:
        return self.expert_hidden // self.unit_hidden

    @property
    def moe_blocks(self) -> tuple[int, ...]:
        return tuple(block for block in range(self.depth) if self.is_moe(block))

    @property
    def task_names(self) -> tuple[str, ...]:
        return tuple(task.name for task in self.tasks)

    def is_moe(self, block: int) -> bool:
        return block % 2 == 1

    def task(self, name: str) -> Task:
        """The task called ``name``; raises ConfigError naming the known ones."""
        return self.tasks[self.task_index(name)]

    def task_index(self, name: str) -> int:
        if name not in self.task_names:
            raise ConfigError(f"network {self.name!r}: task {name!r}: expected one of {', '.join(self.task_names)}")
        return self.task_names.index(name)


@dataclass(frozen=True)
class Formats:
    """Widths that training may vary. All other widths are fixed by the contract (``accel.numerics``).

    Attributes:
        weight_bits: two's complement, narrow range ±(2^(bits-1) - 1), stored in bytes whatever the width.
        activation_bits: two's complement, stored in bytes.
    """

    weight_bits: int = 8
    activation_bits: int = 8

    def __post_init__(self) -> None:
        for name in ("weight_bits", "activation_bits"):
            value = getattr(self, name)
            ok = isinstance(value, int) and not isinstance(value, bool) and 2 <= value <= 8
            _require(ok, "formats", name, value, "an integer from 2 to 8")

    @property
    def weight_max(self) -> int:
        return (1 << (self.weight_bits - 1)) - 1


@dataclass(frozen=True)
class Hardware:
    """Parallelism, buffers and memory interface of the engine.

    Attributes:
        tile_tokens, tile_outputs, tile_inputs: MAC array, tokens × outputs × inputs per cycle.
        weight_slots: units held on chip; 2 is ping-pong, more is a pool.
        slot_rows: weight rows (tile_outputs × tile_inputs bytes) per slot.
        max_tokens: tokens per layer that the activation and accumulator stores hold.
        slot_groups: parameter groups (bias and shift of tile_outputs lanes) per slot, one per output tile.
        max_width: channels per token that these stores hold. int8 outputs stream out and may be wider.
        max_inputs: channels of the widest input row. Above max_width a layer must be a plain one of a single unit,
            whose rows stream past resident weights (patch embedding).
        max_hidden: hidden columns of the widest unit.
        max_experts, max_top_k: limits of the route unit and its queues.
        topk_lanes: gate logits compared per cycle.
        ports, write_ports: AXI4 interfaces read from, and how many of them write too.
        port_bytes: width of one interface.
        burst_beats: beats per burst; the PS ends every burst at 16 (UG1085).
        outstanding: bursts in flight per port.
        clock_mhz: clock at which cycles are quoted as time.
    """

    name: str
    tile_tokens: int
    tile_outputs: int
    tile_inputs: int
    weight_slots: int
    slot_rows: int
    slot_groups: int
    max_tokens: int
    max_width: int
    max_inputs: int
    max_hidden: int
    max_experts: int = 256
    max_top_k: int = 8
    topk_lanes: int = 8
    ports: int = 4
    write_ports: int = 2
    port_bytes: int = 16
    burst_beats: int = 16
    outstanding: int = 8
    clock_mhz: int = 300

    def __post_init__(self) -> None:
        where = f"hardware {self.name!r}"
        _named(self, where)
        names = [item.name for item in dataclasses.fields(self) if item.name != "name"]
        _positive(self, where, *names)
        for name in ("tile_tokens", "tile_inputs", "ports", "port_bytes", "burst_beats", "topk_lanes"):
            value = getattr(self, name)
            _require(value & (value - 1) == 0, where, name, value, "a power of two")
        _require(self.tile_inputs <= 8, where, "tile_inputs", self.tile_inputs, "at most 8 (DSP48E2 packing, WP486)")
        _require(self.tile_tokens >= 2, where, "tile_tokens", self.tile_tokens, "at least 2 (pairs share a DSP)")
        _require(self.burst_beats <= 16, where, "burst_beats", self.burst_beats, "at most 16 (UG1085)")
        _require(self.row_bytes % self.line_bytes == 0, where, "tile_outputs", self.tile_outputs,
                 f"rows of {self.tile_inputs} × tile_outputs bytes to be whole "
                 f"{self.line_bytes}-byte lines")  # fmt: skip
        _require(self.weight_slots >= 2, where, "weight_slots", self.weight_slots, "at least 2 (ping-pong)")
        _require(self.max_experts <= 256, where, "max_experts", self.max_experts, "at most 256")
        _require(self.max_top_k <= 8, where, "max_top_k", self.max_top_k, "at most 8")
        _require(self.ports <= 4, where, "ports", self.ports, "at most 4 (one arena address register each)")
        _require(self.write_ports <= self.ports, where, "write_ports", self.write_ports, f"at most {self.ports}")
        _require(self.max_width % self.tile_outputs == 0, where, "max_width", self.max_width,
                 f"a multiple of tile_outputs = {self.tile_outputs}")  # fmt: skip

    @property
    def macs_per_cycle(self) -> int:
        return self.tile_tokens * self.tile_outputs * self.tile_inputs

    @property
    def row_bytes(self) -> int:
        """One weight row: what the array reads every cycle."""
        return self.tile_outputs * self.tile_inputs

    @property
    def line_bytes(self) -> int:
        """One beat of all ports side by side."""
        return self.ports * self.port_bytes

    @property
    def burst_bytes(self) -> int:
        return self.port_bytes * self.burst_beats

    @property
    def stripe_bytes(self) -> int:
        """One burst of every port; every tensor in memory is padded to whole stripes."""
        return self.ports * self.burst_bytes


def demands(network: Network, engine: Hardware) -> list[tuple[str, int, str]]:
    """What a network asks of the buffers of an engine with this array: (what, how much, the field that limits it)."""
    groups = math.ceil(network.embed_dim / engine.tile_outputs)
    hidden_groups = math.ceil(network.unit_hidden / engine.tile_outputs)
    gate_groups = math.ceil(network.experts / engine.tile_outputs)
    width_rows, hidden_rows = network.embed_dim // engine.tile_inputs, network.unit_hidden // engine.tile_inputs
    asked = [
        ("tokens", network.tokens, "max_tokens"),
        ("embed_dim", network.embed_dim, "max_width"),
        ("experts", network.experts, "max_experts"),
        ("top_k", network.top_k, "max_top_k"),
        ("embed_dim", network.embed_dim, "max_inputs"),
        ("patch_dim", network.patch_dim, "max_inputs"),
        ("unit_hidden", network.unit_hidden, "max_hidden"),
        ("unit rows", hidden_groups * width_rows + groups * hidden_rows, "slot_rows"),
        ("unit parameter groups", hidden_groups + groups, "slot_groups"),
        ("gate rows", gate_groups * width_rows, "slot_rows"),
        ("gate parameter groups", gate_groups, "slot_groups"),
    ]
    if network.patch_dim > engine.max_width:
        # Patch rows wider than the activation store stream past weights that must all be on chip.
        asked.append(("patch embedding rows", groups * math.ceil(network.patch_dim / engine.tile_inputs), "slot_rows"))
    widest = max(network.embed_dim, network.patch_dim)
    asked.append(("rows of one output tile", widest // engine.tile_inputs, "slot_rows"))
    return asked


@dataclass(frozen=True)
class Config:
    """A network, its number formats and the engine it runs on, checked against each other."""

    network: Network
    formats: Formats = field(default_factory=Formats)
    hardware: Hardware = field(default_factory=lambda: hardware("zcu104"))

    def __post_init__(self) -> None:
        net, hw = self.network, self.hardware
        where = f"network {net.name!r} on hardware {hw.name!r}"
        for name in ("embed_dim", "unit_hidden", "patch_dim"):
            value = getattr(net, name)
            _require(value % hw.tile_inputs == 0, where, name, value, f"a multiple of tile_inputs = {hw.tile_inputs}")
        for name, value, limit_name in demands(net, hw):
            limit = getattr(hw, limit_name)
            _require(value <= limit, where, name, value, f"at most {limit_name} = {limit}")

    @property
    def name(self) -> str:
        return f"{self.network.name}@{self.hardware.name}"

    @property
    def hash(self) -> str:
        """First 16 hexadecimal digits of the SHA-256 of everything in this configuration."""
        return digest(to_dict(self))[:16]

    @property
    def engine_hash(self) -> int:
        """32-bit identity of the engine that this configuration's bundles and programs are for."""
        return engine_hash(self.formats, self.hardware)


def engine_hash(formats: Formats, engine: Hardware) -> int:
    """32-bit identity of an engine: what bytes and results depend on (``accel.identity``)."""
    return identity.engine_hash(to_dict(formats), to_dict(engine))


def build_hash(formats: Formats, engine: Hardware) -> int:
    """32-bit hash of everything that an engine was built with."""
    return identity.build_hash(to_dict(formats), to_dict(engine))


def to_dict(part: Any) -> dict[str, Any]:
    """Plain dictionary of a configuration part, ready for JSON."""
    return json.loads(json.dumps(dataclasses.asdict(part)))


def _from_dict(cls: type[T], data: object, where: str) -> T:
    if not isinstance(data, Mapping):
        raise ConfigError(f"{where}: expected a table of fields, found {type(data).__name__}")
    known = {item.name: item for item in dataclasses.fields(cls)}  # type: ignore[arg-type]
    unknown = sorted(set(data) - set(known))
    if unknown:
        raise ConfigError(f"{where}: unknown field {unknown[0]!r}: expected only {', '.join(known)}")
    missing = [
        name for name, item in known.items()
        if name not in data and item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING
    ]  # fmt: skip
    if missing:
        raise ConfigError(f"{where}: missing field {missing[0]!r}")
    for name, value in data.items():
        kind = known[name].type
        ok = isinstance(value, str) if kind == "str" else isinstance(value, int) if kind == "int" else True
        if not ok or isinstance(value, bool):
            raise ConfigError(f"{where}: {name} = {value!r}: expected {kind}, found {type(value).__name__}")
    return cls(**data)


def network_from_dict(data: object, where: str = "network") -> Network:
    """Network from a plain dictionary; unknown, missing or ill-typed fields are ConfigErrors."""
    if isinstance(data, Mapping) and isinstance(data.get("tasks"), list | tuple):
        tasks = tuple(_from_dict(Task, item, f"{where}.tasks[{i}]") for i, item in enumerate(data["tasks"]))
        data = {**data, "tasks": tasks}
    elif isinstance(data, Mapping) and "tasks" in data:
        raise ConfigError(f"{where}: tasks = {data['tasks']!r}: expected a list of tasks")
    return _from_dict(Network, data, where)


def formats_from_dict(data: object, where: str = "formats") -> Formats:
    return _from_dict(Formats, data, where)


def hardware_from_dict(data: object, where: str = "hardware") -> Hardware:
    return _from_dict(Hardware, data, where)


def config_from_dict(data: object, where: str = "config") -> Config:
    """Config from a plain dictionary with ``network``, ``formats`` and ``hardware``; names of presets are accepted."""
    if not isinstance(data, Mapping):
        raise ConfigError(f"{where}: expected a table of fields, found {type(data).__name__}")
    unknown = sorted(set(data) - {"network", "formats", "hardware"})
    if unknown:
        raise ConfigError(f"{where}: unknown field {unknown[0]!r}: expected only network, formats, hardware")
    if "network" not in data:
        raise ConfigError(f"{where}: missing field 'network'")
    net, hw = data["network"], data.get("hardware", "zcu104")
    return Config(
        network(net) if isinstance(net, str) else network_from_dict(net, f"{where}.network"),
        formats_from_dict(data.get("formats", {}), f"{where}.formats"),
        hardware(hw) if isinstance(hw, str) else hardware_from_dict(hw, f"{where}.hardware"),
    )


def parse_json(text: str, where: str) -> Any:
    """JSON in which a key given twice is an error instead of silently keeping the last value."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        seen: dict[str, Any] = {}
        for key, value in pairs:
            if key in seen:
                raise ConfigError(f"{where}: field {key!r} is given twice")
            seen[key] = value
        return seen

    try:
        return json.loads(text, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:  # ValueError alone: a number of thousands of digits
        raise ConfigError(f"{where}: not valid JSON: {error}") from error


def load_config(path: str | os.PathLike[str]) -> Config:
    """Read a configuration file (JSON)."""
    source = Path(path)
    try:
        text = source.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{source}: cannot read configuration: {error}") from error
    return config_from_dict(parse_json(text, str(source)), str(source))


def _tasks(*rows: tuple[str, int, str]) -> tuple[Task, ...]:
    return tuple(Task(*row) for row in rows)


_PASCAL = _tasks(
    ("semseg", 21, "labels"), ("human_parts", 7, "labels"), ("sal", 1, "binary"),
    ("normals", 3, "normals"), ("edge", 1, "binary"),
)  # fmt: skip
_NYUD = _tasks(("semseg", 40, "labels"), ("depth", 1, "depth"), ("normals", 3, "normals"), ("edge", 1, "binary"))
_CITYSCAPES = _tasks(("semseg", 7, "labels"), ("depth", 1, "depth"))
_SCENES = _tasks(
    ("semseg", 8, "labels"), ("depth", 1, "log_depth"), ("normals", 3, "normals"), ("edge", 1, "binary")
)

_SMALL: dict[str, Any] = dict(
    patch=16, embed_dim=384, depth=12, heads=12, dense_hidden=1536, experts=16, top_k=4, expert_hidden=384,
    unit_hidden=384, head_hidden=384,
)  # fmt: skip

NETWORKS: dict[str, Network] = {
    item.name: item
    for item in (
        Network("m3vit-demo", 64, 64, patch=8, embed_dim=64, depth=6, heads=2, dense_hidden=256, experts=8, top_k=2,
                expert_hidden=128, unit_hidden=128, tasks=_SCENES, head_hidden=128),
        Network("m3vit-tiny-cityscapes", 128, 256, patch=16, embed_dim=192, depth=12, heads=3, dense_hidden=768,
                experts=16, top_k=2, expert_hidden=384, unit_hidden=384, tasks=_CITYSCAPES, head_hidden=192),
        Network("m3vit-small-pascal", 512, 512, tasks=_PASCAL, **_SMALL),
        Network("m3vit-small-nyud", 480, 640, tasks=_NYUD, **_SMALL),
    )
}  # fmt: skip
"""The workloads: the three of M³ViT (§4.1) and a small one that trains in minutes on rendered scenes."""

HARDWARE: dict[str, Hardware] = {
    item.name: item
    for item in (
        Hardware("ci", tile_tokens=4, tile_outputs=16, tile_inputs=8, weight_slots=2, slot_rows=768,
                 slot_groups=64, max_tokens=256, max_width=384, max_inputs=768, max_hidden=384, topk_lanes=4),
        Hardware("zcu104", tile_tokens=8, tile_outputs=48, tile_inputs=8, weight_slots=5, slot_rows=768,
                 slot_groups=16, max_tokens=1216, max_width=384, max_inputs=768, max_hidden=384),
    )
}  # fmt: skip
"""``zcu104``: 3,072 MAC per cycle; ``ci``: the same engine, small enough to simulate in seconds."""


def _preset(table: Mapping[str, T], name: str, what: str) -> T:
    if name not in table:
        raise ConfigError(f"{what} preset {name!r}: expected one of {', '.join(table)}")
    return table[name]


def network(name: str) -> Network:
    """Network preset by name."""
    return _preset(NETWORKS, name, "network")


def hardware(name: str) -> Hardware:
    """Hardware preset by name."""
    return _preset(HARDWARE, name, "hardware")
