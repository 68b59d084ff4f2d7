"""Brevitas quantizers of the numeric contract: power-of-two scales everywhere.

Weights use Brevitas' shipped fixed-point quantizer: narrow range, one scale per output channel, recomputed
from max|w| in every forward pass. Activations use a scale that calibration chooses once and that stays
frozen; their quantizer is injected into Brevitas as one fused operation, because the stock one takes about
ten passes over the tensor and QAT spends most of its time there.

Values travel as real numbers: an integer ``v`` at exponent ``e`` is the float v * 2^e. Multiplying by a
power of two is exact, so the integers can be read back at any point.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import brevitas.nn as qnn
import torch
import torch.nn.functional as F
from brevitas.quant.fixed_point import Int8ActPerTensorFixedPoint, Int8WeightPerChannelFixedPoint
from brevitas.quant.scaled_int import Int32Bias
from torch import Tensor, nn

from accel.errors import ConfigError
from quant.nonlinear import integer_range, requantize

WIDE_BITS = 16
"""Residual stream, everything added to it, and the outputs of the light head."""
MIN_THRESHOLD = 2.0**-14
"""Smallest max|w| that a weight scale follows: keeps the scale of an all-zero row finite and shifts small."""
UNSET = 127
"""Value of an exponent buffer before calibration."""
_SAMPLES = 20_000
_CANDIDATES = 5


class Observer:
    """What calibration remembers of the values at one point: largest magnitude and a random sample."""

    def __init__(self) -> None:
        self.largest = 0.0
        self.samples: list[Tensor] = []
        self._generator = torch.Generator().manual_seed(0)

    def add(self, values: Tensor) -> None:
        flat = values.detach().float().flatten().cpu()
        if not flat.numel():
            return
        self.largest = max(self.largest, float(flat.abs().max()))
        if len(flat) > _SAMPLES:
            flat = flat[torch.randint(len(flat), (_SAMPLES,), generator=self._generator)]
        self.samples.append(flat)

    def exponent(self, bits: int, narrow: bool) -> int:
        """Exponent for these values.

        Up to 8 bits: the one of five candidates with the least squared error, the largest being the first
        at which nothing saturates. Wider formats have bits to spare: no saturation, and one bit more.
        """
        if self.largest == 0 or not math.isfinite(self.largest):
            found = "only zeros" if self.largest == 0 else "non-finite values"
            raise ConfigError(f"calibration: expected finite, non-zero activations, found {found}")
        low, high = integer_range(bits, narrow)
        top = math.ceil(math.log2(self.largest / high))
        if bits > 8:
            return top + 1
        sample = torch.cat(self.samples).double()

        def error(exponent: int) -> float:
            scaled = sample * 2.0**-exponent
            rounded = scaled.round().clamp(low, high)
            return float((rounded - scaled).square().mean()) * 4.0**exponent

        return min(range(top - _CANDIDATES + 1, top + 1), key=error)


class FixedPoint(nn.Module):
    """Frozen power-of-two activation quantizer, the ``tensor_quant`` of a Brevitas activation proxy.

    The exponent is a buffer, so it is part of the state dict. Operators that produce quantized values by
    themselves (LayerNorm, attention, GELU) hold a FixedPoint only for its format.

    Args:
        bit_width: two's complement width.
        narrow_range: leave out the most negative value.
    """

    exponent: Tensor

    def __init__(self, bit_width: int, narrow_range: bool = False) -> None:
        super().__init__()
        self.bits, self.narrow = int(bit_width), bool(narrow_range)
        self.register_buffer("exponent", torch.tensor(UNSET, dtype=torch.int32))
        self.enabled = True
        self.observer: Observer | None = None
        self._value: int | None = None  # reading the buffer would synchronize with a GPU

    @property
    def range(self) -> tuple[int, int]:
        """Smallest and largest integer."""
        return integer_range(self.bits, self.narrow)

    @property
    def value(self) -> int:
        """The exponent as an int (0 while disabled); raises ConfigError before calibration."""
        if not self.enabled:
            return 0
        if self._value is None:
            self._value = int(self.exponent)
        if self._value == UNSET:
            raise ConfigError("quantized model: activation exponents are not set: calibrate first")
        return self._value

    def set_exponent(self, exponent: int) -> None:
        self.exponent.fill_(exponent)
        self._value = exponent

    def observe(self, x: Tensor) -> Tensor:
        """Pass ``x`` through, remembering it during calibration."""
        if self.observer is not None:
            self.observer.add(x)
        return x

    def quantize(self, x: Tensor) -> Tensor:
        """Round half to even to a multiple of 2^exponent and saturate; straight-through gradient."""
        if not self.enabled:
            return self.observe(x)
        return requantize(x, self.value, *self.range)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Brevitas' signature: (value, scale, zero point, bit width)."""
        y = self.quantize(x)
        scale = x.new_tensor(2.0**self.value)
        return y, scale, x.new_zeros(()), x.new_tensor(float(self.bits))

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._value = None


