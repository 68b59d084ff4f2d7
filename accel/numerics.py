"""The numeric contract: every rule that turns integers into integers, and nothing else.

All functions take and return NumPy integer arrays; none uses floating point. Training (in its integer mode), the
golden model, the ONNX referee, HLS and RTL implement exactly these functions. ``docs/numerics.md`` is the page
that goes with this module; ties, bounds and the reasons behind each choice are worked there.

Exponent convention: an integer ``v`` at exponent ``e`` stands for the real number v · 2^e.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from accel.tables import EXP2, EXP2_BITS, RSQRT

Ints = NDArray[Any]

RESIDUAL_BITS = 16
BIAS_BITS = 32
ACCUMULATOR_BITS = 32
COMBINE_FRACTION = 16
"""Combine weights are u17 fractions of 2^16: 65536 is 1.0 (dense layers), gates give at most 65535."""
COMBINE_ONE = 1 << COMBINE_FRACTION
COMBINE_BITS = 36
"""Width of the accumulator that holds residual << 16 plus all weighted unit outputs."""
SHIFT_MIN, SHIFT_MAX = -8, 31
"""Requantization shifts that the engine implements; export refuses others."""
OCTAVE_SHIFT_MIN, OCTAVE_SHIFT_MAX = -16, 31
"""Shifts that bring attention scores and gate logits to octaves in Q8."""
GAMMA_BITS, GAMMA_FRACTION = 16, 12
BETA_FRACTION = 22
NORM_FRACTION = 10
"""LayerNorm: x̂ in Q10 (s16), gamma in Q12 (s16), beta in Q22 (s32)."""
PROBABILITY_MAX = 254
"""Largest attention probability (u8): P − 127 then fits the narrow range of the array's weight operand."""
RECIPROCAL_BITS = 31
INPUT_EXPONENT = -7
"""Pixels enter as u8 − 128 at exponent −7."""


def bounds(bits: int, narrow: bool = False) -> tuple[int, int]:
    """Smallest and largest value of a signed width; narrow range leaves out the most negative one."""
    high = (1 << (bits - 1)) - 1
    return (-high if narrow else -high - 1), high


def saturate(value: Ints, bits: int, narrow: bool = False) -> Ints:
    """Clip to a signed width. Nothing in the contract wraps."""
    return np.clip(value, *bounds(bits, narrow))


def shift_round_even(value: Ints, shift: Ints | int) -> Ints:
    """value · 2^-shift, rounded half to even; a negative shift multiplies exactly.

    Ties with shift 1: 1 → 0, 3 → 2, 5 → 2, −1 → 0, −3 → −2, −5 → −2. The tie goes to the even neighbour because
    adding ``half − 1`` plus the bit that will become the last one carries only from above half, or from half when
    that bit is odd. Magnitudes must leave room for the result in int64.
    """
    wide = np.asarray(value, dtype=np.int64)
    right = np.maximum(np.asarray(shift, dtype=np.int64), 0)
    left = np.maximum(-np.asarray(shift, dtype=np.int64), 0)
    half = np.where(right > 0, (np.int64(1) << np.maximum(right - 1, 0)) - 1, 0)
    odd = np.where(right > 0, (wide >> right) & 1, 0)
    return ((wide + half + odd) >> right) << left


def shift_floor(value: Ints, shift: Ints | int) -> Ints:
    """value · 2^-shift, rounded down; a negative shift multiplies exactly."""
    wide = np.asarray(value, dtype=np.int64)
    amount = np.asarray(shift, dtype=np.int64)
    return (wide >> np.maximum(amount, 0)) << np.maximum(-amount, 0)


def requantize(accumulator: Ints, shift: Ints | int, bits: int, narrow: bool = False) -> Ints:
    """Accumulator to activation: shift right half to even, then saturate. ``shift`` broadcasts per channel."""
    return saturate(shift_round_even(accumulator, shift), bits, narrow)


def linear(x: Ints, weight: Ints, bias: Ints) -> Ints:
    """Accumulators of a linear layer: x [..., K] · weight [O, K] transposed + bias [O]."""
    return np.asarray(x, np.int64) @ np.asarray(weight, np.int64).T + np.asarray(bias, np.int64)


