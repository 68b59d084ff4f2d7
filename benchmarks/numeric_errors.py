"""Measure how far the numeric contract's integer functions are from real arithmetic.

Writes one JSON object; ``docs/numerics.md`` quotes it. All figures follow from the seed.

    python -m benchmarks.numeric_errors --out build/benchmarks/numeric_errors.json
"""

from __future__ import annotations

from typing import Any

import numpy as np

from accel import numerics
from accel.config import digest
from accel.tables import SHA256
from benchmarks.common import parser, report

ATTENTION_CASES = ((65, 0.5), (129, 1.5), (1025, 0.5), (1025, 1.5), (1025, 4.0))
"""Keys and standard deviation of the natural-logarithm scores."""


def _summary(error: np.ndarray) -> dict[str, float]:
    error = np.abs(error)
    return {"mean": round(float(error.mean()), 7), "max": round(float(error.max()), 7)}


def reciprocals() -> dict[str, Any]:
    """Relative errors of 1/x, exhaustive to 20 bits, and of 1/√x, over a dense sweep of two octaves."""
    values = np.arange(1, 1 << 20)
    factor, k = numerics.reciprocal(values)
    inverse = factor * values * 2.0 ** -(31.0 + k) - 1
    m = np.arange(1 << 30, 1 << 32, 1021)
    factor, k = numerics.reciprocal_sqrt(m)
    root = factor * np.sqrt(m.astype(np.float64)) * 2.0 ** -(31.0 + k) - 1
    return {"reciprocal": _summary(inverse), "reciprocal_sqrt": _summary(root)}


def layer_norm(rng: np.random.Generator) -> dict[str, Any]:
    """LayerNorm output in LSB before rounding (0.5 maximum and 0.25 mean would be perfect)."""
    result = {}
    exponent, residual, rows = -5, -10, 400
    for width in (96, 192, 384, 1024):
        rows_of = {
            "gaussian": rng.normal(0, 700, (rows, width)),
            "outlier": rng.normal(0, 700, (rows, width)) * np.where(np.arange(width) == 3, 12, 1),
            "offset": rng.normal(0, 300, (rows, width)) + 9000,
            "small": rng.normal(0, 14, (rows, width)),
        }
        gamma = np.rint(4096 * rng.normal(1.0, 0.2, width)).astype(np.int16)
        beta = np.rint(2**22 * rng.normal(0.0, 0.2, width)).astype(np.int32)
        for name, values in rows_of.items():
            x = np.clip(np.rint(values), -32768, 32767).astype(np.int16)
            found = numerics.layer_norm(x, gamma, beta, numerics.norm_epsilon(width, residual), exponent)
            real = x * 2.0**residual
            scale = np.sqrt(real.var(1, keepdims=True) + 1e-6)
            exact = (real - real.mean(1, keepdims=True)) / scale * (gamma / 4096) + beta / 2**22
            exact = np.clip(exact * 2.0**-exponent, -128, 127)
            off = float((found != np.rint(exact)).mean())
            result[f"{width} {name}"] = {**_summary(found - exact), "off_by_one": round(off, 5)}
    return result


def attention(rng: np.random.Generator) -> dict[str, Any]:
    """Attention output in LSB of v, for u8 probabilities relative to the maximum and normalized to 2^-8."""
    result = {}
    score_shift = 6
    unit = np.log(2.0) * 2.0 ** -(score_shift + 8)  # one step of a score, in nats
    for keys, deviation in ATTENTION_CASES:
        scores = np.rint(rng.normal(0, deviation, (400, keys)) / unit).astype(np.int64)
        v = rng.integers(-127, 128, (keys, 32))
        real = np.exp((scores - scores.max(axis=1, keepdims=True)) * unit)
        real /= real.sum(axis=1, keepdims=True)
        p = numerics.attention_probabilities(scores, score_shift)
        total = p.sum(axis=1, keepdims=True)
        fine = 8  # fraction bits of the output, so that its own rounding does not hide the error
        found = numerics.attention_output(p @ v, total, -fine, 32) / 2**fine
        normalized = np.rint(real * 256) @ v / 256
        result[f"{keys} keys, sd {deviation}"] = {
            "largest_probability": round(float(real.max(axis=1).mean()), 4),
            "relative_to_maximum": _summary(found - real @ v),
            "normalized_u8": _summary(normalized - real @ v),
            "normalized_u8_mass_lost": round(float(1 - np.rint(real * 256).sum(axis=1).mean() / 256), 4),
        }
    return result


def gate(rng: np.random.Generator) -> dict[str, Any]:
    """Combine weights against the softmax, in units of 1.0, and the sums of all weights of a token."""
    result = {}
    for experts in (8, 16, 64):
        logits = rng.integers(-1536, 1536, (20000, experts))
        everyone = np.broadcast_to(np.arange(experts), logits.shape)
        weights = numerics.gate_weights(logits, everyone, 0)
        power = 2.0 ** ((logits - logits.max(axis=1, keepdims=True)) / 256)
        sums = weights.sum(axis=1)
        result[f"{experts} experts"] = {
            **_summary(weights / 65536 - power / power.sum(axis=1, keepdims=True)),
            "smallest_sum": int(sums.min()),
            "largest_sum": int(sums.max()),
            "sum_bound": numerics.gate_weight_sum_bound(experts),
        }
    return result


def measure(seed: int) -> dict[str, Any]:
    """All figures, from one seed."""
    rng = np.random.default_rng(seed)
    return {
        "reciprocals": reciprocals(),
        "layer_norm": layer_norm(rng),
        "attention": attention(rng),
        "gate": gate(rng),
    }


def main() -> None:
    arguments = parser("Errors of the numeric contract against real arithmetic.").parse_args()
    # The contract depends on no configuration but on its tables.
    report("numeric_errors", arguments, digest(SHA256)[:16], measure(arguments.seed))


if __name__ == "__main__":
    main()
