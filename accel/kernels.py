"""The numeric contract at the speed of BLAS.

Every function gives exactly the integers of :mod:`accel.numerics` (tests compare them), but computes with floats
that hold integers: products and sums are exact as long as they stay within the mantissa, a power-of-two scale changes
only the exponent, and ``np.rint`` rounds half to even, which is the contract's rounding. Each function picks float32
or float64 from a bound that holds for every input, never from the data at hand.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from accel import numerics
from accel.params import LayerNorm, Linear, Unit

try:
    from threadpoolctl import ThreadpoolController
except ImportError:  # an optional accelerator of this module, not part of the contract
    ThreadpoolController = None

Array = NDArray[Any]

_EXACT32 = 1 << 24
_EXACT64 = 1 << 53


def exact_float(bound: int) -> type[np.floating[Any]]:
    """Smallest float type that holds every integer up to ``bound`` exactly."""
    if bound <= _EXACT32:
        return np.float32
    if bound <= _EXACT64:
        return np.float64
    raise OverflowError(f"no float holds integers up to {bound} exactly")


_WORKER = "golden"
_ROWS_PER_TASK = 256


@lru_cache(maxsize=1)
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1), thread_name_prefix=_WORKER)


def parallel(function: Callable[[int], None], items: Iterable[int]) -> None:
    """Run ``function`` on each item on all cores; NumPy releases the interpreter lock inside."""
    work = list(items)
    if len(work) < 2 or threading.current_thread().name.startswith(_WORKER):
        for item in work:  # a worker that waited for workers could wait forever
            function(item)
        return
    list(_pool().map(function, work))


@lru_cache(maxsize=1)
def _blas() -> Any:
    return ThreadpoolController() if ThreadpoolController is not None else None


def one_blas_thread() -> AbstractContextManager[Any]:
    """Keep BLAS from starting threads of its own while ours share the work.

    Its threads wait actively for each other; on a busy machine frames took up to six times as long with them.
    """
    controller = _blas()
    return contextlib.nullcontext() if controller is None else controller.limit(limits=1, user_api="blas")


class PreparedLinear:
    """A linear layer with its weights as floats of the type that keeps its accumulators exact."""

    def __init__(self, layer: Linear) -> None:
        self.layer = layer
        self.dtype = exact_float(numerics.accumulator_bound(layer.weight, layer.bias))

    @cached_property
    def _floats(self) -> tuple[Array, Array, Array]:
        weight = np.ascontiguousarray(self.layer.weight.T.astype(self.dtype))
        scale = np.ldexp(np.ones(self.layer.outputs, self.dtype), -self.layer.shift.astype(np.int64))
        return weight, self.layer.bias.astype(self.dtype), scale

    def __call__(self, x: Array, bits: int, narrow: bool = False) -> Array:
        """x [N, K] integer-valued → sat(RHE(x·Wᵀ + b, shift)) [N, O], integer-valued floats."""
        weight, bias, scale = self._floats
        low, high = numerics.bounds(bits, narrow)
        result = np.empty((x.shape[0], self.layer.outputs), self.dtype)

        def rows_from(start: int) -> None:
            rows = slice(start, start + _ROWS_PER_TASK)
            accumulator = result[rows]
            np.matmul(x[rows].astype(self.dtype, copy=False), weight, out=accumulator)
            accumulator += bias
            accumulator *= scale
            np.rint(accumulator, out=accumulator)
            np.clip(accumulator, low, high, out=accumulator)

        parallel(rows_from, range(0, x.shape[0], _ROWS_PER_TASK))
        return result


class PreparedUnit:
    """A unit (first → GELU → second) ready to compute."""

    def __init__(self, unit: Unit) -> None:
        self.first = PreparedLinear(unit.first)
        self.second = PreparedLinear(unit.second)
        self.gelu = unit.gelu.astype(np.float32)

    def __call__(self, x: Array, bits: int) -> Array:
        """x [N, D] → int16-valued contribution [N, D]."""
        return self.second(apply_gelu(self.first(x, bits), self.gelu), numerics.RESIDUAL_BITS)


def apply_gelu(x: Array, table: Array) -> Array:
    """GELU by a float copy of its table; x integer-valued −128…127."""
    return np.take(table, x.astype(np.int16) + np.int16(128))


def layer_norm(x: Array, norm: LayerNorm, bits: int) -> Array:
    """numerics.layer_norm in float64: centred values × R stay below 2^45 and everything after below 2^33."""
    wide = x.astype(np.float64)
    width = x.shape[-1]
    total = wide.sum(axis=-1, keepdims=True).astype(np.int64)
    squares = np.einsum("...d,...d->...", wide, wide)[..., None].astype(np.int64)
    variance = np.maximum(width * squares - total * total + norm.eps, 1)
    factor, k = numerics.reciprocal_sqrt(variance)
    wide *= width
    wide -= total
    wide *= np.ldexp(factor.astype(np.float64), -(k + numerics.RECIPROCAL_BITS - numerics.NORM_FRACTION))
    np.rint(wide, out=wide)
    np.clip(wide, *numerics.bounds(16), out=wide)
    wide *= norm.gamma
    wide += norm.beta
    wide *= np.ldexp(1.0, -(numerics.NORM_FRACTION + numerics.GAMMA_FRACTION + norm.exponent))
    np.rint(wide, out=wide)
    return np.clip(wide, *numerics.bounds(bits), out=wide)


@lru_cache(maxsize=1)
def _probability_table() -> Array:
    """Probability for every distance u in Q8; the last entry stands for all from 4096 on."""
    u = np.arange(4097)
    power = numerics.exp2_negative(u)
    return ((numerics.PROBABILITY_MAX * power + (1 << 14)) >> 15).astype(np.float32)


def attention(qkv: Array, heads: int, score_shift: int, output_shift: int, bits: int) -> Array:
    """Multi-head attention on int8 [N, 3·D] (q, k, v side by side, heads in order) → integer-valued [N, D].

    Scores stay below 127² · head_dim ≤ 2^24. Σ p·v is cut into runs of 512 keys, so that 254 · 127 · 512 < 2^24.
    """
    tokens, width = qkv.shape[0], qkv.shape[1] // 3
    head_dim = width // heads
    q, k, v = (qkv[:, i * width : (i + 1) * width].astype(np.float32) for i in range(3))
    k *= np.float32(2.0**-score_shift)
    table = _probability_table()
    output = np.empty((tokens, width), np.float64)

    def one_head(head: int) -> None:
        columns = slice(head * head_dim, (head + 1) * head_dim)
        scores = q[:, columns] @ k[:, columns].T
        np.subtract(scores.max(axis=1, keepdims=True), scores, out=scores)
        np.minimum(scores, np.float32(4096), out=scores)
        probability = np.take(table, scores.astype(np.int32), out=scores, mode="clip")
        total = probability.sum(axis=1, dtype=np.float64).astype(np.int64)[:, None]
        weighted = np.zeros((tokens, head_dim), np.float64)
        for start in range(0, tokens, 512):
            keys = slice(start, start + 512)
            weighted += probability[:, keys] @ v[keys, columns]
        factor, shift = numerics.reciprocal(total)
        # |Σ p·v| < 2^27 and R ≤ 2^16: the product is exact in float64.
        weighted *= np.ldexp(factor.astype(np.float64), -(numerics.RECIPROCAL_BITS + shift + output_shift))
        np.rint(weighted, out=weighted)
        output[:, columns] = np.clip(weighted, *numerics.bounds(bits))

    parallel(one_head, range(heads))
    return output
