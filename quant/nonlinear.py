"""The contract's non-linear operations in torch: forward exact integers, backward the float function.

Written independently of ``accel.numerics`` (only the tables are shared), so that each checks the other.
Tensors hold real numbers v * 2^e, see ``quant.quantizers``. The integers that arise inside are held in
float64, which is exact below 2^53; the bound is stated where a product gets wide. ``round`` is half to even,
as the contract demands. With float64 inputs every result is exact; with float32 inputs the matrix
products are exact while their integers stay below 2^24.
"""

from __future__ import annotations

import functools
import math
from fractions import Fraction
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from accel import tables

LN2 = math.log(2.0)
LOG2E = 1 / LN2
LAYER_NORM_EPS = Fraction(1, 10**6)
_OCTAVES = 16  # 2^-u/256 in Q15 is zero from u = 16 * 256 on
_NORM_Q, _GAMMA_Q, _BETA_Q = 10, 12, 22
_PEAK = 254  # largest attention probability
_GATE_ONE = 65536
_POWERS = 127


def integer_range(bits: int, narrow: bool = False) -> tuple[int, int]:
    """Smallest and largest value of a two's complement width."""
    high = 2 ** (bits - 1) - 1
    return (-high if narrow else -high - 1), high


@functools.cache
def _table(name: str, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A constant table by name.

    ``rsqrt``; ``exp2``: 2^-i/256 in Q15, 4097 entries down to zero; ``probability``: the same from 254;
    ``power``: 2^-127..2^127.
    """
    with torch.inference_mode(False):  # inference tensors could not be used in training later
        if name == "rsqrt":
            values = torch.tensor(tables.RSQRT.tolist())
        elif name == "power":
            powers = [2.0**i for i in range(-_POWERS, _POWERS + 1)]
            values = torch.tensor(powers, dtype=torch.float64)
        else:
            octave = torch.tensor(tables.EXP2.tolist())
            rows = [octave >> n for n in range(_OCTAVES)]
            values = torch.cat([*rows, torch.zeros(1, dtype=torch.int64)])
            if name == "probability":
                values = (_PEAK * values + (1 << 14)) >> 15
        return values.to(dtype=dtype, device=device)


def _exp2_negative(distance: Tensor, name: str) -> Tensor:
    """Table entry of 2^-distance for distance >= 0 in octaves, taken at multiples of 1/256 rounded down."""
    index = (distance * 256).floor_().clamp_(max=256 * _OCTAVES).to(torch.int32)
    table = _table(name, distance.dtype, distance.device)
    return table.index_select(0, index.flatten()).view(index.shape)


def _bit_length(value: Tensor) -> Tensor:
    """Bits of positive integers held in float64."""
    return torch.frexp(value).exponent


def _shifted(value: Tensor, shift: Tensor) -> Tensor:
    """value * 2^shift, exactly (torch.ldexp computes the power in float32 by a library function)."""
    return value * _table("power", value.dtype, value.device)[shift.long() + _POWERS]


def _reciprocal(total: Tensor) -> Tensor:
    """The contract's 1 / total for integers in float64: R * 2^-(31+k), R of 17 bits."""
    k = _bit_length(total) - 16
    m = _shifted(total, -k).floor_()  # in [2^15, 2^16)
    # 2^31 / m rounds correctly and lies at least 2^-16 from an integer unless it is one: floor is exact.
    return _shifted((2.0**31 / m).floor_(), -k - 31)


def _reciprocal_sqrt(value: Tensor) -> Tensor:
    """The contract's 1 / sqrt(value) for integers below 2^53 in float64: R * 2^-(31+k), R of 17 bits."""
    k = torch.div(_bit_length(value) - 31, 2, rounding_mode="floor")
    m = _shifted(value, -2 * k).floor_().long()  # in [2^30, 2^32)
    r = _table("rsqrt", torch.int64, value.device)[(m >> 25) - 32]
    t = ((m * r >> 16) * r) >> 16
    r = (r * ((3 << 30) - t) + (1 << 30)) >> 31
    return _shifted(r.double(), -k - 31)


def _round_saturate(scaled: Tensor, low: int, high: int) -> tuple[Tensor, Tensor]:
    """Integers from values in units of the result (overwritten), and where they did not saturate."""
    rounded = scaled.round_()
    clipped = rounded.clamp(low, high)
    return clipped, rounded.eq(clipped)


class _Requantize(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, exponent: int, low: int, high: int) -> Tensor:
        y, inside = _round_saturate(x * 2.0**-exponent, low, high)
        ctx.save_for_backward(inside)
        return y.mul_(2.0**exponent)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return grads[0] * ctx.saved_tensors[0], None, None, None


def requantize(x: Tensor, exponent: int, low: int, high: int) -> Tensor:
    """Round half to even to multiples of 2^exponent, saturate to low..high; gradient 1 where not saturated."""
    return _Requantize.apply(x, exponent, low, high)


class _LayerNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        gamma: Tensor,
        beta: Tensor,
        exponent_in: int,
        exponent_out: int,
        low: int,
        high: int,
    ) -> Tensor:
        width = x.shape[-1]
        v = x.double() * 2.0**-exponent_in  # int16
        total = v.sum(-1, keepdim=True)
        squares = torch.linalg.vecdot(v, v).unsqueeze(-1)
        eps = norm_epsilon(width, exponent_in)
        variance = (width * squares - total * total + eps).clamp_(min=1)  # 51 bits
        root = _reciprocal_sqrt(variance)
        normalized = v.mul_(width).sub_(total).mul_(root * 2.0**_NORM_Q)  # 28 x 17 bits
        normalized = normalized.round_().clamp_(*integer_range(16))
        step = 2.0 ** -(_NORM_Q + _GAMMA_Q + exponent_out)
        scale = (gamma.double() * 2.0**_GAMMA_Q).round() * step
        offset = (beta.double() * 2.0**_BETA_Q).round() * step
        y, inside = _round_saturate(normalized.mul_(scale).add_(offset), low, high)  # 33 bits
        mean = (total * (2.0**exponent_in / width)).to(x.dtype)
        rstd = (root * (width * 2.0**-exponent_in)).to(x.dtype)
        ctx.save_for_backward(x, gamma, beta, mean, rstd, inside)
        return y.to(x.dtype).mul_(2.0**exponent_out)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        x, gamma, beta, mean, rstd, inside = ctx.saved_tensors
        grad = torch.ops.aten.native_layer_norm_backward(
            grads[0] * inside, x, [x.shape[-1]], mean, rstd, gamma, beta, [True, True, True]
        )
        return *grad, None, None, None, None


