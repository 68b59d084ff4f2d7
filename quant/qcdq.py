"""QCDQ ONNX for other tools, through Brevitas' exporter: QuantizeLinear, Clip, DequantizeLinear around float operators.

The file is for interchange. LayerNorm, softmax and GELU are the standard float operators, not the contract's
integer algorithms, so its outputs differ from the engine's by a few steps; :func:`agreement` reports by how
much. The exact description in ONNX is ``quant.onnx_integer``.

All tasks run side by side from the first gate on. Mixtures are dense: every expert computes every token and
its output is multiplied by the token's scattered gate weight (zero if the expert was not chosen).
"""

from __future__ import annotations

import copy
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import brevitas.nn as qnn
import numpy as np
import torch
import torch.nn.functional as F
from brevitas.export import export_onnx_qcdq
from brevitas.quant.fixed_point import Int8ActPerTensorFixedPoint, Int8WeightPerTensorFixedPoint
from brevitas.quant.scaled_int import Int32Bias
from numpy.typing import NDArray
from torch import Tensor, nn

from accel.atomic import atomic_write
from model.heads import LAYER_NORM_EPS, patchify
from quant.layers import Attention, Block, Experts, Gates, Gelu, LightHead, MoE, Norm
from quant.nonlinear import LN2
from quant.qat import INPUT_EXPONENT, QuantMultiTaskViT
from quant.quantizers import MIN_THRESHOLD, FixedPoint, StackedLinear, weight_quantizer

OPSET = 18


class FrozenActivation(Int8ActPerTensorFixedPoint):
    """Brevitas' stock activation quantizer with a constant scale, which its exporter understands."""

    scaling_impl_type = "const"


class Wide(nn.Module):
    """16-bit fake quantization in plain operators: the exporter knows 8 bits only."""

    def __init__(self, point: FixedPoint) -> None:
        super().__init__()
        self.scale = 2.0**point.value
        self.low, self.high = (float(v) for v in point.range)

    def forward(self, x: Tensor) -> Tensor:
        return torch.clamp(torch.round(x * (1 / self.scale)), self.low, self.high) * self.scale


def _activation(point: FixedPoint) -> qnn.QuantIdentity:
    quantizer = FrozenActivation.let(bit_width=point.bits, narrow_range=point.narrow)
    threshold = 2.0 ** (point.value + point.bits - 1)
    return qnn.QuantIdentity(act_quant=quantizer, scaling_init=threshold, return_quant_tensor=True)


def _linears(layer: StackedLinear) -> list[qnn.QuantLinear]:
    """One plain QuantLinear per group."""
    weight, bias = layer.folded()
    result = []
    for group in range(layer.groups):
        rows = slice(group * layer.outputs, (group + 1) * layer.outputs)
        linear = qnn.QuantLinear(
            layer.inputs,
            layer.outputs,
            bias=bias is not None,
            weight_quant=weight_quantizer(layer.bits),
            bias_quant=None if bias is None else Int32Bias,
        )
        linear.weight.copy_(weight[rows])
        if bias is not None:
            linear.bias.copy_(bias[rows])
        result.append(linear)
    return result


class _Norm(nn.Module):
    def __init__(self, norm: Norm) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(len(norm.weight), eps=LAYER_NORM_EPS)
        self.norm.load_state_dict({"weight": norm.weight, "bias": norm.bias})
        self.out = _activation(norm.out)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.norm(x))


class _Gelu(nn.Module):
    def __init__(self, gelu: Gelu) -> None:
        super().__init__()
        self.pre, self.out = _activation(gelu.pre), _activation(gelu.out)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.gelu(_plain(self.pre(x))))


class _Attention(nn.Module):
    def __init__(self, attn: Attention, residual: Wide) -> None:
        super().__init__()
        self.heads, self.residual = attn.heads, residual
        (self.qkv,), (self.proj,) = _linears(attn.qkv), _linears(attn.proj)
        self.q, self.k, self.v = (_activation(f.format) for f in (attn.q, attn.k, attn.v))
        self.out = _activation(attn.out)

    def forward(self, x: Tensor) -> Tensor:
        parts = _plain(self.qkv(x)).chunk(3, -1)
        q, k, v = (
            _plain(f(part)).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for f, part in zip((self.q, self.k, self.v), parts, strict=True)
        )
        y = (q @ k.transpose(-1, -2) * LN2).softmax(-1) @ v
        return self.residual(_plain(self.proj(self.out(y.transpose(1, 2).flatten(2)))))


