"""What an engine and its memory draw: one estimate, from what a program did and how long it took.

Energy per operation and per byte, plus power that flows whatever happens. Every constant of :data:`CONSTANTS` is a
range that says where it comes from; so is every result, and it is called an estimate wherever it appears. It covers the
device, its processor at rest and its DDR4, not what the processor draws while it computes, nor the board's regulators,
fan and peripherals (PYNQ's notebook reads 13.8 W at the 12 V rail of an idle ZCU104, 6.7 W of them behind regulators).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from accel.config import Hardware
from accel.layers import Kind
from accel.numerics import COMBINE_BITS
from accel.resources import resources

ESTIMATE = "estimate"
COVERS = "the engine's programs on the device, the processor at rest, DDR4; not what the host computes, not the board"

Range = tuple[float, float]
"""(low, high)."""


@dataclass(frozen=True)
class Constant:
    """A figure of the model.

    Attributes:
        low, high: its range.
        unit: of both.
        assumed: nobody measured it, for this device at least; ``source`` then says what the range leans on.
        source: where the range comes from.
    """

    low: float
    high: float
    unit: str
    assumed: bool
    source: str


_IDLE_ZCU104 = "PYNQ's notebook zcu104_pmbus, idle ZCU104 with the base overlay"
_HOROWITZ = "Horowitz, ISSCC 2014 (45 nm)"

CONSTANTS: Mapping[str, Constant] = {
    "mac": Constant(
        1.5, 5.0, "pJ per 8-bit multiply-accumulate", True,
        "assumed: half a DSP48E2 at 300 MHz with operand registers, cascade, fabric accumulators and wiring; "
        f"an 8-bit multiplication and a 32-bit addition alone are 0.3 pJ, {_HOROWITZ}",
    ),
    "requantize": Constant(2.0, 10.0, "pJ per value", True, "assumed: bias, shift, rounding, saturation in LUTs"),
    "gelu": Constant(1.0, 5.0, "pJ per value", True, "assumed: one byte of a table in block RAM, and its wiring"),
    "combine": Constant(4.0, 16.0, "pJ per value", True, "assumed: one DSP48E2, 17 x 16 bits into 36"),
    "bram": Constant(
        1.25, 6.0, "pJ per byte", True,
        f"assumed: low end 10 pJ per 64 bits of an 8-kB memory, {_HOROWITZ}; high end RAMB36 with its wiring",
    ),
    "uram": Constant(
        1.25, 8.0, "pJ per byte", True,
        f"assumed: low end as block RAM; high end below the 12.5 pJ of a 1-MB memory, {_HOROWITZ}",
    ),
    "ddr": Constant(
        120.0, 325.0, "pJ per byte", True,
        "assumed: 15 pJ per bit of streams from open rows, pins and controller included, up to the 1.3 to 2.6 nJ per "
        f"64 bits of {_HOROWITZ}",
    ),
    "clock": Constant(
        0.5, 2.0, "pJ per cycle and DSP48E2", True,
        "assumed: clock tree and some 130 registers per DSP (make synth), busy or not",
    ),
    "pl_static": Constant(0.6, 1.5, "W", True, "assumed: leakage of an XCZU7EV, cool to hot"),
    "ps": Constant(
        1.7, 3.2, "W", True,
        f"assumed share of rail INT, which feeds processor and logic: 3.5 W ({_IDLE_ZCU104})",
    ),
    "auxiliary": Constant(
        0.4, 0.9, "W", False, f"0.78 W on rails 1V8 and 1V13 ({_IDLE_ZCU104}), not all of it the device's",
    ),
    "ddr_idle": Constant(
        0.28, 0.9, "W", True, f"assumed: from the 0.28 W of rail 1V2 ({_IDLE_ZCU104}) to all banks open, VPP included",
    ),
}  # fmt: skip
"""The model: part → energy or power."""

ALWAYS = ("clock", "pl_static", "ps", "auxiliary", "ddr_idle")
"""Parts that flow whether the engine works or not."""
_WATTS = tuple(name for name, constant in CONSTANTS.items() if constant.unit == "W")

IDLE_WATTS = 3.5 + 0.5625 + 0.21875 + 0.28125
"""Rails INT, 1V8, 1V13 and 1V2 of an idle ZCU104 (PYNQ's notebook zcu104_pmbus): what the static parts must hold."""
PUBLISHED_WATTS: Mapping[str, float] = {
    "CoQMoE, ZCU102": 0.064 / 6.47e-3,
    "M3ViT's estimate, ZCU104": 10.0,
    "UbiMoE, ZCU102": 0.296 / 25.76e-3,
    "Edge-MoE, ZCU102": 14.5,
}
"""Power of engines of this class as published, or their energy over their time. What they include differs and is not
always said, so this is a check of plausibility: the range of a busy ``zcu104`` engine must hold all of them."""


class Work(Protocol):
    """A layer as the engine computes it: ``accel.layers.Layer``, or the simulator's shape of a command."""

    @property
    def kind(self) -> Kind: ...
    @property
    def tokens(self) -> int: ...
    @property
    def inputs(self) -> int: ...
    @property
    def outputs(self) -> int: ...
    @property
    def hidden(self) -> int: ...
    @property
    def units(self) -> int: ...
    @property
    def experts(self) -> int: ...
    @property
    def top_k(self) -> int: ...


def amounts(counters: Mapping[str, int], layers: Iterable[Work], hardware: Hardware) -> dict[str, float]:
    """How much of everything but the watts a program did, by the names of :data:`CONSTANTS`.

    Args:
        counters: of its record.
        layers: every layer that it computed, in any order.

    Padding lanes hold zeros and are free but for their weights, which are read in every array cycle. Queues, logits and
    parameter groups are left out: less than a percent of the bytes that are counted.
    """
    requantized = gelu = combined = ring = sums = 0
    for layer in layers:
        pairs = layer.tokens * layer.top_k
        ring += layer.tokens * layer.inputs  # written once, read by every unit that it passes and by the gate
        if layer.kind is Kind.MOE:
            ring += layer.tokens * layer.inputs
            requantized += layer.tokens * layer.experts
        ring += pairs * layer.units * layer.inputs
        values = pairs * layer.units * layer.outputs if layer.hidden else layer.tokens * layer.outputs
        requantized += values
        if layer.hidden:
            gelu += pairs * layer.units * layer.hidden
            requantized += pairs * layer.units * layer.hidden
        if layer.kind is not Kind.LINEAR:
            combined += values
            sums += 2 * values  # each is read, added to and written; the first of a row is not read, its last read is
    weights = counters["array_cycles"] * hardware.row_bytes + counters["weight_bytes"]
    return {
        "mac": counters["macs"],
        "requantize": requantized,
        "gelu": gelu,
        "combine": combined,
        "bram": ring,
        "uram": weights + sums * COMBINE_BITS / 8,
        "ddr": counters["bytes_read"] + counters["bytes_written"],
        "clock": counters["cycles"] * resources(hardware).dsp,
    }


@dataclass(frozen=True)
class EnergyEstimate:
    """Estimated energy of a program.

    Attributes:
        clock_mhz: the clock it is for.
        seconds: what the program takes at it.
        jobs: frames in it.
        parts: joules by the names of :data:`CONSTANTS`; they add up to :attr:`joules`.
    """

    clock_mhz: int
    seconds: float
    jobs: int
    parts: Mapping[str, Range]

    @property
    def covers(self) -> str:
        """What is in it, and what is not."""
        return COVERS

    @property
    def joules(self) -> Range:
        """Of the program."""
        return (sum(part[0] for part in self.parts.values()), sum(part[1] for part in self.parts.values()))

    @property
    def joules_per_frame(self) -> Range:
        low, high = self.joules
        return low / self.jobs, high / self.jobs

    @property
    def watts(self) -> Range:
        """Mean power."""
        low, high = self.joules
        return low / self.seconds, high / self.seconds

    def per_frame(self) -> dict[str, Any]:
        """Joules per frame, watts, and the parts of a frame, ready for JSON."""
        return {
            "joules_per_frame": list(self.joules_per_frame),
            "watts": list(self.watts),
            "parts": {name: [value / self.jobs for value in part] for name, part in self.parts.items()},
        }

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON, constants and their sources included."""
        return {
            "kind": ESTIMATE, "covers": COVERS, "clock_mhz": self.clock_mhz, "jobs": self.jobs,
            "joules": list(self.joules), **self.per_frame(), "constants": constants_dict(),
        }  # fmt: skip


def constants_dict() -> dict[str, Any]:
    """:data:`CONSTANTS`, ready for JSON."""
    return {name: asdict(constant) for name, constant in CONSTANTS.items()}


def estimate_energy(
    counters: Mapping[str, int], layers: Iterable[Work], hardware: Hardware, jobs: int, clock_mhz: int | None = None
) -> EnergyEstimate | None:
    """Estimate of a program of ``jobs`` frames; None without a cycle count, and so without a time.

    Args:
        counters, layers: see :func:`amounts`.
        clock_mhz: None means that of ``hardware``.
    """
    if not counters.get("cycles") or jobs < 1:
        return None
    clock = clock_mhz or hardware.clock_mhz
    seconds = counters["cycles"] / clock / 1e6
    found = amounts(counters, layers, hardware)
    parts = {}
    for name, constant in CONSTANTS.items():
        amount = seconds if name in _WATTS else found[name] * 1e-12
        parts[name] = (constant.low * amount, constant.high * amount)
    return EnergyEstimate(clock, seconds, jobs, parts)
