"""Quantization-aware M3ViT: the numeric contract in the forward pass, the float network in the backward pass."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from accel.config import Formats, Network
from accel.errors import ConfigError
from model.heads import PupHead, patchify
from model.moe import GateNoise, RoutingStats
from model.vit import ForwardResult, MultiTaskViT, TaskEmbedding, select_tasks
from quant.convert import load_float
from quant.layers import Block, LightHead, MoE, Record
from quant.quantizers import WIDE_BITS, FixedPoint, Observer, Requantize, StackedLinear

INPUT_EXPONENT = -7
"""Pixels enter as (u8 - 128) / 128."""

Trace = dict[str, dict[str, NDArray[np.int32]]]


def _ignore(name: str, values: Tensor, exponent: int) -> None:
    """Record nothing."""


class QuantMultiTaskViT(nn.Module):
    """M3ViT under the numeric contract; same forward interface as ``model.vit.MultiTaskViT``.

    In float32 it trains: every value is what the integers stand for, up to float32 rounding of the few sums
    wider than 24 bits. :meth:`integer_mode` returns a float64 copy in which every value is exact.

    Args:
        network: dimensions and tasks.
        formats: widths of weights and activations.
    """

    def __init__(self, network: Network, formats: Formats | None = None) -> None:
        super().__init__()
        self.network, self.formats = network, formats or Formats()
        dim = network.embed_dim
        self.residual = Requantize(WIDE_BITS)
        self.patch_embed = StackedLinear(network.patch_dim, dim, self.formats.weight_bits)
        self.position = nn.Parameter(torch.zeros(network.tokens, dim))  # row 0: cls + its position
        self.task_embedding = (
            TaskEmbedding(len(network.tasks), network.task_embed_dim)
            if network.routing == "task_conditioned"
            else None
        )
        self.blocks = nn.ModuleList(Block(network, i, self.formats) for i in range(network.depth))
        heads: dict[str, nn.Module] = {}
        for task in network.tasks:
            light = network.head == "light"
            heads[task.name] = (
                LightHead(network, task, self.formats) if light else PupHead(network, task)
            )
        self.heads = nn.ModuleDict(heads)

    @classmethod
    def from_float(cls, model: MultiTaskViT, formats: Formats | None = None) -> QuantMultiTaskViT:
        """Quantized network with the weights of a float one, not yet calibrated."""
        quantized = cls(model.network, formats)
        load_float(quantized, model)
        return quantized

    def forward(
        self,
        images: Tensor,
        tasks: Sequence[str] | None = None,
        *,
        gate_override: Mapping[str, str] | None = None,
        noise: GateNoise | None = None,
    ) -> ForwardResult:
        """Run some or all tasks; arguments, result and errors as in ``MultiTaskViT.forward``.

        ``noise`` is accepted and ignored: quantized gates have none.
        """
        names, gate_ids = select_tasks(self.network, images, tasks, gate_override)
        outputs = {}
        with torch.autocast(images.device.type, enabled=False):
            tokens, loss, routing = self._encode(images, gate_ids, _ignore)
            for name, part in zip(names, tokens, strict=True):
                light = self._light_head(name, part, _ignore)
                outputs[name] = self.heads[name](part) if light is None else light
        return ForwardResult(outputs, loss, names, routing)

    def _embed(self, images: Tensor, record: Record) -> Tensor:
        """Images [B, H, W, 3] -> tokens [B, N, D] at the residual's format."""
        pixels = (images.to(self.position.dtype) - 128) / 128
        patches = patchify(pixels, self.network.patch)
        x = self.residual(self.patch_embed.accumulate(patches, INPUT_EXPONENT))
        x = self.residual(F.pad(x, (0, 0, 1, 0)) + self.residual(self.position))
        record("embed", x, self.residual.format.value)
        return x

    def _encode(
        self, images: Tensor, gate_ids: Sequence[int], record: Record
    ) -> tuple[Tensor, Tensor, dict[int, RoutingStats]]:
        """Images -> tokens [T, B, N, D], balance loss, routing per MoE block.

        What precedes the first gate is computed once for all tasks; from there on they lie side by side in
        the batch.
        """
        b, tasks = len(images), len(gate_ids)
        residual, stream = self.residual, self.residual.format
        x = self._embed(images, record)
        vectors = None if self.task_embedding is None else self.task_embedding(gate_ids)
        loss = x.new_zeros(())
        routing: dict[int, RoutingStats] = {}
        for i, block in enumerate(self.blocks):
            assert isinstance(block, Block)
            where = f"blocks.{i}"
            y = block.norm1(x, residual)
            exponent = block.norm1.out.value
            record(f"{where}.norm1", y, exponent)
            x = residual(x + block.attn(y, exponent, residual, record, where))
            record(f"{where}.attn_residual", x, stream.value)
            if isinstance(block.mlp, MoE) and not routing and tasks > 1:
                x = x.repeat(tasks, 1, 1)
            y = block.norm2(x, residual)
            exponent = block.norm2.out.value
            record(f"{where}.norm2", y, exponent)
            if isinstance(block.mlp, MoE):
                stacked = y.view(tasks, b, *y.shape[1:])
                z, block_loss, routing[i] = block.mlp(
                    stacked, exponent, gate_ids, vectors, residual, record, where
                )
                loss = loss + block_loss
            else:
                z = block.mlp(y.flatten(0, 1), [y.shape[0] * y.shape[1]], exponent, residual)
            x = residual(x + z.view_as(x))
            record(f"{where}.residual", x, stream.value)
        tokens = x.view(tasks, b, *x.shape[1:]) if len(x) == tasks * b else x.expand(tasks, *x.shape)
        return tokens, loss, routing

    def _light_head(self, name: str, tokens: Tensor, record: Record) -> Tensor | None:
        """Output [B, C, H, W] of a task's light head on tokens [B, N, D]; None if its head is another."""
        head = self.heads[name]
        if not isinstance(head, LightHead):
            return None

        def of_task(part: str, values: Tensor, exponent: int) -> None:
            record(f"{name}:{part}", values, exponent)

        return head(tokens, self.residual, of_task)

    def _walk(
        self, images: Tensor, names: Sequence[str], gate_ids: Sequence[int], record: Record
    ) -> None:
        """Run everything that is quantized, for ``record`` or the observers."""
        tokens, _, _ = self._encode(images, gate_ids, record)
        for name, part in zip(names, tokens, strict=True):
            self._light_head(name, part, record)

    def formats_in_use(self) -> Iterator[tuple[str, FixedPoint]]:
        """Every activation format with its name."""
        for name, module in self.named_modules():
            if isinstance(module, FixedPoint):
                yield name, module

    @contextlib.contextmanager
    def float_mode(self) -> Iterator[None]:
        """Within this block nothing is quantized: the float network, with folded weights."""
        modules = [m for m in self.modules() if isinstance(m, FixedPoint | StackedLinear)]
        for module in modules:
            module.enabled = False
        try:
            yield
        finally:
            for module in modules:
                module.enabled = True

    @torch.no_grad()
    def calibrate(self, images: Tensor, batch: int = 32) -> None:
        """Choose every activation exponent from a float run over ``images`` [n, H, W, 3], and freeze them.

        Raises:
            ConfigError: no images, or activations that are all zero or not finite.
        """
        if not len(images):
            raise ConfigError("calibration: images = 0: expected at least 1")
        points = [point for _, point in self.formats_in_use()]
        for point in points:
            point.observer = Observer()
        was_training = self.training
        self.eval()
        try:
            with self.float_mode():
                for part in images.split(batch):
                    self._walk(part, *select_tasks(self.network, part, None), _ignore)
            for name, point in self.formats_in_use():
                assert point.observer is not None
                try:
                    point.set_exponent(point.observer.exponent(point.bits, point.narrow))
                except ConfigError as error:
                    raise ConfigError(f"{name}: {error}") from None
        finally:
            self.train(was_training)
            for point in points:
                point.observer = None

    def integer_mode(self) -> QuantMultiTaskViT:
        """Float64 copy for inference that computes exactly the contract's integers."""
        twin = copy.deepcopy(self).double().eval()
        return twin.requires_grad_(False)

    @torch.no_grad()
    def trace(self, images: Tensor, tasks: Sequence[str] | None = None) -> Trace:
        """Integers at every layer boundary: task -> name -> int32 array, batch axis first.

        Names, for block i: ``embed``, ``blocks.i.norm1``, ``.qkv`` [N, 3D], ``.attention`` [N, D],
        ``.attn_residual``, ``.norm2``, in MoE blocks ``.topk`` and ``.weights`` [N, k], ``.residual``; with the
        light head ``head.norm``, ``head.hidden`` and ``head.output`` [patches, p*p*C].

        Raises:
            ConfigError: not in integer mode, where alone the values are exact.
        """
        if self.position.dtype != torch.float64:
            raise ConfigError(f"trace: expected integer mode, found weights of {self.position.dtype}")
        names, gate_ids = select_tasks(self.network, images, tasks)
        recorder = _Recorder(names, len(images))
        self._walk(images, names, gate_ids, recorder)
        return recorder.finish()


class _Recorder:
    """Collects integers per task. Rows of a tensor are one batch for all tasks, or one batch per task."""

    def __init__(self, tasks: tuple[str, ...], batch: int) -> None:
        self.batch = batch
        self.trace: Trace = {name: {} for name in tasks}

    def __call__(self, name: str, values: Tensor, exponent: int) -> None:
        integers = values.double() * 2.0**-exponent
        rounded = integers.round()
        if not torch.equal(rounded, integers):
            raise AssertionError(f"{name}: values are not integers at exponent {exponent}")
        array: NDArray[Any] = rounded.to(torch.int32).cpu().numpy()
        task, _, part = name.rpartition(":")
        for i, owner in enumerate([task] if task else self.trace):
            start = i * self.batch if len(array) > self.batch else 0
            self.trace[owner][part] = array[start : start + self.batch]

    def finish(self) -> Trace:
        """The trace, with q, k and v of each block joined as ``qkv``."""
        for values in self.trace.values():
            for name in [n for n in values if n.endswith(".q")]:
                parts = [values.pop(name[:-1] + part) for part in "qkv"]
                values[f"{name[:-1]}qkv"] = np.concatenate(parts, axis=-1)
        return self.trace