class _Expert(nn.Module):
    """One expert or dense MLP: its units one after the other."""

    def __init__(
        self, first: nn.Module, gelu: Gelu, seconds: list[qnn.QuantLinear], residual: Wide
    ) -> None:
        super().__init__()
        self.first, self.gelu, self.out = first, _Gelu(gelu), _activation(gelu.out)
        self.second = nn.ModuleList(seconds)
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.gelu(self.first(x))
        if len(self.second) == 1:
            return self.residual(_plain(self.second[0](hidden)))
        parts = _plain(hidden).chunk(len(self.second), -1)
        # Quantizing again changes nothing; it tells the next layer the scale of its input.
        outputs = [f(self.out(part)) for f, part in zip(self.second, parts, strict=True)]
        return torch.stack([self.residual(_plain(y)) for y in outputs]).sum(0)


def _experts(stack: Experts, residual: Wide) -> list[_Expert]:
    """All experts of a block; a dense MLP is one."""
    firsts, seconds = _linears(stack.first), _linears(stack.second)
    units = stack.units
    return [
        _Expert(first, stack.gelu, seconds[e * units : (e + 1) * units], residual)
        for e, first in enumerate(firsts)
    ]


class _Gates(nn.Module):
    bias: Tensor

    def __init__(self, gates: Gates, exponent_in: int, tasks: int, vectors: Tensor | None) -> None:
        super().__init__()
        rows = gates.token_part.folded()[0].view(-1, gates.experts, gates.dim)
        _, bias, _ = gates.quantized(exponent_in, range(tasks), vectors)
        quantizer = Int8WeightPerTensorFixedPoint.let(
            bit_width=gates.token_part.bits, scaling_min_val=MIN_THRESHOLD
        )
        self.gates = nn.ModuleList()
        for weight in rows.expand(tasks, -1, -1):
            gate = qnn.QuantLinear(gates.dim, gates.experts, bias=False, weight_quant=quantizer)
            gate.weight.copy_(weight)
            self.gates.append(gate)
        self.register_buffer("bias", torch.zeros(tasks, 1, 1) if bias is None else bias[:, None])

    def forward(self, x: Tensor) -> Tensor:
        """Dequantized tokens [T, N, D] -> logits in octaves [T, N, E]."""
        return torch.stack([gate(part) for gate, part in zip(self.gates, x, strict=True)]) + self.bias


class _MoE(nn.Module):
    def __init__(
        self, moe: MoE, exponent_in: int, tasks: int, vectors: Tensor | None, residual: Wide
    ) -> None:
        super().__init__()
        self.k = moe.k
        self.gates = _Gates(moe.gates, exponent_in, tasks, vectors)
        self.experts = nn.ModuleList(_experts(moe.experts, residual))

    def forward(self, x: Tensor) -> Tensor:
        logits = self.gates(_plain(x))
        chosen = logits.topk(self.k, -1).indices
        scores = (logits * LN2).softmax(-1).gather(-1, chosen)
        weights = torch.zeros_like(logits).scatter(-1, chosen, scores)
        outputs = torch.stack([expert(x) for expert in self.experts], -1)  # [T, N, D, E]
        return (outputs * weights.unsqueeze(-2)).sum(-1)


class _Block(nn.Module):
    def __init__(self, block: Block, mlp: nn.Module, residual: Wide) -> None:
        super().__init__()
        self.norm1, self.norm2 = _Norm(block.norm1), _Norm(block.norm2)
        self.attn, self.mlp = _Attention(block.attn, residual), mlp
        self.residual = residual

    def forward(self, x: Tensor, tasks: int) -> Tensor:
        """Tokens [1 or T, N, D] -> [1 or T, N, D]: the first mixture makes one copy per task."""
        x = self.residual(x + self.attn(self.norm1(x)))
        if isinstance(self.mlp, _MoE) and len(x) == 1:
            x = x.repeat(tasks, 1, 1)
        return self.residual(x + self.mlp(self.norm2(x)))


class _Head(nn.Module):
    def __init__(self, head: LightHead) -> None:
        super().__init__()
        self.norm, self.gelu = _Norm(head.norm), _Gelu(head.gelu)
        (self.fc1,), (self.fc2,) = _linears(head.fc1), _linears(head.fc2)
        self.out = Wide(head.out.format)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(_plain(self.fc2(self.gelu(self.fc1(self.norm(x[:, 1:]))))))


def _plain(x: Tensor) -> Tensor:
    return x.value if isinstance(x, qnn.quant_layer.QuantTensor) else x


