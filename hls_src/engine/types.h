// Types of everything that moves between processes. `sint<N>` and `uint<N>` are ap_int and ap_uint where widths matter,
// in synthesis and in the bit-true simulation (M3VIT_AP_TYPES), and the next wider native integer in the fast one. No
// value of the contract wraps in either, so both give the same bits; what saturates does so explicitly (numerics.h).
#ifndef M3VIT_TYPES_H
#define M3VIT_TYPES_H

#include <type_traits>

#include "shapes.h"

#if defined(__SYNTHESIS__) || defined(M3VIT_AP_TYPES)
#include <ap_int.h>
#endif

namespace m3vit {

#if defined(__SYNTHESIS__) || defined(M3VIT_AP_TYPES)
template <int N>
using sint = ap_int<N>;
template <int N>
using uint = ap_uint<N>;
#else
template <int N, class A, class B, class C, class D>
using at_least_bits = std::conditional_t<(N <= 8), A,
                                         std::conditional_t<(N <= 16), B, std::conditional_t<(N <= 32), C, D>>>;
template <int N>
using sint = at_least_bits<N, std::int8_t, std::int16_t, std::int32_t, std::int64_t>;
template <int N>
using uint = at_least_bits<N, std::uint8_t, std::uint16_t, std::uint32_t, std::uint64_t>;
#endif

// ---- values. Bytes and 16-bit values are native integers everywhere: their widths are those of the hardware.
using act_t = std::int8_t;                     // activation or weight, exact
using narrow_t = std::int16_t;                 // unit output, residual, or int8 output before it is packed
using sum_t = sint<SUM_BITS>;                  // products of a linear layer: exact, cannot overflow (shapes.h)
using biased_t = sint<BIASED_BITS>;            // sum + bias, exact
using rescaled_t = sint<RESCALED_BITS>;        // biased · 2^-shift before saturation, exact
using bias_t = std::int32_t;
using shift_t = sint<6>;                       // SHIFT_MIN … SHIFT_MAX
using weight_t = uint<COMBINE_FRACTION + 1>;   // combine weight, COMBINE_ONE is 1.0
using share_t = sint<16 + COMBINE_FRACTION + 1>;  // weight · unit output, exact: the weight is 1.0 at most
using wide_t = sint<COMBINE_BITS>;             // combine accumulator without the residual, exact
using finish_t = sint<COMBINE_BITS + 2>;       // with it, and room for rounding
using logit_t = sint<BIASED_BITS>;
using token_t = uint<TOKEN_BITS>;
using expert_t = uint<EXPERT_BITS>;
using slot_t = uint<SLOT_BITS>;
using beats_t = uint<BEAT_BITS>;
using tiles_t = uint<TILE_BITS>;
using power_t = uint<16>;  // 2^-u in Q15
using total_t = uint<24>;  // Σ of powers over all experts
using node_t = uint<NODE_BITS>;
using row_t = uint<ROW_BITS>;      // place in the weight store
using place_t = uint<GROUP_BITS>;  // place in the store of groups

static_assert(SHIFT_MIN >= -32 && SHIFT_MAX <= 31, "shifts fit shift_t");

enum class Kind : std::uint8_t { LINEAR, ACCUMULATE, MLP, MOE, JOB_END, END };
enum class Sink : std::uint8_t { LINEAR, WIDE, GATE, END };

using signal_t = std::uint8_t;  // a token that says no more than that something has happened

// ---- memory
struct line_t {  // one beat of every port side by side
  act_t byte[LINE_BYTES];
};

struct request_t {  // stripes that a process wants to have read; none of them says that it will want no more
  std::uint32_t stripe;  // arena offset / STRIPE_BYTES
  uint<8> stripes;
  std::uint32_t age;  // sequence number of the layer: the reader serves the oldest first
};

struct command_t {
  std::uint32_t word[COMMAND_WORDS];
};

struct command_request_t {
  std::uint32_t offset;  // in the arena, bytes
  bool last;             // nothing to read: no more will follow
};

// ---- layers: a checked command with every count that follows from its shape, so that no process divides
struct layer_t {
  Kind kind;
  bool narrow;
  bool no_prefetch;
  bool starts_crc;  // first MoE layer of its job
  std::uint8_t schedule;
  std::int8_t gate_shift;
  std::uint32_t age;
  std::uint16_t job;
  token_t tokens;
  expert_t experts;
  uint<4> top_k;
  std::uint8_t units;
  std::uint16_t outputs;
  beats_t input_beats;
  beats_t hidden_beats;
  uint<16> input_lines;   // of a token
  uint<17> output_lines;  // of a token
  tiles_t hidden_tiles;
  tiles_t unit_tiles;  // output tiles of a unit
  tiles_t last_tiles;  // of the last unit
  tiles_t gate_tiles;
  std::uint32_t weights;  // these in stripes
  std::uint32_t gate;
  std::uint32_t input;
  std::uint32_t residual;
  std::uint32_t output;
  std::uint32_t unit_stripes;
  std::uint32_t gate_stripes;
  std::uint32_t input_stripes;
  std::uint32_t output_stripes;
  std::uint32_t pairs;
  std::uint64_t macs;
  // END only
  std::uint32_t error;
  std::uint32_t detail;
  std::uint32_t commands;       // completed
  std::uint32_t commands_read;  // whose bytes count
};

// ---- weights
struct weight_row_t {
  act_t value[O * I];  // byte lane · I + input
};

struct group_t {  // parameters of one output tile
  bias_t bias[O];
  shift_t shift[O];
};

struct resident_t {  // what the weight slots hold when a gate table is loaded
  bool valid[WEIGHT_SLOTS];
  std::uint32_t stripe[WEIGHT_SLOTS];
};

struct order_t {  // the next expert to load
  expert_t expert;
  bool resident;  // every unit of it is in a slot
  bool last;
};

struct entry_t {  // of an expert's queue
  token_t token;
  weight_t weight;
  bool last;         // of this walk over the queue
  bool last_expert;  // the walk is over the last queue of the layer
};

struct scored_t {  // the largest logits of a token, best first, and the sum of all its powers
  logit_t value[MAX_TOP_K];
  expert_t expert[MAX_TOP_K];
  total_t total;
};

struct pick_t {  // an expert that a token chose
  expert_t expert;
  weight_t weight;
};

struct routed_t {
  expert_t experts;  // that have a queue
  std::uint32_t crc;
};

// ---- tiles: up to T tokens through one unit
struct tile_t {
  Sink sink;
  bool narrow;
  bool follow_load;    // first tile of a unit: its weights may still be on their way
  bool last_of_unit;   // its slot is free afterwards
  bool last_of_layer;
  bool overwrite;      // first contribution of a dense layer to these outputs of its tokens
  bool complete;       // last contribution of a dense layer to its tokens
  slot_t slot;
  uint<COUNT_BITS> count;
  beats_t input_beats;
  beats_t hidden_beats;
  tiles_t hidden_tiles;
  tiles_t tiles;
  token_t token[T];
  weight_t weight[T];
};

struct operand_t {  // inputs of one array beat
  act_t value[T][I];
};

struct sums_t {  // accumulators of one output tile
  sum_t value[T][O];
};

struct pair_sums_t {  // two tokens of a finished output tile: all T would be too wide for one stream
  place_t group;      // of its parameters: drain has the address from the array, so it cannot read them too early
  sum_t value[2][O];
};

struct logits_t {  // one token, O experts
  logit_t value[O];
};

struct result_t {  // one token, one output tile
  narrow_t value[O];
};

// ---- to memory
enum class Outgoing : std::uint8_t {
  LINE,    // into the arena, at line `place`; lines that follow each other become bursts
  PIECE,   // a line's worth of plain bytes at byte `place`
  SETTLE,  // everything before must be in memory before what follows is sent
  RETIRE,  // the same, then the layer is over
  END,
};

struct outgoing_t {
  Outgoing kind;
  std::uint32_t place;
  line_t line;
};

}  // namespace m3vit

#endif  // M3VIT_TYPES_H
