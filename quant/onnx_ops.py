"""The numeric contract in standard ONNX operators: one method per rule of ``accel.numerics``.

How integers stay integers:

* Every value is an integer held in float64, exact below 2^53; only operands of MatMulInteger and lookup indices
  have integer types. The bounds that ``accel.params`` checks keep every intermediate below 2^53.
* A shift is a multiplication by a power of two, which is exact, then Round (half to even by its definition) or
  Floor. ONNX's BitShift takes unsigned integers only.
* The bit length is the number of powers of two that a value reaches, so no logarithm is involved.
* ⌊2^31 / m⌋ is a division of int64.
* MatMulInteger never gets uint8 × int8: CPUs with AVX2 but without VNNI add pairs of those products in
  saturating 16 bits. int8 × int8 and int8 × uint8 are exact.

The rules are written out again here rather than taken from ``accel.numerics``, so that the two can referee each
other; they share only the constants and the tables.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import ArrayLike
from onnx import TensorProto, helper, numpy_helper

from accel import numerics
from accel.params import Gate, LayerNorm, Linear
from accel.tables import EXP2, EXP2_BITS, RSQRT

OPSET = 18
IR_VERSION = 8
"""The oldest file format that carries opset 18, for the widest choice of readers."""

_EXACT_BITS = 53
_POWERS = 64
"""Dynamic shifts lie well inside −64…64; Gather reports an index outside its table."""
_OCTAVES = 16
"""From 16 octaves below the maximum on, 2^(−u/256) is 0 in Q15."""


class IntegerGraph:
    """An ONNX graph under construction. Methods take and return names of tensors.

    A value is a float64 tensor of integers unless a method's description says otherwise.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._nodes: list[onnx.NodeProto] = []
        self._initializers: list[onnx.TensorProto] = []
        self._known: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []

    # Graph

    def input(self, name: str, onnx_type: int, shape: Sequence[int | str]) -> str:
        self._inputs.append(helper.make_tensor_value_info(name, onnx_type, list(shape)))
        return name

    def output(self, name: str, onnx_type: int, shape: Sequence[int | str]) -> None:
        """Declare the existing tensor ``name`` as an output of the graph."""
        self._outputs.append(helper.make_tensor_value_info(name, onnx_type, list(shape)))

    def op(self, kind: str, *inputs: str, name: str = "", **attributes: Any) -> str:
        """Append a node with one output, called ``name`` if given."""
        target = name or f"{kind}_{len(self._nodes)}"
        self._nodes.append(helper.make_node(kind, inputs, [target], **attributes))
        return target

    def constant(self, value: ArrayLike, dtype: type) -> str:
        """An initializer; equal ones are stored once."""
        array: np.ndarray[Any, Any] = np.asarray(value, dtype=dtype, order="C")
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._known:
            self._known[key] = f"constant_{len(self._initializers)}"
            self._initializers.append(numpy_helper.from_array(array, self._known[key]))
        return self._known[key]

    def model(self, metadata: dict[str, str]) -> onnx.ModelProto:
        graph = helper.make_graph(self._nodes, self.name, self._inputs, self._outputs, self._initializers)
        opsets = [helper.make_opsetid("", OPSET)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="m3vit")
        helper.set_model_props(model, metadata)
        return model

    # Shorthand

    def number(self, value: ArrayLike) -> str:
        """A float64 constant."""
        return self.constant(value, np.float64)

    def indices(self, value: ArrayLike) -> str:
        """An int64 constant: shapes, axes, positions."""
        return self.constant(value, np.int64)

    def cast(self, x: str, onnx_type: int, name: str = "") -> str:
        return self.op("Cast", x, name=name, to=onnx_type)

    def double(self, x: str) -> str:
        return self.cast(x, TensorProto.DOUBLE)

    def reshape(self, x: str, *shape: int) -> str:
        return self.op("Reshape", x, self.indices(shape))

    def transpose(self, x: str, *order: int) -> str:
        return self.op("Transpose", x, perm=list(order))

    def _lookup(self, table: str, position: str) -> str:
        return self.op("Gather", table, self.cast(position, TensorProto.INT64))

    # Shifts, saturation, normalization

    def shift_exact(self, x: str, shift: ArrayLike) -> str:
        """x · 2^-shift without rounding: a float64 that may have a fraction. ``shift`` may be per channel."""
        return self.op("Mul", x, self.number(np.ldexp(1.0, -np.asarray(shift, dtype=np.intc))))

    def shift_floor(self, x: str, shift: ArrayLike) -> str:
        return self.op("Floor", self.shift_exact(x, shift))

    def shift_round_even(self, x: str, shift: ArrayLike) -> str:
        return self.op("Round", self.shift_exact(x, shift))

    def shift_computed(self, x: str, k: str, extra: int, rounding: str) -> str:
        """x · 2^-(k + extra) for a computed shift ``k``; ``rounding`` is Floor or Round."""
        table = self.number(np.ldexp(1.0, -np.arange(-_POWERS, _POWERS + 1, dtype=np.intc)))
        power = self._lookup(table, self.op("Add", k, self.number(_POWERS + extra)))
        return self.op(rounding, self.op("Mul", x, power))

    def saturate(self, x: str, bits: int, narrow: bool = False) -> str:
        low, high = numerics.bounds(bits, narrow)
        return self.op("Clip", x, self.number(low), self.number(high))

    def requantize(self, x: str, shift: ArrayLike, bits: int, narrow: bool = False) -> str:
        return self.saturate(self.shift_round_even(x, shift), bits, narrow)

    def bit_length(self, x: str) -> str:
        """Bits of a positive integer below 2^53."""
        powers = self.number(np.ldexp(1.0, np.arange(_EXACT_BITS, dtype=np.intc)))
        reached = self.op("GreaterOrEqual", self.op("Unsqueeze", x, self.indices([-1])), powers)
        return self.op("ReduceSum", self.double(reached), self.indices([-1]), keepdims=0)

    def reciprocal(self, x: str) -> tuple[str, str]:
        """(R, k) with 1 / x ≈ R · 2^-(31 + k), R = ⌊2^31 / ⌊x · 2^-k⌋⌋."""
        k = self.op("Sub", self.bit_length(x), self.number(16))
        m = self.cast(self.shift_computed(x, k, 0, "Floor"), TensorProto.INT64)
        return self.double(self.op("Div", self.indices(1 << numerics.RECIPROCAL_BITS), m)), k

    def reciprocal_sqrt(self, x: str) -> tuple[str, str]:
        """(R, k) with 1 / √x ≈ R · 2^-(31 + k): table estimate of m = x · 4^-k, then one Newton step."""
        k = self.shift_floor(self.op("Sub", self.bit_length(x), self.number(31)), 1)
        m = self.shift_computed(x, self.op("Add", k, k), 0, "Floor")
        entry = self.op("Sub", self.shift_floor(m, 25), self.number(32))
        estimate = self._lookup(self.number(RSQRT), entry)
        square = self.shift_floor(self.op("Mul", m, estimate), 16)
        square = self.shift_floor(self.op("Mul", square, estimate), 16)
        refined = self.op("Mul", estimate, self.op("Sub", self.number(3 << 30), square))
        return self.shift_floor(self.op("Add", refined, self.number(1 << 30)), 31), k

    # Layers

    def matmul(self, a: str, b: str) -> str:
        """Product of an int8 tensor with an int8 or uint8 tensor (never uint8 with int8)."""
        return self.double(self.op("MatMulInteger", a, b))

    def accumulate(self, x: str, weight: np.ndarray[Any, Any], bias: np.ndarray[Any, Any]) -> str:
        """Accumulators of a linear layer: x int8 [..., K], weight int8 [O, K], bias [O]."""
        product = self.matmul(x, self.constant(weight.T, np.int8))
        return self.op("Add", product, self.double(self.constant(bias, np.int32)))

    def linear(self, x: str, layer: Linear, bits: int, narrow: bool = False) -> str:
        """int8 [..., K] → [..., O], requantized per output channel."""
        return self.requantize(self.accumulate(x, layer.weight, layer.bias), layer.shift, bits, narrow)

    def gelu(self, x: str, table: np.ndarray[Any, Any]) -> str:
        """GELU by its table of 256 entries. The result is an int8 tensor, ready for the next layer."""
        return self._lookup(self.constant(table, np.int8), self.op("Add", x, self.number(128)))

    def layer_norm(self, x: str, norm: LayerNorm, width: int, bits: int) -> str:
        """[..., D] → [..., D]; variance · D² = D·Σx² − (Σx)² stays below 2^51, so it is exact."""
        last = self.indices([-1])
        total = self.op("ReduceSum", x, last)
        squares = self.op("Mul", self.op("ReduceSum", self.op("Mul", x, x), last), self.number(width))
        variance = self.op("Sub", squares, self.op("Mul", total, total))
        variance = self.op("Max", self.op("Add", variance, self.number(norm.eps)), self.number(1))
        scale, k = self.reciprocal_sqrt(variance)
        centred = self.op("Sub", self.op("Mul", x, self.number(width)), total)
        fraction = numerics.RECIPROCAL_BITS - numerics.NORM_FRACTION
        scaled = self.shift_computed(self.op("Mul", centred, scale), k, fraction, "Round")
        normalized = self.saturate(scaled, 16)
        affine = self.op("Add", self.op("Mul", normalized, self.number(norm.gamma)), self.number(norm.beta))
        return self.requantize(affine, numerics.NORM_FRACTION + numerics.GAMMA_FRACTION + norm.exponent, bits)

    def exp2_below_maximum(self, x: str, shift: int, axis: int) -> str:
        """2^-(max − x) in Q15, where (max − x) · 2^-shift counts 256ths of an octave."""
        distance = self.op("Sub", self.op("ReduceMax", x, self.indices([axis])), x)
        end = _OCTAVES << EXP2_BITS
        u = self.op("Min", self.shift_floor(distance, shift), self.number(end))
        octave, fraction = np.divmod(np.arange(end), 1 << EXP2_BITS)
        return self._lookup(self.number(np.append(EXP2[fraction] >> octave, 0)), u)

    def attention(self, query: str, key: str, value: str, score_shift: int, output_shift: int, bits: int) -> str:
        """Softmax attention of int8 [B, h, N, d] tensors; the result is [B, h, d, N].

        Scores are kept as [keys, queries]: then v transposed (int8) times the probabilities (uint8) is the
        product in the order of operands that is exact on every CPU.
        """
        scores = self.matmul(key, self.transpose(query, 0, 1, 3, 2))
        power = self.op("Mul", self.exp2_below_maximum(scores, score_shift, -2), self.number(numerics.PROBABILITY_MAX))
        probability = self.shift_floor(self.op("Add", power, self.number(1 << 14)), 15)
        unsigned = self.cast(probability, TensorProto.UINT8)
        weighted = self.matmul(self.transpose(value, 0, 1, 3, 2), unsigned)
        factor, k = self.reciprocal(self.op("ReduceSum", probability, self.indices([-2])))
        shift = numerics.RECIPROCAL_BITS + output_shift
        return self.saturate(self.shift_computed(self.op("Mul", weighted, factor), k, shift, "Round"), bits)

    def route(self, x: str, gate: Gate, top_k: int, chosen_name: str) -> tuple[str, str]:
        """Experts of each token: int8 [B, N, D] → (indices int64, combine weights), both [B, N, k], best first.

        TopK orders equal logits by index, as the contract does.
        """
        logits = self.accumulate(x, gate.weight, gate.bias)
        values = f"{chosen_name}.logits"
        inputs = [logits, self.indices([top_k])]
        self._nodes.append(helper.make_node("TopK", inputs, [values, chosen_name], axis=-1, largest=1, sorted=1))
        power = self.exp2_below_maximum(logits, gate.shift, -1)
        factor, k = self.reciprocal(self.op("ReduceSum", power, self.indices([-1])))
        shift = numerics.RECIPROCAL_BITS - numerics.COMBINE_FRACTION
        weights = self.shift_computed(self.op("Mul", power, factor), k, shift, "Round")
        weights = self.op("Min", weights, self.number(numerics.COMBINE_ONE - 1))
        # The axis counts from the front because onnx's own evaluator misreads a negative one here.
        return chosen_name, self.op("GatherElements", weights, chosen_name, axis=2)

    def combine(self, residual: str, contributions: Sequence[tuple[str, str]]) -> str:
        """sat16(RHE(residual · 2^16 + Σ weight · y, 16)) for (weight, y) pairs: one rounding for all."""
        accumulator = self.op("Mul", residual, self.number(numerics.COMBINE_ONE))
        for weight, y in contributions:
            accumulator = self.op("Add", accumulator, self.op("Mul", weight, y))
        return self.requantize(accumulator, numerics.COMBINE_FRACTION, numerics.RESIDUAL_BITS)
