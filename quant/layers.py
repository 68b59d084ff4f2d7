"""Building blocks of the quantized network: each computes the contract's integers or, disabled, the float function.

``exponent_in`` is always the exponent of the input; ``residual`` is the network's one int16 quantizer of the
residual stream; ``record`` is told every integer tensor with its exponent (see ``QuantMultiTaskViT.trace``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from brevitas.function import round_ste
from torch import Tensor, nn

from accel.config import Formats, Network, Task
from model.heads import LAYER_NORM_EPS, unpatchify
from model.moe import ExpertChoice, RoutingStats, balance_loss, build_queues, cv_squared
from quant.nonlinear import LN2, LOG2E, GeluTable, attention, gate_weights, gelu, layer_norm
from quant.quantizers import WIDE_BITS, FixedPoint, Requantize, StackedLinear

Record = Callable[[str, Tensor, int], None]
GATE_EXPONENT = -16
"""Exponent of combine weights."""
FORBIDDEN = -(1 << 29)
"""Gate bias, at the logits' exponent, of an expert outside a task's window: far below all logits, and far enough from
the 2^30 that logits may reach."""


class Norm(nn.Module):
    """LayerNorm from the residual stream to activations."""

    def __init__(self, dim: int, bits: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim))
        self.out = FixedPoint(bits)

    def forward(self, x: Tensor, residual: Requantize) -> Tensor:
        if not self.out.enabled:
            y = F.layer_norm(x, x.shape[-1:], self.weight, self.bias, LAYER_NORM_EPS)
            return self.out.observe(y)
        exponents = residual.format.value, self.out.value
        return layer_norm(x, self.weight, self.bias, *exponents, *self.out.range)


class Gelu(nn.Module):
    """GELU between two activation formats, as one table."""

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.bits = bits
        self.pre = FixedPoint(bits)
        self.out = FixedPoint(bits)
        self._cache: tuple[tuple[object, ...], GeluTable] | None = None

    def forward(self, x: Tensor) -> Tensor:
        if not self.out.enabled:
            return self.out.observe(F.gelu(self.pre.observe(x)))
        exponents = self.pre.value, self.out.value
        key = (*exponents, x.dtype, x.device)
        if self._cache is None or self._cache[0] != key:
            self._cache = key, GeluTable(*exponents, self.bits, x)
        return gelu(x, self._cache[1])


class Attention(nn.Module):
    """Multi-head attention; log2(e) / sqrt(d) is folded into the query rows of ``qkv``."""

    def __init__(self, network: Network, formats: Formats) -> None:
        super().__init__()
        dim, bits = network.embed_dim, formats.activation_bits
        self.heads = network.heads
        fold = torch.ones(3 * dim)
        fold[:dim] = LOG2E / math.sqrt(network.head_dim)
        self.qkv = StackedLinear(dim, 3 * dim, formats.weight_bits, fold=fold)
        self.q, self.k, self.v = (Requantize(bits, narrow=True) for _ in range(3))
        self.out = FixedPoint(bits)
        self.proj = StackedLinear(dim, dim, formats.weight_bits)

    def forward(
        self, x: Tensor, exponent_in: int, residual: Requantize, record: Record, where: str
    ) -> Tensor:
        """[B, N, D] -> int16 contribution to the residual stream [B, N, D]."""
        b, n, dim = x.shape
        stacked = self.qkv.accumulate(x, exponent_in)
        parts = stacked.view(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4).contiguous()
        q, k, v = (f(part) for f, part in zip((self.q, self.k, self.v), parts, strict=True))
        if self.out.enabled:
            y = attention(q, k, v, self.out.value, *self.out.range)  # [B, heads, N, d]
        else:
            y = self.out.observe(F.scaled_dot_product_attention(q, k, v, scale=LN2))
        for name, part, f in (("q", q, self.q), ("k", k, self.k), ("v", v, self.v)):
            record(f"{where}.{name}", part.transpose(1, 2).flatten(2), f.format.value)
        y = y.transpose(1, 2).reshape(b, n, dim)
        record(f"{where}.attention", y, self.out.value)
        return residual(self.proj.accumulate(y, self.out.value))


def _grouped_linear(x: Tensor, counts: list[int], weights: Tensor, biases: Tensor) -> Tensor:
    """Rows of x [P, I], queue after queue, through their expert's weights [E, O, I]: one GEMM per expert."""
    queues = zip(x.split(counts), weights.unbind(), biases.unbind(), strict=True)
    return torch.cat([F.linear(*queue) for queue in queues])


