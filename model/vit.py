"""M3ViT: a vision transformer whose odd blocks are mixtures of experts, routed per task.

Pre-norm blocks, LayerNorm eps 1e-6, exact GELU, no final norm. Token 0 is cls; it is routed like
any other. State-dict keys are M3ViT's (without the ``module.`` of its DDP wrapper).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from accel.errors import ConfigError, DataError
from model.heads import LAYER_NORM_EPS, LightHead, PupHead, make_head, patchify
from model.moe import ExpertLinear, Gate, GateNoise, MoE, RoutingStats

if TYPE_CHECKING:
    from accel.config import Network

LOG_DEPTH_MEAN = 1.1  # ln(3 m): a sensible first guess indoors
RESIDUAL_GAIN = 0.3  # initial gain of every branch that adds to the residual stream
LAST_LAYER_GAIN = 0.1
WEIGHT_GAIN = 0.8


@dataclass
class ForwardResult:
    """What every model of this project returns, float or quantized.

    outputs: task -> [B, C, H, W]; balance_loss: scalar, summed over gates; routing: MoE block index
    -> its RoutingStats, whose first axis follows ``tasks``.
    """

    outputs: dict[str, Tensor]
    balance_loss: Tensor
    tasks: tuple[str, ...] = ()
    routing: dict[int, RoutingStats] = field(default_factory=dict)


class PatchEmbed(nn.Module):
    """Non-overlapping patches, flattened in order (py, px, channel) and projected to D."""

    def __init__(self, patch: int, dim: int) -> None:
        super().__init__()
        self.patch = patch
        self.proj = nn.Conv2d(3, dim, patch, stride=patch)  # holds the weights [D, 3, p, p]

    def forward(self, images: Tensor) -> Tensor:
        """Normalized images [B, H, W, 3] -> [B, gh * gw, D]."""
        weight = self.proj.weight.permute(0, 2, 3, 1).reshape(self.proj.weight.shape[0], -1)
        return F.linear(patchify(images, self.patch), weight, self.proj.bias)


class Attention(nn.Module):
    """Multi-head self-attention with biased qkv."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, D] -> [B, N, D]."""
        b, n, d = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v)  # [B, heads, N, D / heads]
        return self.proj(y.transpose(1, 2).reshape(b, n, d))


class Mlp(nn.Module):
    """The dense feed-forward layer of even blocks."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """Pre-norm transformer block; ``mlp`` is a MoE in odd blocks."""

    def __init__(self, network: Network, index: int) -> None:
        super().__init__()
        dim = network.embed_dim
        self.norm1 = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.attn = Attention(dim, network.heads)
        self.norm2 = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.mlp: Mlp | MoE
        if network.is_moe(index):
            gates = len(network.tasks) if network.routing == "multi_gate" else 0
            self.mlp = MoE(
                dim,
                network.expert_hidden,
                network.experts,
                network.top_k,
                gates,
                network.task_embed_dim,
                index,
            )
        else:
            self.mlp = Mlp(dim, network.dense_hidden)


class TaskEmbedding(nn.Module):
    """What a shared gate is told: one-hot(task), Linear(T, G), GELU, Linear(G, G), LayerNorm."""

    def __init__(self, tasks: int, dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(tasks, dim)
        self.fc2 = nn.Linear(dim, dim)
        self.norm = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)

    def forward(self, task_ids: Sequence[int]) -> Tensor:
        """Task numbers (length T') -> [T', G]."""
        one_hot = torch.eye(self.fc1.in_features, device=self.fc1.weight.device)[list(task_ids)]
        return self.norm(self.fc2(F.gelu(self.fc1(one_hot.to(self.fc1.weight.dtype)))))


class Backbone(nn.Module):
    """Patch embedding and transformer blocks for any number of tasks at once."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        dim = network.embed_dim
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(sincos_positions(network.grid_h, network.grid_w, dim))
        self.patch_embed = PatchEmbed(network.patch, dim)
        self.blocks = nn.ModuleList(Block(network, i) for i in range(network.depth))
        self.gate_task_represent = (
            TaskEmbedding(len(network.tasks), network.task_embed_dim)
            if network.routing == "task_conditioned"
            else None
        )

    def forward(
        self, images: Tensor, gate_ids: Sequence[int], noise: GateNoise | None
    ) -> tuple[Tensor, Tensor, dict[int, RoutingStats]]:
        """Normalized images [B, H, W, 3] -> tokens [T, B, N, D], balance loss, routing by block.

        Everything before the first gate is the same for all tasks and is computed once; from there
        on the tasks lie side by side in the batch.
        """
        x = self.patch_embed(images)
        b, tasks = len(x), len(gate_ids)
        x = torch.cat([self.cls_token.expand(b, -1, -1), x], 1) + self.pos_embed
        vectors = None if self.gate_task_represent is None else self.gate_task_represent(gate_ids)
        loss = x.new_zeros(())
        routing: dict[int, RoutingStats] = {}
        for i, block in enumerate(self.blocks):
            assert isinstance(block, Block)
            x = x + block.attn(block.norm1(x))
            y = block.norm2(x)
            if isinstance(block.mlp, MoE):
                if not routing and tasks > 1:
                    x, y = x.repeat(tasks, 1, 1), y.repeat(tasks, 1, 1)
                y, block_loss, routing[i] = block.mlp(
                    y.view(tasks, b, *y.shape[1:]), gate_ids, vectors, noise
                )
                x = x + y.view_as(x)
                loss = loss + block_loss
            else:
                x = x + block.mlp(y)
        if routing or tasks == 1:
            return x.view(tasks, b, *x.shape[1:]), loss, routing
        return x.expand(tasks, *x.shape), loss, routing


