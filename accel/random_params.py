"""Random but plausible integer parameters for any network: for tests, timing and export without training.

Shifts follow from the fan-in, so that activations fill their range without saturating everywhere; a few channels
are deliberately hot, so that saturation on both sides occurs.
"""

from __future__ import annotations

import math

import numpy as np

from accel import numerics, tables
from accel.config import Formats, Network
from accel.params import (
    Attention,
    Block,
    Encoder,
    Gate,
    LayerNorm,
    LightHead,
    Linear,
    Unit,
)

_ACTIVATION_STD = 32.0


class _Sampler:
    def __init__(self, network: Network, formats: Formats, seed: int) -> None:
        self.net, self.formats = network, formats
        self.rng = np.random.default_rng(seed)
        self.activation_std = _ACTIVATION_STD * 2.0 ** (formats.activation_bits - 8)

    def weights(self, outputs: int, inputs: int) -> np.ndarray:
        limit = self.formats.weight_max
        return self.rng.integers(-limit, limit, (outputs, inputs), dtype=np.int8, endpoint=True)

    def spread(self, inputs: int) -> float:
        """Standard deviation of an accumulator: activations × uniform weights × √fan-in."""
        return self.activation_std * self.formats.weight_max / math.sqrt(3.0) * math.sqrt(inputs)

    def linear(self, outputs: int, inputs: int, target_std: float, biased: bool = True) -> Linear:
        spread = self.spread(inputs)
        shift = round(math.log2(spread / target_std))
        shifts = np.clip(shift + self.rng.integers(-1, 2, outputs), numerics.SHIFT_MIN, numerics.SHIFT_MAX)
        bias = self.rng.normal(0.0, 0.3 * spread if biased else 0.0, outputs)
        return Linear(self.weights(outputs, inputs), np.rint(bias).astype(np.int32), shifts.astype(np.int8))

    def norm(self, residual_exponent: int) -> LayerNorm:
        width = self.net.embed_dim
        gamma = np.rint(4096 * self.rng.normal(1.0, 0.2, width)).astype(np.int16)
        beta = np.rint(2**22 * self.rng.normal(0.0, 0.2, width)).astype(np.int32)
        eps = numerics.norm_epsilon(width, residual_exponent)
        return LayerNorm(gamma, beta, eps, exponent=-round(math.log2(self.activation_std)))

    def unit(self, contribution_std: float, index: int) -> Unit:
        width, hidden = self.net.embed_dim, self.net.unit_hidden
        exponent = -round(math.log2(self.activation_std))
        return Unit(
            self.linear(hidden, width, self.activation_std),
            tables.gelu(exponent, exponent, self.formats.activation_bits),
            self.linear(width, hidden, contribution_std, biased=index == 0),
        )

    def gate(self) -> Gate:
        net = self.net
        # About one and a half octaves of spread between experts.
        shift = round(math.log2(self.spread(net.embed_dim) / 384.0))
        bias = np.zeros(net.experts, np.int32)
        if net.routing == "task_conditioned":
            bias = np.rint(self.rng.normal(0.0, 0.5 * self.spread(net.embed_dim), net.experts)).astype(np.int32)
        return Gate(self.weights(net.experts, net.embed_dim), bias, shift)

    def block(self, index: int, residual_exponent: int) -> Block:
        net = self.net
        moe = net.is_moe(index)
        experts, units = (net.experts, net.expert_units) if moe else (1, net.dense_units)
        gates = {task: self.gate() for task in net.task_names} if moe else {}
        if net.routing == "task_conditioned" and gates:
            shared = gates[net.task_names[0]]
            gates = {task: Gate(shared.weight, gate.bias, shared.shift) for task, gate in gates.items()}
        scores = self.activation_std**2 * math.sqrt(net.head_dim)
        return Block(
            norm1=self.norm(residual_exponent),
            qkv=self.linear(3 * net.embed_dim, net.embed_dim, self.activation_std),
            attention=Attention(round(math.log2(scores / 512.0)), -1),
            proj=self.linear(net.embed_dim, net.embed_dim, 300.0),
            norm2=self.norm(residual_exponent),
            experts=tuple(tuple(self.unit(300.0, u) for u in range(units)) for _ in range(experts)),
            gates=gates,
        )

    def head(self, channels: int, residual_exponent: int) -> LightHead:
        net, bits = self.net, self.formats.activation_bits
        exponent = -round(math.log2(self.activation_std))
        return LightHead(
            norm=self.norm(residual_exponent),
            fc1=self.linear(net.head_hidden, net.embed_dim, self.activation_std),
            gelu=tables.gelu(exponent, exponent, bits),
            fc2=self.linear(net.patch * net.patch * channels, net.head_hidden, 4000.0),
            exponent=-11,
        )


def random_encoder(network: Network, formats: Formats | None = None, seed: int = 0) -> Encoder:
    """Encoder with light heads and random parameters, deterministic by ``seed``."""
    formats = formats or Formats()
    sampler = _Sampler(network, formats, seed)
    exponent = -10
    position = np.rint(sampler.rng.normal(0.0, 500.0, (network.tokens, network.embed_dim))).astype(np.int16)
    encoder = Encoder(
        network=network,
        formats=formats,
        residual_exponent=exponent,
        patch=sampler.linear(network.embed_dim, network.patch_dim, 800.0),
        position=position,
        blocks=tuple(sampler.block(index, exponent) for index in range(network.depth)),
        heads={task.name: sampler.head(task.channels, exponent) for task in network.tasks},
    )
    encoder.check()
    return encoder