class Experts(nn.Module):
    """Stacked experts, each cut into units of ``unit_hidden`` columns. A dense MLP is one expert.

    Every unit's output is rounded to the residual's int16 by itself; the expert's one bias belongs to its
    first unit.
    """

    def __init__(
        self, dim: int, unit_hidden: int, experts: int, units: int, formats: Formats
    ) -> None:
        super().__init__()
        bits = formats.weight_bits
        self.experts, self.units = experts, units
        self.first = StackedLinear(dim, units * unit_hidden, bits, experts)
        self.gelu = Gelu(formats.activation_bits)
        self.second = StackedLinear(unit_hidden, dim, bits, experts * units, bias_every=units)

    def forward(
        self, queued: Tensor, counts: list[int], exponent_in: int, residual: Requantize
    ) -> Tensor:
        """Tokens [P, D] sorted by expert, ``counts`` per expert -> sum over the expert's units [P, D]."""
        weight, bias = self.first.quantized(exponent_in)
        assert bias is not None
        hidden = self.gelu(_grouped_linear(queued, counts, weight, bias))
        weight, bias = self.second.quantized(self.gelu.out.value)
        assert bias is not None
        stacks = zip(
            hidden.unflatten(-1, (self.units, -1)).unbind(-2),
            weight.unflatten(0, (self.experts, self.units)).unbind(1),
            bias.unflatten(0, (self.experts, self.units)).unbind(1),
            strict=True,
        )
        outputs = [residual(_grouped_linear(x, counts, w, b)) for x, w, b in stacks]
        return outputs[0] if self.units == 1 else torch.stack(outputs).sum(0)


