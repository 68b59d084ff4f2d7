"""Every constant of the model, in cycles of the engine's clock unless it says otherwise.

Each is counted from registers in ``rtl_tb/rtl/``; none is fitted to a measurement. A name tells from which event to
which. "Seen" means that the unit behind can act in that cycle.
"""

from __future__ import annotations

MEMORY_CLOCK_LEAD = 5
"""From the memory's clock restarting (write of AP_START) to the cycle that takes start (control.sv)."""

# fetch.sv, check.sv, entry_table.sv, entry_view.sv
START_TO_FETCH = 2
"""Take of start → first look for a command (clear, NEXT)."""
COMMANDS_AHEAD = 4
"""Commands asked for and not yet looked at."""
ASK_EVERY = 2
"""Between two commands asked for."""
ASK_TO_ISSUE = 3
"""Command asked for → its address on port 0."""
COMMAND_BEAT_TO_SEEN = 4
"""Last beat of a command moves in memory → fetch sees it (beat FIFO, shift register, FIFO)."""
SEEN_TO_DECODE = 1
DECODE_TO_PUSH = 38
"""DECODE of a layer → its entry is pushed: 36 steps of check.sv and two registers."""
DECODE_TO_PUSH_JOB_END = 1
PUSH_TO_NEXT = 1
ENTRIES = 8
"""Commands in flight (engine_pkg::ENTRIES)."""
PUSH_TO_VIEW = 2
"""Push of an entry → a unit sees it; also a unit's advance → it sees the next entry."""

# reader.sv, read_port.sv
TAKE_TO_PUSH = 1
"""A source's stripe is chosen → in the request FIFO of every port; the next may be chosen one cycle later."""
PUSH_TO_ISSUE = 1
REQUESTS_PER_PORT = 4
"""Depth of a port's request FIFO."""
PORT_BEATS = 64
"""Depth of a port's beat FIFO: how far it may be ahead of the others."""
LAND_TO_ISSUE = 2
"""Last beat of a burst moves in memory → the slot in flight that it leaves is used."""
MOVE_TO_LINE = 3
"""A beat moves in memory → its line is at the sink (beat FIFO, line register)."""

# load.sv, load_decode.sv
VIEW_TO_ACQUIRE = 1
ACQUIRE_TO_REQUEST = 1
ORDER_TO_ACQUIRE = 3
"""An expert is known → its slot can be asked for (PRODUCT, OFFSET)."""
ACQUIRE_TO_SLOT = 1
"""Slot acquired → dispatch sees it."""
LINE_TO_ROW = 2
"""Last line of a row at the decoder → the array may use it."""
GELU_WRITE = 257
"""Last line of a GELU table at the decoder → the table is written, entry by entry."""

# row_source.sv, dispatch.sv
VIEW_TO_ROWS = 2
"""Entry seen → first stripe of rows asked for (PRODUCT)."""
LINE_TO_WRITTEN = 1
VIEW_TO_ITEM = 1
COLLECTED_TO_EMIT = 3
"""Last token of a tile accepted → the tile may leave (full, FLUSH)."""
ITEM_TO_COLLECT = 1
EMIT_TO_ITEM = 2
"""Last tile of a unit leaves → next unit is looked for (NEXT)."""
EMIT_TO_ADVANCE = 1
WALK_FIRST, WALK_EVERY = 4, 3
"""Queue walk: from its start to the first entry, and between two entries (queues.sv)."""
TILES_AHEAD = 4
"""Tiles between dispatch and issue (m3vit_engine.sv, u_tiles)."""

# gather.sv, issue.sv
GATHER_TO_FILLED = 3
"""Last line of a group is read from the ring → the group may be used."""
FREED_SEEN = 1
"""Room given back → its owner sees it: operand groups, input lines, linear and gate buffers."""

# mac_array.sv, drain.sv, combine.sv
BEAT_TO_RESULT = 18
"""Last beat of an output tile → first row of its result in the drain (operands 4, mac_array.sv I + 5, drain 1)."""
RESULT_TO_HIDDEN = 8
"""A result row in the drain → its hidden block is counted."""
RESULT_TO_FREE = 2
"""Last result row of a unit → its slot may be asked for."""
RESULT_TO_LOGITS = 2
"""A result row in the drain → the route unit counts its token."""
RESULT_TO_PACK = 10
"""Last result row of a tile of LINEAR → its first line is read (saturation 5, FIFO, shape, row)."""
PACK_TO_LINE = 3
RESULT_TO_COMPLETE = 12
"""A result row in the drain → its accumulator row counts as complete (saturation 5, combine 6, count 1)."""

# route.sv, gate_buffer.sv, topk.sv, order.sv, gate_softmax.sv
START_TO_LAST_WORD = 3
"""Route starts a token → after its words, they are at the sorter."""
WORD_TO_CHOSEN = 5
"""Last word of a token at the sorter → its best expert."""
CHOSEN_TO_ORDER = 3
"""Last expert of the last token → experts are put in order."""
ORDER_TO_FIRST = 4
"""Start of the scan → expert 0 is known to load and dispatch; one cycle more per expert scanned."""
CHOSEN_TO_WEIGHT = 30
"""A token's best expert → its combine weights may be read, plus its words and its experts (softmax, reciprocal)."""
ROUTE_OPENS = 3
"""Entry seen by route → it may start tokens."""
GATE_BUFFERS = 2
"""Token tiles of logits that the route unit holds."""

# finish.sv, linear_pack.sv, store.sv, write_port.sv
ROW_FETCH = 4
"""Accumulator row complete → finish may use it."""
ROWS_AHEAD = 8
FINISH_STEPS = 2
"""Cycles per output line."""
FINISH_TO_LINE = 6
POPPED_TO_ROOM = 2
"""Residual line used → its room may be asked for."""
FINISH_LINES = 32
"""Finished lines that may wait for the store unit, 2 stripes."""
LINEAR_BUFFERS = 2
PACK_LINES = 16
RESIDUAL_LINES = 128
"""Ring of residual lines (engine_pkg::RESIDUAL_LINES)."""
CHOOSE = 1
"""Store chooses a source → takes its first line."""
CLOSE_TO_LAUNCH = 2
LAUNCH_TO_BEAT = 4
SENT_TO_COMPLETE = 1
"""Last beat of a burst leaves the buffer → it is complete in memory."""
SENT_TO_FREE = 2
LANDED_TO_LAUNCH = 1
ANSWER_TO_RETIRE = 4
"""Last write response of an entry → it retires."""
RETIRE_TO_RETIRE = 2
RETIRE_TO_PUSH = 1
RETIRE_TO_END = 1
"""Retirement of the last entry → the program's last counted cycle."""
