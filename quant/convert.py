"""Copy the weights of a float network into the layout of the quantized one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from model import heads, moe, vit
from quant.layers import Block, Experts, LightHead, MoE
from quant.quantizers import StackedLinear

if TYPE_CHECKING:
    from quant.qat import QuantMultiTaskViT


def _copy_linear(target: StackedLinear, weight: Tensor, bias: Tensor | None) -> None:
    target.weight.copy_(weight.reshape(target.weight.shape))
    if bias is not None:
        assert target.bias is not None
        target.bias.copy_(bias.reshape(target.bias.shape))


def _copy_norm(target: nn.Module, source: nn.Module) -> None:
    target.load_state_dict(source.state_dict(), strict=False)  # the exponent stays unset


def _copy_experts(
    target: Experts, first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]
) -> None:
    """Stages [E, H, D] + [E, H] and [E, D, H] + [E, D]; the second is cut into units of hidden columns."""
    _copy_linear(target.first, *first)
    weight, bias = second
    units = weight.unflatten(-1, (target.units, -1)).transpose(1, 2)  # [E, U, D, H / U]
    padded = torch.zeros(*units.shape[:3], dtype=bias.dtype)
    padded[:, 0] = bias
    _copy_linear(target.second, units, padded)


def _copy_moe(target: MoE, source: moe.MoE) -> None:
    experts = source.experts
    _copy_experts(
        target.experts,
        (experts.htoh4.weight, experts.htoh4.bias),
        (experts.h4toh.weight, experts.h4toh.bias),
    )
    if isinstance(source.gate, nn.ModuleList):
        gates: list[Tensor] = [g.w_gate for g in source.gate if isinstance(g, moe.Gate)]
        stacked = torch.stack(gates).transpose(1, 2)  # [T, E, D]
    else:
        assert isinstance(source.gate, moe.Gate) and target.gates.task_part is not None
        task_part = source.gate.w_gate[target.gates.dim :]
        target.gates.task_part.copy_(task_part)
        stacked = source.gate.w_gate[: target.gates.dim].t().unsqueeze(0)
    _copy_linear(target.gates.token_part, stacked, None)
    device = target.gates.token_part.weight.device
    target.gates.allowed = None if source.allowed is None else source.allowed.to(device, copy=True)


@torch.no_grad()
def load_float(target: QuantMultiTaskViT, source: vit.MultiTaskViT) -> None:
    """Copy all parameters and expert windows of ``source`` to ``target``, which is built for the same network."""
    backbone = source.backbone
    conv = backbone.patch_embed.proj
    _copy_linear(target.patch_embed, conv.weight.permute(0, 2, 3, 1), conv.bias)
    position = backbone.pos_embed[0].clone()
    position[0] += backbone.cls_token[0, 0]
    target.position.copy_(position)
    if target.task_embedding is not None and backbone.gate_task_represent is not None:
        target.task_embedding.load_state_dict(backbone.gate_task_represent.state_dict())
    for block, origin in zip(target.blocks, backbone.blocks, strict=True):
        assert isinstance(block, Block) and isinstance(origin, vit.Block)
        _copy_norm(block.norm1, origin.norm1)
        _copy_norm(block.norm2, origin.norm2)
        for name in ("qkv", "proj"):
            layer = getattr(origin.attn, name)
            _copy_linear(getattr(block.attn, name), layer.weight, layer.bias)
        if isinstance(origin.mlp, moe.MoE):
            assert isinstance(block.mlp, MoE)
            _copy_moe(block.mlp, origin.mlp)
        else:
            assert isinstance(block.mlp, Experts)
            fc1, fc2 = origin.mlp.fc1, origin.mlp.fc2
            first = fc1.weight[None], fc1.bias[None]
            _copy_experts(block.mlp, first, (fc2.weight[None], fc2.bias[None]))
    for name, head in target.heads.items():
        decoder = source.decoders[name]
        if isinstance(head, LightHead):
            assert isinstance(decoder, heads.LightHead)
            _copy_norm(head.norm, decoder.norm)
            _copy_linear(head.fc1, decoder.fc1.weight, decoder.fc1.bias)
            _copy_linear(head.fc2, decoder.fc2.weight, decoder.fc2.bias)
        else:
            head.load_state_dict(decoder.state_dict())
