// Sizes that follow from the generated configuration. No number of the hardware stands anywhere else in this folder.
#ifndef M3VIT_SHAPES_H
#define M3VIT_SHAPES_H

#include "m3vit_config.h"

namespace m3vit {

constexpr int ceil_div(int value, int divisor) { return (value + divisor - 1) / divisor; }
constexpr int at_least(int value, int least) { return value < least ? least : value; }

// Bits of an unsigned number up to `value`.
constexpr int bits_of(std::int64_t value) { return value < 2 ? 1 : 1 + bits_of(value / 2); }

// ---- the array
constexpr int T = TILE_TOKENS;
constexpr int O = TILE_OUTPUTS;
constexpr int I = TILE_INPUTS;
constexpr int MAX_INPUT_BEATS = MAX_INPUTS / I;
constexpr int MAX_HIDDEN_BEATS = MAX_HIDDEN / I;
constexpr int MAX_HIDDEN_TILES = ceil_div(MAX_HIDDEN, O);
constexpr int BLOCK_BEATS = O / I;  // beats that one hidden tile of O columns feeds to the second layer
constexpr int WIDE_TILES = ceil_div(MAX_WIDTH, O);
constexpr int PAIRS = T / 2;  // two tokens share a multiplier and a word of sums
constexpr int GATE_TILES = ceil_div(MAX_EXPERTS, O);

// ---- lines
constexpr int LINE_BEATS = LINE_BYTES / I;  // beats that one line of every token feeds to the array
constexpr int LINE_VALUES = LINE_BYTES / 2;  // s16 values of a line
constexpr int ROW_LINES = ROW_BYTES / LINE_BYTES;
constexpr int GROUP_LINES = GROUP_BYTES / LINE_BYTES;
constexpr int GELU_LINES = GELU_BYTES / LINE_BYTES;
constexpr int COMMAND_BEATS = COMMAND_BYTES / PORT_BYTES;
constexpr int ROW_VALUES = ceil_div(MAX_WIDTH, LINE_VALUES) * LINE_VALUES;  // of an output row, whole lines
constexpr int ROW_BANKS = ceil_div(O, LINE_VALUES) * LINE_VALUES;  // so that O values or a line go in or out at once
constexpr int UNIT_OUTPUT_BYTES = ceil_div(SLOT_GROUPS * O, LINE_BYTES) * LINE_BYTES;  // of a LINEAR unit, in lines
constexpr int TILE_LINES = T * ceil_div(MAX_INPUTS, LINE_BYTES);  // of the widest tile
constexpr int STORE_LINES = MAX_TOKENS * ceil_div(MAX_WIDTH, LINE_BYTES);  // ring of input lines

// ---- wide accumulators: as many rows as fill whole UltraRAM blocks lie there, the rest in block RAM
constexpr int ULTRA_DEPTH = 4096;  // rows of an UltraRAM block (UG573)
constexpr int WIDE_ROWS = MAX_TOKENS * ceil_div(MAX_WIDTH, O);
constexpr int ULTRA_ROWS = WIDE_ROWS / ULTRA_DEPTH * ULTRA_DEPTH;
constexpr int BLOCK_ROWS = WIDE_ROWS - ULTRA_ROWS;

// ---- flow control
constexpr int ENTRIES = 8;  // layers between fetch and the end of store
constexpr int REQUEST_STRIPES = at_least(OUTSTANDING / 2, 1);  // stripes of one request: two requests are in flight
constexpr int REQUEST_LINES = REQUEST_STRIPES * BURST_BEATS;
constexpr int LINES_AHEAD = 2 * REQUEST_LINES;  // lines that a process may have asked for and not taken
constexpr int FREED_AHEAD = 16;  // grants of the input store that may be open
constexpr int COSIM_BEATS = 1 << 16;  // of memory that co-simulation sets up per port

// ---- widths
constexpr int SUM_BITS = 1 + bits_of(std::int64_t{128 * 128} * (MAX_INPUTS > MAX_HIDDEN ? MAX_INPUTS : MAX_HIDDEN));
constexpr int BIASED_BITS = 34;  // an accumulator and its bias: each below 2^32 in magnitude
constexpr int RESCALED_BITS = BIASED_BITS - SHIFT_MIN + 1;  // after the largest left shift, with room for rounding
constexpr int TOKEN_BITS = bits_of(MAX_TOKENS);
constexpr int EXPERT_BITS = bits_of(MAX_EXPERTS);
constexpr int SLOT_BITS = bits_of(WEIGHT_SLOTS);
constexpr int BEAT_BITS = bits_of(MAX_INPUT_BEATS > MAX_HIDDEN_BEATS ? MAX_INPUT_BEATS : MAX_HIDDEN_BEATS);
constexpr int TILE_BITS = bits_of(SLOT_GROUPS);
constexpr int COUNT_BITS = bits_of(T);
constexpr int ROW_BITS = bits_of(WEIGHT_SLOTS * SLOT_ROWS);
constexpr int GROUP_BITS = bits_of(WEIGHT_SLOTS * SLOT_GROUPS);
constexpr int NODES = MAX_TOKENS * MAX_TOP_K;  // queue entries of a layer, however they spread over the experts
constexpr int NODE_BITS = bits_of(NODES);

static_assert(PORTS == 4 && WRITE_PORTS == 2, "the top function has four read and two write arguments");
static_assert(T % 2 == 0, "two tokens share a multiplier");
static_assert(O % I == 0, "a hidden tile is whole beats");
static_assert(LINE_BYTES % I == 0, "a line is whole beats");
static_assert(GELU_BYTES % LINE_BYTES == 0, "GELU tables are whole lines");
static_assert(COMMAND_BYTES % PORT_BYTES == 0, "commands are whole beats");
static_assert(COMMAND_BYTES == LINE_BYTES, "record and commands move in pieces of a line's size");
static_assert(STORE_LINES >= TILE_LINES, "the widest tile fits the input store");
static_assert(GELU_BYTES == 1 << ACTIVATION_BITS, "a GELU table has an entry per activation");
static_assert(WIDE_ROWS == ULTRA_ROWS + BLOCK_ROWS, "every accumulator row is somewhere");
static_assert(ROW_BANKS >= O && ROW_BANKS % LINE_VALUES == 0, "O values, or those of a line, are in different banks");
static_assert(LINES_AHEAD == 2 * REQUEST_LINES, "the next request is sent while one is under way");
static_assert(REQUEST_STRIPES < 256 && WEIGHT_SLOTS < 256, "counts fit their bytes");
static_assert(SHIFT_MIN <= 0 && RESCALED_BITS <= 64, "C simulation keeps rescaled values in 64 bits");
static_assert(COMBINE_BITS >= 16 + COMBINE_FRACTION + 1, "a weighted unit output fits the accumulator");
static_assert(BURST_BEATS * PORT_BYTES <= 4096, "a burst does not cross 4 KiB");
static_assert(WEIGHT_BITS <= 8 && ACTIVATION_BITS <= 8, "weights and activations are stored in bytes");
static_assert(SUM_BITS <= 32, "C simulation keeps sums in 32 bits");

}  // namespace m3vit

#endif  // M3VIT_SHAPES_H
