"""What one frame of one task costs: multiply-accumulates, parameters, bytes, by formula from the dimensions.

Counted are the products of matrix multiplications and convolutions: patch embedding, qkv, Q·Kᵀ, P·V, projection, MLPs,
the experts that tokens are sent to, gates, task embedding, head. One multiply-accumulate (MAC) is one product with its
addition; work tied to a token is counted for every token, cls included. Not counted: LayerNorm, softmax, GELU, ReLU,
batch norm (it folds into its convolution), bias and residual additions, top-k, the score-weighted sum of the experts'
outputs, bilinear up-sampling. "FLOPs" in the M³ViT paper (84 G on PASCAL-Context) are these MACs of encoder and one
head, not twice their number.

Nothing here needs torch; the tests compare it with torch's counter on the real module.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from accel.config import Network

PUP_CHANNELS, PUP_CONVOLUTIONS = 256, 4
"""Channels and number of the 3×3 convolutions of a PUP head; here, because `model.heads` needs torch."""
BIAS_BYTES = 4

PAPER = "M3ViT, NeurIPS 2022, arXiv 2210.14793, Table 1 (PASCAL-Context)"
PUBLISHED_GFLOPS: Mapping[str, float] = {
    "MTL-B, ResNet-18": 167.0,
    "MTAN, ResNet-18": 212.0,
    "Cross-Stitch, ResNet-18": 647.0,
    "NDDR-CNN, ResNet-18": 747.0,
    "M-ViT (dense), ViT-small": 83.0,
}
"""FLOPs (G) that the paper prints for 512 × 512 and all five tasks. Quoted, not recomputed."""
_VIT_SMALL = (384, 12, 1536, 16)  # embed_dim, depth, dense_hidden, patch
CLAIM = 0.88
"""Share of inference FLOPs that the paper says it saves."""


@dataclass(frozen=True)
class Cost:
    """Cost of a part for one frame of one task; costs of different parts add up.

    Attributes:
        macs: multiply-accumulates.
        parameters: that exist (all experts, this task's gate).
        activated: parameters that one token meets (top-k experts).
        weight_bytes: int8 weights and norm parameters, int32 biases, of everything that exists. A frame streams less
            when some experts get no token, see `streamed_bytes`.
    """

    macs: int = 0
    parameters: int = 0
    activated: int = 0
    weight_bytes: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(*(a + b for a, b in zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)))


def total(costs: Sequence[Cost]) -> Cost:
    """Sum of costs."""
    return sum(costs, Cost())


def _linear(rows: int, inputs: int, outputs: int, bias: bool = True) -> Cost:
    weights, biases = inputs * outputs, outputs if bias else 0
    return Cost(rows * weights, weights + biases, weights + biases, weights + BIAS_BYTES * biases)


def _stored(parameters: int) -> Cost:
    """Parameters that take part in no multiplication that counts."""
    return Cost(0, parameters, parameters, parameters)


def _norm(width: int) -> Cost:
    return _stored(2 * width)


def _dense_mlp(network: Network) -> Cost:
    """The MLP of one block without experts, every token."""
    rows, dim, hidden = network.tokens, network.embed_dim, network.dense_hidden
    return _linear(rows, dim, hidden) + _linear(rows, hidden, dim)


def _expert(network: Network, rows: int) -> Cost:
    dim, hidden = network.embed_dim, network.expert_hidden
    return _linear(rows, dim, hidden) + _linear(rows, hidden, dim)


def expert_cost(network: Network) -> Cost:
    """One expert with one token."""
    return _expert(network, 1)


def _gate(network: Network) -> Cost:
    """One gate: every token, and once per frame the task vector's share, which all tokens have in common."""
    tokens = _linear(network.tokens, network.embed_dim, network.experts, bias=False)
    return tokens + _linear(1, network.task_embed_dim, network.experts, bias=False)


def _experts(network: Network) -> Cost:
    one, experts, k = expert_cost(network), network.experts, network.top_k
    pairs = network.tokens * k
    return Cost(pairs * one.macs, experts * one.parameters, k * one.activated, experts * one.weight_bytes)


def _task_embedding(network: Network) -> Cost:
    if network.routing != "task_conditioned":
        return Cost()
    tasks, width = len(network.tasks), network.task_embed_dim
    return _linear(1, tasks, width) + _linear(1, width, width) + _norm(width)


def encoder_parts(network: Network) -> dict[str, Cost]:
    """Part (``patch``, ``qkv``, ``attention``, ``proj``, ``mlp``, ``gate``, ``experts``, ``norm``, ``task``) → its cost
    over all blocks, for one task of one frame."""
    tokens, dim = network.tokens, network.embed_dim
    moe, depth = len(network.moe_blocks), network.depth
    patch = _linear(tokens - 1, network.patch_dim, dim) + _stored((tokens + 1) * dim)  # positions and cls
    return {
        "patch": patch,
        "qkv": total([_linear(tokens, dim, 3 * dim)] * depth),
        "attention": Cost(macs=depth * 2 * tokens * tokens * dim),
        "proj": total([_linear(tokens, dim, dim)] * depth),
        "mlp": total([_dense_mlp(network)] * (depth - moe)),
        "gate": total([_gate(network)] * moe),
        "experts": total([_experts(network)] * moe),
        "norm": total([_norm(dim)] * (2 * depth)),
        "task": _task_embedding(network),
    }


def encoder_cost(network: Network) -> Cost:
    """The whole encoder for one task of one frame."""
    return total(list(encoder_parts(network).values()))


def _light_head(network: Network, channels: int) -> Cost:
    rows, outputs = network.tokens - 1, network.patch**2 * channels
    hidden = network.head_hidden
    return _norm(network.embed_dim) + _linear(rows, network.embed_dim, hidden) + _linear(rows, hidden, outputs)


def _pup_head(network: Network, channels: int) -> Cost:
    """Four 3×3 convolutions to 256 channels with doublings between, then 1×1, as `model.heads.PupHead`."""
    doublings = max(0, math.ceil(math.log2(network.patch)))
    doubled_after = range(3 - min(3, doublings - 1), 3) if doublings else range(0)
    cost, pixels, inputs = _norm(network.embed_dim), network.tokens - 1, network.embed_dim
    for i in range(PUP_CONVOLUTIONS):
        cost += _linear(pixels, 9 * inputs, PUP_CHANNELS) + _norm(PUP_CHANNELS)  # batch norm: weight and bias
        inputs = PUP_CHANNELS
        pixels *= 4 if i in doubled_after else 1
    return cost + _linear(pixels, PUP_CHANNELS, channels)


def head_cost(network: Network, task: str, head: str | None = None) -> Cost:
    """One task's head; ``head`` is ``light`` or ``pup``, the network's own by default."""
    channels = network.task(task).channels
    return (_pup_head if (head or network.head) == "pup" else _light_head)(network, channels)


def model_parameters(network: Network, head: str | None = None) -> int:
    """Parameters of encoder and heads for all tasks together: a multi-gate model holds a gate per task."""
    extra = len(network.tasks) - 1 if network.routing == "multi_gate" else 0
    gates = extra * len(network.moe_blocks) * _gate(network).parameters
    heads = sum(head_cost(network, name, head).parameters for name in network.task_names)
    return encoder_cost(network).parameters + gates + heads


def streamed_bytes(network: Network, used_experts: Mapping[int, int] | None = None) -> int:
    """Weight bytes of the encoder that one frame of one task reads, each weight once (tokens reordered by expert).

    Args:
        used_experts: MoE block → experts with at least one token (`accel.usage.ExpertUsage.used`); all by default.
            Counted over several images they are those that any of them uses: an upper bound for each.
    """
    everything = encoder_cost(network).weight_bytes
    if used_experts is None:
        return everything
    idle = sum(network.experts - min(network.experts, used_experts[block]) for block in network.moe_blocks)
    return everything - idle * expert_cost(network).weight_bytes


@dataclass(frozen=True)
class Saving:
    """One comparison behind the 88 % claim.

    Attributes:
        baseline: what is compared with.
        baseline_macs: its cost per frame; as published for the paper's rows.
        saving: 1 − own / baseline; negative if the baseline is cheaper.
        holds: whether the saving rounds to 88 % or more.
        source: ``formula`` or the publication.
    """

    baseline: str
    baseline_macs: int
    saving: float
    holds: bool
    source: str


def savings(network: Network, task: str, head: str | None = "pup") -> list[Saving]:
    """The paper's 88 % recomputed: one task of this network against what else could produce that task.

    The published baselines are for ViT-small with five tasks at 512 × 512 and appear only for such a network.
    """
    encoder = encoder_cost(network)
    heads = {name: head_cost(network, name, head).macs for name in network.task_names}
    own, count = encoder.macs + heads[task], len(heads)
    parts = encoder_parts(network)
    experts = parts["experts"].macs
    everything = experts // network.top_k * network.experts
    dense = own - experts - parts["gate"].macs - parts["task"].macs + len(network.moe_blocks) * _dense_mlp(network).macs
    rows: list[tuple[str, int, str]] = [
        ("dense ViT of these dimensions", dense, "formula"),
        (f"one encoder with all {count} heads", encoder.macs + sum(heads.values()), "formula"),
        (f"{count} entangled encoders with heads", count * encoder.macs + sum(heads.values()), "formula"),
        (f"all {network.experts} experts for every token", own - experts + everything, "formula"),
    ]
    small = network.embed_dim, network.depth, network.dense_hidden, network.patch
    image = network.image_height, network.image_width
    if (small, image, count) == (_VIT_SMALL, (512, 512), 5):
        rows += [(name, round(value * 1e9), PAPER) for name, value in PUBLISHED_GFLOPS.items()]
    shares = [1 - own / macs for _, macs, _ in rows]
    return [
        Saving(name, macs, share, round(share, 2) >= CLAIM, source)
        for (name, macs, source), share in zip(rows, shares, strict=True)
    ]


def expert_layer_saving(network: Network) -> float:
    """Share of the expert MACs that top-k leaves out: 1 − k / E."""
    return 1 - network.top_k / network.experts


def needed_baseline(network: Network, task: str, head: str | None = "pup") -> float:
    """MACs that a baseline must have for a saving of exactly 88 %."""
    return (encoder_cost(network).macs + head_cost(network, task, head).macs) / (1 - CLAIM)


def report(
    network: Network, head: str | None = None, used_experts: Mapping[str, Mapping[int, int]] | None = None
) -> dict[str, Any]:
    """Everything above for every task, ready for JSON.

    Args:
        head: ``light`` or ``pup``, the network's own by default.
        used_experts: task → MoE block → experts with at least one token, for ``encoder_bytes``; all by default.
    """
    parts = encoder_parts(network)
    encoder, chosen = encoder_cost(network), head or network.head
    first = network.task_names[0]
    tasks = {}
    for name in network.task_names:
        own = head_cost(network, name, chosen)
        tasks[name] = {
            "head": dataclasses.asdict(own),
            "macs": encoder.macs + own.macs,
            "parameters": encoder.parameters + own.parameters,
            "activated": encoder.activated + own.activated,
            "encoder_bytes": streamed_bytes(network, None if used_experts is None else used_experts[name]),
            "head_bytes": own.weight_bytes,
        }
    return {
        "network": network.name,
        "head": chosen,
        "encoder": dataclasses.asdict(encoder),
        "parts": {name: dataclasses.asdict(cost) for name, cost in parts.items()},
        "expert": dataclasses.asdict(expert_cost(network)),
        "tasks": tasks,
        "model_parameters": model_parameters(network, chosen),
        "claim": {
            "claimed": CLAIM,
            "task": first,
            "head": "pup",  # what the paper's models have, whatever this network has
            "macs": encoder.macs + head_cost(network, first, "pup").macs,
            "needed_baseline_macs": round(needed_baseline(network, first)),
            "expert_layer_saving": expert_layer_saving(network),
            "comparisons": [dataclasses.asdict(item) for item in savings(network, first)],
        },
    }
