"""A quantized encoder as an integer ONNX graph: a referee that shares no code with the golden model's arithmetic.

The graph uses standard operators only and computes exactly the integers of the contract, so any conforming
runtime can check the golden model bit by bit. It is a reference, not an implementation for speed: every expert
computes every token, and tokens that did not choose it weigh its output with 0.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto

from accel import numerics
from accel.atomic import atomic_write
from accel.errors import ConfigError, DataError, ExportError, M3vitError
from accel.params import Block, Encoder, LightHead, Unit
from quant.onnx_ops import IntegerGraph

INPUT = "image"
PROTOBUF_LIMIT = (1 << 31) - 1
SCORES_AT_ONCE = 1 << 24
"""Attention scores per tensor, float64: more images than fit are run one batch after the other (128 MiB)."""
_OPTIMIZATION = {
    "disable": "ORT_DISABLE_ALL",
    "basic": "ORT_ENABLE_BASIC",
    "extended": "ORT_ENABLE_EXTENDED",
    "all": "ORT_ENABLE_ALL",
}


class _Builder:
    """Writes one encoder for one task into an :class:`IntegerGraph`."""

    def __init__(self, encoder: Encoder, task: str, boundaries: bool) -> None:
        self.encoder = encoder
        self.network = encoder.network
        self.bits = encoder.formats.activation_bits
        self.task = task
        self.boundaries = boundaries
        self.graph = IntegerGraph(f"{encoder.network.name}.{task}")

    def _publish(self, value: str, name: str, onnx_type: int, *shape: int, always: bool = False) -> None:
        """Offer a value as an output of the graph, at its own integer type."""
        if self.boundaries or always:
            self.graph.output(self.graph.cast(value, onnx_type, name), onnx_type, ["B", *shape])

    def _operand(self, value: str, name: str, *shape: int) -> str:
        """The value as int8 tensor for the next matrix product; an output of the graph if boundaries are asked for."""
        self.graph.cast(value, TensorProto.INT8, name)
        if self.boundaries:
            self.graph.output(name, TensorProto.INT8, ["B", *shape])
        return name

    def build(self) -> IntegerGraph:
        net = self.network
        residual = self._embed()
        for index, block in enumerate(self.encoder.blocks):
            residual = self._block(residual, block, index)
        head = self.encoder.heads[self.task]
        if isinstance(head, LightHead):
            self._light_head(residual, head, net.patch * net.patch * net.task(self.task).channels)
        return self.graph

    def _embed(self) -> str:
        """Image [B, H, W, 3] → tokens [B, N, D]: patches in the order (py, px, c), then cls and positions."""
        graph, net, p = self.graph, self.network, self.network.patch
        image = graph.input(INPUT, TensorProto.UINT8, ["B", net.image_height, net.image_width, 3])
        pixels = graph.op("Sub", graph.double(image), graph.number(128))
        grid = graph.reshape(graph.cast(pixels, TensorProto.INT8), -1, net.grid_h, p, net.grid_w, p, 3)
        patches = graph.reshape(graph.transpose(grid, 0, 1, 3, 2, 4, 5), -1, net.grid_h * net.grid_w, net.patch_dim)
        projected = graph.linear(patches, self.encoder.patch, numerics.RESIDUAL_BITS)
        # The cls token has no patch: a row of zeros before the others leaves its position row as it is.
        rows = graph.op("Pad", projected, graph.indices([0, 1, 0, 0, 0, 0]))
        position = graph.double(graph.constant(self.encoder.position, np.int16))
        tokens = graph.combine(position, [(graph.number(numerics.COMBINE_ONE), rows)])
        self._publish(tokens, "embed", TensorProto.INT16, net.tokens, net.embed_dim)
        return tokens

    def _block(self, residual: str, block: Block, index: int) -> str:
        graph, net, where = self.graph, self.network, f"blocks.{index}"
        shape = (net.tokens, net.embed_dim)
        norm1 = graph.layer_norm(residual, block.norm1, net.embed_dim, self.bits)
        attended = self._attention(self._operand(norm1, f"{where}.norm1", *shape), block, where)
        projected = graph.linear(attended, block.proj, numerics.RESIDUAL_BITS)
        residual = graph.combine(residual, [(graph.number(numerics.COMBINE_ONE), projected)])
        self._publish(residual, f"{where}.attn_residual", TensorProto.INT16, *shape)
        norm2 = graph.layer_norm(residual, block.norm2, net.embed_dim, self.bits)
        x = self._operand(norm2, f"{where}.norm2", *shape)
        residual = graph.combine(residual, self._contributions(x, block, index))
        last = index == net.depth - 1
        self._publish(residual, f"{where}.residual", TensorProto.INT16, *shape, always=last)
        return residual

    def _attention(self, x: str, block: Block, where: str) -> str:
        """int8 [B, N, D] → int8 [B, N, D]."""
        graph, net = self.graph, self.network
        width = 3 * net.embed_dim
        qkv = self._operand(graph.linear(x, block.qkv, self.bits, narrow=True), f"{where}.qkv", net.tokens, width)
        split = graph.reshape(qkv, -1, net.tokens, 3, net.heads, net.head_dim)
        stacked = graph.transpose(split, 2, 0, 3, 1, 4)  # [3, B, h, N, d]
        query, key, value = (graph.op("Gather", stacked, graph.indices(part), axis=0) for part in range(3))
        shifts = block.attention
        output = graph.attention(query, key, value, shifts.score_shift, shifts.output_shift, self.bits)
        merged = graph.reshape(graph.transpose(output, 0, 3, 1, 2), -1, net.tokens, net.embed_dim)
        return self._operand(merged, f"{where}.attention", net.tokens, net.embed_dim)

    def _contributions(self, x: str, block: Block, index: int) -> list[tuple[str, str]]:
        """(combine weight, output) of every unit of the dense MLP or of all experts."""
        graph, net, where = self.graph, self.network, f"blocks.{index}"
        if not net.is_moe(index):
            one = graph.number(numerics.COMBINE_ONE)
            return [(one, self._unit(x, unit)) for unit in block.experts[0]]
        chosen, weights = graph.route(x, block.gates[self.task], net.top_k, f"{where}.topk")
        if self.boundaries:
            graph.output(chosen, TensorProto.INT64, ["B", net.tokens, net.top_k])
        self._publish(weights, f"{where}.weights", TensorProto.INT32, net.tokens, net.top_k)
        contributions = []
        for number, units in enumerate(block.experts):
            # Weight of this expert per token: the chosen slot that names it, or 0 (an expert is chosen at most once).
            here = graph.double(graph.op("Equal", chosen, graph.indices(number)))
            weight = graph.op("ReduceSum", graph.op("Mul", here, weights), graph.indices([-1]))
            contributions += [(weight, self._unit(x, unit)) for unit in units]
        return contributions

    def _unit(self, x: str, unit: Unit) -> str:
        """int8 [B, N, D] → [B, N, D] at the residual exponent."""
        hidden = self.graph.gelu(self.graph.linear(x, unit.first, self.bits), unit.gelu)
        return self.graph.linear(hidden, unit.second, numerics.RESIDUAL_BITS)

    def _light_head(self, residual: str, head: LightHead, outputs: int) -> None:
        graph, net = self.graph, self.network
        patches = net.tokens - 1
        tokens = graph.op("Slice", residual, graph.indices([1]), graph.indices([net.tokens]), graph.indices([1]))
        norm = graph.layer_norm(tokens, head.norm, net.embed_dim, self.bits)
        x = self._operand(norm, "head.norm", patches, net.embed_dim)
        hidden = graph.gelu(graph.linear(x, head.fc1, self.bits), head.gelu)
        self._publish(hidden, "head.hidden", TensorProto.INT8, patches, net.head_hidden)
        output = graph.linear(hidden, head.fc2, numerics.RESIDUAL_BITS)
        self._publish(output, "head.output", TensorProto.INT16, patches, outputs, always=True)


def build_integer_onnx(encoder: Encoder, task: str, boundaries: bool = True) -> onnx.ModelProto:
    """The encoder with the gates and the light head of one task, as integer ONNX (opset 18, standard operators).

    Input ``image`` uint8 [B, H, W, 3]. Outputs, with ``boundaries`` all of them, else only those marked *:

    * ``embed``, ``blocks.i.attn_residual``, ``blocks.i.residual`` (* of the last block): int16 [B, N, D],
    * ``blocks.i.norm1``, ``blocks.i.attention``, ``blocks.i.norm2``: int8 [B, N, D],
    * ``blocks.i.qkv``: int8 [B, N, 3D], ordered q, k, v, each [heads, head_dim],
    * MoE blocks: ``blocks.i.topk`` int64 [B, N, k], best first, and ``blocks.i.weights`` int32 [B, N, k] (u16
      fractions of 2^16) in the same order,
    * light head, patch tokens only: ``head.norm`` int8 [B, N − 1, D], ``head.hidden`` int8 [B, N − 1, hidden]
      (after GELU), ``head.output``* int16 [B, N − 1, p·p·C].

    A PUP head is float and runs outside: the graph then ends at the last residual.

    Raises:
        ConfigError: unknown task.
        ExportError: parameters outside the contract.
    """
    encoder.network.task_index(task)
    encoder.check()
    metadata = {
        "network": encoder.network.name,
        "task": task,
        "residual_exponent": str(encoder.residual_exponent),
    }
    head = encoder.heads[task]
    if isinstance(head, LightHead):
        metadata["head_exponent"] = str(head.exponent)
    return _Builder(encoder, task, boundaries).build().model(metadata)


def save_integer_onnx(model: onnx.ModelProto, path: str | os.PathLike[str]) -> None:
    """Write one self-contained file, completely or not at all.

    Raises:
        ExportError: the model exceeds the 2 GiB that one protobuf file may have.
        M3vitError: the file cannot be written.
    """
    size = model.ByteSize()
    if size > PROTOBUF_LIMIT:
        raise ExportError(f"{os.fspath(path)}: expected at most {PROTOBUF_LIMIT} bytes of ONNX, found {size}")
    with atomic_write(path) as temporary:
        temporary.write_bytes(model.SerializeToString(deterministic=True))


class OnnxReferee:
    """Runs the integer ONNX of an encoder in onnxruntime on the CPU, one session per task.

    Args:
        encoder: the quantized encoder.
        tasks: names of the tasks to prepare.
        boundaries: return every layer boundary, or only the last residual and the head's output.
        optimization: how far onnxruntime may rewrite the graph: disable, basic, extended or all.
        threads: threads per session, 0 for onnxruntime's choice.

    Raises:
        ConfigError: unknown task or optimization.
        M3vitError: onnxruntime is not installed.
    """

    def __init__(
        self,
        encoder: Encoder,
        tasks: Sequence[str],
        boundaries: bool = True,
        optimization: str = "all",
        threads: int = 0,
    ) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise M3vitError(f"the ONNX referee needs onnxruntime: {error}") from error
        if optimization not in _OPTIMIZATION:
            raise ConfigError(f"optimization = {optimization!r}: expected one of {', '.join(_OPTIMIZATION)}")
        self._network = encoder.network
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, _OPTIMIZATION[optimization])
        self._sessions = {
            task: onnxruntime.InferenceSession(
                build_integer_onnx(encoder, task, boundaries).SerializeToString(),
                options,
                providers=["CPUExecutionProvider"],
            )
            for task in tasks
        }

    @property
    def tasks(self) -> tuple[str, ...]:
        return tuple(self._sessions)

    def run(self, images: NDArray[np.uint8], task: str) -> dict[str, NDArray[Any]]:
        """Images uint8 [B, H, W, 3] → every output of :func:`build_integer_onnx` by name.

        Raises:
            ConfigError: the task was not prepared.
            DataError: images of another type or shape.
        """
        net = self._network
        if task not in self._sessions:
            raise ConfigError(f"ONNX referee: task {task!r}: expected one of {', '.join(self._sessions)}")
        expected = (net.image_height, net.image_width, 3)
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != expected or not len(images):
            raise DataError(
                f"images: expected uint8 of shape (B, {', '.join(map(str, expected))}) with B at least 1, "
                f"found {images.dtype} {images.shape}"
            )
        session = self._sessions[task]
        names = [output.name for output in session.get_outputs()]
        step = max(1, SCORES_AT_ONCE // (net.heads * net.tokens**2))
        parts = [session.run(names, {INPUT: images[i : i + step]}) for i in range(0, len(images), step)]
        return {name: np.concatenate(values) for name, values in zip(names, zip(*parts, strict=True), strict=True)}
