"""Byte layouts in memory, one pack/unpack pair each.

Every tensor is a logical sequence of 64-byte *lines* (one beat of all ports side by side). In memory the lines are
interleaved by bursts, because the PS ends every burst at 16 beats and INCR bursts cannot skip: port p reads burst b at
``base + (ports·b + p) · burst_bytes``, so that beat j of all ports together is line j of a *stripe*.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from accel.config import Hardware
from accel.errors import BundleError
from accel.layers import BIAS_BYTES, GELU_BYTES, Layer, TileGeometry, round_up
from accel.params import Gate, Linear, Unit

Array = NDArray[Any]


def _bytes(data: Array | bytes) -> Array:
    return np.frombuffer(data, dtype=np.uint8) if isinstance(data, bytes | bytearray | memoryview) else data


def interleave(lines: Array | bytes, hardware: Hardware) -> Array:
    """Logical bytes → memory bytes, padded with zeros to whole stripes."""
    data = _bytes(lines)
    padded = np.zeros(round_up(len(data), hardware.stripe_bytes), np.uint8)
    padded[: len(data)] = data
    shape = (-1, hardware.burst_beats, hardware.ports, hardware.port_bytes)
    return np.ascontiguousarray(padded.reshape(shape).transpose(0, 2, 1, 3)).reshape(-1)


def deinterleave(memory: Array | bytes, hardware: Hardware) -> Array:
    """Memory bytes → logical bytes; the inverse of :func:`interleave`, padding included."""
    data = _bytes(memory)
    if len(data) % hardware.stripe_bytes:
        raise BundleError(f"striped data: expected a multiple of {hardware.stripe_bytes} bytes, found {len(data)}")
    shape = (-1, hardware.ports, hardware.burst_beats, hardware.port_bytes)
    return np.ascontiguousarray(data.reshape(shape).transpose(0, 2, 1, 3)).reshape(-1)


def pack_linear(layer: Linear, hardware: Hardware) -> Array:
    """Linear layer → logical bytes, tile by tile.

    A tile is its parameter group (tile_outputs × bias s32, then tile_outputs × shift s8, little-endian, padded to
    lines) and its rows in input order; byte
    ``o · tile_inputs + i`` of row r is weight[output o, input r · tile_inputs + i].
    """
    fold = TileGeometry(layer.outputs, layer.inputs, hardware)
    lanes, depth = hardware.tile_outputs, hardware.tile_inputs
    weight = np.zeros((fold.tiles * lanes, fold.rows_per_tile * depth), np.int8)
    weight[: layer.outputs, : layer.inputs] = layer.weight
    bias = np.zeros(fold.tiles * lanes, "<i4")
    bias[: layer.outputs] = layer.bias
    shift = np.zeros(fold.tiles * lanes, np.int8)
    shift[: layer.outputs] = layer.shift
    packed = np.zeros((fold.tiles, fold.tile_bytes), np.uint8)
    packed[:, : lanes * BIAS_BYTES] = bias.reshape(fold.tiles, lanes).view(np.uint8)
    packed[:, lanes * BIAS_BYTES : lanes * (BIAS_BYTES + 1)] = shift.reshape(fold.tiles, lanes).view(np.uint8)
    rows = weight.reshape(fold.tiles, lanes, fold.rows_per_tile, depth).transpose(0, 2, 1, 3)
    packed[:, fold.group_bytes :] = np.ascontiguousarray(rows).reshape(fold.tiles, -1).view(np.uint8)
    return packed.reshape(-1)


def unpack_linear(data: Array, outputs: int, inputs: int, hardware: Hardware, strict: bool = True) -> Linear:
    """Logical bytes of a linear layer → its parameters. ``strict``: padding lanes must be zero, as every writer leaves
    them; an engine ignores what they hold.
    """
    fold = TileGeometry(outputs, inputs, hardware)
    lanes, depth = hardware.tile_outputs, hardware.tile_inputs
    if len(data) < fold.bytes:
        raise BundleError(f"linear layer {outputs}×{inputs}: expected {fold.bytes} bytes, found {len(data)}")
    tiles = data[: fold.bytes].reshape(fold.tiles, fold.tile_bytes)
    bias = np.ascontiguousarray(tiles[:, : lanes * BIAS_BYTES]).view("<i4").reshape(-1)
    shift = np.ascontiguousarray(tiles[:, lanes * BIAS_BYTES : lanes * (BIAS_BYTES + 1)]).view(np.int8).reshape(-1)
    rows = np.ascontiguousarray(tiles[:, fold.group_bytes :]).view(np.int8)
    folded = rows.reshape(fold.tiles, fold.rows_per_tile, lanes, depth).transpose(0, 2, 1, 3)
    weight = folded.reshape(fold.tiles * lanes, fold.rows_per_tile * depth)
    if strict and (bias[outputs:].any() or shift[outputs:].any() or weight[outputs:].any() or weight[:, inputs:].any()):
        raise BundleError(f"linear layer {outputs}×{inputs}: expected zero padding lanes, found other values")
    return Linear(
        np.ascontiguousarray(weight[:outputs, :inputs]), bias[:outputs].astype(np.int32), shift[:outputs].copy()
    )


def pack_unit(unit: Unit, layer: Layer) -> Array:
    """MLP or expert unit → memory bytes: GELU table, first layer, output layer."""
    hw = layer.hardware
    table = np.zeros(round_up(GELU_BYTES, hw.line_bytes), np.uint8)
    table[:GELU_BYTES] = unit.gelu.view(np.uint8)
    parts = [table, pack_linear(unit.first, hw), pack_linear(unit.second, hw)]
    return interleave(np.concatenate(parts), hw)


def unpack_unit(memory: Array | bytes, layer: Layer, strict: bool = True) -> Unit:
    """Memory bytes of one unit → its parameters."""
    if layer.first is None:
        raise BundleError(f"{layer.name}: expected a layer with hidden units, found {layer.kind.value}")
    hw = layer.hardware
    if len(memory) != layer.unit_bytes:
        raise BundleError(f"{layer.name}: expected a unit of {layer.unit_bytes} bytes, found {len(memory)}")
    data = deinterleave(memory, hw)
    first = round_up(GELU_BYTES, hw.line_bytes)
    second = first + layer.first.bytes
    return Unit(
        unpack_linear(data[first:], layer.hidden, layer.inputs, hw, strict),
        data[:GELU_BYTES].view(np.int8).copy(),
        unpack_linear(data[second:], layer.outputs, layer.hidden, hw, strict),
    )


def pack_plain(linear: Linear, layer: Layer) -> Array:
    """LINEAR or ACCUMULATE layer → memory bytes of all its units, each ``unit_bytes`` long."""
    hw = layer.hardware
    lanes = layer.tiles_per_unit * hw.tile_outputs
    memory = np.zeros(layer.expert_bytes, np.uint8)
    for unit in range(layer.units):
        piece = interleave(pack_linear(linear.rows(unit * lanes, (unit + 1) * lanes), hw), hw)
        memory[unit * layer.unit_bytes :][: len(piece)] = piece
    return memory


def unpack_plain(memory: Array | bytes, layer: Layer, strict: bool = True) -> Linear:
    """Memory bytes of a LINEAR or ACCUMULATE layer → its parameters."""
    data, hw = _bytes(memory), layer.hardware
    if len(data) != layer.expert_bytes:
        raise BundleError(f"{layer.name}: expected {layer.expert_bytes} bytes, found {len(data)}")
    lanes = layer.tiles_per_unit * hw.tile_outputs
    parts = []
    for unit in range(layer.units):
        outputs = min(lanes, layer.outputs - unit * lanes)
        piece = deinterleave(data[unit * layer.unit_bytes :][: layer.unit_bytes], hw)
        parts.append(unpack_linear(piece, outputs, layer.inputs, hw, strict))
    return Linear(
        np.concatenate([part.weight for part in parts]),
        np.concatenate([part.bias for part in parts]),
        np.concatenate([part.shift for part in parts]),
    )


def pack_gate(gate: Gate, layer: Layer) -> Array:
    """Gate table → memory bytes: a linear layer of one output per expert whose accumulators are the logits."""
    linear = Linear(gate.weight, gate.bias, np.zeros(len(gate.bias), np.int8))
    return interleave(pack_linear(linear, layer.hardware), layer.hardware)


def unpack_gate(memory: Array | bytes, layer: Layer, shift: int, strict: bool = True) -> Gate:
    """Memory bytes of a gate table → its parameters; ``shift`` travels in the command."""
    if len(memory) != layer.gate_bytes:
        raise BundleError(f"{layer.name}: expected a gate table of {layer.gate_bytes} bytes, found {len(memory)}")
    lines = deinterleave(memory, layer.hardware)
    linear = unpack_linear(lines, layer.experts, layer.inputs, layer.hardware, strict)
    return Gate(linear.weight, linear.bias, shift)


def token_bytes(tokens: int, width: int, itemsize: int, hardware: Hardware) -> int:
    """Bytes in memory of [tokens, width] activations."""
    return round_up(tokens * round_up(width * itemsize, hardware.line_bytes), hardware.stripe_bytes)


def pack_tokens(values: Array, hardware: Hardware) -> Array:
    """Activations [tokens, width] (int8, or int16 little-endian) → memory bytes; every token starts a line."""
    itemsize = values.dtype.itemsize
    rows = np.zeros((values.shape[0], round_up(values.shape[1] * itemsize, hardware.line_bytes)), np.uint8)
    little = np.ascontiguousarray(values.astype(values.dtype.newbyteorder("<"), copy=False))
    rows[:, : values.shape[1] * itemsize] = little.view(np.uint8)
    return interleave(rows.reshape(-1), hardware)


def unpack_tokens(memory: Array | bytes, tokens: int, width: int, dtype: type, hardware: Hardware) -> Array:
    """Memory bytes → activations [tokens, width] of ``dtype`` (np.int8 or np.int16)."""
    little = np.dtype(dtype).newbyteorder("<")
    expected = token_bytes(tokens, width, little.itemsize, hardware)
    if len(memory) != expected:
        raise BundleError(f"activations {tokens}×{width}: expected {expected} bytes, found {len(memory)}")
    row = round_up(width * little.itemsize, hardware.line_bytes)
    data = deinterleave(memory, hardware)[: tokens * row].reshape(tokens, row)
    return np.ascontiguousarray(data[:, : width * little.itemsize]).view(little).astype(dtype)
