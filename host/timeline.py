"""What the engine did when: bursts and array beats of a simulated run as named spans of cycles.

The simulated memory logs every burst and every layer's and unit's first and last array beat
(``host.backends.rtl_library``). Here they get the names of what they belong to: task, layer, expert.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from accel.bundle import Bundle
from accel.compiler import Program, RecordedFrame, layer_bytes, place_weights
from accel.errors import DeviceError
from accel.layers import engine_layers
from accel.limits import KINDS
from host.backends.rtl_library import EVENT_KINDS
from host.runner import EncoderRunner, ReplayResult

Events = NDArray[np.void]

LOAD, COMPUTE, READ, WRITE = LANES = ("load", "compute", "read", "write")
"""Weights into a slot; the array at work; rows of tokens read; rows written. Commands and the record are left out."""


@dataclass(frozen=True)
class Span:
    """Something that took from cycle ``start`` to cycle ``end``, counted from the first burst of the run.

    Attributes:
        lane: one of :data:`LANES`.
        job: of the program.
        layer: name, e.g. ``blocks.1.mlp``.
        label: ``expert 3``, ``gate depth`` or a layer's short name; of rows ``input``, ``residual`` or ``output``.
        slot: weight slot that was filled or used; -1 for rows.
        bytes: moved, 0 for COMPUTE.
    """

    lane: str
    start: int
    end: int
    job: int
    layer: str
    label: str
    slot: int = -1
    bytes: int = 0


@dataclass(frozen=True)
class _Piece:
    """Bytes that belong together: a unit's weights or a gate table, loaded as a whole, or rows of a job's layer."""

    start: int
    bytes: int
    layer: str
    label: str
    job: int = 0


def record_timeline(runner: EncoderRunner, frames: Sequence[RecordedFrame]) -> tuple[ReplayResult, list[Span]]:
    """Replay ``frames`` on a back end that logs, and return what happened.

    Raises:
        DeviceError: the back end keeps no log.
    """
    device = runner.loaded.driver.device
    memory: Any = getattr(device, "memory", None)
    if not hasattr(memory, "log"):
        raise DeviceError(f"back end {device.name!r}: expected one that logs its memory (rtl), found none")
    memory.log()
    try:
        result = runner.replay(frames)
        events = memory.events()
    finally:
        memory.log(False)
    return result, timeline(events, result.program, runner.bundle, result.address)


def timeline(events: Events, program: Program, bundle: Bundle, address: int) -> list[Span]:
    """Spans of one run of ``program``, in the order of their starts.

    Args:
        events: log of the run and nothing else.
        address: of the program's arena.
    """
    if not len(events):
        return []
    origin = int(events["cycle"].min())
    reads, writes = _bursts(events, "read", address), _bursts(events, "write", address)
    pieces = _pieces(bundle)
    computes = _computes(events, program, bundle)
    loads = sorted(_loads(reads, pieces), key=lambda span: span.start)
    # Units run in the order in which their weights were loaded: each tells the other what it does not know.
    if len(loads) == len(computes):
        for index, (load, compute) in enumerate(zip(loads, computes, strict=True)):
            loads[index] = replace(load, job=compute.job, slot=compute.slot)
            computes[index] = replace(compute, label=load.label)
    rows = _row_pieces(program, bundle)
    spans = [*loads, *computes, *_rows(READ, reads, rows), *_rows(WRITE, writes, rows)]
    shifted = [replace(span, start=span.start - origin, end=span.end - origin) for span in spans]
    return sorted(shifted, key=lambda span: (span.start, LANES.index(span.lane)))


_BURST = np.dtype([("begin", "<i8"), ("end", "<i8"), ("offset", "<i8"), ("bytes", "<i8")])
_BEAT_BYTES = 16
_GAP = 64
"""Cycles without a burst of rows that end a span."""


def _of(events: Events, kind: str) -> Events:
    return events[events["kind"] == EVENT_KINDS.index(kind)]


def _bursts(events: Events, direction: str, address: int) -> NDArray[np.void]:
    """Bursts with their first and last cycle; those of a port end in the order in which they began."""
    first, last = {"read": ("read_address", "read_last"), "write": ("write_address", "write_response")}[direction]
    found = []
    for port in np.unique(events["port"][events["kind"] == EVENT_KINDS.index(first)]):
        begun, ended = (part[part["port"] == port] for part in (_of(events, first), _of(events, last)))
        count = min(len(begun), len(ended))
        bursts = np.zeros(count, _BURST)
        bursts["begin"], bursts["end"] = begun["cycle"][:count], ended["cycle"][:count]
        bursts["offset"] = begun["address"][:count].astype(np.int64) - address
        bursts["bytes"] = begun["beats"][:count].astype(np.int64) * _BEAT_BYTES
        found.append(bursts)
    merged = np.concatenate(found) if found else np.zeros(0, _BURST)
    return merged[np.argsort(merged["begin"], kind="stable")]


def _pieces(bundle: Bundle) -> list[_Piece]:
    """What lies in the weights region, by address."""
    offsets, _ = place_weights(bundle.config)
    pieces = []
    for layer in engine_layers(bundle.config):
        short = layer.name.rpartition(".")[2]
        for index, blob in enumerate(layer.weight_blobs()):
            name = f"expert {index}" if layer.experts > 1 else short
            for unit in range(layer.units):
                label = f"{name}.{unit}" if layer.units > 1 else name
                start = offsets[blob] + unit * layer.unit_bytes
                pieces.append(_Piece(start, layer.unit_bytes, layer.name, label))
        for task in bundle.config.network.task_names if layer.experts > 1 else ():
            pieces.append(_Piece(offsets[layer.gate_blob(task)], layer.gate_bytes, layer.name, f"gate {task}"))
    return pieces


def _row_pieces(program: Program, bundle: Bundle) -> list[_Piece]:
    """Where the program's commands read and write rows, by address."""
    layers = engine_layers(bundle.config)
    pieces = []
    for command in program.commands:
        if command.opcode in KINDS:
            layer = layers[command.layer]
            for operand, size in layer_bytes(layer).items():
                pieces.append(_Piece(getattr(command, operand), size, layer.name, operand, command.job))
    return sorted(pieces, key=lambda piece: piece.start)


