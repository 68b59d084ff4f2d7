"""Export: what it produces, and that it refuses whatever the contract cannot express."""

from __future__ import annotations

import brevitas.nn as qnn
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from brevitas.quant import Int8WeightPerChannelFloat, Int8WeightPerTensorFixedPoint
from quant_cases import random_images, random_model, small_network

from accel.config import Formats
from accel.errors import ExportError
from accel.params import PupHead
from quant.export import export_encoder
from quant.qat import QuantMultiTaskViT
from quant.quantizers import UNSET, Requantize, StackedLinear


@pytest.fixture
def model(make_quantized) -> QuantMultiTaskViT:
    return make_quantized()


def refused(model: QuantMultiTaskViT, *parts: str) -> None:
    """Export must fail with a one-line message that contains all ``parts``."""
    with pytest.raises(ExportError) as info:
        export_encoder(model)
    message = str(info.value)
    assert "\n" not in message
    for part in parts:
        assert part in message, message


def test_types_shapes_and_units(model):
    net = model.network
    encoder = export_encoder(model)
    assert encoder.patch.weight.dtype == np.int8 and encoder.position.dtype == np.int16
    moe, dense = encoder.blocks[1], encoder.blocks[0]
    assert len(moe.experts) == net.experts and len(moe.experts[0]) == net.expert_units == 2
    assert len(dense.experts) == 1 and len(dense.experts[0]) == net.dense_units == 4
    assert moe.experts[0][0].second.bias.any() and not moe.experts[0][1].second.bias.any()
    assert set(moe.gates) == set(net.task_names) and not dense.gates
    assert not moe.gates["depth"].bias.any()


def test_task_conditioned_gates_share_weights_and_differ_in_bias(make_quantized):
    gates = export_encoder(make_quantized(small_network("task_conditioned"))).blocks[1].gates
    a, b = gates["semseg"], gates["depth"]
    assert np.array_equal(a.weight, b.weight) and a.shift == b.shift
    assert not np.array_equal(a.bias, b.bias)


def test_export_leaves_the_model_as_it_was(model):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    export_encoder(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.position.requires_grad


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_weight(model, value):
    with torch.no_grad():
        model.blocks[1].mlp.experts.first.weight[7, 3] = value
    refused(model, "blocks.1.mlp.experts.first.weight[7, 3]", "finite", str(value))


def test_scale_that_is_not_a_power_of_two(model):
    layer = model.blocks[2].attn.proj
    stock = qnn.QuantLinear(16, 16, weight_quant=Int8WeightPerChannelFloat, weight_scaling_min_val=1e-6)
    with torch.no_grad():
        stock.weight.copy_(layer.weight)
    layer.weight_quant = stock.weight_quant
    refused(model, "blocks.2.proj.weight scale[0]", "power of two")


def test_weights_of_the_wrong_width(model):
    model.blocks[0].attn.qkv = StackedLinear(16, 48, 4, fold=model.blocks[0].attn.qkv.fold)
    refused(model, "blocks.0.qkv.weight", "expected 8 bits, found 4")


def test_weight_range_that_is_not_narrow(model):
    layer = model.blocks[0].attn.proj
    quantizer = Int8WeightPerTensorFixedPoint.let(narrow_range=False)
    stock = qnn.QuantLinear(16, 16, weight_quant=quantizer)
    with torch.no_grad():
        layer.weight[0, 0] = -4.0
        layer.weight.clamp_(-4.0, 3.9)
        stock.weight.copy_(layer.weight)
    layer.weight_quant = stock.weight_quant
    refused(model, "blocks.0.proj.weight", "-127", "-128")


def test_activation_of_the_wrong_width(model):
    model.residual = Requantize(12)
    model.residual.format.set_exponent(-6)
    refused(model, "residual", "expected 16 bits, found 12 bits")


def test_activation_without_narrow_range(model):
    exponent = model.blocks[3].attn.q.format.value
    model.blocks[3].attn.q = Requantize(8)
    model.blocks[3].attn.q.format.set_exponent(exponent)
    refused(model, "blocks.3.attn.q", "narrow range")


def test_exponent_that_was_never_calibrated(model):
    model.blocks[1].norm2.out.exponent.fill_(UNSET)
    refused(model, "blocks.1.norm2.out", "calibrated")


def test_missing_expert(model):
    layer = model.blocks[1].mlp.experts.first
    layer.weight = torch.nn.Parameter(layer.weight[:-24])
    refused(model, "blocks.1.experts.first.weight", "5 x 24", "(96, 16)")


@pytest.mark.parametrize(("shift", "expected"), [(40, "-8 to 31"), (-40, "-8 to 31")])
def test_shift_that_the_engine_does_not_have(model, shift, expected):
    point = model.blocks[1].mlp.experts.gelu.pre
    point.set_exponent(point.value + shift)
    refused(model, "blocks.1.experts.first.shift[", expected)


def test_gamma_out_of_range(model):
    with torch.no_grad():
        model.blocks[1].norm1.weight[5] = 8.0
    refused(model, "blocks.1.norm1.gamma[5]", "-32768 to 32767", "32768")


def test_beta_out_of_range(model):
    with torch.no_grad():
        model.heads["depth"].norm.bias[2] = -600.0
    refused(model, "heads.depth.norm.beta[2]", "-2147483648 to 2147483647")


def test_position_out_of_range(model):
    with torch.no_grad():
        model.position[1, 2] = 1e4
    refused(model, "position[1, 2]", "-32768 to 32767")


def test_bias_beyond_the_accumulator(model):
    with torch.no_grad():
        model.patch_embed.bias[3] = 1e7
    refused(model, "patch", "accumulator bound")


def test_formats_that_differ_from_the_quantizers(make_quantized):
    model = make_quantized(formats=Formats(4, 8))
    model.formats = Formats(8, 8)
    refused(model, "expected 8 bits, found 4")


def test_pup_head_folds_batch_norm(make_quantized):
    network = small_network(head="pup")
    source = random_model(network)
    with torch.no_grad():
        for name, buffer in source.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                buffer.uniform_(0.5, 1.5)
    model = QuantMultiTaskViT.from_float(source).eval()
    model.calibrate(random_images(network, 4))
    head = export_encoder(model).heads["semseg"]
    assert isinstance(head, PupHead) and all(a.dtype == np.float32 for a in head.tensors.values())
    x = torch.randn(1, network.embed_dim, 3, 4)
    float_head = source.decoders["semseg"]
    with torch.no_grad():
        expected = float_head.syncbn_fc_0(float_head.conv_0(x))
    weight, bias = (torch.from_numpy(head.tensors[f"conv_0.{n}"]) for n in ("weight", "bias"))
    assert torch.allclose(F.conv2d(x, weight, bias, padding=1), expected, atol=1e-4)
    with torch.no_grad():
        float_head.conv_1.weight[0, 0, 0, 0] = float("nan")
        broken = QuantMultiTaskViT.from_float(source).eval()
        broken.load_state_dict(model.state_dict() | {
            "heads.semseg.conv_1.weight": float_head.conv_1.weight
        })  # fmt: skip
    refused(broken, "heads.semseg.conv_1.weight", "finite")
