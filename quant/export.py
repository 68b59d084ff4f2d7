"""From a trained quantized network to the integer parameters of the contract.

Nothing is coerced: every integer must come out exactly, at a power-of-two scale, in its type's range and at
a shift that the engine has. Otherwise ExportError names the layer, what was expected and what was found.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from accel import numerics, params, tables
from accel.config import Network
from accel.errors import ExportError
from model import heads as float_heads
from quant import layers
from quant.nonlinear import norm_epsilon
from quant.qat import INPUT_EXPONENT, QuantMultiTaskViT
from quant.quantizers import UNSET, WIDE_BITS, FixedPoint, Requantize, StackedLinear

Array = NDArray[Any]
_ZERO_OCTAVES = 16
"""From this distance on, the contract's 2^-distance is 0 (`numerics.exp2_negative`)."""


def export_encoder(model: QuantMultiTaskViT) -> params.Encoder:
    """Integer parameters of ``model``: exactly those with which its integer mode computes.

    Raises:
        ExportError: see the module's description.
    """
    for name, parameter in model.named_parameters():
        _check_finite(name, parameter.detach())
    with torch.no_grad():
        return _Exporter(model.integer_mode()).encoder()


def _array(values: Tensor) -> Array:
    return values.detach().cpu().numpy()


def _check_finite(where: str, values: Tensor) -> None:
    bad = ~torch.isfinite(values)
    if bad.any():
        index = tuple(bad.nonzero()[0].tolist())
        found = values[index].item()
        raise ExportError(f"{where}{list(index)}: expected a finite value, found {found}")


def _first_bad(bad: Array) -> tuple[int, ...]:
    return tuple(int(i) for i in np.argwhere(bad)[0])


def _exponents(where: str, scale: Tensor) -> Array:
    """Exponents of power-of-two scales, int64, same shape."""
    values = _array(scale).astype(np.float64)
    mantissa, exponent = np.frexp(values)
    bad = ~(np.isfinite(values) & (mantissa == 0.5))
    if bad.any():
        index = _first_bad(bad)
        raise ExportError(f"{where}{list(index)}: expected a power of two, found {values[index]!r}")
    return exponent.astype(np.int64) - 1


def _integers(where: str, values: Tensor, exponents: Array | int, dtype: type) -> Array:
    """The integers v of ``values`` = v * 2^exponent, exactly, as ``dtype``."""
    scaled = np.ldexp(_array(values).astype(np.float64), -np.asarray(exponents))
    limits = np.iinfo(dtype)
    checks = (
        (~np.isfinite(scaled), "a finite value"),
        (scaled != np.rint(scaled), "a multiple of its scale"),
        ((scaled < limits.min) | (scaled > limits.max), f"{limits.min} to {limits.max}"),
    )
    for bad, expected in checks:
        if bad.any():
            index = _first_bad(bad)
            raise ExportError(f"{where}{list(index)}: expected {expected}, found {scaled[index]}")
    return scaled.astype(dtype)


def _check_window(where: str, gate: params.Gate, allowed: Array, top_k: int) -> None:
    """Whatever the token, experts outside the window must rank last and get a probability of exactly 0."""
    if allowed.sum() < top_k:
        raise ExportError(f"{where}: expert window: expected at least {top_k} experts, found {int(allowed.sum())}")
    if allowed.all():
        return
    reach = 128 * np.abs(gate.weight.astype(np.int64)).sum(axis=1)
    gap = (gate.bias - reach)[allowed].min() - (gate.bias + reach)[~allowed].max()
    octaves = int(numerics.shift_floor(gap, gate.shift)) / (1 << tables.EXP2_BITS)
    if octaves < _ZERO_OCTAVES:
        raise ExportError(
            f"{where}: expert window: expected forbidden experts at least {_ZERO_OCTAVES} octaves below all others for "
            f"every token, found {octaves:g}: the gate's shift is {gate.shift}, its weights are too small"
        )


