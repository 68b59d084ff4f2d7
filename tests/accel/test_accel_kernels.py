"""Fast kernels give exactly the integers of accel.numerics, on random and on extreme inputs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from accel import kernels, numerics, tables
from accel.golden import PreparedGate
from accel.params import LayerNorm, Linear, Unit

quick = settings(deadline=None, max_examples=40)


def make_linear(
    rng: np.random.Generator, outputs: int, inputs: int, bias: int = 1 << 14, low: int = 4, high: int = 12
) -> Linear:
    return Linear(
        rng.integers(-127, 128, (outputs, inputs)).astype(np.int8),
        rng.integers(-bias, bias, outputs).astype(np.int32),
        rng.integers(low, high, outputs).astype(np.int8),
    )


def reference_linear(layer: Linear, x: np.ndarray, bits: int, narrow: bool = False) -> np.ndarray:
    return numerics.requantize(numerics.linear(x, layer.weight, layer.bias), layer.shift, bits, narrow)


def extreme(rng: np.random.Generator, rows: int, inputs: int, kind: str) -> np.ndarray:
    if kind == "random":
        return rng.integers(-128, 128, (rows, inputs)).astype(np.int8)
    if kind == "ends":
        return rng.choice(np.array([-128, 127], np.int8), (rows, inputs))
    return np.full((rows, inputs), {"low": -128, "high": 127, "zero": 0}[kind], np.int8)


KINDS = ["random", "ends", "low", "high", "zero"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bias", [1 << 14, 1 << 30])
def test_linear(kind: str, bias: int) -> None:
    """The larger bias needs float64; shifts cover both signs, outputs saturate on both sides."""
    rng = np.random.default_rng(5)
    layer = make_linear(rng, 48, 96, bias, numerics.SHIFT_MIN, numerics.SHIFT_MAX + 1)
    prepared = kernels.PreparedLinear(layer)
    assert prepared.dtype is (np.float32 if bias < 1 << 24 else np.float64)
    x = extreme(rng, 33, 96, kind)
    for bits, narrow in ((8, False), (8, True), (16, False)):
        expected = reference_linear(layer, x, bits, narrow)
        assert np.array_equal(prepared(x, bits, narrow), expected)
        if kind != "zero":
            assert set(numerics.bounds(bits, narrow)) <= set(np.unique(expected))


def test_float_type_follows_the_bound_not_the_data() -> None:
    assert kernels.exact_float(1 << 24) is np.float32
    assert kernels.exact_float((1 << 24) + 1) is np.float64
    with pytest.raises(OverflowError):
        kernels.exact_float((1 << 53) + 1)
    wide = Linear(np.full((1, 1536), 127, np.int8), np.zeros(1, np.int32), np.zeros(1, np.int8))
    assert kernels.PreparedLinear(wide).dtype is np.float64


def test_worst_case_accumulator_is_exact_next_to_the_float32_limit() -> None:
    """127·128·1032 = 2^23.99: one step off would show after shifting by 0 into 16 bits of a biased result."""
    inputs = 1032
    weight = np.full((1, inputs), 127, np.int8)
    for bias in (0, 7):
        total = -128 * 127 * inputs
        layer = Linear(weight, np.array([-total - 1000 + bias], np.int32), np.zeros(1, np.int8))
        found = kernels.PreparedLinear(layer)(np.full((1, inputs), -128, np.int8), 16)
        assert found.tolist() == [[-1000 + bias]]


@quick
@given(st.integers(1, 9), st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32 - 1), st.sampled_from(KINDS))
def test_unit(rows: int, width: int, hidden: int, seed: int, kind: str) -> None:
    rng = np.random.default_rng(seed)
    unit = Unit(make_linear(rng, hidden, width), tables.gelu(-5, -5), make_linear(rng, width, hidden, low=-4, high=4))
    x = extreme(rng, rows, width, kind)
    hidden_values = numerics.gelu(reference_linear(unit.first, x, 8), unit.gelu)
    expected = reference_linear(unit.second, hidden_values, 16)
    assert np.array_equal(kernels.PreparedUnit(unit)(x.astype(np.float32), 8), expected)


def test_gelu_all_inputs() -> None:
    table = tables.gelu(-4, -5)
    x = np.arange(-128, 128).astype(np.int8)
    assert np.array_equal(kernels.apply_gelu(x.astype(np.float32), table.astype(np.float32)), numerics.gelu(x, table))


@pytest.mark.parametrize("kind", ["random", "hot", "ends", "constant", "zero", "tiny"])
@pytest.mark.parametrize("width", [8, 65, 384, 1024])
def test_layer_norm(width: int, kind: str) -> None:
    rng = np.random.default_rng(width)
    x = rng.integers(-32768, 32768, (40, width)).astype(np.int16)
    if kind == "hot":
        x = np.zeros_like(x)
        x[np.arange(40), rng.integers(0, width, 40)] = rng.choice([-32768, 32767], 40)
    elif kind == "ends":
        x = rng.choice(np.array([-32768, 32767], np.int16), x.shape)
    elif kind == "constant":
        x[:] = x[:, :1]
    elif kind == "zero":
        x[:] = 0
    elif kind == "tiny":
        x = rng.integers(-1, 2, x.shape).astype(np.int16)
    norm = LayerNorm(
        rng.integers(-32768, 32768, width).astype(np.int16),
        rng.integers(-(2**31), 2**31, width).astype(np.int32) // 64,
        numerics.norm_epsilon(width, -10),
        -5,
    )
    expected = numerics.layer_norm(x, norm.gamma, norm.beta, norm.eps, norm.exponent)
    assert np.array_equal(kernels.layer_norm(x, norm, 8), expected)


def reference_attention(qkv: np.ndarray, heads: int, score_shift: int, output_shift: int, bits: int) -> np.ndarray:
    width = qkv.shape[1] // 3
    q, k, v = (part.astype(np.int64).reshape(len(qkv), heads, -1) for part in np.split(qkv, 3, axis=1))
    outputs = []
    for head in range(heads):
        p = numerics.attention_probabilities(q[:, head] @ k[:, head].T, score_shift)
        total = p.sum(axis=1, keepdims=True)
        outputs.append(numerics.attention_output(p @ v[:, head], total, output_shift, bits))
    return np.concatenate(outputs, axis=1).reshape(len(qkv), width)


@pytest.mark.parametrize("score_shift", [-3, 0, 4, 9])
@pytest.mark.parametrize("kind", ["random", "ends", "flat", "peaked"])
def test_attention(kind: str, score_shift: int) -> None:
    rng = np.random.default_rng(9)
    qkv = rng.integers(-127, 128, (37, 3 * 32)).astype(np.int8)
    if kind == "ends":
        qkv = rng.choice(np.array([-127, 127], np.int8), qkv.shape)
    elif kind == "flat":
        qkv[:, :32] = 0
    elif kind == "peaked":
        qkv[:, 32:64] = np.where(np.arange(37)[:, None] == 5, np.sign(qkv[:1, :32]) * 127, 0)
    for output_shift in (-2, 0, 1):
        found = kernels.attention(qkv, 4, score_shift, output_shift, 8)
        assert np.array_equal(found, reference_attention(qkv, 4, score_shift, output_shift, 8))


@pytest.mark.parametrize("tokens", [1, 511, 512, 513, 1201])
def test_attention_over_many_keys(tokens: int) -> None:
    """Beyond 512 keys Σ p·v passes 2^24: all probabilities 254 and all values 127 are the worst case."""
    rng = np.random.default_rng(tokens)
    qkv = np.zeros((tokens, 24), np.int8)
    qkv[:, 16:] = 127
    qkv[::3, 17:20] = rng.integers(-127, 128, (len(qkv[::3]), 3))
    qkv[:, 18] = -127
    assert np.array_equal(kernels.attention(qkv, 1, 3, 0, 8), reference_attention(qkv, 1, 3, 0, 8))


@quick
@given(st.integers(1, 20), st.integers(1, 64), st.integers(0, 2**32 - 1), st.sampled_from([0, 1 << 12, 1 << 29]))
def test_gate_logits(experts: int, width: int, seed: int, bias: int) -> None:
    rng = np.random.default_rng(seed)
    weight = rng.integers(-127, 128, (experts, width)).astype(np.int8)
    offsets = rng.integers(-bias, bias + 1, experts).astype(np.int32)
    x = extreme(rng, 5, width, "ends")
    assert np.array_equal(PreparedGate(weight, offsets).logits(x), numerics.linear(x, weight, offsets))