def norm_epsilon(width: int, exponent: int) -> int:
    """LayerNorm's 1e-6 in units of variance * width^2 of integers at ``exponent`` (never a tie)."""
    return round(LAYER_NORM_EPS * width**2 * Fraction(4) ** -exponent)


def layer_norm(
    x: Tensor,
    gamma: Tensor,
    beta: Tensor,
    exponent_in: int,
    exponent_out: int,
    low: int,
    high: int,
) -> Tensor:
    """LayerNorm over the last axis of int16 values; gamma in Q12, beta in Q22, result in low..high."""
    return _LayerNorm.apply(x, gamma, beta, exponent_in, exponent_out, low, high)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, exponent_out: int, low: int, high: int
    ) -> Tensor:
        scores = q @ k.transpose(-1, -2)
        p = _exp2_negative(scores.amax(-1, keepdim=True) - scores, "probability")
        weighted = p @ v
        inverse = _reciprocal(p.sum(-1, keepdim=True, dtype=torch.float64))
        exact = weighted.double() * inverse  # 26 x 17 bits at N = 1025
        y, inside = _round_saturate(exact * 2.0**-exponent_out, low, high)
        if any(ctx.needs_input_grad):
            ctx.save_for_backward(q, k, v, p.mul_(inverse.to(p.dtype)), exact.to(q.dtype), inside)
        return y.to(q.dtype).mul_(2.0**exponent_out)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        q, k, v, p, exact, inside = ctx.saved_tensors
        grad = grads[0] * inside
        grad_v = p.transpose(-1, -2) @ grad
        # softmax: dS = P * (dP - sum(P * dP)), and sum(P * dP) = sum(out * d out)
        grad_scores = (grad @ v.transpose(-1, -2)).sub_((grad * exact).sum(-1, keepdim=True))
        grad_scores.mul_(p).mul_(LN2)
        return grad_scores @ k, grad_scores.transpose(-1, -2) @ q, grad_v, None, None, None