def accumulator_bound(weight: Ints, bias: Ints, activation_bits: int = 8) -> int:
    """Largest |accumulator| any input can cause: 2^(bits-1) · max over outputs of Σ|w| + |b|."""
    magnitude = np.abs(np.asarray(weight, np.int64)).sum(axis=-1) << (activation_bits - 1)
    return int((magnitude + np.abs(np.asarray(bias, np.int64))).max(initial=0))


def bit_length(value: Ints) -> Ints:
    """Bits needed for a positive integer below 2^63 (0 for 0)."""
    rest = np.array(value, dtype=np.int64)
    length = np.zeros_like(rest)
    for step in (32, 16, 8, 4, 2, 1):
        above = rest >> step > 0
        length += np.where(above, step, 0)
        rest = np.where(above, rest >> step, rest)
    return length + (rest > 0)


def reciprocal(value: Ints) -> tuple[Ints, Ints]:
    """1 / value ≈ R · 2^-(31 + k) for value ≥ 1, with R in [2^15, 2^16].

    value is normalized to m = value · 2^-k in [2^15, 2^16) (rounded down), then R = ⌊2^31 / m⌋. The relative
    error is below 2^-15: either normalizing loses something (value ≥ 2^16) or the division does, R ≥ 2^15.
    """
    k = bit_length(value) - 16
    return (np.int64(1) << RECIPROCAL_BITS) // shift_floor(value, k), k


def exp2_negative(u: Ints) -> Ints:
    """2^(−u/256) in Q15 for u ≥ 0: EXP2[u mod 256] >> (u / 256), and 0 from u = 4096 on."""
    index = np.asarray(u, dtype=np.int64)
    octave = index >> EXP2_BITS
    return np.where(octave < 16, EXP2[index & 255] >> np.minimum(octave, 15), 0)


def gelu(x: Ints, table: Ints) -> Ints:
    """GELU by table: ``table`` [256] int8, indexed by x + 128."""
    return np.asarray(table)[np.asarray(x, np.int64) + 128]


def reciprocal_sqrt(value: Ints) -> tuple[Ints, Ints]:
    """1 / √value ≈ R · 2^-(31 + k) for 1 ≤ value < 2^62, relative error at most 1e-4.

    value = m · 4^k with m in [2^30, 2^32); table estimate, then one Newton step.
    """
    k = (bit_length(value) - 31) >> 1
    m = shift_floor(value, 2 * k)
    estimate = RSQRT[(m >> 25) - 32]
    square = (((m * estimate) >> 16) * estimate) >> 16
    return (estimate * ((3 << 30) - square) + (1 << 30)) >> 31, k


def layer_norm(x: Ints, gamma: Ints, beta: Ints, eps: int, exponent_out: int, bits: int = 8) -> Ints:
    """LayerNorm of int16 rows to activations, without a division by D (D ≤ 1024).

    Args:
        x: residual, [..., D] int16.
        gamma: [D] s16 in Q12.
        beta: [D] s32 in Q22.
        eps: round(1e-6 · D² · 4^-e) for a residual at exponent e, see :func:`norm_epsilon`.
        exponent_out: exponent of the result.
        bits: width of the result.

    With S₁ = Σx and S₂ = Σx²: variance · D² = D·S₂ − S₁², x̂ = (D·x − S₁) / √(that + eps).
    """
    wide = np.asarray(x, dtype=np.int64)
    width = wide.shape[-1]
    total = wide.sum(axis=-1, keepdims=True)
    squares = (wide * wide).sum(axis=-1, keepdims=True)
    variance = np.maximum(width * squares - total * total + eps, 1)
    scale, k = reciprocal_sqrt(variance)
    normalized = saturate(shift_round_even((width * wide - total) * scale, k + (31 - NORM_FRACTION)), 16)
    shift = NORM_FRACTION + GAMMA_FRACTION + exponent_out
    return requantize(normalized * np.asarray(gamma, np.int64) + np.asarray(beta, np.int64), shift, bits)


