#include "score.h"

#include "numerics.h"

namespace m3vit {

namespace {

struct best_t {  // the largest logits of a token, best first
  logit_t value[MAX_TOP_K];
  expert_t expert[MAX_TOP_K];
};

// Inserts a logit behind all that are at least as large; `filled` entries are there.
void insert(best_t& best, logit_t value, int expert, int filled) {
#pragma HLS INLINE
  bool ahead[MAX_TOP_K];  // of the entry at this place
#pragma HLS ARRAY_PARTITION variable = ahead complete
COMPARE:
  for (int place = 0; place < MAX_TOP_K; ++place) {
#pragma HLS UNROLL
    ahead[place] = place >= filled || value > best.value[place];
  }
SHIFT:
  for (int place = MAX_TOP_K - 1; place >= 0; --place) {
#pragma HLS UNROLL
    const bool moved = place > 0 && ahead[place > 0 ? place - 1 : 0];
    if (moved) {
      best.value[place] = best.value[place - 1];
      best.expert[place] = best.expert[place - 1];
    } else if (ahead[place]) {
      best.value[place] = value;
      best.expert[place] = expert_t(expert);
    }
  }
}

power_t power(logit_t largest, logit_t value, int shift) {
#pragma HLS INLINE
  const logit_t distance = logit_t(largest - value);  // >= 0
  return exp2_negative(distance_t(std::uint64_t(distance)), shift);
}

}  // namespace

void score(Stream<layer_t>& layers, Stream<logits_t>& logits, Stream<pick_t>& picks) {
  logit_t logit[T][GATE_TILES * O];
#pragma HLS ARRAY_PARTITION variable = logit complete dim = 1
#pragma HLS ARRAY_PARTITION variable = logit cyclic factor = O dim = 2
  best_t best[T];
#pragma HLS ARRAY_PARTITION variable = best complete
  total_t total[T];
#pragma HLS ARRAY_PARTITION variable = total complete

LAYERS:
  for (layer_t layer = layers.read(); layer.kind != Kind::END; layer = layers.read()) {
    const int experts = int(layer.experts);
    const int shift = int(layer.gate_shift);
  TILES:
    for (int begin = 0; begin < int(layer.tokens); begin += T) {
      const int count = int(layer.tokens) - begin < T ? int(layer.tokens) - begin : T;
    COLLECT:
      for (int o = 0; o < int(layer.gate_tiles); ++o) {
      COLLECT_TOKEN:
        for (int t = 0; t < count; ++t) {
#pragma HLS PIPELINE II = 1
          const logits_t row = logits.read();
        COLLECT_LANE:
          for (int lane = 0; lane < O; ++lane) {
#pragma HLS UNROLL
            logit[t][o * O + lane] = row.value[lane];
          }
        }
      }
    CLEAR:
      for (int t = 0; t < T; ++t) {
#pragma HLS UNROLL
        total[t] = total_t(0);
      CLEAR_BEST:
        for (int place = 0; place < MAX_TOP_K; ++place) {
#pragma HLS UNROLL
          best[t].value[place] = logit_t(0);
          best[t].expert[place] = expert_t(0);
        }
      }
    TOP_K:
      for (int expert = 0; expert < experts; ++expert) {
#pragma HLS PIPELINE II = 1
      TOP_K_TOKEN:
        for (int t = 0; t < T; ++t) {
#pragma HLS UNROLL
          if (t < count) {
            insert(best[t], logit[t][expert], expert, expert);
          }
        }
      }
    SUM:
      for (int expert = 0; expert < experts; ++expert) {
#pragma HLS PIPELINE II = 1
      SUM_TOKEN:
        for (int t = 0; t < T; ++t) {
#pragma HLS UNROLL
          if (t < count) {
            total[t] = total_t(total[t] + total_t(power(best[t].value[0], logit[t][expert], shift)));
          }
        }
      }
    PICK:
      for (int t = 0; t < count; ++t) {
        const reciprocal_t scale = reciprocal(total[t]);
      PICK_RANK:
        for (int rank = 0; rank < int(layer.top_k); ++rank) {
#pragma HLS PIPELINE II = 1
          pick_t pick;
          pick.expert = best[t].expert[rank];
          pick.weight = gate_weight(power(best[t].value[0], best[t].value[rank], shift), scale);
          picks.write(pick);
        }
      }
    }
  }
}

}  // namespace m3vit
