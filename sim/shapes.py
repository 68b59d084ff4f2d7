"""What a layer command asks of every unit of the engine: tiles, beats, lines, stripes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

from accel.commands import Command, Flag, Opcode
from accel.config import Hardware
from accel.errors import ProgramError
from accel.layers import GELU_BYTES, Kind
from accel.limits import KINDS, EngineError, Limits
from accel.record import ErrorCode
from sim import latencies as c

_MEMORY_BYTES = 1 << 32
"""Offsets of commands have 32 bits."""


@dataclass(frozen=True)
class Shape:
    """A layer command on one engine. Lines and stripes are those of docs/formats.md, section 1.

    Attributes:
        input_beats, input_lines: of an input row.
        hidden_tiles, hidden_beats: of a unit's first layer and of its hidden rows; 0 without.
        tiles: output tiles of each unit of an expert.
        line_tile, unit_tile_start: first output tile of each unit.
        output_lines, wide_rows: lines of an output row; accumulator rows of the layer.
        first_line, last_line: lines of a unit that end its first and its last weight row, by unit.
        step, words: cycles per token in route, and words of logits.
        store_share: of each unit, lines of an output row that it stores (LINEAR), and the first of them.
    """

    kind: Kind
    tokens: int
    inputs: int
    outputs: int
    hidden: int
    experts: int
    top_k: int
    units: int
    input_beats: int
    input_lines: int
    hidden_tiles: int
    hidden_beats: int
    tiles: tuple[int, ...]
    output_tiles: int
    output_lines: int
    wide_rows: int
    unit_stripes: int
    gate_stripes: int
    gate_tiles: int
    gelu: bool
    first_line: int
    gelu_line: int
    last_line: tuple[int, ...]
    gate_first_line: int
    gate_last_line: int
    input_stripes: int
    residual_stripes: int
    output_stripes: int
    step: int
    words: int
    store_share: tuple[tuple[int, int], ...]
    rows: int
    gate_rows: int

    @property
    def gated(self) -> bool:
        return self.kind is Kind.MOE

    @property
    def linear(self) -> bool:
        return self.kind is Kind.LINEAR

    @property
    def gate_macs(self) -> int:
        return self.tokens * self.inputs * self.experts if self.gated else 0

    @property
    def pairs(self) -> int:
        return self.tokens * self.top_k

    @property
    def macs(self) -> int:
        """As the record counts them: gate included, padding not."""
        if self.hidden:
            return self.gate_macs + self.pairs * self.units * self.hidden * (self.inputs + self.outputs)
        return self.tokens * self.inputs * self.outputs

    def interlock(self, count: int, hardware: Hardware) -> int:
        """Cycles that the output tiles of a tile of ``count`` tokens wait for its hidden blocks."""
        if not self.hidden_tiles:
            return 0
        delay = c.BEAT_TO_RESULT + count - 1 + c.RESULT_TO_HIDDEN - 1
        last = self.hidden_tiles - 1
        block = hardware.tile_outputs // hardware.tile_inputs
        spacing = max(self.input_beats, hardware.tile_tokens)
        return max(0, delay - last * block, delay - last * spacing)

    def tile_beats(self, unit: int, hardware: Hardware) -> int:
        """Beats of a tile through a unit; ``unit`` −1 is the gate table."""
        if unit < 0:
            return self.gate_tiles * self.input_beats
        return self.hidden_tiles * self.input_beats + self.tiles[unit] * (self.hidden_beats or self.input_beats)

    def tile_cycles(self, unit: int, count: int, hardware: Hardware) -> int:
        """Cycles of a tile whose operands are all there."""
        least = hardware.tile_tokens  # results are this far apart
        first = max(self.input_beats, least)
        if unit < 0:
            return self.gate_tiles * first
        second = max(self.hidden_beats, least) if self.hidden_tiles else first
        return self.hidden_tiles * first + self.interlock(count, hardware) + self.tiles[unit] * second


def input_store_lines(hw: Hardware) -> int:
    """Lines of input rows that the engine holds."""
    return hw.max_tokens * -(-hw.max_width // hw.line_bytes)


def holds_tiles(tokens: int, inputs: int, hw: Hardware) -> bool:
    """Whether every tile of a layer finds its rows in the input store at some time; else the engine waits for ever.

    Rows are asked for stripe by stripe as far as there is room (row_source.sv), and a tile's leave when it is gathered.
    """
    lines = -(-inputs // hw.line_bytes)
    for done in range(0, tokens, hw.tile_tokens):
        there = input_store_lines(hw) + done * lines
        if there >= tokens * lines:
            break
        if there - there % hw.burst_beats < min(done + hw.tile_tokens, tokens) * lines:
            return False
    return True


def shape_of(command: Command, hardware: Hardware) -> Shape:
    """Shape of a layer command.

    Raises:
        ProgramError: the engine refuses the command (a buffer is smaller than what the layer needs of it), or could not
            ever compute it (:func:`holds_tiles`).
    """
    gated = command.opcode is Opcode.MOE
    return _shape(
        command.opcode, command.tokens, command.inputs, command.outputs, command.hidden, command.units,
        command.tiles_per_unit, command.unit_bytes, command.experts if gated else 0, command.top_k if gated else 0,
        hardware,
    )  # fmt: skip


@lru_cache(maxsize=4096)
def _shape(
    opcode: Opcode, tokens: int, inputs: int, outputs: int, hidden: int, units: int, tiles_per_unit: int,
    unit_bytes: int, experts: int, top_k: int, hw: Hardware,
) -> Shape:  # fmt: skip
    command = Command(
        opcode, Flag(0), 0, top_k, 0, 0, 0, tokens, experts, inputs, outputs, hidden, units, tiles_per_unit, unit_bytes
    )
    try:
        layer = Limits(hw).check(command, _MEMORY_BYTES)
    except EngineError as error:
        from accel.commands import FIELDS

        field = FIELDS[error.detail].name
        what = "does not fit the engine" if error.code is ErrorCode.SHAPE else error.code.name
        raise ProgramError(
            f"{opcode.name} {tokens} × {inputs} → {outputs}: {field} = {getattr(command, field)}: expected a layer "
            f"that the buffers of hardware {hw.name!r} hold, found one that {what}"
        ) from error
    if not holds_tiles(tokens, inputs, hw):
        raise ProgramError(
            f"{opcode.name} {tokens} × {inputs} → {outputs}: inputs = {inputs}: expected rows of which the input store "
            f"of hardware {hw.name!r} ({input_store_lines(hw)} lines) takes {hw.tile_tokens} at a time, in whole "
            f"stripes, found {-(-inputs // hw.line_bytes)} lines each"
        )
    line = hw.line_bytes
    kind = KINDS[opcode]
    output_tiles = math.ceil(outputs / hw.tile_outputs)
    first_tiles = layer.first.tiles if layer.first is not None else 0
    tiles = []
    for unit in range(units):
        done = unit * layer.tiles_per_unit if not hidden else 0
        tiles.append(min(layer.tiles_per_unit, output_tiles - done))
    row_lines, group_lines = hw.row_bytes // line, layer.second.group_bytes // line
    gelu_lines = -(-GELU_BYTES // line) if hidden else 0
    input_beats = inputs // hw.tile_inputs
    hidden_beats = hidden // hw.tile_inputs
    first_lines = first_tiles * (group_lines + input_beats * row_lines)

    def last(second_tiles: int, beats: int) -> int:
        return gelu_lines + first_lines + second_tiles * (group_lines + beats * row_lines) - 1

    size = 1 if kind is Kind.LINEAR else 2
    output_lines = -(-outputs * size // line)
    share = []
    tile_bytes = hw.tile_outputs * size
    for unit in range(units):
        begin = 0 if hidden else unit * layer.tiles_per_unit * tile_bytes // line
        end = output_lines if hidden or unit == units - 1 else (unit + 1) * layer.tiles_per_unit * tile_bytes // line
        share.append((end - begin, begin))
    stripe_lines = hw.burst_beats
    gate_tiles = layer.gate.tiles if layer.gate is not None else 0
    input_lines = -(-inputs // line)
    words = -(-layer.experts // hw.topk_lanes)
    out_stripes = -(-tokens * output_lines // stripe_lines)
    return Shape(
        kind=kind, tokens=tokens, inputs=inputs, outputs=outputs, hidden=hidden, experts=layer.experts,
        top_k=layer.top_k, units=units, input_beats=input_beats, input_lines=input_lines, hidden_tiles=first_tiles,
        hidden_beats=hidden_beats, tiles=tuple(tiles), output_tiles=output_tiles, output_lines=output_lines,
        wide_rows=0 if kind is Kind.LINEAR else tokens * output_tiles,
        unit_stripes=layer.unit_bytes // hw.stripe_bytes, gate_stripes=layer.gate_bytes // hw.stripe_bytes,
        gate_tiles=gate_tiles, gelu=bool(hidden), first_line=gelu_lines + group_lines + row_lines - 1,
        gelu_line=gelu_lines - 1,
        last_line=tuple(last(count, hidden_beats or input_beats) for count in tiles),
        gate_first_line=group_lines + row_lines - 1,
        gate_last_line=gate_tiles * (group_lines + input_beats * row_lines) - 1,
        input_stripes=-(-tokens * input_lines // stripe_lines),
        residual_stripes=0 if kind is Kind.LINEAR else out_stripes, output_stripes=out_stripes,
        step=max(words, layer.top_k), words=words, store_share=tuple(share),
        rows=first_tiles * input_beats + tiles[0] * (hidden_beats or input_beats), gate_rows=gate_tiles * input_beats,
    )  # fmt: skip
