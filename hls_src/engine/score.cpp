#include "score.h"

#include "numerics.h"

namespace m3vit {

namespace {

// Inserts a logit into the largest ones of a token, best first, behind all that are at least as large. `filled` of them
// are there.
void insert(logit_t values[MAX_TOP_K], expert_t experts[MAX_TOP_K], logit_t value, int expert, int filled) {
#pragma HLS INLINE
  bool ahead[MAX_TOP_K];  // of the entry at this place
#pragma HLS ARRAY_PARTITION variable = ahead complete
COMPARE:
  for (int place = 0; place < MAX_TOP_K; ++place) {
#pragma HLS UNROLL
    ahead[place] = place >= filled || value > values[place];
  }
SHIFT:
  for (int place = MAX_TOP_K - 1; place >= 0; --place) {
#pragma HLS UNROLL
    const bool moved = place > 0 && ahead[place > 0 ? place - 1 : 0];
    if (moved) {
      values[place] = values[place - 1];
      experts[place] = experts[place - 1];
    } else if (ahead[place]) {
      values[place] = value;
      experts[place] = expert_t(expert);
    }
  }
}

}  // namespace

void score(Stream<layer_t>& layers, Stream<logits_t>& logits, Stream<scored_t>& scored) {
  logit_t logit[T][GATE_TILES * O];
#pragma HLS ARRAY_PARTITION variable = logit complete dim = 1
#pragma HLS ARRAY_PARTITION variable = logit cyclic factor = O dim = 2
  logit_t best[T][MAX_TOP_K];
#pragma HLS ARRAY_PARTITION variable = best complete dim = 0
  expert_t chosen[T][MAX_TOP_K];
#pragma HLS ARRAY_PARTITION variable = chosen complete dim = 0
  total_t total[T];
#pragma HLS ARRAY_PARTITION variable = total complete

LAYERS:
  for (layer_t layer = layers.read(); layer.kind != Kind::END; layer = layers.read()) {
    const int experts = int(layer.experts);
    const int shift = int(layer.gate_shift);
  TILES:
    for (int begin = 0; begin < int(layer.tokens); begin += T) {
      const int count = int(layer.tokens) - begin < T ? int(layer.tokens) - begin : T;
      int t = 0;
      int o = 0;
    COLLECT:
      for (int step = 0; step < int(layer.gate_tiles) * count; ++step) {
#pragma HLS PIPELINE II = 1
        const logits_t row = logits.read();
      COLLECT_LANE:
        for (int lane = 0; lane < O; ++lane) {
#pragma HLS UNROLL
          logit[t][o * O + lane] = row.value[lane];
        }
        if (t == count - 1) {
          t = 0;
          ++o;
        } else {
          ++t;
        }
      }
    CLEAR:
      for (int t = 0; t < T; ++t) {
#pragma HLS UNROLL
        total[t] = total_t(0);
      CLEAR_BEST:
        for (int place = 0; place < MAX_TOP_K; ++place) {
#pragma HLS UNROLL
          best[t][place] = logit_t(0);
          chosen[t][place] = expert_t(0);
        }
      }
    TOP_K:
      for (int expert = 0; expert < experts; ++expert) {
#pragma HLS PIPELINE II = 1
      TOP_K_TOKEN:
        for (int t = 0; t < T; ++t) {
#pragma HLS UNROLL
          if (t < count) {
            insert(best[t], chosen[t], logit[t][expert], expert, expert);
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
            total[t] = total_t(total[t] + total_t(power(best[t][0], logit[t][expert], shift)));
          }
        }
      }
    SCORED:
      for (int t = 0; t < count; ++t) {
#pragma HLS PIPELINE II = 1
        scored_t item;
      SCORED_PLACE:
        for (int place = 0; place < MAX_TOP_K; ++place) {
#pragma HLS UNROLL
          item.value[place] = best[t][place];
          item.expert[place] = chosen[t][place];
        }
        item.total = total[t];
        scored.write(item);
      }
    }
  }
}

}  // namespace m3vit
