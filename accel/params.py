"""Integer parameters of a quantized encoder: what export produces, the bundle stores and every back end computes with.

Exponents: an integer ``v`` at exponent ``e`` stands for v · 2^e. Weights are stored as int8 whatever their width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from accel import numerics
from accel.config import Formats, Network
from accel.errors import ExportError

Array = NDArray[Any]


def check_array(where: str, array: Array, dtype: type, shape: tuple[int, ...]) -> None:
    """Raise ExportError unless ``array`` has exactly this integer type and shape. Nothing is coerced."""
    if not isinstance(array, np.ndarray) or array.dtype != np.dtype(dtype):
        found = getattr(array, "dtype", type(array).__name__)
        raise ExportError(f"{where}: expected {np.dtype(dtype)}, found {found}")
    if array.shape != shape:
        raise ExportError(f"{where}: expected shape {shape}, found {array.shape}")


def _check_range(where: str, value: int, low: int, high: int) -> None:
    if type(value) is not int:  # anything else would not survive the manifest
        raise ExportError(f"{where}: expected an integer, found {type(value).__name__} {value!r}")
    if not low <= value <= high:
        raise ExportError(f"{where}: expected a value from {low} to {high}, found {value}")


@dataclass(frozen=True, eq=False)
class Linear:
    """Linear layer y = sat(RHE(x·weightᵀ + bias, shift)).

    Attributes:
        weight: int8 [out, in], narrow range.
        bias: int32 [out], at the accumulator's exponent.
        shift: int8 [out], right shift from accumulator to output, −8…31.
    """

    weight: Array
    bias: Array
    shift: Array

    @property
    def inputs(self) -> int:
        return int(self.weight.shape[1])

    @property
    def outputs(self) -> int:
        return int(self.weight.shape[0])

    def rows(self, start: int, stop: int) -> Linear:
        """The layer restricted to outputs start…stop−1."""
        return Linear(self.weight[start:stop], self.bias[start:stop], self.shift[start:stop])

    def check(self, where: str, outputs: int, inputs: int, formats: Formats) -> None:
        """Raise ExportError naming the field unless the contract's types, shapes and ranges hold."""
        check_array(f"{where}.weight", self.weight, np.int8, (outputs, inputs))
        check_array(f"{where}.bias", self.bias, np.int32, (outputs,))
        check_array(f"{where}.shift", self.shift, np.int8, (outputs,))
        limit = formats.weight_max
        _check_range(f"{where}.weight", int(self.weight.min()), -limit, limit)
        _check_range(f"{where}.weight", int(self.weight.max()), -limit, limit)
        _check_range(f"{where}.shift", int(self.shift.min()), numerics.SHIFT_MIN, numerics.SHIFT_MAX)
        _check_range(f"{where}.shift", int(self.shift.max()), numerics.SHIFT_MIN, numerics.SHIFT_MAX)
        bound = numerics.accumulator_bound(self.weight, self.bias)
        _check_range(f"{where}: accumulator bound 128·Σ|w| + |b|", bound, 0, (1 << 31) - 1)


@dataclass(frozen=True, eq=False)
class Unit:
    """What the engine holds in one weight slot: hidden = GELU(first(x)), output = second(hidden) as int16.

    An expert is ``expert_units`` of them, a dense MLP ``dense_units``; outputs of all units are added by the
    combine step. ``gelu`` is an int8 [256] table.
    """

    first: Linear
    gelu: Array
    second: Linear


@dataclass(frozen=True, eq=False)
class LayerNorm:
    """gamma int16 [D] (Q12), beta int32 [D] (Q22), eps at D²·residual² scale, exponent of the output."""

    gamma: Array
    beta: Array
    eps: int
    exponent: int


@dataclass(frozen=True, eq=False)
class Attention:
    """score_shift: z to octaves in Q8; output_shift: exponent of the output minus exponent of v."""

    score_shift: int
    output_shift: int


@dataclass(frozen=True, eq=False)
class Gate:
    """One task's gate table in one MoE block.

    weight int8 [E, D]; bias int32 [E] (0 with multi_gate, the task embedding's share with task_conditioned);
    shift: logits to octaves in Q8.
    """

    weight: Array
    bias: Array
    shift: int


