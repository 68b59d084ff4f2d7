"""The layers that the engine computes, derived from a configuration: shapes, tiles, units and their size in memory.

Everything is a *unit*, a set of weights that fits one slot, applied to a queue of tokens: an expert is ``expert_units``
of them, a dense MLP ``dense_units``, QKV and projections as many as their output tiles need.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from functools import cached_property

from accel.config import Config, Hardware
from accel.errors import ConfigError

GELU_BYTES = 256
BIAS_BYTES = 4
SHIFT_BYTES = 1


class Kind(Enum):
    """What a layer does with its accumulators."""

    LINEAR = "linear"
    """Requantize to int8 and store."""
    ACCUMULATE = "accumulate"
    """Requantize to int16 and add to the residual."""
    MLP = "mlp"
    """first → GELU → second, added to the residual for every token."""
    MOE = "moe"
    """The same for the experts that the gate chose, weighted."""


def round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


@dataclass(frozen=True)
class TileGeometry:
    """How a linear layer's weights fold onto the array.

    One output tile is a parameter group (bias s32 and shift s8 of ``tile_outputs`` lanes, padded to lines) followed by
    ``inputs / tile_inputs`` weight rows; lanes past the last output are zero.
    """

    outputs: int
    inputs: int
    hardware: Hardware

    @property
    def tiles(self) -> int:
        return math.ceil(self.outputs / self.hardware.tile_outputs)

    @property
    def rows_per_tile(self) -> int:
        return math.ceil(self.inputs / self.hardware.tile_inputs)

    @property
    def rows(self) -> int:
        return self.tiles * self.rows_per_tile

    @property
    def group_bytes(self) -> int:
        return round_up(self.hardware.tile_outputs * (BIAS_BYTES + SHIFT_BYTES), self.hardware.line_bytes)

    @property
    def tile_bytes(self) -> int:
        return self.group_bytes + self.rows_per_tile * self.hardware.row_bytes

    @property
    def bytes(self) -> int:
        return self.tiles * self.tile_bytes


@dataclass(frozen=True)
class Layer:
    """One engine layer.

    Attributes:
        name: ``patch`` or ``blocks.i.{qkv,proj,mlp}``.
        kind: see :class:`Kind`.
        tokens, inputs, outputs: shape of the layer.
        hidden: hidden columns per unit; 0 for LINEAR and ACCUMULATE.
        experts: experts whose weights exist (1 unless MOE).
        units: units per expert.
        top_k: experts per token (1 unless MOE).
        hardware: the engine it is folded for.
    """

    name: str
    kind: Kind
    tokens: int
    inputs: int
    outputs: int
    hidden: int
    experts: int
    units: int
    top_k: int
    hardware: Hardware

    @cached_property
    def first(self) -> TileGeometry | None:
        """Fold of a unit's first linear layer, if it has one."""
        return TileGeometry(self.hidden, self.inputs, self.hardware) if self.hidden else None

    @cached_property
    def second(self) -> TileGeometry:
        """Fold of a unit's output layer: all outputs of an MLP unit, or the widest slice of a plain layer."""
        if self.hidden:
            return TileGeometry(self.outputs, self.hidden, self.hardware)
        outputs = min(self.outputs, self.tiles_per_unit * self.hardware.tile_outputs)
        return TileGeometry(outputs, self.inputs, self.hardware)

    @cached_property
    def tiles_per_unit(self) -> int:
        """Output tiles per unit; the last unit of a plain layer may have fewer.

        Where there are several plain units, each but the last fills whole lines of the output rows, so that no line has
        two writers.
        """
        tiles = math.ceil(self.outputs / self.hardware.tile_outputs)
        if self.hidden or self.units == 1:
            return tiles
        return round_up(math.ceil(tiles / self.units), _line_tiles(self.kind, self.hardware))

    @cached_property
    def unit_bytes(self) -> int:
        """Bytes of a unit in memory, a multiple of the stripe: GELU table, first layer, output layer."""
        size = self.second.bytes
        if self.first is not None:
            size += round_up(GELU_BYTES, self.hardware.line_bytes) + self.first.bytes
        return round_up(size, self.hardware.stripe_bytes)

    @property
    def expert_bytes(self) -> int:
        return self.units * self.unit_bytes

    @property
    def gate(self) -> TileGeometry | None:
        """Fold of the gate table: one output per expert."""
        return TileGeometry(self.experts, self.inputs, self.hardware) if self.kind is Kind.MOE else None

    @property
    def gate_bytes(self) -> int:
        return round_up(self.gate.bytes, self.hardware.stripe_bytes) if self.gate else 0

    @property
    def output_bytes_per_value(self) -> int:
        return 1 if self.kind is Kind.LINEAR else 2

    @property
    def macs_per_pair(self) -> int:
        """Multiply-accumulates of one token in one expert (or in the dense layer)."""
        return self.units * self.hidden * (self.inputs + self.outputs) if self.hidden else self.inputs * self.outputs

    def weight_blobs(self) -> tuple[str, ...]:
        """Names of the blobs that hold this layer's weights, in the order of placement."""
        if self.kind is Kind.MOE:
            return tuple(f"{self.name}.expert.{index:03d}" for index in range(self.experts))
        return (self.name,)

    def gate_blob(self, task: str) -> str:
        return f"{self.name}.gate.{task}"


