"""Each rule of the contract in ONNX operators, at limits where a small network does not go."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper

from accel import numerics
from accel.params import Gate, LayerNorm
from quant.onnx_ops import IntegerGraph

Arrays = dict[str, NDArray[Any]]


def run_graph(graph: IntegerGraph, results: dict[str, str], **inputs: NDArray[Any]) -> list[Arrays]:
    """Run float64 results of a graph without and with optimization; all must be integers."""
    for name, value in results.items():
        graph.op("Cast", value, name=name, to=TensorProto.INT64)
        graph.output(name, TensorProto.INT64, [])
    serialized = graph.model({})
    for output in serialized.graph.output:
        output.type.tensor_type.ClearField("shape")
    found = []
    for level in ("ORT_DISABLE_ALL", "ORT_ENABLE_ALL"):
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(serialized.SerializeToString(), options)
        found.append(dict(zip(results, session.run(list(results), inputs), strict=True)))
    return found


def value_input(graph: IntegerGraph, name: str, value: NDArray[Any]) -> str:
    return graph.double(graph.input(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape))


@pytest.mark.parametrize("left", [-128, -127, 127])
def test_int8_times_uint8_does_not_saturate_in_pairs(left: int) -> None:
    """1,201 products of ±127 with 255 (and alternating signs) in one sum, A and B from inputs."""
    a = np.full((3, 4, 1201), left, np.int8)
    a[:, 1, ::2] = -127
    a[:, 2, ::3] = 127
    b = np.full((3, 1201, 33), 255, np.uint8)
    b[:, ::5, 1] = 0
    graph = IntegerGraph("product")
    signed, unsigned = graph.input("a", TensorProto.INT8, a.shape), graph.input("b", TensorProto.UINT8, b.shape)
    for found in run_graph(graph, {"product": graph.matmul(signed, unsigned)}, a=a, b=b):
        assert np.array_equal(found["product"], a.astype(np.int64) @ b.astype(np.int64))


def test_requantize_every_shift() -> None:
    small = np.arange(-4097, 4098)
    edges = [sign * ((1 << bit) + near) for bit in range(12, 31) for near in (-1, 0, 1) for sign in (-1, 1)]
    value = np.concatenate([small, edges]).astype(np.int64)[:, None]
    shift = np.arange(numerics.SHIFT_MIN, numerics.SHIFT_MAX + 1)
    cases = list(itertools.product((2, 8, 16), (False, True)))
    graph = IntegerGraph("requantize")
    x = value_input(graph, "x", value)
    results = {f"{bits}.{narrow}": graph.requantize(x, shift, bits, narrow) for bits, narrow in cases}
    results |= {"round": graph.shift_round_even(x, shift), "floor": graph.shift_floor(x, shift)}
    for found in run_graph(graph, results, x=value):
        for bits, narrow in cases:
            assert np.array_equal(found[f"{bits}.{narrow}"], numerics.requantize(value, shift, bits, narrow))
        assert np.array_equal(found["round"], numerics.shift_round_even(value, shift))
        assert np.array_equal(found["floor"], numerics.shift_floor(value, shift))


def test_bit_length_and_reciprocals_around_every_power() -> None:
    powers = [(1 << bit) + near for bit in range(1, 52) for near in (-1, 0, 1)]
    value = np.concatenate([powers, np.random.default_rng(3).integers(1, 1 << 51, 4000)]).astype(np.int64)
    graph = IntegerGraph("reciprocal")
    x = value_input(graph, "x", value)
    inverse, root = graph.reciprocal(x), graph.reciprocal_sqrt(x)
    names = {"bits": graph.bit_length(x), "r": inverse[0], "k": inverse[1], "root": root[0], "root_k": root[1]}
    expected = [numerics.bit_length(value), *numerics.reciprocal(value), *numerics.reciprocal_sqrt(value)]
    for found in run_graph(graph, names, x=value):
        for name, wanted in zip(names, expected, strict=True):
            assert np.array_equal(found[name], wanted), name


@pytest.mark.parametrize("width", [1, 3, 1024])
@pytest.mark.parametrize("exponent", [-22, -5, 15])
def test_layer_norm_at_its_widest(width: int, exponent: int) -> None:
    rng = np.random.default_rng(width)
    x = rng.integers(-32768, 32768, (12, width)).astype(np.int16)
    x[0], x[1], x[2], x[3], x[4, ::2], x[5] = 0, 32767, -32768, 0, -32768, rng.integers(-1, 2, width)
    x[3, 0], x[4, 1::2], x[6], x[6, -1] = -32768, 32767, 32766, 32767
    gamma = rng.choice([-32768, 32767, 4096, 1], width).astype(np.int16)
    beta = rng.choice([-(2**31), 2**31 - 1, 0], width).astype(np.int32)
    for eps in (0, numerics.norm_epsilon(width, -10), 1 << 50):
        graph = IntegerGraph("norm")
        norm = LayerNorm(gamma, beta, eps, exponent)
        result = graph.layer_norm(value_input(graph, "x", x), norm, width, 8)
        for found in run_graph(graph, {"y": result}, x=x):
            assert np.array_equal(found["y"], numerics.layer_norm(x, gamma, beta, eps, exponent))


@pytest.mark.parametrize("score_shift", [-16, 0, 6, 31])
@pytest.mark.parametrize("output_shift", [-16, 0, 16])
def test_attention_of_many_tokens(score_shift: int, output_shift: int) -> None:
    rng = np.random.default_rng(5)
    q, k, v = rng.integers(-127, 128, (3, 2, 2, 600, 8)).astype(np.int8)
    v[1] = rng.choice([-127, 127], v[1].shape)
    v[1, 0, :, 0], v[1, 0, :, 1] = 127, -127
    graph = IntegerGraph("attention")
    query, key, value = (graph.input(name, TensorProto.INT8, q.shape) for name in "qkv")
    result = graph.attention(query, key, value, score_shift, output_shift, 8)
    q64, k64, v64 = (part.astype(np.int64) for part in (q, k, v))
    probability = numerics.attention_probabilities(q64 @ k64.swapaxes(-1, -2), score_shift)
    total = probability.sum(-1, keepdims=True)
    expected = numerics.attention_output(probability @ v64, total, output_shift).swapaxes(-1, -2)
    for found in run_graph(graph, {"y": result}, q=q, k=k, v=v):
        assert np.array_equal(found["y"], expected)


@pytest.mark.parametrize(("experts", "top_k"), [(1, 1), (8, 8), (256, 8)])
@pytest.mark.parametrize("shift", [-16, 2, 31])
def test_routing_with_ties(experts: int, top_k: int, shift: int) -> None:
    rng = np.random.default_rng(experts)
    x = rng.integers(-128, 128, (2, 40, 6)).astype(np.int8)
    x[0, :4] = 0
    weight = rng.integers(-2, 3, (experts, 6)).astype(np.int8)
    bias = rng.choice([0, 0, 0, 5], experts).astype(np.int32)
    if shift == -16:
        bias[-1] = (1 << 30) - 2000  # the largest distance a gate may have
    graph = IntegerGraph("route")
    operand = graph.input("x", TensorProto.INT8, x.shape)
    chosen, weights = graph.route(operand, Gate(weight, bias, shift), top_k, "chosen")
    logits = numerics.linear(x, weight, bias)
    expected = numerics.top_k(logits, top_k)
    for found in run_graph(graph, {"experts": chosen, "weights": weights}, x=x):
        assert np.array_equal(found["experts"], expected)
        assert np.array_equal(found["weights"], numerics.gate_weights(logits, expected, shift))
