"""Where the cycles of each layer lie in the RTL engine's event log.

A layer's *window* runs from its first to its last array beat; an MoE layer's begins with its gate. Beside it: when its
input rows came and its output rows went, how long the array waited between the gate and the first expert, and what was
still to be written when the array was done with it. Cycles are exact; the log's events are those of the memory ports
and of the array (``host.backends.rtl_library.EVENT_KINDS``).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from accel.commands import Command
from accel.compiler import layer_bytes
from accel.config import Hardware
from accel.functional import FunctionalEngine
from accel.layers import Kind
from accel.limits import KINDS
from accel.synthetic import SyntheticLayer, SyntheticProgram
from host.backends.rtl_library import EVENT_KINDS

Events = NDArray[np.void]


def arena_events(program: SyntheticProgram, events: Events) -> Events:
    """Events with arena offsets for addresses of memory: the first thing that is read is the first command."""
    found = events.copy()
    kinds = [index for index, kind in enumerate(EVENT_KINDS) if kind.startswith(("read", "write"))]
    memory = np.isin(found["kind"], kinds)
    first = int(found["address"][found["kind"] == EVENT_KINDS.index("read_address")][0])
    found["address"][memory] -= np.uint64(first - program.program_offset)
    return found


def _cycles(events: Events, kind: str, begin: int | None = None, size: int = 0) -> NDArray[np.int64]:
    """Cycles of a kind of event, of those that concern ``size`` bytes of the arena from ``begin`` on if given."""
    found = events[events["kind"] == EVENT_KINDS.index(kind)]
    if begin is not None:
        address = found["address"].astype(np.int64)
        found = found[(address >= begin) & (address < begin + size)]
    return np.asarray(found["cycle"], dtype=np.int64)


def windows(events: Events) -> list[tuple[int, int]]:
    """First and last beat of every layer, in order."""
    return list(zip(_cycles(events, "layer_first").tolist(), _cycles(events, "layer_last").tolist(), strict=True))


def around(command: Command, item: SyntheticLayer, window: tuple[int, int], events: Events) -> dict[str, int | None]:
    """What goes on around a layer's window, in cycles; ``events`` of :func:`arena_events`.

    Returns:
        ``input_bytes``, ``residual_bytes``, ``output_bytes``: activations, padded to stripes as they are moved;
        ``load_cycles``: from the first request for input rows to their last beat; ``load_ahead``: of these, before the
        window began (negative: it began first, and followed the rows as they came); ``first_expert``: beats that the
        array did not do between the gate's last and the first expert's first (None but for MoE); ``store_cycles``: from
        the first output address to the last response; ``drain``: from the last beat to that response.
    """
    first, last = window
    size = layer_bytes(item.layer)
    asked = _cycles(events, "read_address", command.input, size["input"])
    came = _cycles(events, "read_last", command.input, size["input"])
    addressed = _cycles(events, "write_address", command.output, size["output"])
    written = _cycles(events, "write_response", command.output, size["output"])
    wait = None
    if item.layer.kind is Kind.MOE:
        begun, ended = _cycles(events, "unit_first"), _cycles(events, "unit_last")
        gate_end = int(ended[ended >= first][0])
        wait = int(begun[begun > gate_end][0]) - gate_end - 1
    return {
        "input_bytes": size["input"], "residual_bytes": size.get("residual", 0), "output_bytes": size["output"],
        "load_cycles": int(came.max() - asked.min()) + 1, "load_ahead": first - int(asked.min()),
        "first_expert": wait, "store_cycles": int(written.max() - addressed.min()) + 1,
        "drain": int(written.max()) - last,
    }  # fmt: skip


def check_bits(program: SyntheticProgram, memory: NDArray[np.uint8], engine: Hardware) -> tuple[int, int]:
    """Output bytes compared with the functional engine, and how many differ."""
    expected = program.memory.copy()
    FunctionalEngine(engine).execute(expected, program.program_offset, len(program.commands), program.record_offset)
    compared = wrong = 0
    for offset, size in program.outputs:
        compared += size
        wrong += int(np.count_nonzero(expected[offset : offset + size] != memory[offset : offset + size]))
    return compared, wrong


def layer_commands(program: SyntheticProgram) -> list[Command]:
    """Commands that compute a layer, in order."""
    return [command for command in program.commands if command.opcode in KINDS]


def array_cycles(item: SyntheticLayer, loads: list[int], engine: Hardware) -> int:
    """Beats of a layer whose queues have these lengths (one of all tokens, unless MOE): tiles of tokens times rows."""
    layer = item.layer

    def tiles(tokens: int) -> int:
        return -(-tokens // engine.tile_tokens)

    if layer.first is None:
        rows = -(-layer.outputs // engine.tile_outputs) * layer.second.rows_per_tile
    else:
        rows = layer.units * (layer.first.rows + layer.second.rows)
    gate = tiles(layer.tokens) * layer.gate.rows if layer.gate else 0
    return gate + rows * sum(tiles(load) for load in loads)