def attention(
    q: Tensor, k: Tensor, v: Tensor, exponent_out: int, low: int, high: int
) -> Tensor:
    """softmax2(q k^T) v for [..., N, d], where softmax2 is to base 2: log2(e)/sqrt(d) is folded into q.

    Probabilities are u8 relative to the row's largest; the division by their sum comes after P V.
    """
    return _Attention.apply(q, k, v, exponent_out, low, high)


class _GateWeights(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
        chosen = torch.sort(logits, dim=-1, descending=True, stable=True).indices[..., :k]
        distance = logits.amax(-1, keepdim=True) - logits
        power = _exp2_negative(distance.double(), "exp2")
        share = power * _reciprocal(power.sum(-1, keepdim=True))  # 16 x 17 bits
        exact = (share * _GATE_ONE).round_().clamp_(max=_GATE_ONE - 1).gather(-1, chosen)
        weights = exact.to(logits.dtype).mul_(1 / _GATE_ONE)
        ctx.mark_non_differentiable(chosen)
        ctx.save_for_backward(share.to(logits.dtype), weights, chosen)
        return weights, chosen

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        share, weights, chosen = ctx.saved_tensors
        flow = grads[0] * weights
        grad = share * -flow.sum(-1, keepdim=True)
        return grad.scatter_add_(-1, chosen, flow).mul_(LN2), None


def gate_weights(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Top k of the logits [..., E] in octaves: weights (multiples of 2^-16) and int64 indices, [..., k].

    Softmax to base 2 over all experts, not renormalized; best first, ties to the lower index.
    """
    return _GateWeights.apply(logits, k)


class GeluTable:
    """GELU between two formats as a table, with a second table for the slope.

    Both have an entry on either side of the input range for values that saturate, where the slope is zero.
    """

    def __init__(self, exponent_in: int, exponent_out: int, bits: int, like: Tensor) -> None:
        self.exponent_in = exponent_in
        self.low, self.high = integer_range(bits)
        entries = tables.gelu(exponent_in, exponent_out, bits).tolist()
        inside = entries[self.low + 128 : self.high + 129]
        with torch.inference_mode(False), torch.enable_grad():
            values = torch.tensor([inside[0], *inside, inside[-1]], dtype=torch.float64)
            points = torch.arange(self.low, self.high + 1, dtype=torch.float64) * 2.0**exponent_in
            points.requires_grad_()
            (slope,) = torch.autograd.grad(F.gelu(points).sum(), points)
            self.values = (values * 2.0**exponent_out).to(like.device, like.dtype)
            self.slopes = F.pad(slope, (1, 1)).to(like.device, like.dtype)


class _Gelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, table: GeluTable) -> Tensor:
        rounded = (x * 2.0**-table.exponent_in).round_()
        index = rounded.sub_(table.low - 1).clamp_(0, table.high - table.low + 2).to(torch.int32)
        ctx.table = table
        ctx.save_for_backward(index)
        return table.values.index_select(0, index.flatten()).view(x.shape)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (index,) = ctx.saved_tensors
        return ctx.table.slopes.index_select(0, index.flatten()).view(index.shape).mul_(grads[0]), None


def gelu(x: Tensor, table: GeluTable) -> Tensor:
    """Requantize accumulators ``x`` to the table's input format and look GELU up."""
    return _Gelu.apply(x, table)
