"""Brevitas quantizers: rounding, saturation and scales are the contract's; stacks equal single quantizers."""

from __future__ import annotations

import brevitas.nn as qnn
import numpy as np
import pytest
import torch
from brevitas.quant.fixed_point import Int8ActPerTensorFixedPoint

from accel import numerics
from accel.errors import ConfigError
from quant.quantizers import MIN_THRESHOLD, FixedPoint, Observer, Requantize, StackedLinear


def frozen(bits: int, exponent: int, narrow: bool = False) -> Requantize:
    quantizer = Requantize(bits, narrow)
    quantizer.format.set_exponent(exponent)
    return quantizer


@pytest.mark.parametrize("bits", [4, 8, 16])
def test_requantize_is_brevitas_frozen_fixed_point(bits):
    class Stock(Int8ActPerTensorFixedPoint):
        bit_width = bits
        scaling_impl_type = "const"

    exponent = -3
    threshold = 2.0 ** (exponent + bits - 1)
    stock = qnn.QuantIdentity(act_quant=Stock, scaling_init=threshold, return_quant_tensor=True)
    x = torch.randn(50_000, generator=torch.Generator().manual_seed(0)) * threshold
    x[:1000] = torch.arange(-500, 500) * 2.0 ** (exponent - 1)  # ties
    expected = stock(x)
    assert expected.scale.item() == 2.0**exponent
    assert torch.equal(frozen(bits, exponent)(x), expected.value)


def test_weight_scales_follow_the_largest_weight_per_row():
    layer = StackedLinear(6, 4, 8)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0], [0.13], [0.0], [-3.99]]) * torch.ones(6))
    weight, _, scale, *_ = layer.quantized_rows(-5)
    assert scale.tolist() == [2.0**-7, 2.0**-9, MIN_THRESHOLD / 128, 2.0**-5]
    # 1.0 is 128 steps, which narrow range does not have.
    assert (weight / scale[:, None])[:, 0].tolist() == [127, 67, 0, -127]


@pytest.mark.parametrize("weight_bits", [2, 4, 8])
@pytest.mark.parametrize(("bits", "narrow"), [(8, False), (8, True), (4, False), (16, False)])
def test_linear_and_requantize_equal_the_contract(weight_bits, bits, narrow):
    generator = torch.Generator().manual_seed(weight_bits)
    layer = StackedLinear(64, 96, weight_bits)
    with torch.no_grad():
        layer.weight.mul_(torch.exp(torch.randn(96, 1, generator=generator)))
        layer.bias.normal_(generator=generator)
        layer.bias[:8] = 0
        layer.weight[:8] = torch.diag(0.75 * 2.0 ** (torch.arange(64) - 4))[:8]  # many ties
    x = torch.randint(-128, 128, (400, 64), generator=generator)
    x[:200, :8] = x[:200, :8] // 32 * 32
    e_in, e_out = -5, {4: 0, 8: -4, 16: -10}[bits]
    weight, bias, scale, *_ = layer.quantized_rows(e_in)
    exponent = torch.log2(scale).long().numpy()
    w = np.rint(weight.detach().double().numpy() / 2.0 ** exponent[:, None]).astype(np.int64)
    b = np.rint(bias.detach().double().numpy() / 2.0 ** (exponent + e_in)).astype(np.int64)
    assert np.abs(w).max() <= 2 ** (weight_bits - 1) - 1
    accumulator = numerics.linear(x.numpy(), w, b)
    shift = e_out - exponent - e_in
    expected = numerics.requantize(accumulator, shift, bits, narrow)
    right = np.maximum(shift, 1)
    ties = (shift > 0) & (accumulator & ((1 << right) - 1) == 1 << (right - 1))
    assert expected.size == 400 * 96 and ties.sum() > 20
    if bits < 16:
        assert (expected == numerics.bounds(bits, narrow)[0]).sum() > 5
    for dtype in (torch.float32, torch.float64):
        y = frozen(bits, e_out, narrow)(layer.to(dtype).accumulate(x.to(dtype) * 2.0**e_in, e_in))
        assert int((y.detach().double().numpy() * 2.0**-e_out != expected).sum()) == 0


def test_stacked_quantizer_equals_one_per_expert():
    generator = torch.Generator().manual_seed(0)
    stack = StackedLinear(24, 10, 8, groups=6, bias_every=2)
    with torch.no_grad():
        stack.weight.mul_(torch.exp(2 * torch.randn(60, 1, generator=generator)))
        stack.bias.normal_(generator=generator)
    weights, biases = stack.quantized(-4)
    for group in range(6):
        single = StackedLinear(24, 10, 8)
        rows = slice(10 * group, 10 * group + 10)
        with torch.no_grad():
            single.weight.copy_(stack.weight[rows])
            single.bias.copy_(stack.bias[rows] * (group % 2 == 0))
        weight, bias = single.quantized(-4)
        assert torch.equal(weight[0], weights[group])
        assert torch.equal(bias[0], biases[group])
        assert (biases[group] == 0).all() == (group % 2 == 1)


def test_fold_scales_rows_before_quantizing():
    fold = torch.tensor([0.3, 1.0])
    layer, plain = StackedLinear(5, 2, 8, fold=fold), StackedLinear(5, 2, 8)
    with torch.no_grad():
        plain.weight.copy_(layer.weight * fold[:, None])
        plain.bias.copy_(layer.bias * fold)
    for a, b in zip(layer.quantized(-3), plain.quantized(-3), strict=True):
        assert torch.equal(a, b)


def test_gradients_reach_weights_and_bias():
    layer = StackedLinear(7, 3, 4, groups=2)
    weight, bias = layer.quantized(-3)
    (weight.sum() + bias.sum()).backward()
    assert torch.isfinite(layer.weight.grad).all() and (layer.weight.grad.abs() > 0).any()
    assert torch.equal(layer.bias.grad, torch.ones(6))


@pytest.mark.parametrize("bits", [4, 8])
def test_calibration_minimizes_the_squared_error(bits):
    observer = Observer()
    values = torch.randn(8000, generator=torch.Generator().manual_seed(0))
    values[0] = 40.0  # an outlier that max calibration would follow
    observer.add(values)

    def error(exponent: int) -> float:
        q = (values * 2.0**-exponent).round().clamp(*numerics.bounds(bits)) * 2.0**exponent
        return float((q - values).square().mean())

    top = int(np.ceil(np.log2(40 / numerics.bounds(bits)[1])))
    best = min(range(top - 4, top + 1), key=error)
    assert observer.exponent(bits, False) == best < top


def test_wide_calibration_keeps_a_spare_bit():
    observer = Observer()
    observer.add(torch.tensor([3.0, -30.0]))
    observer.add(torch.tensor([31.0]))
    exponent = observer.exponent(16, False)
    assert 32767 * 2.0 ** (exponent - 1) >= 31 > 32767 * 2.0 ** (exponent - 2)


@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf")])
def test_calibration_refuses_degenerate_values(value):
    observer = Observer()
    observer.add(torch.full((5,), value))
    with pytest.raises(ConfigError, match="calibration: expected finite, non-zero"):
        observer.exponent(8, False)


def test_exponent_is_in_the_state_dict_and_must_be_set():
    point = FixedPoint(8)
    with pytest.raises(ConfigError, match="calibrate first"):
        point.quantize(torch.ones(3))
    point.set_exponent(-6)
    other = FixedPoint(8)
    other.load_state_dict(point.state_dict())
    assert other.value == -6
    other.double()
    assert other.value == -6 and other.exponent.dtype == torch.int32
