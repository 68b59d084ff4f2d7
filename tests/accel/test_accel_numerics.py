"""The numeric contract against independent definitions: exact rationals, big integers and float references."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from accel import numerics
from accel.tables import EXP2, RSQRT

quick = settings(deadline=None, max_examples=60)


def half_even(value: Fraction) -> int:
    """Python's round on rationals is exact and ties to even."""
    return round(value)


# ---- rounding and saturation ----------------------------------------------------------


@pytest.mark.parametrize("shift", range(numerics.SHIFT_MIN, 16))
def test_shift_round_even_exhaustive_13_bits(shift: int) -> None:
    values = np.arange(-4096, 4096)
    scale = Fraction(1, 2**shift) if shift >= 0 else Fraction(2**-shift)
    expected = [half_even(int(v) * scale) for v in values]
    assert numerics.shift_round_even(values, shift).tolist() == expected


def test_shift_round_even_worked_ties() -> None:
    values = np.array([1, 3, 5, -1, -3, -5])
    assert numerics.shift_round_even(values, 1).tolist() == [0, 2, 2, 0, -2, -2]
    values = np.array([2, 6, 10, -2, -6, -10, 3, -3])
    assert numerics.shift_round_even(values, 2).tolist() == [0, 2, 2, 0, -2, -2, 1, -1]


@quick
@given(st.integers(-(2**52), 2**52), st.integers(numerics.SHIFT_MIN, 60))
def test_shift_round_even_wide(value: int, shift: int) -> None:
    expected = half_even(Fraction(value) / Fraction(2) ** shift)
    assert int(numerics.shift_round_even(np.array(value), shift)) == expected


def test_shift_round_even_broadcasts_per_channel() -> None:
    values = np.arange(-40, 40).reshape(20, 4)
    shifts = np.array([-2, 0, 1, 5], np.int8)
    columns = [numerics.shift_round_even(values[:, i], int(s)) for i, s in enumerate(shifts)]
    assert np.array_equal(numerics.shift_round_even(values, shifts), np.stack(columns, axis=1))


@pytest.mark.parametrize("shift", range(-8, 16))
def test_shift_floor_exhaustive(shift: int) -> None:
    values = np.arange(-4096, 4096)
    scale = Fraction(1, 2**shift) if shift >= 0 else Fraction(2**-shift)
    assert numerics.shift_floor(values, shift).tolist() == [math.floor(int(v) * scale) for v in values]


@pytest.mark.parametrize("narrow", [False, True])
@pytest.mark.parametrize("bits", range(2, 9))
def test_saturate_and_requantize_exhaustive(bits: int, narrow: bool) -> None:
    values = np.arange(-2048, 2048)
    low, high = -(2 ** (bits - 1)) + narrow, 2 ** (bits - 1) - 1
    assert numerics.bounds(bits, narrow) == (low, high)
    assert numerics.saturate(values, bits, narrow).tolist() == [min(max(int(v), low), high) for v in values]
    for shift in (-2, 0, 1, 3, 4):
        rounded = [half_even(Fraction(int(v)) / Fraction(2) ** shift) for v in values]
        expected = [min(max(r, low), high) for r in rounded]
        found = numerics.requantize(values, shift, bits, narrow).tolist()
        assert found == expected
        assert low in found and high in found  # both sides saturate, so both are tested


# ---- accumulators ---------------------------------------------------------------------