class Gates(ExpertChoice):
    """All gates of a block, quantized at once with one scale per gate. log2(e) is folded in.

    A gate's row in ``token_part`` is its whole [E, D] matrix. With ``task_conditioned`` routing there is
    one gate, and the constant share of each task's embedding becomes a bias per expert. Experts outside a
    task's window (``allowed``) get the bias FORBIDDEN instead.
    """

    def __init__(self, network: Network, formats: Formats, block: int) -> None:
        super().__init__(network.experts, network.top_k, block)
        self.experts, self.dim = network.experts, network.embed_dim
        conditioned = network.routing == "task_conditioned"
        gates = 1 if conditioned else len(network.tasks)
        self.token_part = StackedLinear(
            self.experts * self.dim,
            1,
            formats.weight_bits,
            gates,
            bias=False,
            fold=torch.full((gates,), LOG2E),
        )
        self.task_part = (
            nn.Parameter(torch.zeros(network.task_embed_dim, self.experts)) if conditioned else None
        )

    def quantized(
        self, exponent_in: int, gate_ids: Sequence[int], vectors: Tensor | None
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """Weight [T, E, D], bias [T, E] or None, and scale of the logits [T] for the gates of T tasks.

        Args:
            gate_ids: number of each task.
            vectors: task embeddings [T, G] for ``task_conditioned`` routing.
        """
        rows = self.token_part.quantized_rows(exponent_in)
        weight = rows.weight.view(-1, self.experts, self.dim)
        scale = rows.scale * 2.0**exponent_in
        bias: Tensor | None = None
        if self.task_part is None:
            ids = torch.tensor(list(gate_ids), device=weight.device)
            weight, scale = weight.index_select(0, ids), scale.index_select(0, ids)
        else:
            assert vectors is not None
            bias = vectors @ self.task_part * LOG2E
            if self.token_part.enabled:
                bias = round_ste(bias / scale) * scale
            tasks = len(gate_ids)
            weight, scale = weight.expand(tasks, -1, -1), scale.expand(tasks)
        if self.allowed is not None:
            open_bias = torch.zeros_like(weight[..., 0]) if bias is None else bias
            bias = torch.where(self.allowed[list(gate_ids)], open_bias, FORBIDDEN * scale[:, None])
        return weight, bias, scale

    def forward(
        self, x: Tensor, exponent_in: int, gate_ids: Sequence[int], vectors: Tensor | None
    ) -> Tensor:
        """Tokens [T, S, D] -> logits in octaves [T, S, E]."""
        weight, bias, _ = self.quantized(exponent_in, gate_ids, vectors)
        logits = x @ weight.transpose(1, 2)
        return logits if bias is None else logits + bias.unsqueeze(1)


class MoE(nn.Module):
    """Mixture of experts without gate noise."""

    def __init__(self, network: Network, formats: Formats, block: int) -> None:
        super().__init__()
        self.k = network.top_k
        self.gates = Gates(network, formats, block)
        self.experts = Experts(
            network.embed_dim, network.unit_hidden, network.experts, network.expert_units, formats
        )

    def forward(
        self,
        x: Tensor,
        exponent_in: int,
        gate_ids: Sequence[int],
        vectors: Tensor | None,
        residual: Requantize,
        record: Record,
        where: str,
    ) -> tuple[Tensor, Tensor, RoutingStats]:
        """x [T, B, N, D] -> (weighted sum of the experts [T, B, N, D], balance loss, routing)."""
        tasks, b, n, dim = x.shape
        count = self.experts.experts
        logits = self.gates(x.view(tasks, -1, dim), exponent_in, gate_ids, vectors)
        if self.gates.token_part.enabled:
            weights, chosen = gate_weights(logits, self.k)
        else:
            ranked = torch.sort(logits, dim=-1, descending=True, stable=True).indices
            chosen = ranked[..., : self.k]
            weights = (logits * LN2).softmax(-1).gather(-1, chosen)
        record(f"{where}.topk", chosen.view(tasks * b, n, -1), 0)
        record(f"{where}.weights", weights.view(tasks * b, n, -1), GATE_EXPONENT)

        importance = torch.zeros_like(logits).scatter(-1, chosen, weights).sum(1)
        load = F.one_hot(chosen, count).sum((1, 2)).to(logits.dtype)
        if self.training:
            loss = balance_loss(importance, load)
        else:
            loss = (cv_squared(importance) + cv_squared(load)).sum()

        queues = build_queues(chosen.flatten(0, 1), count)
        tokens = torch.div(queues.order, self.k, rounding_mode="floor")
        queued = x.view(-1, dim).index_select(0, tokens)
        outputs = self.experts(queued, queues.counts, exponent_in, residual)
        weighted = outputs * weights.reshape(-1, 1).index_select(0, queues.order)
        back = torch.empty_like(queues.order)
        back[queues.order] = torch.arange(len(back), device=back.device)
        total = weighted.index_select(0, back).view(-1, self.k, dim).sum(1)
        stats = RoutingStats(chosen.view(tasks, b, n, self.k), load.detach())
        return total.view_as(x), loss, stats


class LightHead(nn.Module):
    """LayerNorm, linear, GELU and linear on the patch tokens, to int16."""

    def __init__(self, network: Network, task: Task, formats: Formats) -> None:
        super().__init__()
        self.grid, self.patch = (network.grid_h, network.grid_w), network.patch
        bits = formats.weight_bits
        self.norm = Norm(network.embed_dim, formats.activation_bits)
        self.fc1 = StackedLinear(network.embed_dim, network.head_hidden, bits)
        self.gelu = Gelu(formats.activation_bits)
        self.fc2 = StackedLinear(network.head_hidden, network.patch**2 * task.channels, bits)
        self.out = Requantize(WIDE_BITS)

    def forward(self, tokens: Tensor, residual: Requantize, record: Record) -> Tensor:
        """Tokens [B, N, D], cls first -> [B, C, H, W]."""
        y = self.norm(tokens[:, 1:].contiguous(), residual)
        record("head.norm", y, self.norm.out.value)
        y = self.gelu(self.fc1.accumulate(y, self.norm.out.value))
        record("head.hidden", y, self.gelu.out.value)
        y = self.out(self.fc2.accumulate(y, self.gelu.out.value))
        record("head.output", y, self.out.format.value)
        return unpatchify(y, *self.grid, self.patch)


class Block(nn.Module):
    """Pre-norm transformer block; odd blocks are mixtures of experts."""

    def __init__(self, network: Network, index: int, formats: Formats) -> None:
        super().__init__()
        dim, bits = network.embed_dim, formats.activation_bits
        self.norm1 = Norm(dim, bits)
        self.attn = Attention(network, formats)
        self.norm2 = Norm(dim, bits)
        self.mlp: MoE | Experts = (
            MoE(network, formats, index)
            if network.is_moe(index)
            else Experts(dim, network.unit_hidden, 1, network.dense_units, formats)
        )