class MultiTaskViT(nn.Module):
    """Backbone and one head per task.

    Args:
        network: dimensions and tasks.
        seed: seed of the initial weights; torch's global generator is left as it was.
    """

    def __init__(self, network: Network, seed: int = 0) -> None:
        super().__init__()
        self.network = network
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.backbone = Backbone(network)
            self.decoders = nn.ModuleDict({t.name: make_head(network, t) for t in network.tasks})
            init_weights(self)

    def forward(
        self,
        images: Tensor,
        tasks: Sequence[str] | None = None,
        *,
        gate_override: Mapping[str, str] | None = None,
        noise: GateNoise | None = None,
    ) -> ForwardResult:
        """Run some or all tasks.

        Args:
            images: [B, H, W, 3], RGB 0..255, uint8 or floating.
            tasks: names of the tasks to compute, all by default. One name is single-task inference:
                only that task's gates and head are used.
            gate_override: task -> task whose gates it uses instead of its own, to measure what
                routing contributes.
            noise: gate noise of this training step; no effect in evaluation mode.

        Raises:
            DataError: images of the wrong shape. ConfigError: unknown task.
        """
        names, gate_ids = select_tasks(self.network, images, tasks, gate_override)
        x = (images.to(self.backbone.pos_embed.dtype) - 128) / 128
        tokens, loss, routing = self.backbone(x, gate_ids, noise)
        outputs = {name: self.decoders[name](tokens[i]) for i, name in enumerate(names)}
        return ForwardResult(outputs, loss, names, routing)


def select_tasks(
    network: Network,
    images: Tensor,
    tasks: Sequence[str] | None,
    gate_override: Mapping[str, str] | None = None,
) -> tuple[tuple[str, ...], list[int]]:
    """Names of the tasks to run, and the number of the task whose gates each of them uses.

    Arguments and errors are those of `MultiTaskViT.forward`.
    """
    expected = (network.image_height, network.image_width, 3)
    if images.ndim != 4 or tuple(images.shape[1:]) != expected:
        found = tuple(images.shape)
        raise DataError(f"images: expected shape (batch, {str(expected)[1:-1]}), found {found}")
    names = network.task_names if tasks is None else tuple(tasks)
    if not names:
        raise ConfigError(f"network {network.name!r}: tasks = []: expected at least one task")
    for name in names:
        network.task_index(name)  # unknown names raise
    override = gate_override or {}
    return names, [network.task_index(override.get(name, name)) for name in names]


def sincos_positions(grid_h: int, grid_w: int, dim: int) -> Tensor:
    """Sine-cosine positions [1, 1 + gh * gw, D], amplitude 0.5, zero for cls.

    A quarter of the channels each for sin x, cos x, sin y, cos y over geometric frequencies from 1
    to about 1/20 per patch.
    """
    quarter = dim // 4
    y, x = torch.meshgrid(
        torch.arange(grid_h, dtype=torch.float32),
        torch.arange(grid_w, dtype=torch.float32),
        indexing="ij",
    )
    frequency = 20.0 ** (-torch.arange(quarter, dtype=torch.float32) / max(1, quarter))
    angles = [axis.reshape(-1, 1) * frequency for axis in (x, y)]
    table = torch.cat([f(a) for a in angles for f in (torch.sin, torch.cos)], 1) * 0.5
    grid = F.pad(table, (0, dim - 4 * quarter))
    return torch.cat([torch.zeros(1, dim), grid])[None]


def init_weights(model: MultiTaskViT) -> None:
    """Initialize for training from scratch in few steps.

    Weights are normal with 0.8 / sqrt(fan in), branches that add to the residual stream start at
    0.3 of that and the last layer of a head at 0.1; biases are zero except for the mean log depth.
    Gates are uniform in +-1 / sqrt(E), as M3ViT's: strong enough that tasks differ in their choice
    from the first step on. (Weaker ones learn as well, but then tasks route much more alike.)
    """
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d | ExpertLinear):
            fan_in = math.prod(module.weight.shape[1:])
            if isinstance(module, ExpertLinear):
                fan_in = module.weight.shape[-1]
            nn.init.normal_(module.weight, std=WEIGHT_GAIN / math.sqrt(fan_in))
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, Gate):
            nn.init.kaiming_uniform_(module.w_gate, a=math.sqrt(5))  # +-1 / sqrt(E)
    with torch.no_grad():
        for block in model.backbone.blocks:
            assert isinstance(block, Block)
            mlp = block.mlp
            out = mlp.experts.h4toh if isinstance(mlp, MoE) else mlp.fc2
            for layer in (block.attn.proj, out):
                layer.weight.mul_(RESIDUAL_GAIN)
        for task in model.network.tasks:
            head = model.decoders[task.name]
            assert isinstance(head, LightHead | PupHead)
            head.last.weight.mul_(LAST_LAYER_GAIN)
            if task.kind == "log_depth" and head.last.bias is not None:
                head.last.bias.fill_(LOG_DEPTH_MEAN)