@quick
@given(st.integers(1, 6), st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_accumulator_bound_is_reached_and_never_exceeded(outputs: int, inputs: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    weight = rng.integers(-127, 128, (outputs, inputs), dtype=np.int8)
    bias = -np.abs(rng.integers(-(2**20), 2**20, outputs)).astype(np.int32)
    bound = numerics.accumulator_bound(weight, bias)
    x = rng.integers(-128, 128, (64, inputs)).astype(np.int8)
    assert np.abs(numerics.linear(x, weight, bias)).max() <= bound
    # −128 meets every positive weight; only the sign that int8 lacks (+128) keeps negative weights one step short.
    worst = np.where(np.abs(weight) == weight, -128, 127).astype(np.int8)
    reached = np.abs(np.diag(numerics.linear(worst, weight, bias))).max()
    assert bound - np.abs(weight.astype(int)).sum(axis=1).max() <= reached <= bound
    positive = np.abs(weight)
    exact = numerics.linear(np.full((1, inputs), -128, np.int8), positive, bias)
    assert np.abs(exact).max() == numerics.accumulator_bound(positive, bias)


def test_accumulator_of_the_widest_layer_fits_32_bits() -> None:
    weight = np.full((1, 1536), 127, np.int8)
    bound = numerics.accumulator_bound(weight, np.zeros(1, np.int32))
    assert bound == 128 * 127 * 1536
    assert bound < 2 ** (numerics.ACCUMULATOR_BITS - 1)


def test_dense_combine_fits_36_bits() -> None:
    """15 units, the most a dense MLP may have, reach −2^35 exactly; the positive side stays below."""
    assert numerics.combine_bound(15, numerics.COMBINE_ONE) == 1 << (numerics.COMBINE_BITS - 1)
    assert (32767 << 16) + 15 * numerics.COMBINE_ONE * 32767 < 1 << (numerics.COMBINE_BITS - 1)


@pytest.mark.parametrize("experts", [1, 2, 4, 16, 64, 256])
def test_moe_combine_fits_36_bits(experts: int) -> None:
    """14 units at most: gate weights may add up to a little more than 1.0, which 15 units could not afford."""
    limit = 1 << (numerics.COMBINE_BITS - 1)
    assert numerics.combine_bound(14, numerics.gate_weight_sum_bound(experts)) < limit
    assert numerics.combine_bound(15, numerics.gate_weight_sum_bound(experts)) > limit


def test_combine_worst_case_reaches_the_bound() -> None:
    units = 15
    total = numerics.combine_start(np.array([-32768])) + units * numerics.COMBINE_ONE * -32768
    assert -int(total[0]) == numerics.combine_bound(units, numerics.COMBINE_ONE)
    assert -int(total[0]) <= 1 << (numerics.COMBINE_BITS - 1)
    assert numerics.combine_finish(total).tolist() == [-32768]
    assert numerics.combine_finish(-total).tolist() == [32767]


def test_combine_rounds_once() -> None:
    """Two halves make a whole: rounding each contribution by itself would lose it."""
    start = numerics.combine_start(np.array([10, -10]))
    assert numerics.combine_finish(start + 2 * 32768).tolist() == [11, -9]
    assert numerics.combine_finish(start + 32768).tolist() == [10, -10]  # ties to even
    assert numerics.combine_finish(start + 3 * 32768).tolist() == [12, -8]


# ---- bit length, reciprocal, roots ----------------------------------------------------


@quick
@given(st.integers(0, 2**62))
def test_bit_length(value: int) -> None:
    assert int(numerics.bit_length(np.array(value))) == value.bit_length()


def test_bit_length_at_powers_of_two() -> None:
    values = sorted({max(2**i + d, 0) for i in range(62) for d in (-1, 0, 1)})
    assert numerics.bit_length(np.array(values)).tolist() == [v.bit_length() for v in values]


def test_reciprocal_exhaustive_17_bits() -> None:
    values = np.arange(1, 1 << 17)
    factor, k = numerics.reciprocal(values)
    assert factor.min() == 1 << 15 and factor.max() == 1 << 16
    exact = factor.astype(np.float64) * values * 2.0 ** -(31.0 + k)  # relative to 1, exact to 2^-40
    assert np.abs(exact - 1).max() < 2.0**-15


@quick
@given(st.integers(1, 2**40))
def test_reciprocal_definition(value: int) -> None:
    factor, k = numerics.reciprocal(np.array(value))
    shift = value.bit_length() - 16
    normalized = value >> shift if shift >= 0 else value << -shift
    assert (int(factor), int(k)) == (2**31 // normalized, shift)
    assert abs(Fraction(int(factor) * value, 1) / Fraction(2) ** (31 + shift) - 1) < Fraction(1, 2**15)


def _reciprocal_sqrt(value: int) -> tuple[int, int]:
    """Big-integer twin of numerics.reciprocal_sqrt."""
    k = (value.bit_length() - 31) >> 1
    m = value >> (2 * k) if k >= 0 else value << (-2 * k)
    assert 1 << 30 <= m < 1 << 32
    r = int(RSQRT[(m >> 25) - 32])
    t = (((m * r) >> 16) * r) >> 16
    return (r * (3 * 2**30 - t) + 2**30) >> 31, k


def test_reciprocal_sqrt_error_and_range() -> None:
    """Every table interval, at its ends and inside: relative error below 1e-4, R stays a u16."""
    m = np.unique(np.concatenate([np.arange(32, 128) * 2**25, np.arange(33, 129) * 2**25 - 1]))
    m = np.unique(np.concatenate([m, np.random.default_rng(1).integers(1 << 30, 1 << 32, 200_000)]))
    factor, k = numerics.reciprocal_sqrt(m)
    error = factor * np.sqrt(m.astype(np.float64)) * 2.0 ** -(31.0 + k) - 1
    assert np.abs(error).max() < 1e-4
    assert 1 << 15 <= factor.min() and factor.max() < 1 << 16


@quick
@given(st.integers(1, 2**52))
def test_reciprocal_sqrt_matches_big_integers(value: int) -> None:
    factor, k = numerics.reciprocal_sqrt(np.array(value))
    assert (int(factor), int(k)) == _reciprocal_sqrt(value)


# ---- LayerNorm ------------------------------------------------------------------------


def _layer_norm(x: list[int], gamma: list[int], beta: list[int], eps: int, exponent: int) -> list[int]:
    """LayerNorm of one row in Python's unbounded integers and exact rationals."""
    width = len(x)
    total = sum(x)
    variance = max(width * sum(v * v for v in x) - total * total + eps, 1)
    assert variance < 1 << 51
    scale, k = _reciprocal_sqrt(variance)
    result = []
    for value, g, b in zip(x, gamma, beta, strict=True):
        centred = width * value - total
        assert abs(centred) < 1 << 27
        normal = half_even(Fraction(centred * scale) / Fraction(2) ** (21 + k))
        normal = min(max(normal, -32768), 32767)
        output = half_even(Fraction(normal * g + b) / Fraction(2) ** (22 + exponent))
        result.append(min(max(output, -128), 127))
    return result


rows = st.one_of(
    st.lists(st.integers(-32768, 32767), min_size=1, max_size=24),
    st.lists(st.sampled_from([-32768, -1, 0, 1, 32767]), min_size=1, max_size=24),
)


@quick
@given(rows, st.integers(0, 2**32 - 1), st.integers(-7, -3), st.integers(-12, -8))
def test_layer_norm_matches_big_integers(x: list[int], seed: int, exponent: int, residual: int) -> None:
    rng = np.random.default_rng(seed)
    gamma = rng.integers(-8192, 8193, len(x))
    beta = rng.integers(-(2**22), 2**22, len(x))
    eps = numerics.norm_epsilon(len(x), residual)
    found = numerics.layer_norm(np.array([x], np.int16), gamma, beta, eps, exponent)
    assert found[0].tolist() == _layer_norm(x, gamma.tolist(), beta.tolist(), eps, exponent)


@pytest.mark.parametrize("width", [64, 192, 384, 1024])
def test_layer_norm_error_against_float(width: int) -> None:
    rng = np.random.default_rng(width)
    x = rng.normal(0, 700, (200, width))
    x[:50, 3] *= 12  # an outlier channel
    x[50:100] += 9000  # a large common offset
    x[100:150] *= 0.02  # almost constant rows
    x = np.clip(np.rint(x), -32768, 32767).astype(np.int16)
    gamma = np.rint(4096 * rng.normal(1.0, 0.2, width)).astype(np.int16)
    beta = np.rint(2**22 * rng.normal(0.0, 0.2, width)).astype(np.int32)
    exponent, residual = -5, -10
    found = numerics.layer_norm(x, gamma, beta, numerics.norm_epsilon(width, residual), exponent)
    real = x * 2.0**residual
    exact = (real - real.mean(1, keepdims=True)) / np.sqrt(real.var(1, keepdims=True) + 1e-6)
    exact = np.clip((exact * gamma / 4096 + beta / 2**22) * 2.0**-exponent, -128, 127)
    error = np.abs(found - exact)
    assert error.max() < 0.56 and error.mean() < 0.26  # 0.5 and 0.25 would be perfect rounding


def test_layer_norm_worst_rows_never_clip_or_overflow() -> None:
    """One hot channel among 1024 gives the largest x̂; alternating extremes the largest variance (51 bits)."""
    ones, zeros = np.full(1024, 4096), np.zeros(1024, np.int64)
    hot = np.zeros((2, 1024), np.int16)
    hot[0, 7], hot[1, 7] = 32767, -32768
    found = numerics.layer_norm(hot, ones, zeros, 1, -2)
    # x̂ = √1023 = 31.98 in Q10 stays below 2^15; at exponent −2 the output is 4·x̂ = 128, saturated.
    assert found[0, 7] == 127 and found[1, 7] == -128
    alternating = np.tile(np.array([-32768, 32767], np.int16), 512)[None]
    wide = alternating.astype(np.int64)
    variance = 1024 * int((wide**2).sum()) - int(wide.sum()) ** 2
    assert variance.bit_length() <= 51
    found = numerics.layer_norm(alternating, ones, zeros, 0, -6)
    assert set(found[0].tolist()) == {-64, 64}
    constant = np.full((1, 1024), -32768, np.int16)
    assert not numerics.layer_norm(constant, ones, zeros, 0, -6).any()


@pytest.mark.parametrize(("width", "exponent"), [(64, -10), (384, -11), (1024, -8), (5, 0), (7, 2)])
def test_norm_epsilon(width: int, exponent: int) -> None:
    exact = Fraction(width * width, 10**6) / Fraction(4) ** exponent
    assert abs(numerics.norm_epsilon(width, exponent) - exact) <= Fraction(1, 2)


# ---- softmax of attention -------------------------------------------------------------


def test_exp2_negative_exhaustive() -> None:
    u = np.arange(0, 5000)
    found = numerics.exp2_negative(u)
    assert found.tolist() == [int(EXP2[v % 256]) >> (v // 256) if v < 4096 else 0 for v in u.tolist()]
    assert (np.diff(found) <= 0).all() and found[0] == 32768 and found[4096:].max() == 0
    exact = 2.0 ** (15 - u / 256)
    assert np.abs(found - exact)[:4096].max() <= 1.5  # half from the table, up to one from the shift
    assert int(numerics.exp2_negative(np.array(2**40))) == 0


@quick
@given(st.lists(st.integers(-(2**20), 2**20), min_size=1, max_size=30), st.integers(-4, 14))
def test_attention_probabilities(scores: list[int], shift: int) -> None:
    found = numerics.attention_probabilities(np.array([scores]), shift)[0].tolist()
    expected = []
    for score in scores:
        u = math.floor(Fraction(max(scores) - score) / Fraction(2) ** shift)
        power = int(EXP2[u % 256]) >> (u // 256) if u < 4096 else 0
        expected.append((254 * power + 16384) // 32768)
    assert found == expected
    assert max(found) == numerics.PROBABILITY_MAX and min(found) >= 0
    # P − 127 fits the narrow range of the array's weight operand.
    assert -127 <= min(found) - 127 and max(found) - 127 <= 127


@quick
@given(st.integers(1, 40), st.integers(0, 2**32 - 1), st.integers(-4, 4))
def test_attention_output_error(keys: int, seed: int, shift: int) -> None:
    rng = np.random.default_rng(seed)
    p = rng.integers(0, 255, (1, keys))
    p[0, 0] = 254
    v = rng.integers(-127, 128, (keys, 8))
    weighted, total = p @ v, p.sum(axis=1, keepdims=True)
    found = numerics.attention_output(weighted, total, shift)
    exact = np.clip(weighted / total * 2.0**-shift, -128, 127)
    assert np.abs(found - exact).max() <= 0.5 + np.abs(exact).max() * 2.0**-15 + 1e-9


def test_attention_output_saturates_both_sides() -> None:
    weighted = np.array([[254 * 127, -254 * 127]])
    assert numerics.attention_output(weighted, np.array([[254]]), -1).tolist() == [[127, -128]]


def test_flat_attention_over_many_keys_keeps_its_mass() -> None:
    """1,201 equal probabilities: a normalized u8 would be 0; here the mean of v comes out."""
    p = np.full((1, 1201), 254)
    v = np.full((1201, 1), 100)
    assert numerics.attention_output(p @ v, p.sum(axis=1, keepdims=True), 0).tolist() == [[100]]


# ---- gate -----------------------------------------------------------------------------


def _top_k(logits: tuple[int, ...], k: int) -> list[int]:
    return sorted(range(len(logits)), key=lambda e: (-logits[e], e))[:k]


@pytest.mark.parametrize(("experts", "values"), [(2, 5), (3, 4), (4, 4), (5, 3)])
def test_top_k_exhaustive_with_ties_to_the_lower_index(experts: int, values: int) -> None:
    every = list(itertools.product(range(-(values // 2), values - values // 2), repeat=experts))
    for k in range(1, experts + 1):
        assert numerics.top_k(np.array(every), k).tolist() == [_top_k(row, k) for row in every]


def test_top_k_all_equal() -> None:
    assert numerics.top_k(np.zeros((3, 256), np.int64), 8).tolist() == [list(range(8))] * 3


logit_rows = st.lists(st.integers(-(2**28), 2**28), min_size=1, max_size=256)
near_rows = st.lists(st.integers(-600, 600), min_size=1, max_size=256)


@quick
@given(st.one_of(logit_rows, near_rows), st.integers(-4, 16))
def test_gate_weights(logits: list[int], shift: int) -> None:
    row = np.array([logits])
    order = numerics.top_k(row, len(logits))
    weights = numerics.gate_weights(row, order, shift)[0]
    assert weights.min() >= 0 and weights.max() <= 65535
    assert (np.diff(weights) <= 0).all()  # best first: order follows the logits
    assert weights.sum() <= numerics.gate_weight_sum_bound(len(logits))
    power = numerics.exp2_negative(numerics.shift_floor(row.max() - row, shift))[0][order[0]]
    exact = power / power.sum() * 65536
    # Rounding, the reciprocal's relative error of 2^-15, and the clip of 65536 to 65535.
    assert np.abs(weights - exact).max() <= 0.5 + 2.0 + 1e-6
    chosen = order[:, : min(4, len(logits))]
    assert np.array_equal(numerics.gate_weights(row, chosen, shift)[0], weights[: chosen.shape[1]])


def test_gate_weights_follow_the_softmax_over_all_experts() -> None:
    """Chosen weights are not renormalized: two equal experts among four keep a quarter each."""
    row = np.zeros((1, 4), np.int64)
    chosen = numerics.top_k(row, 2)
    assert chosen.tolist() == [[0, 1]]
    assert numerics.gate_weights(row, chosen, 0).tolist() == [[16384, 16384]]
    assert numerics.gate_weights(np.zeros((1, 1), int), np.zeros((1, 1), int), 0).tolist() == [[65535]]


def test_gate_weight_error_against_float() -> None:
    rng = np.random.default_rng(3)
    logits = rng.integers(-2048, 2048, (5000, 16))  # ±8 octaves in Q8
    order = np.broadcast_to(np.arange(16), logits.shape)
    found = numerics.gate_weights(logits, order, 0) / 65536
    power = 2.0 ** (logits / 256 - logits.max(axis=1, keepdims=True) / 256)
    exact = power / power.sum(axis=1, keepdims=True)
    assert np.abs(found - exact).max() < 7e-4
    assert np.abs(found - exact).mean() < 1e-4


def test_gelu_reads_the_table_at_x_plus_128() -> None:
    table = np.arange(-128, 128).astype(np.int8)[::-1].copy()
    x = np.arange(-128, 128).astype(np.int8)
    assert np.array_equal(numerics.gelu(x, table), table)
