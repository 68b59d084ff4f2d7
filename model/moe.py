"""Mixture-of-experts layer: gates, load balance and experts computed queue by queue.

The gate is M3ViT's ``noisy_vmoe``: the logits are ``x @ w_gate`` without bias; in training, normal
noise of standard deviation ``noise / experts`` is added; the scores are a softmax over *all*
experts of which the top k are kept un-renormalized, so that they sum to less than one. Ties go to
the expert of lower index.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model import distributed


class GateNoise:
    """Gate noise of one training step: a pure function of (seed, step, block, task).

    The noise of the *global* batch is drawn on the CPU and each process takes its share, so it
    depends neither on the number of processes nor on the device.

    Args:
        seed, step: the run and the training step.
        scale: the noise has standard deviation ``scale / experts`` (M3ViT: ``vmoe_noisy_std``).
        rank, world: which share of the global batch this process holds.
    """

    def __init__(
        self, seed: int, step: int, scale: float = 1.0, rank: int = 0, world: int = 1
    ) -> None:
        self.seed, self.step, self.scale = seed, step, scale
        self.rank, self.world = rank, world

    def draw(self, block: int, tasks: Sequence[int], shape: Sequence[int]) -> Tensor:
        """Standard normal noise [T, B, N, E] for this process; ``shape`` is its (B, N, E)."""
        batch, *rest = shape
        share = slice(self.rank * batch, (self.rank + 1) * batch)
        parts = []
        for task in tasks:
            rng = np.random.default_rng((self.seed, self.step, block, task))
            whole = rng.standard_normal((self.world * batch, *rest), dtype=np.float32)
            parts.append(torch.from_numpy(whole[share]))
        return torch.stack(parts)


def full_precision(x: Tensor) -> Tensor:
    """``x`` in float32, or in float64 if it is: what half precision must not touch."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class Routing(NamedTuple):
    """What one MoE block did with each token.

    indices: int64 [T, B, N, k], chosen experts, best first; weights: [T, B, N, k], their scores;
    load: [T, E], how many tokens each expert got.
    """

    indices: Tensor
    weights: Tensor
    load: Tensor


@dataclass(frozen=True)
class RoutingStats:
    """Detached record of a block's routing: indices int64 [T, B, N, k] and load [T, E]."""

    indices: Tensor
    load: Tensor


def cv_squared(values: Tensor) -> Tensor:
    """Squared coefficient of variation, var / (mean^2 + 1e-10), of the last axis; 0 for one."""
    if values.shape[-1] == 1:
        return values.sum(-1) * 0.0
    return values.var(-1) / (values.mean(-1).square() + 1e-10)