@dataclass(frozen=True, eq=False)
class Block:
    """One transformer block. ``experts[e][u]`` is unit u of expert e; a dense MLP is one expert without gates."""

    norm1: LayerNorm
    qkv: Linear
    attention: Attention
    proj: Linear
    norm2: LayerNorm
    experts: tuple[tuple[Unit, ...], ...]
    gates: Mapping[str, Gate]


@dataclass(frozen=True, eq=False)
class LightHead:
    """LayerNorm → linear → GELU → linear to int16 at ``exponent``; [patches, p·p·C] ordered (py, px, c)."""

    norm: LayerNorm
    fc1: Linear
    gelu: Array
    fc2: Linear
    exponent: int


PUP_CHANNELS, PUP_CONVOLUTIONS = 256, 4
"""Channels and number of the 3×3 convolutions of a PUP head (SETR-PUP)."""


@dataclass(frozen=True, eq=False)
class PupHead:
    """SETR-PUP head in float32, run on the host: its LayerNorm and convolutions by name, batch norm folded.

    ``tensors``: norm.weight [D], norm.bias [D], conv_i.weight [O, I, 3, 3] and conv_i.bias [O] for i in 0…3,
    conv_4.weight [C, 256, 1, 1], conv_4.bias [C].
    """

    tensors: Mapping[str, Array]


def _check_pup(where: str, head: PupHead, width: int, channels: int) -> None:
    """Raise ExportError unless the tensors are those of a PUP head, in shape, type and value."""
    inputs = (width, *[PUP_CHANNELS] * (PUP_CONVOLUTIONS - 1))
    shapes: dict[str, tuple[int, ...]] = {"norm.weight": (width,), "norm.bias": (width,)}
    for i, depth in enumerate(inputs):
        shapes |= {f"conv_{i}.weight": (PUP_CHANNELS, depth, 3, 3), f"conv_{i}.bias": (PUP_CHANNELS,)}
    last = f"conv_{PUP_CONVOLUTIONS}"
    shapes |= {f"{last}.weight": (channels, PUP_CHANNELS, 1, 1), f"{last}.bias": (channels,)}
    if set(head.tensors) != set(shapes):
        raise ExportError(f"{where}: expected tensors {', '.join(shapes)}, found {', '.join(head.tensors) or 'none'}")
    for name, array in head.tensors.items():
        check_array(f"{where}.{name}", array, np.float32, shapes[name])
        if not np.isfinite(array).all():
            raise ExportError(f"{where}.{name}: expected finite values, found others")


