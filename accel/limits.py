"""What an engine refuses before a command runs: the same rules for the functional engine, driver, RTL and HLS."""

from __future__ import annotations

from dataclasses import dataclass

from accel import numerics, pack
from accel.commands import FIELDS, Command, Opcode
from accel.config import Hardware
from accel.layers import Kind, Layer
from accel.record import ErrorCode
from accel.routing import Schedule

KINDS = {
    Opcode.LINEAR: Kind.LINEAR,
    Opcode.ACCUMULATE: Kind.ACCUMULATE,
    Opcode.MLP: Kind.MLP,
    Opcode.MOE: Kind.MOE,
}
"""Opcodes that compute a layer."""
OPCODES = {kind: opcode for opcode, kind in KINDS.items()}

MAX_UNITS = {Kind.LINEAR: 255, Kind.ACCUMULATE: 255, Kind.MLP: 15, Kind.MOE: 14}
"""Units per expert. Those of MLP and MOE keep the combine accumulator within 36 bits (``numerics.combine_bound``)."""

_POSITION = {item.name: index for index, item in enumerate(FIELDS)}


class EngineError(Exception):
    """A command the engine refuses; becomes an error code in the record.

    ``detail`` is the position in ``commands.FIELDS`` of a field that is wrong (which one, if several are, is not
    defined); for READ and WRITE it is the memory port.
    """

    def __init__(self, code: ErrorCode, detail: int = 0) -> None:
        super().__init__(code.name)
        self.code, self.detail = code, detail


def _require(ok: bool, name: str, code: ErrorCode = ErrorCode.SHAPE) -> None:
    if not ok:
        raise EngineError(code, _POSITION[name])


@dataclass(frozen=True)
class Limits:
    """What the engine's stores hold."""

    hardware: Hardware

    def check(self, command: Command, memory_bytes: int) -> Layer:
        """Shape of a layer command; raises EngineError if the engine cannot run it in ``memory_bytes`` of memory.

        Only fields that the opcode uses are looked at. Shapes come before addresses, addresses before spans.
        """
        layer = self._shape(command)
        hw = self.hardware
        _require(command.unit_bytes == layer.unit_bytes, "unit_bytes", ErrorCode.ADDRESS)
        spans = {
            "weights": layer.experts * layer.expert_bytes,
            "input": pack.token_bytes(layer.tokens, layer.inputs, 1, hw),
            "output": pack.token_bytes(layer.tokens, layer.outputs, layer.output_bytes_per_value, hw),
        }
        if layer.kind is Kind.MOE:
            spans["gate"] = layer.gate_bytes
        if layer.kind is not Kind.LINEAR:
            spans["residual"] = spans["output"]
        for name in spans:
            _require(getattr(command, name) % hw.stripe_bytes == 0, name, ErrorCode.ADDRESS)
        for name, size in spans.items():
            if getattr(command, name) + size > memory_bytes:
                raise EngineError(ErrorCode.WRITE if name == "output" else ErrorCode.READ)
        return layer

    def _shape(self, command: Command) -> Layer:
        hw, kind = self.hardware, KINDS[command.opcode]
        hidden, gated = kind in (Kind.MLP, Kind.MOE), kind is Kind.MOE
        _require(command.weight_source == 0, "weight_source", ErrorCode.OPCODE)
        _require(1 <= command.tokens <= hw.max_tokens, "tokens")
        _require(1 <= command.inputs <= hw.max_inputs and command.inputs % hw.tile_inputs == 0, "inputs")
        # Rows wider than the activation store can only stream past weights that stay: one unit, one pass.
        _require(command.inputs <= hw.max_width or (not hidden and command.units == 1), "inputs")
        _require(1 <= command.outputs and (kind is Kind.LINEAR or command.outputs <= hw.max_width), "outputs")
        _require(1 <= command.units <= MAX_UNITS[kind], "units")
        _require(bool(command.hidden) == hidden, "hidden")
        _require(command.hidden <= hw.max_hidden and command.hidden % hw.tile_inputs == 0, "hidden")
        if gated:
            octaves = range(numerics.OCTAVE_SHIFT_MIN, numerics.OCTAVE_SHIFT_MAX + 1)
            _require(1 <= command.experts <= hw.max_experts, "experts")
            _require(1 <= command.top_k <= min(hw.max_top_k, command.experts), "top_k")
            _require(command.schedule in Schedule.__members__.values(), "schedule")
            _require(command.gate_shift in octaves, "gate_shift")
        layer = Layer(
            f"layer {command.layer}", kind, command.tokens, command.inputs, command.outputs, command.hidden,
            command.experts if gated else 1, command.units, command.top_k if gated else 1, hw,
        )  # fmt: skip
        _require(command.tiles_per_unit == layer.tiles_per_unit, "tiles_per_unit")
        tiles = -(-layer.outputs // hw.tile_outputs)
        _require(hidden or (layer.units - 1) * layer.tiles_per_unit < tiles, "units")  # no unit without a tile
        folds = [fold for fold in (layer.first, layer.second) if fold is not None]
        too_large = "hidden" if hidden else "tiles_per_unit"
        _require(sum(fold.rows for fold in folds) <= hw.slot_rows, too_large)
        _require(sum(fold.tiles for fold in folds) <= hw.slot_groups, too_large)
        if layer.gate is not None:
            _require(layer.gate.rows <= hw.slot_rows and layer.gate.tiles <= hw.slot_groups, "experts")
        return layer
