"""Task heads. Each owns its LayerNorm (the backbone has no final one) and returns [B, C, H, W]."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model import distributed
from model.costs import PUP_CHANNELS, PUP_CONVOLUTIONS
from model.moe import full_precision

if TYPE_CHECKING:
    from accel.config import Network, Task

LAYER_NORM_EPS = 1e-6


def patchify(images: Tensor, patch: int) -> Tensor:
    """Images [B, H, W, C] -> patches [B, H/p * W/p, p * p * C], each in order (py, px, channel)."""
    b, h, w, c = images.shape
    grid = images.reshape(b, h // patch, patch, w // patch, patch, c)
    return grid.permute(0, 1, 3, 2, 4, 5).reshape(b, -1, patch * patch * c)


def unpatchify(patches: Tensor, grid_h: int, grid_w: int, patch: int) -> Tensor:
    """Patches [B, gh * gw, p * p * C] in order (py, px, channel) -> maps [B, C, gh * p, gw * p]."""
    b = patches.shape[0]
    grid = patches.reshape(b, grid_h, grid_w, patch, patch, -1)
    return grid.permute(0, 5, 1, 3, 2, 4).reshape(b, -1, grid_h * patch, grid_w * patch)


class LightHead(nn.Module):
    """Two layers per patch token: LayerNorm, Linear(D, hidden), GELU, Linear(hidden, p*p*C)."""

    def __init__(self, network: Network, task: Task) -> None:
        super().__init__()
        self.grid, self.patch = (network.grid_h, network.grid_w), network.patch
        self.norm = nn.LayerNorm(network.embed_dim, eps=LAYER_NORM_EPS)
        self.fc1 = nn.Linear(network.embed_dim, network.head_hidden)
        self.fc2 = nn.Linear(network.head_hidden, network.patch**2 * task.channels)

    @property
    def last(self) -> nn.Linear:
        """The layer that produces the output."""
        return self.fc2

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens [B, 1 + gh * gw, D], cls first -> [B, C, H, W]."""
        y = self.fc2(F.gelu(self.fc1(self.norm(tokens[:, 1:]))))
        return unpatchify(y, *self.grid, self.patch)


class SyncBatchNorm(nn.BatchNorm2d):
    """BatchNorm2d whose training statistics cover the batches of all processes, on CPU and GPU.

    (torch's own SyncBatchNorm needs a GPU.) In one process it is exactly BatchNorm2d.
    """

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or distributed.world_size() == 1:
            return super().forward(input)
        x = full_precision(input)
        count = x.new_tensor([x.numel() / x.shape[1]])
        sums = distributed.all_reduce_sum(torch.cat([x.sum((0, 2, 3)), count]))
        mean, total = sums[:-1] / sums[-1], sums[-1].detach()
        centred = x - mean[:, None, None]
        var = distributed.all_reduce_sum(centred.square().sum((0, 2, 3))) / total
        if self.running_mean is not None and self.running_var is not None:
            with torch.no_grad():
                momentum = 0.1 if self.momentum is None else self.momentum
                self.running_mean.lerp_(mean.to(self.running_mean), momentum)
                unbiased = var * total / (total - 1)
                self.running_var.lerp_(unbiased.to(self.running_var), momentum)
                if self.num_batches_tracked is not None:
                    self.num_batches_tracked.add_(1)
        scale = self.weight * torch.rsqrt(var + self.eps)
        return centred * scale[:, None, None] + self.bias[:, None, None]


class PupHead(nn.Module):
    """Progressive up-sampling head of SETR, as M3ViT uses it.

    LayerNorm, then four times [conv3x3 to 256, batch norm, ReLU] with bilinear x2 between, conv1x1
    to C and a last bilinear step to the full resolution. With a patch of 16 these are four
    doublings; smaller patches leave out the first ones.
    """

    def __init__(self, network: Network, task: Task) -> None:
        super().__init__()
        self.grid = (network.grid_h, network.grid_w)
        self.size = (network.image_height, network.image_width)
        doublings = max(0, math.ceil(math.log2(network.patch)))
        self.doubled_after = range(3 - min(3, doublings - 1), 3) if doublings else range(0)
        self.norm = nn.LayerNorm(network.embed_dim, eps=LAYER_NORM_EPS)
        for i in range(PUP_CONVOLUTIONS):
            inputs = PUP_CHANNELS if i else network.embed_dim
            self.add_module(f"conv_{i}", nn.Conv2d(inputs, PUP_CHANNELS, 3, padding=1))
            self.add_module(f"syncbn_fc_{i}", SyncBatchNorm(PUP_CHANNELS))
        self.conv_4 = nn.Conv2d(PUP_CHANNELS, task.channels, 1)

    @property
    def last(self) -> nn.Conv2d:
        """The layer that produces the output."""
        return self.conv_4

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens [B, 1 + gh * gw, D], cls first -> [B, C, H, W]."""
        y = self.norm(tokens[:, 1:]).transpose(1, 2)
        y = y.reshape(y.shape[0], y.shape[1], *self.grid)  # [B, D, gh, gw]
        for i in range(PUP_CONVOLUTIONS):
            y = F.relu(self.get_submodule(f"syncbn_fc_{i}")(self.get_submodule(f"conv_{i}")(y)))
            if i in self.doubled_after:
                y = F.interpolate(y, scale_factor=2, mode="bilinear", align_corners=False)
        return F.interpolate(self.conv_4(y), size=self.size, mode="bilinear", align_corners=False)


def make_head(network: Network, task: Task) -> LightHead | PupHead:
    """The head that ``network.head`` names."""
    return PupHead(network, task) if network.head == "pup" else LightHead(network, task)