@dataclass(frozen=True, eq=False)
class Encoder:
    """A quantized multi-task encoder with its heads.

    Attributes:
        network, formats: what the arrays below were checked against.
        residual_exponent: exponent of the int16 residual stream.
        patch: patch embedding, [D, patch_dim], inputs ordered (py, px, c), int16 output at the residual exponent.
        position: int16 [tokens, D]; row 0 already holds cls + its position.
        blocks: ``depth`` blocks.
        heads: task name → head.
    """

    network: Network
    formats: Formats
    residual_exponent: int
    patch: Linear
    position: Array
    blocks: tuple[Block, ...]
    heads: Mapping[str, LightHead | PupHead]

    def check(self) -> None:
        """Validate every array and number; raises ExportError naming layer, field, expected and found."""
        net = self.network
        self.patch.check("patch", net.embed_dim, net.patch_dim, self.formats)
        check_array("position", self.position, np.int16, (net.tokens, net.embed_dim))
        _check_range("residual_exponent", self.residual_exponent, -31, 15)
        if len(self.blocks) != net.depth:
            raise ExportError(f"blocks: expected {net.depth}, found {len(self.blocks)}")
        for index, block in enumerate(self.blocks):
            self._check_block(f"blocks.{index}", index, block)
        missing = [name for name in net.task_names if name not in self.heads]
        if missing or len(self.heads) != len(net.tasks):
            raise ExportError(f"heads: expected {', '.join(net.task_names)}, found {', '.join(self.heads) or 'none'}")
        for task in net.tasks:
            self._check_head(f"heads.{task.name}", self.heads[task.name], task.channels)

    def _check_norm(self, where: str, norm: LayerNorm) -> None:
        width = (self.network.embed_dim,)
        check_array(f"{where}.gamma", norm.gamma, np.int16, width)
        check_array(f"{where}.beta", norm.beta, np.int32, width)
        _check_range(f"{where}.eps", norm.eps, 0, 1 << 50)
        _check_range(f"{where}.exponent", norm.exponent, -22, 15)

    def _check_unit(self, where: str, unit: Unit) -> None:
        net = self.network
        unit.first.check(f"{where}.first", net.unit_hidden, net.embed_dim, self.formats)
        check_array(f"{where}.gelu", unit.gelu, np.int8, (256,))
        unit.second.check(f"{where}.second", net.embed_dim, net.unit_hidden, self.formats)

    def _check_block(self, where: str, index: int, block: Block) -> None:
        net = self.network
        self._check_norm(f"{where}.norm1", block.norm1)
        self._check_norm(f"{where}.norm2", block.norm2)
        block.qkv.check(f"{where}.qkv", 3 * net.embed_dim, net.embed_dim, self.formats)
        block.proj.check(f"{where}.proj", net.embed_dim, net.embed_dim, self.formats)
        octaves = numerics.OCTAVE_SHIFT_MIN, numerics.OCTAVE_SHIFT_MAX
        _check_range(f"{where}.attention.score_shift", block.attention.score_shift, *octaves)
        _check_range(f"{where}.attention.output_shift", block.attention.output_shift, -16, 16)
        moe = net.is_moe(index)
        expected = (net.experts, net.expert_units) if moe else (1, net.dense_units)
        if len(block.experts) != expected[0]:
            raise ExportError(f"{where}.experts: expected {expected[0]}, found {len(block.experts)}")
        for e, units in enumerate(block.experts):
            if len(units) != expected[1]:
                raise ExportError(f"{where}.experts[{e}]: expected {expected[1]} units, found {len(units)}")
            for u, unit in enumerate(units):
                self._check_unit(f"{where}.experts[{e}][{u}]", unit)
        tasks = net.task_names if moe else ()
        if tuple(block.gates) != tasks:
            raise ExportError(f"{where}.gates: expected {tasks or 'none'}, found {tuple(block.gates) or 'none'}")
        for name, gate in block.gates.items():
            check_array(f"{where}.gates.{name}.weight", gate.weight, np.int8, (net.experts, net.embed_dim))
            check_array(f"{where}.gates.{name}.bias", gate.bias, np.int32, (net.experts,))
            limit = self.formats.weight_max
            _check_range(f"{where}.gates.{name}.weight", int(np.abs(gate.weight.astype(int)).max()), 0, limit)
            bound = numerics.accumulator_bound(gate.weight, gate.bias)
            _check_range(f"{where}.gates.{name}: logit bound 128·Σ|w| + |b|", bound, 0, (1 << 30) - 1)
            _check_range(f"{where}.gates.{name}.shift", gate.shift, *octaves)

    def _check_head(self, where: str, head: LightHead | PupHead, channels: int) -> None:
        net = self.network
        kind = "light" if isinstance(head, LightHead) else "pup"
        if kind != net.head:
            raise ExportError(f"{where}: expected a {net.head} head, found a {kind} head")
        if isinstance(head, PupHead):
            _check_pup(where, head, net.embed_dim, channels)
            return
        outputs = net.patch * net.patch * channels
        self._check_norm(f"{where}.norm", head.norm)
        head.fc1.check(f"{where}.fc1", net.head_hidden, net.embed_dim, self.formats)
        check_array(f"{where}.gelu", head.gelu, np.int8, (256,))
        head.fc2.check(f"{where}.fc2", outputs, net.head_hidden, self.formats)
        _check_range(f"{where}.exponent", head.exponent, -31, 15)

    def units(self) -> Iterator[tuple[int, int, int, Unit]]:
        """Every unit as (block, expert, unit index, unit)."""
        for index, block in enumerate(self.blocks):
            for e, units in enumerate(block.experts):
                for u, unit in enumerate(units):
                    yield index, e, u, unit