class _Exporter:
    """Walks a network in integer mode."""

    def __init__(self, model: QuantMultiTaskViT) -> None:
        self.model, self.net, self.formats = model, model.network, model.formats
        self.residual = self.format("residual", model.residual, WIDE_BITS)

    def encoder(self) -> params.Encoder:
        model, net = self.model, self.net
        vectors = None
        if model.task_embedding is not None:
            vectors = model.task_embedding(range(len(net.tasks)))
        patch = self.linear("patch", model.patch_embed, INPUT_EXPONENT, self.residual,
                            (1, net.embed_dim, net.patch_dim))[0]  # fmt: skip
        blocks = tuple(
            self.block(f"blocks.{i}", i, block, vectors)
            for i, block in enumerate(model.blocks)
            if isinstance(block, layers.Block)
        )
        encoder = params.Encoder(
            network=net,
            formats=self.formats,
            residual_exponent=self.residual,
            patch=patch,
            position=self.rounded("position", model.position, -self.residual, np.int16),
            blocks=blocks,
            heads={name: self.head(f"heads.{name}", head) for name, head in model.heads.items()},
        )
        encoder.check()
        return encoder

    def format(self, where: str, point: Requantize | FixedPoint, bits: int, narrow: bool = False) -> int:
        """Exponent of an activation format, after checking that it is the contract's."""
        fixed = point.format if isinstance(point, Requantize) else point
        if (fixed.bits, fixed.narrow) != (bits, narrow):
            expected = f"{bits} bits{', narrow range' if narrow else ''}"
            found = f"{fixed.bits} bits{', narrow range' if fixed.narrow else ''}"
            raise ExportError(f"{where}: expected {expected}, found {found}")
        exponent = int(fixed.exponent)
        if exponent == UNSET:
            raise ExportError(f"{where}: expected a calibrated exponent, found none")
        return exponent

    def activation(self, where: str, point: Requantize | FixedPoint, narrow: bool = False) -> int:
        return self.format(where, point, self.formats.activation_bits, narrow)

    def rounded(self, where: str, values: Tensor, fraction: int, dtype: type) -> Array:
        """Values rounded to 2^-fraction, as integers."""
        return _integers(where, (values * 2.0**fraction).round(), 0, dtype)

    def weights(
        self, where: str, layer: StackedLinear, exponent_in: int, shape: Sequence[int]
    ) -> tuple[Array, Array, Array]:
        """Integer weight [rows, inputs], bias [rows] and exponent of the accumulator [rows].

        ``shape`` is the expected (groups, outputs, inputs).
        """
        groups, outputs, inputs = shape
        if tuple(layer.weight.shape) != (groups * outputs, inputs):
            found = tuple(layer.weight.shape)
            expected = f"{groups} x {outputs} rows of {inputs}"
            raise ExportError(f"{where}.weight: expected {expected} weights, found {found}")
        rows = layer.quantized_rows(exponent_in)
        bits, zero = float(rows.bit_width), float(rows.zero_point)
        if bits != self.formats.weight_bits:
            wanted = self.formats.weight_bits
            raise ExportError(f"{where}.weight: expected {wanted} bits, found {bits:g}")
        if zero != 0:
            raise ExportError(f"{where}.weight: expected zero point 0, found {zero:g}")
        exponent = _exponents(f"{where}.weight scale", rows.scale)
        weight = _integers(f"{where}.weight", rows.weight, exponent[:, None], np.int8)
        exponent = exponent + exponent_in
        if rows.bias is None:
            return weight, np.zeros(groups * outputs, np.int32), exponent
        return weight, _integers(f"{where}.bias", rows.bias, exponent, np.int32), exponent

    def linear(
        self,
        where: str,
        layer: StackedLinear,
        exponent_in: int,
        exponent_out: int | Array,
        shape: Sequence[int],
    ) -> list[params.Linear]:
        """One Linear per group; ``exponent_out`` is one number or one per row."""
        weight, bias, accumulator = self.weights(where, layer, exponent_in, shape)
        shift = exponent_out - accumulator
        bad = (shift < numerics.SHIFT_MIN) | (shift > numerics.SHIFT_MAX)
        if bad.any():
            row = _first_bad(bad)[0]
            expected = f"{numerics.SHIFT_MIN} to {numerics.SHIFT_MAX}"
            raise ExportError(f"{where}.shift[{row}]: expected {expected}, found {shift[row]}")
        split = (np.split(a, shape[0]) for a in (weight, bias, shift.astype(np.int8)))
        return [params.Linear(*parts) for parts in zip(*split, strict=True)]

    def norm(self, where: str, norm: layers.Norm) -> params.LayerNorm:
        return params.LayerNorm(
            gamma=self.rounded(f"{where}.gamma", norm.weight, numerics.GAMMA_FRACTION, np.int16),
            beta=self.rounded(f"{where}.beta", norm.bias, numerics.BETA_FRACTION, np.int32),
            eps=norm_epsilon(self.net.embed_dim, self.residual),
            exponent=self.activation(f"{where}.out", norm.out),
        )

    def gelu(self, where: str, gelu: layers.Gelu) -> tuple[int, int, Array]:
        """Exponents before and after GELU, and its table."""
        before = self.activation(f"{where}.pre", gelu.pre)
        after = self.activation(f"{where}.out", gelu.out)
        return before, after, tables.gelu(before, after, self.formats.activation_bits)

    def block(
        self, where: str, index: int, block: layers.Block, vectors: Tensor | None
    ) -> params.Block:
        net, attn = self.net, block.attn
        dim = net.embed_dim
        norm1, norm2 = self.norm(f"{where}.norm1", block.norm1), self.norm(f"{where}.norm2", block.norm2)
        q, k, v = (
            self.activation(f"{where}.attn.{name}", getattr(attn, name), narrow=True) for name in "qkv"
        )
        out = self.activation(f"{where}.attn.out", attn.out)
        exponents = np.repeat(np.array([q, k, v]), dim)
        qkv = self.linear(f"{where}.qkv", attn.qkv, norm1.exponent, exponents, (1, 3 * dim, dim))
        proj = self.linear(f"{where}.proj", attn.proj, out, self.residual, (1, dim, dim))
        moe = isinstance(block.mlp, layers.MoE)
        if moe != net.is_moe(index):
            expected = "a mixture of experts" if net.is_moe(index) else "a dense MLP"
            raise ExportError(f"{where}.mlp: expected {expected}, found {type(block.mlp).__name__}")
        gates: dict[str, params.Gate] = {}
        mlp = block.mlp
        if isinstance(mlp, layers.MoE):
            gates = self.gates(f"{where}.gates", mlp.gates, norm2.exponent, vectors)
            mlp = mlp.experts
        shape = (net.experts, net.expert_units) if moe else (1, net.dense_units)
        assert isinstance(mlp, layers.Experts)
        return params.Block(
            norm1=norm1,
            qkv=qkv[0],
            attention=params.Attention(score_shift=-(q + k + 8), output_shift=out - v),
            proj=proj[0],
            norm2=norm2,
            experts=self.experts(f"{where}.experts", mlp, norm2.exponent, shape),
            gates=gates,
        )

    def experts(
        self, where: str, stack: layers.Experts, exponent_in: int, shape: tuple[int, int]
    ) -> tuple[tuple[params.Unit, ...], ...]:
        """Units of each expert; ``shape`` is the expected (experts, units per expert)."""
        net, (experts, units) = self.net, shape
        before, after, table = self.gelu(f"{where}.gelu", stack.gelu)
        hidden = net.unit_hidden
        firsts = self.linear(
            f"{where}.first", stack.first, exponent_in, before, (experts, units * hidden, net.embed_dim)
        )
        seconds = self.linear(
            f"{where}.second", stack.second, after, self.residual, (experts * units, net.embed_dim, hidden)
        )
        return tuple(
            tuple(
                params.Unit(
                    firsts[e].rows(u * hidden, (u + 1) * hidden), table, seconds[e * units + u]
                )
                for u in range(units)
            )
            for e in range(experts)
        )

    def gates(
        self, where: str, gates: layers.Gates, exponent_in: int, vectors: Tensor | None
    ) -> dict[str, params.Gate]:
        net = self.net
        count = 1 if net.routing == "task_conditioned" else len(net.tasks)
        self.weights(where, gates.token_part, exponent_in, (count, 1, net.experts * net.embed_dim))
        weight, bias, scale = gates.quantized(exponent_in, range(len(net.tasks)), vectors)
        exponents = _exponents(f"{where} scale", scale)
        result = {}
        for i, name in enumerate(net.task_names):
            exponent = int(exponents[i])
            task_bias = torch.zeros_like(weight[i, :, 0]) if bias is None else bias[i]
            result[name] = params.Gate(
                weight=_integers(f"{where}.{name}.weight", weight[i], exponent - exponent_in, np.int8),
                bias=_integers(f"{where}.{name}.bias", task_bias, exponent, np.int32),
                shift=-(exponent + 8),
            )
            if gates.allowed is not None:
                _check_window(f"{where}.{name}", result[name], _array(gates.allowed[i]), net.top_k)
        return result

    def head(self, where: str, head: nn.Module) -> params.LightHead | params.PupHead:
        if isinstance(head, float_heads.PupHead):
            return params.PupHead(_pup_tensors(where, head))
        assert isinstance(head, layers.LightHead)
        net: Network = self.net
        norm = self.norm(f"{where}.norm", head.norm)
        before, after, table = self.gelu(f"{where}.gelu", head.gelu)
        exponent = self.format(f"{where}.out", head.out, WIDE_BITS)
        outputs = head.fc2.outputs
        fc1 = self.linear(
            f"{where}.fc1", head.fc1, norm.exponent, before, (1, net.head_hidden, net.embed_dim)
        )
        fc2 = self.linear(f"{where}.fc2", head.fc2, after, exponent, (1, outputs, net.head_hidden))
        return params.LightHead(norm, fc1[0], table, fc2[0], exponent)


def _pup_tensors(where: str, head: float_heads.PupHead) -> dict[str, Array]:
    """Float32 tensors of the PUP head, each batch norm folded into the convolution before it."""
    tensors: dict[str, Tensor] = {"norm.weight": head.norm.weight, "norm.bias": head.norm.bias}
    for i in range(4):
        conv, norm = head.get_submodule(f"conv_{i}"), head.get_submodule(f"syncbn_fc_{i}")
        assert isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)
        assert conv.bias is not None and norm.running_mean is not None and norm.running_var is not None
        gain = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
        tensors[f"conv_{i}.weight"] = conv.weight * gain[:, None, None, None]
        tensors[f"conv_{i}.bias"] = (conv.bias - norm.running_mean) * gain + norm.bias
    assert head.conv_4.bias is not None
    tensors |= {"conv_4.weight": head.conv_4.weight, "conv_4.bias": head.conv_4.bias}
    for name, values in tensors.items():
        _check_finite(f"{where}.{name}", values)
    return {name: _array(values.float()) for name, values in tensors.items()}
