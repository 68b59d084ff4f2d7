"""Tables: hashes and formulas, the latter evaluated independently in decimal arithmetic."""

from __future__ import annotations

import hashlib
from decimal import Decimal, getcontext

import numpy as np
import pytest

from accel import tables


@pytest.fixture(autouse=True)
def _precision():
    before = getcontext().prec
    getcontext().prec = 50
    yield
    getcontext().prec = before


@pytest.mark.parametrize("name", ["EXP2", "RSQRT"])
def test_hash(name: str) -> None:
    words = getattr(tables, name).astype("<u2").tobytes()
    assert hashlib.sha256(words).hexdigest() == tables.SHA256[name]


def test_exp2_formula() -> None:
    assert tables.EXP2.shape == (256,)
    for i, entry in enumerate(tables.EXP2.tolist()):
        exact = Decimal(2) ** (Decimal(15) - Decimal(i) / 256)
        assert abs(entry - exact) <= Decimal("0.5")
    assert tables.EXP2[0] == 1 << 15 and tables.EXP2[255] > 1 << 14


def test_rsqrt_formula() -> None:
    assert tables.RSQRT.shape == (96,)
    for i, entry in enumerate(tables.RSQRT.tolist(), start=32):
        exact = Decimal(2) ** 31 / ((Decimal(i) + Decimal("0.5")) * 2**25).sqrt()
        assert abs(entry - exact) <= Decimal("0.5")
    assert tables.RSQRT.max() < 1 << 16


@pytest.mark.parametrize("name", ["EXP2", "RSQRT"])
def test_tables_are_read_only(name: str) -> None:
    with pytest.raises(ValueError):
        getattr(tables, name)[0] = 0


def _normal_cdf(x: Decimal) -> Decimal:
    """Φ(x) = ½ + φ(x)·Σ x^(2n+1) / (1·3·…·(2n+1)), an all-positive series (Marsaglia 2004), |x| ≤ 9 here."""
    term = total = abs(x)
    n = 1
    while term > total * Decimal(10) ** -45 and n < 2000:
        term *= x * x / (2 * n + 1)
        total += term
        n += 1
    pi = Decimal("3.14159265358979323846264338327950288419716939937510582")
    half = (-x * x / 2).exp() / (2 * pi).sqrt() * total
    return Decimal("0.5") + half if x >= 0 else Decimal("0.5") - half


@pytest.mark.parametrize(("exponent_in", "exponent_out", "bits"), [(-5, -5, 8), (-4, -5, 8), (-7, -8, 8), (-4, -3, 4)])
def test_gelu_against_decimal(exponent_in: int, exponent_out: int, bits: int) -> None:
    table = tables.gelu(exponent_in, exponent_out, bits)
    assert table.shape == (256,) and table.dtype == np.int8
    low, high = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    for x in range(-128, 128):
        value = Decimal(x) * Decimal(2) ** exponent_in
        exact = value * _normal_cdf(value) / Decimal(2) ** exponent_out
        expected = min(max(exact, Decimal(low)), Decimal(high))
        # Half a step, and what float64 may add where the true value lies within 1e-12 of a tie.
        assert abs(int(table[x + 128]) - expected) <= Decimal("0.500000000001")


def test_gelu_saturates_on_both_sides_of_its_range() -> None:
    table = tables.gelu(0, -6)
    assert table[255] == 127  # gelu(127) · 64
    assert tables.gelu(-6, -12)[128 - 64] == -128  # gelu(−1) = −0.159: −650 steps of 2^-12
    assert table[128] == 0
