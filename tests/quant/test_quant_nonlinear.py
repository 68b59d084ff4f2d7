"""quant.nonlinear against accel.numerics: no tolerance for values, a small one for gradients."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from accel import numerics, tables
from quant import nonlinear


def assert_same(found: torch.Tensor, exponent: int, expected: np.ndarray, least: int) -> None:
    """All integers equal, and at least ``least`` of them."""
    integers = found.double().numpy() * 2.0**-exponent
    assert expected.size >= least
    assert integers.shape == expected.shape
    mismatches = int((integers != expected).sum())
    assert mismatches == 0, f"{mismatches} of {expected.size} differ"


def tensor(values: np.ndarray, exponent: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.from_numpy(values * 2.0**exponent).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("bits", "narrow"), [(8, False), (8, True), (4, False), (16, False)])
def test_requantize(dtype, bits, narrow):
    rng = np.random.default_rng(0)
    edges = np.arange(-700, 701)
    values = np.concatenate([edges, rng.integers(-(2**24), 2**24, 20_000)])
    low, high = numerics.bounds(bits, narrow)
    ties = saturated = 0
    for shift in (-8, -1, 0, 1, 2, 7, 13, 20):
        expected = numerics.requantize(values, shift, bits, narrow)
        y = nonlinear.requantize(tensor(values, -9, dtype), -9 + shift, low, high)
        assert_same(y, -9 + shift, expected, 20_000)
        if shift > 0:
            ties += int((values % (1 << shift) == 1 << (shift - 1)).sum())
        saturated += int(((expected == low) | (expected == high)).sum())
    assert ties > 1000 and saturated > 1000


def test_requantize_gradient_stops_where_saturated():
    x = torch.tensor([-300.0, -128.4, 0.3, 127.4, 127.6, 300.0], requires_grad=True)
    nonlinear.requantize(x, 0, -128, 127).sum().backward()
    assert x.grad.tolist() == [0, 1, 1, 1, 0, 0]


def norm_rows(width: int) -> np.ndarray:
    rng = np.random.default_rng(width)
    one_hot = np.zeros(width)
    one_hot[width // 2] = 32767
    alternating = np.where(np.arange(width) % 2, 32767, -32768)
    outlier = rng.normal(0, 20, width)
    outlier[0] = 30_000
    rows = [
        np.zeros(width),
        np.full(width, 32767),
        np.full(width, -32768),
        one_hot,
        -one_hot,
        alternating,
        outlier,
        np.arange(width) == 0,
        *(rng.normal(offset, scale, width) for offset in (0, 9000) for scale in (0.3, 5, 900, 9000)),
        *rng.normal(0, 800, (60, width)),
    ]
    return np.clip(np.rint(np.stack(rows)), -32768, 32767).astype(np.int64)


@pytest.mark.parametrize("width", [3, 16, 64, 96, 384, 1024])
def test_layer_norm(width):
    rng = np.random.default_rng(1)
    x = norm_rows(width)
    gamma = np.clip(rng.normal(4096, 3000, width), -32768, 32767).astype(np.int64)
    beta = rng.normal(0, 2.0**21, width).astype(np.int64)
    gamma[0], beta[0] = 32767, 2**31 - 1
    for residual, out, bits in ((-10, -5, 8), (-12, -4, 8), (-7, -6, 8), (0, -2, 4)):
        eps = numerics.norm_epsilon(width, residual)
        assert nonlinear.norm_epsilon(width, residual) == eps
        expected = numerics.layer_norm(x, gamma, beta, eps, out, bits)
        for dtype in (torch.float32, torch.float64):
            y = nonlinear.layer_norm(
                tensor(x, residual, dtype),
                tensor(gamma, -12),
                tensor(beta, -22),
                residual,
                out,
                *numerics.bounds(bits),
            )
            assert_same(y, out, expected, 70 * width)


def test_layer_norm_gradient_is_that_of_the_float_function():
    generator = torch.Generator().manual_seed(0)
    x = (torch.randn(40, 32, generator=generator) * 2**10).round() * 2.0**-10
    leaves = [x, 1 + 0.2 * torch.randn(32, generator=generator), torch.randn(32, generator=generator)]
    weight = torch.randn(40, 32, generator=generator)

    def gradients(f):
        inputs = [leaf.clone().requires_grad_() for leaf in leaves]
        (f(*inputs) * weight).sum().backward()
        return [leaf.grad for leaf in inputs]

    exact = gradients(lambda x, g, b: F.layer_norm(x, (32,), g, b, 1e-6))
    found = gradients(lambda x, g, b: nonlinear.layer_norm(x, g, b, -10, -4, -128, 127))
    for a, b in zip(exact, found, strict=True):
        assert torch.isfinite(b).all()
        assert torch.allclose(a, b, rtol=1e-3, atol=1e-3)


def attention_cases(tokens: int, dim: int) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(tokens)
    shape = (2, tokens, dim)
    flat = np.zeros(shape, np.int64), rng.integers(-127, 128, shape), np.full(shape, 127)
    peaked = np.full(shape, 127), np.full(shape, -127), rng.integers(-127, 128, shape)
    peaked[1][:, 0] = 127
    drawn = [tuple(rng.integers(-127, 128, shape) // d for _ in range(3)) for d in (1, 4, 12)]
    return [flat, peaked, *drawn]  # type: ignore[list-item]


@pytest.mark.parametrize(("tokens", "dim"), [(1, 4), (5, 8), (65, 32), (1025, 8)])
def test_attention(tokens, dim):
    for q, k, v in attention_cases(tokens, dim):
        for e_q, e_k, e_v, e_o in ((-7, -5, -5, -6), (-9, -6, -4, -4), (-4, -4, -6, -5)):
            scores = np.einsum("bnd,bmd->bnm", q, k)
            p = numerics.attention_probabilities(scores, -(e_q + e_k + 8))
            weighted, total = p @ v, p.sum(-1, keepdims=True)
            expected = numerics.attention_output(weighted, total, e_o - e_v)
            args = tensor(q, e_q), tensor(k, e_k), tensor(v, e_v)
            y = nonlinear.attention(*args, e_o, -128, 127)
            assert_same(y, e_o, expected, 2 * tokens * dim)


def test_attention_gradient_is_that_of_the_float_function():
    generator = torch.Generator().manual_seed(0)
    leaves = [(torch.randn(2, 3, 9, 8, generator=generator) * 2**5).round() * 2.0**-5 for _ in "qkv"]
    weight = torch.randn(2, 3, 9, 8, generator=generator)

    def gradients(f):
        inputs = [leaf.clone().requires_grad_() for leaf in leaves]
        (f(*inputs) * weight).sum().backward()
        return [leaf.grad for leaf in inputs]

    ln2 = nonlinear.LN2
    exact = gradients(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, scale=ln2))
    found = gradients(lambda q, k, v: nonlinear.attention(q, k, v, -5, -128, 127))
    for a, b in zip(exact, found, strict=True):
        assert torch.isfinite(b).all()
        assert (a - b).norm() < 0.05 * a.norm()  # probabilities have 8 bits


def gate_logits(experts: int) -> np.ndarray:
    rng = np.random.default_rng(experts)
    rows = [
        np.zeros(experts),
        np.arange(experts),
        np.where(np.arange(experts) == experts - 1, 2**29, -(2**29)),
        *rng.integers(-3, 4, (300, experts)),  # ties
        *rng.integers(-4000, 4000, (300, experts)),
        *rng.integers(-(2**20), 2**20, (100, experts)),
    ]
    return np.stack(rows).astype(np.int64)


@pytest.mark.parametrize(("experts", "k"), [(1, 1), (4, 4), (8, 2), (16, 4), (256, 8)])
def test_gate(experts, k):
    logits = gate_logits(experts)
    for exponent in (-20, -12, -9, -4):
        chosen = numerics.top_k(logits, k)
        expected = numerics.gate_weights(logits, chosen, -(exponent + 8))
        weights, indices = nonlinear.gate_weights(tensor(logits, exponent), k)
        assert_same(weights, -16, expected, 700 * k)
        assert (indices.numpy() == chosen).all()


def test_gate_gradient_is_that_of_the_float_function():
    generator = torch.Generator().manual_seed(0)
    logits = (torch.randn(50, 8, generator=generator) * 2**10).round() * 2.0**-10
    weight = torch.randn(50, 2, generator=generator)
    a, b = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    found, chosen = nonlinear.gate_weights(b, 2)
    ((a * nonlinear.LN2).softmax(-1).gather(-1, chosen) * weight).sum().backward()
    (found * weight).sum().backward()
    assert torch.isfinite(b.grad).all()
    assert torch.allclose(a.grad, b.grad, atol=2e-3)


@pytest.mark.parametrize("bits", [8, 4])
def test_gelu(bits):
    rng = np.random.default_rng(0)
    values = np.concatenate([np.arange(-1200, 1200), rng.integers(-(2**20), 2**20, 5000)])
    for e_in, e_out, shift in ((-5, -5, 0), (-4, -6, 3), (-6, -4, 5), (0, 0, 9)):
        table = tables.gelu(e_in, e_out, bits)
        expected = numerics.gelu(numerics.requantize(values, shift, bits), table)
        x = tensor(values, e_in - shift)
        y = nonlinear.gelu(x, nonlinear.GeluTable(e_in, e_out, bits, x))
        assert_same(y, e_out, expected, 5000)


def test_gelu_gradient_is_the_slope_inside_and_zero_outside():
    x = torch.linspace(-6, 6, 300, requires_grad=True)
    a = x.detach().clone().requires_grad_()
    table = nonlinear.GeluTable(-5, -5, 8, x)
    nonlinear.gelu(x, table).sum().backward()
    F.gelu(a).sum().backward()
    inside = (a > -4) & (a < 3.9)
    assert torch.allclose(x.grad[inside], a.grad[inside], atol=0.02)
    assert (x.grad[(a < -4.1) | (a > 4.1)] == 0).all()


def test_tables_made_during_inference_can_be_used_in_training():
    nonlinear._table.cache_clear()
    x = torch.randn(2, 3, 4)
    with torch.inference_mode():
        nonlinear.attention(x, x, x, -5, -128, 127)
    x.requires_grad_()
    nonlinear.attention(x, x, x, -5, -128, 127).sum().backward()
    assert torch.isfinite(x.grad).all()
