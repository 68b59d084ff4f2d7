"""The golden integer model: the whole encoder for any task, every boundary recorded on request.

:func:`run_frame` is the one description of how layers follow each other. The layers that the engine computes (patch
embedding, QKV, projection, MLP, experts) go through a :class:`LinearEngine`, so that the same walk runs on plain NumPy
(:class:`GoldenEngine`) or through programs, driver and hardware (``host``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from accel import kernels, numerics
from accel.config import Network
from accel.errors import DataError
from accel.kernels import PreparedLinear, PreparedUnit
from accel.params import Encoder, LayerNorm, LightHead
from accel.routing import Queue, Routing

Array = NDArray[Any]
Trace = dict[str, Array]
"""Boundary name → integers. ``embed``; per block ``blocks.i.`` norm1, qkv, attention, attn_residual, norm2, topk and
weights (MoE only), residual; ``head.norm``, ``head.hidden``, ``head.output``."""


class LinearEngine(Protocol):
    """What the accelerator does for one frame. Layers are named ``patch`` and ``blocks.i.{qkv,proj,mlp}``."""

    def linear(self, layer: str, x: Array) -> Array:
        """int8 [N, K] → int8 [N, O], saturated to narrow range."""
        ...

    def accumulate(self, layer: str, x: Array, residual: Array) -> Array:
        """int8 [N, K] and int16 residual [N, D] → new int16 residual [N, D]."""
        ...

    def mixture(self, layer: str, x: Array, residual: Array, task: str) -> tuple[Array, Routing | None]:
        """MLP or experts: int8 [N, D] and int16 residual → new residual, and the routing if the layer has gates."""
        ...


def check_image(image: Array, network: Network, where: str = "image") -> None:
    """Raise DataError unless ``image`` is uint8 [image_height, image_width, 3]."""
    expected = (network.image_height, network.image_width, 3)
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8:
        raise DataError(f"{where}: expected uint8 pixels, found {getattr(image, 'dtype', type(image).__name__)}")
    if image.shape != expected:
        raise DataError(f"{where}: expected shape {expected} for {network.name}, found {image.shape}")


def patches(image: Array, network: Network) -> Array:
    """uint8 image [H, W, 3] → int8 patch vectors [patches, p·p·3], ordered (py, px, c), at exponent −7."""
    p = network.patch
    grid = image.reshape(network.grid_h, p, network.grid_w, p, 3).transpose(0, 2, 1, 3, 4)
    return (grid.reshape(-1, network.patch_dim).astype(np.int16) - 128).astype(np.int8)


def unpatch(values: Array, network: Network, channels: int) -> Array:
    """[patches, p·p·C] ordered (py, px, c) → [H, W, C]."""
    p = network.patch
    grid = values.reshape(network.grid_h, network.grid_w, p, p, channels).transpose(0, 2, 1, 3, 4)
    return grid.reshape(network.image_height, network.image_width, channels)


def accumulate(residual: Array, contribution: Array) -> Array:
    """int16 residual + int16-valued contribution, saturated: a combine with the single weight 1.0."""
    return np.clip(residual + contribution.astype(np.int32), *numerics.bounds(numerics.RESIDUAL_BITS)).astype(np.int16)


def everyone(tokens: int) -> Queue:
    """The queue of a dense MLP: every token, weight 1.0."""
    return Queue(0, np.arange(tokens), np.full(tokens, numerics.COMBINE_ONE))


def combine_queues(
    residual: Array,
    x: Array,
    queues: Iterable[Queue],
    units: Callable[[Queue], Iterable[PreparedUnit]],
    bits: int,
) -> Array:
    """New int16 residual [N, D] after every queue's tokens x [N, D] went through the units of its expert.

    The wide accumulator stays below 2^36, so float64 holds it exactly and any order of queues gives the same bits.
    """
    accumulator = residual.astype(np.float64) * numerics.COMBINE_ONE
    wide = x.astype(np.float32)
    for queue in queues:
        rows, weights = wide[queue.tokens], queue.weights[:, None].astype(np.float64)
        for unit in units(queue):
            accumulator[queue.tokens] += unit(rows, bits) * weights
    np.rint(np.multiply(accumulator, 2.0**-numerics.COMBINE_FRACTION, out=accumulator), out=accumulator)
    return np.clip(accumulator, *numerics.bounds(numerics.RESIDUAL_BITS)).astype(np.int16)


QueueOrder = Callable[[list[Queue]], list[Queue]]


class GoldenEngine:
    """The engine's share computed directly from an encoder's parameters.

    Args:
        encoder: integer parameters; prepared (float copies of the weights) on first use and kept.
        order: optional reordering of the queues and of the entries within each; any order gives the same bits.
    """

    def __init__(self, encoder: Encoder, order: QueueOrder | None = None) -> None:
        self.network = encoder.network
        self.bits = encoder.formats.activation_bits
        self.order = order
        self._linears = {"patch": PreparedLinear(encoder.patch)}
        self._experts: dict[str, list[list[PreparedUnit]]] = {}
        self._gates: dict[tuple[str, str], tuple[PreparedGate, int]] = {}
        for index, block in enumerate(encoder.blocks):
            name = f"blocks.{index}"
            self._linears[f"{name}.qkv"] = PreparedLinear(block.qkv)
            self._linears[f"{name}.proj"] = PreparedLinear(block.proj)
            self._experts[f"{name}.mlp"] = [[PreparedUnit(unit) for unit in units] for units in block.experts]
            for task, gate in block.gates.items():
                self._gates[f"{name}.mlp", task] = PreparedGate(gate.weight, gate.bias), gate.shift

    def linear(self, layer: str, x: Array) -> Array:
        return self._linears[layer](x, self.bits, narrow=True).astype(np.int8)

    def accumulate(self, layer: str, x: Array, residual: Array) -> Array:
        return accumulate(residual, self._linears[layer](x, numerics.RESIDUAL_BITS))

    def route(self, layer: str, x: Array, task: str) -> Routing:
        """Gate logits, top-k and combine weights of one MoE layer."""
        gate, shift = self._gates[layer, task]
        return route_tokens(gate, x, self.network.top_k, shift)

    def mixture(self, layer: str, x: Array, residual: Array, task: str) -> tuple[Array, Routing | None]:
        experts = self._experts[layer]
        routing = self.route(layer, x, task) if (layer, task) in self._gates else None
        queues = [everyone(len(x))] if routing is None else routing.queues(len(experts))
        if self.order is not None:
            queues = self.order(queues)
        return combine_queues(residual, x, queues, lambda queue: experts[queue.expert], self.bits), routing


class PreparedGate:
    """A gate table with its weights as floats; logits are exact int64."""

    def __init__(self, weight: Array, bias: Array) -> None:
        dtype = kernels.exact_float(numerics.accumulator_bound(weight, bias))
        self.weight = np.ascontiguousarray(weight.T.astype(dtype))
        self.bias = bias.astype(np.int64)

    def logits(self, x: Array) -> Array:
        """int8 [N, D] → int64 [N, E]."""
        return (x.astype(self.weight.dtype) @ self.weight).astype(np.int64) + self.bias


def route_tokens(gate: PreparedGate, x: Array, top_k: int, shift: int) -> Routing:
    """Experts and combine weights of every token: int8 [N, D] → logits → top-k → softmax over all experts."""
    logits = gate.logits(x)
    chosen = numerics.top_k(logits, top_k)
    return Routing(chosen, numerics.gate_weights(logits, chosen, shift))


@dataclass(frozen=True, eq=False)
class FrameResult:
    """What one frame gives for one task.

    Attributes:
        task: its name.
        residual: int16 [tokens, D], output of the last block.
        head: int16 [patches, p·p·C] at the head's exponent (light head), else None.
        routing: MoE block → routing.
        trace: all boundaries if they were asked for, else empty.
    """

    task: str
    residual: Array
    head: Array | None
    routing: Mapping[int, Routing]
    trace: Trace = field(default_factory=dict)


def _norm(x: Array, norm: LayerNorm, bits: int) -> Array:
    return kernels.layer_norm(x, norm, bits).astype(np.int8)


def run_head(encoder: Encoder, task: str, residual: Array, trace: Trace | None = None) -> Array | None:
    """Light head on the patch tokens of the final residual → int16 [patches, p·p·C]; None for other heads."""
    head = encoder.heads[task]
    if not isinstance(head, LightHead):
        return None
    bits = encoder.formats.activation_bits
    norm = _norm(residual[1:], head.norm, bits)
    hidden = kernels.apply_gelu(PreparedLinear(head.fc1)(norm, bits), head.gelu)
    output = PreparedLinear(head.fc2)(hidden, 16).astype(np.int16)
    if trace is not None:
        trace.update({"head.norm": norm, "head.hidden": hidden.astype(np.int8), "head.output": output})
    return output


def run_frame(
    encoder: Encoder, image: Array, task: str, engine: LinearEngine, *, record: bool = False
) -> FrameResult:
    """Run one frame for one task.

    Args:
        encoder: integer parameters (LayerNorm, attention and heads are computed here from them).
        image: uint8 [H, W, 3].
        task: task name.
        engine: computes the linear layers and experts.
        record: keep every boundary in the result's trace.
    """
    encoder.network.task_index(task)
    check_image(image, encoder.network)
    with kernels.one_blas_thread():
        return _run_blocks(encoder, image, task, engine, record)


def _run_blocks(encoder: Encoder, image: Array, task: str, engine: LinearEngine, record: bool) -> FrameResult:
    net, bits = encoder.network, encoder.formats.activation_bits
    trace: Trace = {}
    routing: dict[int, Routing] = {}
    x = np.empty((net.tokens, net.embed_dim), np.int16)
    x[0] = encoder.position[0]
    x[1:] = engine.accumulate("patch", patches(image, net), encoder.position[1:])
    trace["embed"] = x
    for index, block in enumerate(encoder.blocks):
        name = f"blocks.{index}"
        norm1 = _norm(x, block.norm1, bits)
        qkv = engine.linear(f"{name}.qkv", norm1)
        shifts = block.attention
        attended = kernels.attention(qkv, net.heads, shifts.score_shift, shifts.output_shift, bits).astype(np.int8)
        middle = engine.accumulate(f"{name}.proj", attended, x)
        norm2 = _norm(middle, block.norm2, bits)
        x, routed = engine.mixture(f"{name}.mlp", norm2, middle, task)
        if routed is not None:
            routing[index] = routed
        if record:
            boundary = dict(norm1=norm1, qkv=qkv, attention=attended, attn_residual=middle, norm2=norm2, residual=x)
            if routed is not None:
                boundary |= {"topk": routed.chosen, "weights": routed.weights}
            trace |= {f"{name}.{key}": value for key, value in boundary.items()}
    head = run_head(encoder, task, x, trace)
    return FrameResult(task, x, head, routing, trace if record else {})