def _by_piece(bursts: NDArray[np.void], pieces: Sequence[_Piece]) -> Iterator[tuple[_Piece, NDArray[np.void]]]:
    """The bursts of every piece that has any; others are left out."""
    starts = np.array([piece.start for piece in pieces])
    ends = starts + [piece.bytes for piece in pieces]
    owner = np.searchsorted(starts, bursts["offset"], side="right") - 1
    inside = (owner >= 0) & (bursts["offset"] < ends[owner])
    for index in np.unique(owner[inside]):
        yield pieces[index], bursts[inside & (owner == index)]


def _loads(reads: NDArray[np.void], pieces: Sequence[_Piece]) -> Iterator[Span]:
    """One span for every time that a piece was loaded: each load reads all of its bytes."""
    for piece, bursts in _by_piece(reads, pieces):
        visits = (np.cumsum(bursts["bytes"]) - 1) // piece.bytes
        for visit in np.unique(visits):
            yield _span(LOAD, piece, bursts[visits == visit])


def _span(lane: str, piece: _Piece, bursts: NDArray[np.void]) -> Span:
    begin, end = int(bursts["begin"].min()), int(bursts["end"].max()) + 1
    return Span(lane, begin, end, piece.job, piece.layer, piece.label, bytes=int(bursts["bytes"].sum()))


def _computes(events: Events, program: Program, bundle: Bundle) -> list[Span]:
    """One span per unit on the array, which works on one at a time."""
    layers = engine_layers(bundle.config)
    commands = [command for command in program.commands if command.opcode in KINDS]
    layer_ends = _of(events, "layer_last")["cycle"]
    spans = []
    for begin, end in zip(_of(events, "unit_first"), _of(events, "unit_last"), strict=True):
        command = commands[int(np.searchsorted(layer_ends, end["cycle"]))]
        name = layers[command.layer].name
        spans.append(Span(COMPUTE, int(begin["cycle"]), int(end["cycle"]) + 1, command.job, name,
                          name.rpartition(".")[2], slot=int(begin["address"])))  # fmt: skip
    return spans


def _rows(lane: str, bursts: NDArray[np.void], pieces: Sequence[_Piece]) -> Iterator[Span]:
    """Bursts of a piece that overlap or nearly do, as one span."""
    for piece, found in _by_piece(bursts, pieces):
        reach = np.maximum.accumulate(found["end"])
        breaks = np.flatnonzero(found["begin"][1:] > reach[:-1] + _GAP) + 1
        for part in np.split(found, breaks):
            yield _span(lane, piece, part)