def _line_tiles(kind: Kind, hardware: Hardware) -> int:
    """Smallest number of output tiles whose values fill whole lines."""
    size = hardware.tile_outputs * (1 if kind is Kind.LINEAR else 2)
    return math.lcm(size, hardware.line_bytes) // size


def _plain(name: str, kind: Kind, tokens: int, inputs: int, outputs: int, hardware: Hardware) -> Layer:
    fold = TileGeometry(outputs, inputs, hardware)
    held = min(hardware.slot_rows // fold.rows_per_tile, hardware.slot_groups)
    least = min(fold.tiles, _line_tiles(kind, hardware))
    if held < fold.tiles:
        held = held // _line_tiles(kind, hardware) * _line_tiles(kind, hardware)
    if held < 1:
        raise ConfigError(
            f"layer {name}: unit of {least} output tiles of {inputs} inputs: expected to fit slot_rows = "
            f"{hardware.slot_rows} and slot_groups = {hardware.slot_groups}, found {least * fold.rows_per_tile} rows"
        )
    units = math.ceil(fold.tiles / held)
    return Layer(name, kind, tokens, inputs, outputs, 0, 1, units, 1, hardware)


def engine_layers(config: Config) -> tuple[Layer, ...]:
    """All layers of one frame that the engine computes, in order."""
    return tuple(_layers(config))


def _layers(config: Config) -> Iterator[Layer]:
    net, hw = config.network, config.hardware
    width = net.embed_dim
    yield _plain("patch", Kind.ACCUMULATE, net.tokens - 1, net.patch_dim, width, hw)
    for block in range(net.depth):
        name = f"blocks.{block}"
        yield _plain(f"{name}.qkv", Kind.LINEAR, net.tokens, width, 3 * width, hw)
        yield _plain(f"{name}.proj", Kind.ACCUMULATE, net.tokens, width, width, hw)
        moe = net.is_moe(block)
        yield Layer(
            f"{name}.mlp", Kind.MOE if moe else Kind.MLP, net.tokens, width, width, net.unit_hidden,
            net.experts if moe else 1, net.expert_units if moe else net.dense_units, net.top_k if moe else 1, hw,
        )  # fmt: skip


def head_layers(config: Config, task: str) -> tuple[Layer, Layer]:
    """The two linear layers of a task's light head. The host computes them; their weights share the engine's format."""
    net, hw = config.network, config.hardware
    outputs = net.patch * net.patch * net.task(task).channels
    name = f"heads.{task}"
    return (
        _plain(f"{name}.fc1", Kind.LINEAR, net.tokens - 1, net.embed_dim, net.head_hidden, hw),
        _plain(f"{name}.fc2", Kind.ACCUMULATE, net.tokens - 1, net.head_hidden, outputs, hw),
    )
