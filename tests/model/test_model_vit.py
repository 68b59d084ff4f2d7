"""The whole network: shapes, tasks, gate overrides, state-dict keys."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from accel.config import Network
from accel.errors import ConfigError, DataError
from model.heads import patchify, unpatchify
from model.moe import GateNoise
from model.vit import MultiTaskViT


def test_shapes_and_gradients(routed: Network, images: torch.Tensor) -> None:
    model = MultiTaskViT(routed).train()
    result = model(images, noise=GateNoise(0, 0))
    for task in routed.tasks:
        assert result.outputs[task.name].shape == (3, task.channels, 16, 24)
    assert set(result.routing) == {1, 3}
    stats = result.routing[1]
    assert stats.indices.shape == (4, 3, 7, 2) and stats.load.shape == (4, 4)
    assert stats.load.sum(1).tolist() == [3 * 7 * 2] * 4
    loss = sum(o.square().mean() for o in result.outputs.values()) + result.balance_loss
    loss.backward()
    missing = [name for name, p in model.named_parameters() if p.grad is None]
    assert not missing
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_single_task_equals_multi_task(routed: Network, images: torch.Tensor) -> None:
    model = MultiTaskViT(routed, seed=1).eval()
    with torch.no_grad():
        everything = model(images)
        for i, name in enumerate(routed.task_names):
            alone = model(images, tasks=[name])
            assert list(alone.outputs) == [name]
            for block, stats in alone.routing.items():
                assert torch.equal(stats.indices[0], everything.routing[block].indices[i])
            torch.testing.assert_close(alone.outputs[name], everything.outputs[name])


def test_routing_depends_on_the_task(routed: Network, images: torch.Tensor) -> None:
    routing = MultiTaskViT(routed).eval()(images).routing[1].indices
    assert not torch.equal(routing[0], routing[1])


def test_gate_override_uses_the_other_tasks_gates(routed: Network, images: torch.Tensor) -> None:
    model = MultiTaskViT(routed).eval()
    with torch.no_grad():
        plain = model(images, ["semseg", "depth"])
        swapped = model(
            images, ["semseg", "depth"], gate_override={"semseg": "depth", "depth": "semseg"}
        )
    for block, stats in plain.routing.items():
        assert torch.equal(stats.indices.flip(0), swapped.routing[block].indices)
    assert not torch.allclose(plain.outputs["semseg"], swapped.outputs["semseg"])


def test_pup_head_reaches_full_resolution(tiny: Network, images: torch.Tensor) -> None:
    network = dataclasses.replace(tiny, head="pup")
    model = MultiTaskViT(network).train()
    outputs = model(images).outputs
    assert {name: o.shape for name, o in outputs.items()} == {
        t.name: (3, t.channels, 16, 24) for t in network.tasks
    }
    keys = set(model.state_dict())
    assert {"decoders.depth.conv_3.weight", "decoders.depth.syncbn_fc_3.running_mean"} <= keys


@pytest.mark.parametrize("patch, doublings", [(16, [0, 1, 2]), (8, [1, 2]), (4, [2]), (2, [])])
def test_pup_head_doublings(tiny: Network, patch: int, doublings: list[int]) -> None:
    size = {"image_height": 2 * patch, "image_width": 2 * patch, "patch": patch, "head": "pup"}
    model = MultiTaskViT(dataclasses.replace(tiny, **size))
    assert list(model.decoders["depth"].doubled_after) == doublings


def test_patches_are_the_convolution_in_documented_order(
    tiny: Network, images: torch.Tensor
) -> None:
    model = MultiTaskViT(tiny)
    x = images.float()
    proj = model.backbone.patch_embed.proj
    expected = F.conv2d(x.permute(0, 3, 1, 2), proj.weight, proj.bias, stride=8)
    expected = expected.flatten(2).transpose(1, 2)
    torch.testing.assert_close(model.backbone.patch_embed(x), expected, rtol=1e-4, atol=1e-2)
    assert patchify(x, 8)[0, 4, (2 * 8 + 5) * 3 + 1] == x[0, 8 + 2, 8 + 5, 1]
    assert torch.equal(unpatchify(patchify(x, 8), 2, 3, 8), x.permute(0, 3, 1, 2))


def test_state_dict_keys(tiny: Network) -> None:
    keys = {k: tuple(v.shape) for k, v in MultiTaskViT(tiny).state_dict().items()}
    assert keys["backbone.pos_embed"] == (1, 7, 16)
    assert keys["backbone.patch_embed.proj.weight"] == (16, 3, 8, 8)
    assert keys["backbone.blocks.0.mlp.fc1.weight"] == (32, 16)
    assert keys["backbone.blocks.1.mlp.experts.htoh4.weight"] == (4, 16, 16)
    assert keys["backbone.blocks.1.mlp.gate.3.w_gate"] == (16, 4)
    shared = dataclasses.replace(tiny, routing="task_conditioned", task_embed_dim=6)
    keys = {k: tuple(v.shape) for k, v in MultiTaskViT(shared).state_dict().items()}
    assert keys["backbone.blocks.1.mlp.gate.w_gate"] == (22, 4)
    assert keys["backbone.gate_task_represent.fc1.weight"] == (6, 4)


def test_same_seed_same_weights_and_global_generator_untouched(tiny: Network) -> None:
    torch.manual_seed(11)
    expected = torch.rand(1)
    torch.manual_seed(11)
    first, second = MultiTaskViT(tiny, seed=4), MultiTaskViT(tiny, seed=4)
    assert torch.equal(torch.rand(1), expected)
    assert all(
        torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True)
    )
    other = MultiTaskViT(tiny, seed=5)
    assert not torch.equal(other.backbone.blocks[0].attn.qkv.weight,
                           first.backbone.blocks[0].attn.qkv.weight)  # fmt: skip


def test_bad_inputs(tiny: Network, images: torch.Tensor) -> None:
    model = MultiTaskViT(tiny)
    with pytest.raises(DataError, match="16, 24, 3"):
        model(images[:, :8])
    with pytest.raises(ConfigError, match="parts"):
        model(images, ["parts"])
    with pytest.raises(ConfigError, match="at least one"):
        model(images, [])