def norm_epsilon(width: int, residual_exponent: int) -> int:
    """LayerNorm's 1e-6 in units of variance · D² of the integer residual: round(D² · 4^-e / 10^6)."""
    scaled = width * width * 4 ** max(-residual_exponent, 0)
    divisor = 1_000_000 * 4 ** max(residual_exponent, 0)
    return (2 * scaled + divisor) // (2 * divisor)


def attention_probabilities(scores: Ints, shift: int) -> Ints:
    """Unnormalized softmax of a row of scores, relative to its maximum: u8 in 0…254.

    ``scores`` [..., N] are integers whose exponent is −(shift + 8) in units of octaves: log2(e)/√d is folded into
    the query weights, so z = max − score needs only a shift to become u in Q8.
    """
    wide = np.asarray(scores, dtype=np.int64)
    distance = wide.max(axis=-1, keepdims=True) - wide
    return (PROBABILITY_MAX * exp2_negative(shift_floor(distance, shift)) + (1 << 14)) >> 15


def attention_output(weighted: Ints, total: Ints, shift: int, bits: int = 8) -> Ints:
    """Divide Σ p·v by Σ p and requantize: sat(RHE(weighted · R, 31 + k + shift)).

    Args:
        weighted: Σ p·v per channel, [..., d].
        total: Σ p per row, [..., 1], at least 254.
        shift: exponent of the output minus exponent of v.
        bits: width of the result.
    """
    factor, k = reciprocal(total)
    return requantize(np.asarray(weighted, np.int64) * factor, RECIPROCAL_BITS + k + shift, bits)


def top_k(logits: Ints, k: int) -> Ints:
    """Indices of the k largest logits per row, best first, ties to the lower expert index. [..., E] → [..., k]."""
    return np.argsort(-np.asarray(logits, np.int64), axis=-1, kind="stable")[..., :k]


def gate_weights(logits: Ints, chosen: Ints, shift: int) -> Ints:
    """Softmax over all experts, read at the chosen ones and not renormalized (M³ViT ``noisy_vmoe``).

    Args:
        logits: [..., E] at exponent −(shift + 8) in octaves (log2(e) is folded into the gate's weights).
        chosen: [..., k] expert indices from :func:`top_k`.
        shift: shift of z = max − logit to Q8.

    Returns:
        [..., k] combine weights, u16 fractions of 2^16, at most 65535.
    """
    wide = np.asarray(logits, dtype=np.int64)
    distance = wide.max(axis=-1, keepdims=True) - wide
    power = exp2_negative(shift_floor(distance, shift))
    factor, k = reciprocal(power.sum(axis=-1, keepdims=True))
    weights = shift_round_even(power * factor, RECIPROCAL_BITS - COMBINE_FRACTION + k)
    return np.take_along_axis(np.minimum(weights, COMBINE_ONE - 1), chosen, axis=-1)


def combine_start(residual: Ints) -> Ints:
    """Wide accumulator at the start of a layer: residual << 16."""
    return np.asarray(residual, dtype=np.int64) << COMBINE_FRACTION


def combine_finish(accumulator: Ints) -> Ints:
    """Wide accumulator to the new residual: one rounding for all contributions, then saturation to int16."""
    return requantize(accumulator, COMBINE_FRACTION, RESIDUAL_BITS)


def combine_bound(units: int, weight_sum: int) -> int:
    """Largest |wide accumulator|: |residual| << 16 plus ``units`` contributions per unit of combine weight.

    ``weight_sum`` is the largest sum of the combine weights of one token (65536 for dense layers,
    :func:`gate_weight_sum_bound` for MoE), ``units`` the units an MLP or expert is cut into.
    """
    return (1 << 31) + units * weight_sum * (1 << 15)


def gate_weight_sum_bound(experts: int) -> int:
    """Bound of the sum of one token's combine weights.

    Each weight is P·R/2^(15+k) rounded; R/2^(31+k) exceeds 1/S by less than 2^-15 of it because normalizing S drops
    less than one part in 2^15, so the exact weights add up to less than 65536 · (1 + 2^-15) = 65538, and each
    rounding adds at most one half.
    """
    return COMBINE_ONE + 2 + (experts + 1) // 2
