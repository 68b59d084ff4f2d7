"""Lookup tables of the numeric contract. They are data: every implementation carries these integers.

The two constant tables come from exact integer roots, never from a mathematics library, and tests hold them to
their formulas and to the hashes below. GELU depends on two exponents, so its table is made at export and
travels in the bundle.
"""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

EXP2_BITS = 8
"""Index bits of EXP2: fractions of an octave in units of 2^-8."""


def _exp2() -> list[int]:
    """round(2^(15 - i/256)) for i in 0..255: half of floor(2x) + 1, where (2x)^256 = 2^(4096 - i)."""
    table = []
    for i in range(256):
        doubled = 1 << (4096 - i)
        for _ in range(8):  # eight square roots make the 256th; flooring each floors the whole
            doubled = math.isqrt(doubled)
        table.append((doubled + 1) // 2)
    return table


def _rsqrt() -> list[int]:
    """round(2^31 / sqrt((i + 1/2) * 2^25)) for i in 32..127, by integer square roots."""
    table = []
    for i in range(32, 128):
        square = Fraction(1 << 62, (2 * i + 1) << 24)  # x^2
        doubled = math.isqrt(4 * square.numerator // square.denominator)  # floor(2x)
        table.append((doubled + 1) // 2)
    return table


EXP2: NDArray[np.int64] = np.array(_exp2(), dtype=np.int64)
"""Shape [256], u16: 2^(-i/256) in Q15."""

RSQRT: NDArray[np.int64] = np.array(_rsqrt(), dtype=np.int64)
"""Shape [96], u16: first estimate of 2^31 / sqrt(m) for m in [2^30, 2^32), index (m >> 25) - 32."""

SHA256 = {
    "EXP2": "88a1cebe319d8ab5abf9247b76fe790d0c323ffe025a2d976962a16458c172ce",
    "RSQRT": "f0708dbd92a561fd517fd4a381ae33e6e0b0a3f563a8e6d3836d0d0cfdf4134d",
}
"""SHA-256 of each table as little-endian 16-bit words; emitted packages quote them."""

EXP2.flags.writeable = False
RSQRT.flags.writeable = False


def gelu(exponent_in: int, exponent_out: int, bits: int = 8) -> NDArray[np.int8]:
    """GELU as a table over its int8 input.

    Entry ``x + 128`` is sat(round_half_even(gelu(x · 2^exponent_in) · 2^-exponent_out)) for x in −128…127, with
    gelu(v) = v · Φ(v) and the exact Gaussian distribution function (Hendrycks and Gimpel 2016, eq. 1).

    Returns:
        int8 array of shape [256], saturated to ``bits`` bits.
    """
    table = np.empty(256, dtype=np.int8)
    low, high = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    for x in range(-128, 128):
        value = math.ldexp(x, exponent_in)
        # erfc keeps its precision in the negative tail, where 1 + erf cancels.
        exact = 0.5 * value * math.erfc(-value / math.sqrt(2.0))
        table[x + 128] = min(max(round(math.ldexp(exact, -exponent_out)), low), high)
    return table