class QcdqNetwork(nn.Module):
    """The quantized network in stock Brevitas layers, for one frame and all tasks.

    Input: float32 image [1, H, W, 3], 0..255. Outputs, one per task: the light head's values
    [1, patches, p*p*C], or with other heads the final tokens [1, N, D], which are the head's input.
    """

    position: Tensor

    def __init__(self, model: QuantMultiTaskViT) -> None:
        super().__init__()
        network = model.network
        self.patch, self.tasks = network.patch, len(network.tasks)
        stream = model.residual.format
        self.residual = Wide(stream)
        pixels = FixedPoint(8)
        pixels.set_exponent(INPUT_EXPONENT)
        self.pixels = _activation(pixels)
        (self.patch_embed,) = _linears(model.patch_embed)
        self.register_buffer("position", self.residual(model.position))
        vectors = None
        if model.task_embedding is not None:
            vectors = model.task_embedding(range(self.tasks))
        self.blocks = nn.ModuleList()
        for block in model.blocks:
            assert isinstance(block, Block)
            mlp: nn.Module
            if isinstance(block.mlp, MoE):
                exponent = block.norm2.out.value
                mlp = _MoE(block.mlp, exponent, self.tasks, vectors, self.residual)
            else:
                (mlp,) = _experts(block.mlp, self.residual)
            self.blocks.append(_Block(block, mlp, self.residual))
        self.heads = nn.ModuleList(
            _Head(head) if isinstance(head, LightHead) else nn.Identity()
            for head in model.heads.values()
        )

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        pixels = self.pixels((patchify(image, self.patch) - 128) * 2.0**INPUT_EXPONENT)
        x = self.residual(_plain(self.patch_embed(pixels)))
        x = self.residual(torch.cat([torch.zeros_like(x[:, :1]), x], 1) + self.position)
        for block in self.blocks:
            x = block(x, self.tasks)
        x = x.expand(self.tasks, -1, -1)
        return tuple(head(x[i : i + 1]) for i, head in enumerate(self.heads))


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide the exporter's deprecation and tracing notices, which the user can do nothing about."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def export_qcdq(model: QuantMultiTaskViT, path: str | os.PathLike[str]) -> Path:
    """Write the QCDQ file of a calibrated network, atomically; returns its path.

    Raises:
        ConfigError: the network is not calibrated.
    """
    network = model.network
    image = torch.zeros(1, network.image_height, network.image_width, 3)
    target = Path(path)
    with torch.no_grad(), _quiet():
        plain = QcdqNetwork(copy.deepcopy(model).float().cpu()).eval()
        for module in plain.modules():
            if isinstance(module, qnn.QuantLinear) and module.bias is not None:
                module.bias_quant.cache_inference_quant_bias = True
        # The exporter's own trial run fills the caches from which it takes the biases' scales.
        with atomic_write(target) as temporary:
            export_onnx_qcdq(
                plain,
                args=image,
                export_path=str(temporary),
                opset_version=OPSET,
                dynamo=False,
                keep_initializers_as_inputs=False,
                input_names=["image"],
                output_names=list(network.task_names),
            )
    return target


@dataclass(frozen=True)
class Agreement:
    """How a QCDQ file's outputs compare with the integers of one task.

    compared: values; equal: fraction of them that are equal; max_lsb: largest difference in steps of the int16
    output; relative_error: norm of the differences over the norm of the integers.
    """

    compared: int
    equal: float
    max_lsb: int
    relative_error: float


def agreement(
    path: str | os.PathLike[str], model: QuantMultiTaskViT, images: NDArray[np.uint8]
) -> dict[str, Agreement]:
    """Run a QCDQ file in onnxruntime on images [n, H, W, 3] and compare it with the integer model, per task."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    twin = model.integer_mode()
    names = list(model.network.task_names)
    last = f"blocks.{model.network.depth - 1}.residual"
    pairs: dict[str, list[tuple[NDArray[Any], NDArray[Any]]]] = {name: [] for name in names}
    for image in images:
        traces = twin.trace(torch.from_numpy(image[None]))
        outputs = session.run(names, {"image": image[None].astype(np.float32)})
        for name, values in zip(names, outputs, strict=True):
            head = model.heads[name]
            light = isinstance(head, LightHead)
            point = head.out.format if isinstance(head, LightHead) else model.residual.format
            expected = traces[name]["head.output" if light else last]
            pairs[name].append((np.rint(values * 2.0**-point.value), expected))
    result = {}
    for name, found in pairs.items():
        actual, wanted = (np.stack(part).astype(np.float64) for part in zip(*found, strict=True))
        difference = np.abs(actual - wanted)
        result[name] = Agreement(
            compared=difference.size,
            equal=float((difference == 0).mean()),
            max_lsb=int(difference.max()),
            relative_error=float(np.linalg.norm(difference) / np.linalg.norm(wanted)),
        )
    return result
