// Depths of all streams, and the least that cannot deadlock with every other stream at its own least depth. The reasons
// for a least depth above 1 stand here; tests/hls_src runs the adversarial programs at these depths and below.
#ifndef M3VIT_DEPTHS_H
#define M3VIT_DEPTHS_H

#include "shapes.h"

namespace m3vit {

struct Depth {
  const char* name;
  int depth;
  int least;
};

namespace depth {

// fetch to everybody: one layer each
constexpr Depth LOAD_LAYERS{"load_layers", ENTRIES, 1};
constexpr Depth ROWS_LAYERS{"rows_layers", ENTRIES, 1};
constexpr Depth DISPATCH_LAYERS{"dispatch_layers", ENTRIES, 1};
constexpr Depth SCORE_LAYERS{"score_layers", ENTRIES, 1};
constexpr Depth WEIGH_LAYERS{"weigh_layers", ENTRIES, 1};
constexpr Depth ROUTE_LAYERS{"route_layers", ENTRIES, 1};
constexpr Depth STORE_LAYERS{"store_layers", 2 * ENTRIES, 1};
// writer to fetch. Fetch looks only when ENTRIES layers are open: until then the writer, and store behind it, must not
// wait, because fetch may itself be waiting for a process behind which store's own input is queued. The last of them
// may wait in the writer's hands.
constexpr Depth RETIRED{"retired", ENTRIES, at_least(ENTRIES - 1, 1)};

// memory
constexpr Depth COMMAND_REQUESTS{"command_requests", 2, 1};
constexpr Depth COMMANDS{"commands", 2, 1};
constexpr Depth WEIGHT_REQUESTS{"weight_requests", 2, 1};
constexpr Depth INPUT_REQUESTS{"input_requests", 2, 1};
constexpr Depth RESIDUAL_REQUESTS{"residual_requests", 2, 1};
// Between asking and taking, load may wait for the array (which waits for rows), rows for dispatch (which waits for
// weights) and store for results: lines that one has asked for must never hold up those of another in the reader's
// hands.
constexpr Depth WEIGHT_LINES{"weight_lines", LINES_AHEAD, LINES_AHEAD};
constexpr Depth INPUT_LINES{"input_lines", LINES_AHEAD, LINES_AHEAD};
constexpr Depth RESIDUAL_LINES{"residual_lines", LINES_AHEAD, LINES_AHEAD};

// weight slots
constexpr Depth UNITS{"units", at_least(WEIGHT_SLOTS, 2), 1};
constexpr Depth FILLED{"filled", 2 * SLOT_GROUPS, 1};
// While load waits for the order of a layer's experts, the units before its gate table give their slots back.
constexpr Depth FREED{"freed", WEIGHT_SLOTS, at_least(WEIGHT_SLOTS - 1, 1)};
constexpr Depth LOADED{"loaded", ENTRIES, 1};

// routing
constexpr Depth LOGITS{"logits", 2 * T, 1};
constexpr Depth SCORED{"scored", 2 * T, 1};
constexpr Depth PICKS{"picks", T * MAX_TOP_K, 1};
constexpr Depth RESIDENT{"resident", 2, 1};
// Route names every expert before it walks the first queue, so that weights are loaded ahead; load can take the second
// name only when the array, which waits for the first queue, has begun.
constexpr Depth ORDER{"order", MAX_EXPERTS, MAX_EXPERTS - 1};
constexpr Depth ENTRIES_OF_QUEUES{"entries", 4 * T, 1};
constexpr Depth ROUTED{"routed", 2, 1};

// input store
constexpr Depth ROWS_READY{"rows_ready", FREED_AHEAD, 1};
// Rows has at most FREED_AHEAD grants open and looks for returns only when it needs one; the last may wait in the hands
// of dispatch, because then rows needs one.
constexpr Depth ROWS_FREED{"rows_freed", FREED_AHEAD, at_least(FREED_AHEAD - 1, 1)};

// array
constexpr Depth TILES{"tiles", 4, 1};
constexpr Depth OPERANDS{"operands", at_least(2 * MAX_INPUT_BEATS, 64), 1};
constexpr Depth DRAIN_TILES{"drain_tiles", 2, 1};
constexpr Depth SUMS{"sums", 2, 1};
// The array sends every hidden tile before it takes the first hidden beat back; one waits in `sums`, one in drain's
// hands.
constexpr Depth HIDDEN{"hidden", MAX_HIDDEN_BEATS, at_least((MAX_HIDDEN_TILES - 2) * BLOCK_BEATS, 1)};
constexpr Depth RESULT_TILES{"result_tiles", 4, 1};
constexpr Depth RESULTS{"results", 4 * T, 1};
constexpr Depth OUTGOING{"outgoing", 4 * BURST_BEATS, 1};

constexpr Depth ALL[] = {
    LOAD_LAYERS, ROWS_LAYERS, DISPATCH_LAYERS, SCORE_LAYERS, WEIGH_LAYERS, ROUTE_LAYERS, STORE_LAYERS, RETIRED,
    COMMAND_REQUESTS, COMMANDS, WEIGHT_REQUESTS, INPUT_REQUESTS, RESIDUAL_REQUESTS, WEIGHT_LINES, INPUT_LINES,
    RESIDUAL_LINES, UNITS, FILLED, FREED, LOADED, LOGITS, SCORED, PICKS, RESIDENT, ORDER, ENTRIES_OF_QUEUES, ROUTED,
    ROWS_READY, ROWS_FREED, TILES, OPERANDS, DRAIN_TILES, SUMS, HIDDEN, RESULT_TILES, RESULTS, OUTGOING,
};

}  // namespace depth
}  // namespace m3vit

#endif  // M3VIT_DEPTHS_H
