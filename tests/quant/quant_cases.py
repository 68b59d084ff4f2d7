"""A small network whose every dimension differs and whose experts and MLPs have two units."""

from __future__ import annotations

import dataclasses
import functools

import torch

from accel.config import Formats, Network, Task
from model.vit import MultiTaskViT
from quant.qat import QuantMultiTaskViT


def small_network(routing: str = "multi_gate", **changes: object) -> Network:
    network = Network(
        name="test",
        image_height=16,
        image_width=24,
        patch=8,
        embed_dim=16,
        depth=4,
        heads=2,
        dense_hidden=48,
        experts=5,
        top_k=2,
        expert_hidden=24,
        unit_hidden=12,
        tasks=(Task("semseg", 3, "labels"), Task("depth", 1, "log_depth")),
        routing=routing,
        task_embed_dim=6 if routing == "task_conditioned" else 0,
        head_hidden=20,
    )
    return dataclasses.replace(network, **changes)  # type: ignore[arg-type]


def random_model(network: Network, seed: int = 0) -> MultiTaskViT:
    """Float network with every parameter away from its initial symmetry and lively gates."""
    model = MultiTaskViT(network, seed).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
            if "w_gate" in name:
                parameter.mul_(4)
    return model


def random_images(network: Network, count: int, seed: int = 0) -> torch.Tensor:
    shape = (count, network.image_height, network.image_width, 3)
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


@functools.cache
def calibrated(network: Network, formats: Formats) -> QuantMultiTaskViT:
    model = QuantMultiTaskViT.from_float(random_model(network), formats).eval()
    model.calibrate(random_images(network, 8))
    return model