def top_k(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest logits and their expert indices, best first, ties to the lower index.

    ``torch.topk`` leaves the order of ties open; a stable sort does not.
    """
    values, indices = torch.sort(logits, dim=-1, descending=True, stable=True)
    return values[..., :k], indices[..., :k]


def smooth_load(clean: Tensor, noisy: Tensor, k: int, std: float) -> Tensor:
    """Expected tokens per expert [T, E]: for every token P(its logit is among the top k).

    The noise is drawn anew only for the expert in question; it is chosen if its noisy logit exceeds
    the k-th best of the others (Shazeer et al. 2017, eq. 8-10). Logits are compared with logits.

    Args:
        clean, noisy: logits [T, S, E] before and after the noise of standard deviation ``std``.
    """
    ranked, _ = top_k(noisy, k + 1)
    chosen = noisy > ranked[..., k:]
    threshold = torch.where(chosen, ranked[..., k:], ranked[..., k - 1 : k])
    probability = 0.5 * (1 + torch.erf((clean - threshold) / (std * math.sqrt(2.0))))
    return probability.sum(1)


def balance_loss(importance: Tensor, load: Tensor) -> Tensor:
    """Scalar sum over tasks of cv^2(importance) + cv^2(load), both [T, E], over all processes."""
    if distributed.world_size() > 1:
        importance, load = distributed.all_reduce_sum(torch.stack([importance, load])).unbind()
    return (cv_squared(importance) + cv_squared(load)).sum()


class Gate(nn.Module):
    """One router: ``w_gate`` [D (+ G), E], input-major as in M3ViT's checkpoints, no bias."""

    def __init__(self, inputs: int, experts: int) -> None:
        super().__init__()
        self.w_gate = nn.Parameter(torch.empty(inputs, experts))


class ExpertLinear(nn.Module):
    """Stacked weights of one linear stage of all experts: weight [E, out, in], bias [E, out]."""

    def __init__(self, experts: int, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(experts, outputs, inputs))
        self.bias = nn.Parameter(torch.zeros(experts, outputs))


class TokenQueues(NamedTuple):
    """Tokens reordered into one queue per expert; pair p = token * k + rank.

    order: int64 [S * k], pairs sorted by expert, tokens in order within a queue; counts: queue
    length of each expert.
    """

    order: Tensor
    counts: list[int]


def build_queues(indices: Tensor, experts: int) -> TokenQueues:
    """Sort the (token, expert) pairs of ``indices`` [S, k] by expert."""
    flat = indices.reshape(-1)
    return TokenQueues(
        torch.argsort(flat, stable=True), torch.bincount(flat, minlength=experts).tolist()
    )


class Experts(nn.Module):
    """All experts of a layer, each ``Linear(D, H)``, GELU, ``Linear(H, D)``."""

    def __init__(self, experts: int, dim: int, hidden: int) -> None:
        super().__init__()
        self.htoh4 = ExpertLinear(experts, dim, hidden)
        self.h4toh = ExpertLinear(experts, hidden, dim)

    def forward(self, tokens: Tensor, indices: Tensor, weights: Tensor) -> Tensor:
        """Sum over the chosen experts of score x expert(token).

        Args:
            tokens: [S, D]; indices, weights: [S, k].

        Returns:
            [S, D], float32 or wider. Every expert reads its queue as one matrix, so each is one
            GEMM per stage, whatever the number of tasks and images in the batch.
        """
        k = indices.shape[-1]
        queues = build_queues(indices, self.htoh4.weight.shape[0])
        queued = tokens.index_select(0, torch.div(queues.order, k, rounding_mode="floor"))
        # unbind, not weight[i]: indexing would make backward fill a full-size gradient per expert.
        stage1 = zip(
            queued.split(queues.counts),
            self.htoh4.weight.unbind(),
            self.htoh4.bias.unbind(),
            strict=True,
        )
        hidden = F.gelu(torch.cat([F.linear(x, w, b) for x, w, b in stage1]))
        stage2 = zip(
            hidden.split(queues.counts),
            self.h4toh.weight.unbind(),
            self.h4toh.bias.unbind(),
            strict=True,
        )
        outputs = torch.cat([F.linear(x, w, b) for x, w, b in stage2])
        back = torch.empty_like(queues.order)
        back[queues.order] = torch.arange(len(back), device=back.device)
        pairs = outputs.index_select(0, back).view(len(tokens), k, -1)  # [S, k, D]
        return (pairs * weights.unsqueeze(-1)).sum(1)


class ExpertChoice(nn.Module):
    """Base of the layers in which tasks choose among experts, float or quantized.

    Attributes:
        num_experts, k: E, and how many of them a token gets.
        block: index of the block in the backbone.
        allowed: bool [tasks, E], experts that each task may use (`model.windows.restrict`); None = all.
    """

    allowed: Tensor | None

    def __init__(self, experts: int, k: int, block: int) -> None:
        super().__init__()
        self.num_experts, self.k, self.block = experts, k, block
        self.register_buffer("allowed", None, persistent=False)


class MoE(ExpertChoice):
    """MoE layer of one block, with a gate per task or one gate that is told the task.

    Args:
        dim, hidden, experts, k: D, hidden width of an expert, E, experts per token.
        gates: number of gates for ``multi_gate`` routing, 0 for one task-conditioned gate.
        task_dim: G, width of the task embedding for the task-conditioned gate.
        block: index of the block in the backbone (selects the noise).
    """

    def __init__(
        self,
        dim: int,
        hidden: int,
        experts: int,
        k: int,
        gates: int,
        task_dim: int = 0,
        block: int = 1,
    ) -> None:
        super().__init__(experts, k, block)
        self.experts = Experts(experts, dim, hidden)
        self.gate: nn.Module = (
            nn.ModuleList(Gate(dim, experts) for _ in range(gates))
            if gates
            else Gate(dim + task_dim, experts)
        )

    def logits(self, x: Tensor, gate_ids: Sequence[int], task_vectors: Tensor | None) -> Tensor:
        """Gate logits [T, S, E], at least float32, of x [T, S, D]; task_vectors [T, G] or None."""
        x = full_precision(x)
        if isinstance(self.gate, nn.ModuleList):
            gates = [gate.get_parameter("w_gate") for gate in self.gate]
            w_gate = torch.stack([gates[i] for i in gate_ids])
            return torch.bmm(x, w_gate)
        assert isinstance(self.gate, Gate) and task_vectors is not None
        token_part, task_part = self.gate.w_gate.split([x.shape[-1], task_vectors.shape[-1]])
        # cat(x, task vector) @ w_gate, without copying the vector to every token.
        return x @ token_part + (task_vectors.to(x.dtype) @ task_part).unsqueeze(1)

    def route(
        self,
        x: Tensor,
        gate_ids: Sequence[int],
        task_vectors: Tensor | None = None,
        noise: GateNoise | None = None,
    ) -> tuple[Routing, Tensor]:
        """Choose experts for x [T, B, N, D]; returns the routing and the balance loss (scalar).

        ``noise`` takes effect in training mode only.
        """
        tasks, batch, tokens, dim = x.shape
        shape = (tasks, batch, tokens)
        clean = self.logits(x.reshape(tasks, -1, dim), gate_ids, task_vectors)
        if self.allowed is not None:
            clean = clean.masked_fill(~self.allowed[list(gate_ids)].unsqueeze(1), -math.inf)
        std = noise.scale / self.num_experts if noise is not None and self.training else 0.0
        noisy = clean
        if noise is not None and std > 0:
            drawn = noise.draw(self.block, gate_ids, (batch, tokens, self.num_experts))
            noisy = clean + std * drawn.to(clean).view_as(clean)
        scores = noisy.softmax(-1)
        _, indices = top_k(noisy, self.k)
        weights = scores.gather(-1, indices)

        importance = torch.zeros_like(scores).scatter(-1, indices, weights).sum(1)
        hard = F.one_hot(indices, self.num_experts).sum((1, 2)).to(scores.dtype)
        smooth = std > 1e-6 and self.k < self.num_experts
        load = smooth_load(clean, noisy, self.k, std) if smooth else hard
        if self.training:
            loss = balance_loss(importance, load)
        else:  # evaluation may run in one process only, which must not wait for the others
            loss = (cv_squared(importance) + cv_squared(load)).sum()
        routing = Routing(indices.view(*shape, -1), weights.view(*shape, -1), hard.detach())
        return routing, loss

    def forward(
        self,
        x: Tensor,
        gate_ids: Sequence[int],
        task_vectors: Tensor | None = None,
        noise: GateNoise | None = None,
    ) -> tuple[Tensor, Tensor, RoutingStats]:
        """Route x [T, B, N, D]; returns the experts' sum [T, B, N, D], balance loss and stats."""
        # The choice of experts must not depend on half precision.
        with torch.autocast(x.device.type, enabled=False):
            routing, loss = self.route(x, gate_ids, task_vectors, noise)
        k, dim = self.k, x.shape[-1]
        y = self.experts(
            x.reshape(-1, dim), routing.indices.view(-1, k), routing.weights.view(-1, k)
        )
        stats = RoutingStats(routing.indices.detach(), routing.load)
        return y.view(x.shape), loss, stats