class FixedPointActivation(Int8ActPerTensorFixedPoint):
    """Brevitas activation quantizer whose scale is frozen by calibration."""

    tensor_quant = FixedPoint


class Requantize(qnn.QuantIdentity):
    """Brevitas QuantIdentity with a frozen exponent: accumulator or sum to activation.

    Args:
        bits: width of the result.
        narrow: leave out the most negative value (what ends up as the MAC array's weight operand).
    """

    def __init__(self, bits: int, narrow: bool = False) -> None:
        quantizer = FixedPointActivation.let(bit_width=bits, narrow_range=narrow)
        super().__init__(act_quant=quantizer)
        self.act_quant.skip_create_quant_tensor = True  # plain tensors: exponents are tracked here

    @property
    def format(self) -> FixedPoint:
        return self.act_quant.fused_activation_quant_proxy.tensor_quant


def weight_quantizer(bits: int) -> Any:
    """Brevitas' per-channel fixed-point weight quantizer, narrow range, at a given width.

    scale = 2^(ceil(log2 max|w|) - bits + 1): a maximum within half a step below a power of two saturates
    by at most one step, instead of doubling the step of its whole row.
    """
    return Int8WeightPerChannelFixedPoint.let(bit_width=bits, scaling_min_val=MIN_THRESHOLD)


class QuantizedRows(NamedTuple):
    """weight [rows, inputs], bias [rows], scale of the weight [rows], and what Brevitas says of its format."""

    weight: Tensor
    bias: Tensor | None
    scale: Tensor
    bit_width: Tensor | float
    zero_point: Tensor | float


class StackedLinear(qnn.QuantLinear):
    """The same linear stage of several experts or units in one QuantLinear of groups * outputs rows.

    Scales are per row, so quantizing the stack once equals quantizing every group by itself, at a fraction
    of the cost. Its own ``forward`` is Brevitas'; the network calls :meth:`quantized` and multiplies.

    Args:
        inputs, outputs: size of one group.
        bits: weight width.
        groups: number of groups.
        bias: whether there is one, int32 at the scale of the accumulator.
        fold: constant factor per row [groups * outputs], applied before quantizing. Kept apart from the
            parameter so that the optimizer sees the weights at the float model's scale.
        bias_every: only every n-th group has a bias (the units of an expert share one).
    """

    fold: Tensor | None

    def __init__(
        self,
        inputs: int,
        outputs: int,
        bits: int,
        groups: int = 1,
        *,
        bias: bool = True,
        fold: Tensor | None = None,
        bias_every: int = 1,
    ) -> None:
        super().__init__(
            inputs,
            groups * outputs,
            bias=bias,
            weight_quant=weight_quantizer(bits),
            bias_quant=Int32Bias if bias else None,
        )
        self.inputs, self.outputs, self.groups, self.bits = inputs, outputs, groups, bits
        self.enabled = True
        self.register_buffer("fold", fold, persistent=False)
        mask = None
        if bias_every > 1:
            mask = (torch.arange(groups) % bias_every == 0).float().repeat_interleave(outputs)
        self.register_buffer("bias_mask", mask, persistent=False)

    def folded(self) -> tuple[Tensor, Tensor | None]:
        """Weight [rows, inputs] and bias [rows] as they are quantized."""
        weight, bias = self.weight, self.bias
        if self.fold is not None:
            weight = weight * self.fold[:, None]
            bias = None if bias is None else bias * self.fold
        if bias is not None and self.bias_mask is not None:
            bias = bias * self.bias_mask
        return weight, bias

    def quantized(self, exponent_in: int) -> tuple[Tensor, Tensor | None]:
        """Quantized weight [groups, outputs, inputs] and bias [groups, outputs] for inputs at an exponent."""
        rows = self.quantized_rows(exponent_in)
        shape = (self.groups, self.outputs)
        bias = None if rows.bias is None else rows.bias.view(shape)
        return rows.weight.view(*shape, self.inputs), bias

    def accumulate(self, x: Tensor, exponent_in: int) -> Tensor:
        """Accumulators of a layer with one group: x [..., inputs] -> [..., outputs]."""
        rows = self.quantized_rows(exponent_in)
        return F.linear(x, rows.weight, rows.bias)

    def quantized_rows(self, exponent_in: int) -> QuantizedRows:
        """The whole stack quantized, for inputs at an exponent."""
        weight, bias = self.folded()
        if not self.enabled:
            return QuantizedRows(weight, bias, torch.ones_like(weight[:, 0]), 0, 0)
        stacked = self.weight_quant(weight)
        scale = stacked.scale.detach().reshape(-1).expand(len(weight))
        if bias is not None:
            bias = self.bias_quant.tensor_quant(bias, scale * 2.0**exponent_in)[0]
        return QuantizedRows(stacked.value, bias, scale, stacked.bit_width, stacked.zero_point)
