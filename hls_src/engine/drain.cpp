#include "drain.h"

#include "numerics.h"

namespace m3vit {

namespace {

biased_t with_bias(const sums_t& sums, const group_t& group, int t, int lane) {
#pragma HLS INLINE
  return biased_t(biased_t(sums.value[t][lane]) + biased_t(group.bias[lane]));
}

}  // namespace

void drain(Stream<tile_t>& tiles, Stream<pair_sums_t> sums[PAIRS], Stream<operand_t>& hidden, Stream<logits_t>& logits,
           Stream<tile_t>& result_tiles, Stream<result_t>& results, Stream<slot_t>& freed,
           const group_t groups[WEIGHT_SLOTS * SLOT_GROUPS], const act_t gelu[O][WEIGHT_SLOTS * GELU_BYTES]) {
  act_t block[T][O];  // a hidden tile
#pragma HLS ARRAY_PARTITION variable = block complete dim = 0
TILES:
  while (true) {
    const tile_t tile = tiles.read();
    if (tile.sink == Sink::END) {
      break;
    }
    if (tile.sink != Sink::GATE) {
      result_tiles.write(tile);
    }
    const int hidden_tiles = int(tile.hidden_tiles);
  OUTPUT_TILES:
    for (int o = 0; o < hidden_tiles + int(tile.tiles); ++o) {
      // Hidden and output tiles go through one loop, so there is one set of requantizers. It runs empty after every
      // tile: what the array or store waits for is never held back by waiting for the next sums.
      const bool is_hidden = o < hidden_tiles;
      const bool linear = tile.sink == Sink::LINEAR;
      const int bits = is_hidden || linear ? ACTIVATION_BITS : RESIDUAL_BITS;
      const bool narrow = !is_hidden && tile.narrow;
      const int count = is_hidden ? T : int(tile.count);  // the array takes beats of all T tokens
      sums_t finished;
#pragma HLS ARRAY_PARTITION variable = finished.value complete dim = 0
      place_t group = place_t(0);
    TAKE_PAIR:
      for (int pair = 0; pair < PAIRS; ++pair) {
#pragma HLS UNROLL
        const pair_sums_t part = sums[pair].read();
        group = part.group;  // the same in every pair: the last one has it when all sums are there
      TAKE_LANE:
        for (int lane = 0; lane < O; ++lane) {
#pragma HLS UNROLL
          finished.value[2 * pair][lane] = part.value[0][lane];
          finished.value[2 * pair + 1][lane] = part.value[1][lane];
        }
      }
      const group_t parameters = groups[int(group)];
    DRAIN_TOKEN:
      for (int t = 0; t < count; ++t) {
#pragma HLS PIPELINE II = 1
        logits_t raw;
        result_t result;
      DRAIN_LANE:
        for (int lane = 0; lane < O; ++lane) {
#pragma HLS UNROLL
          const biased_t biased = with_bias(finished, parameters, t, lane);
          const rescaled_t rounded = shift_round_even(rescaled_t(biased), int(parameters.shift[lane]));
          const narrow_t value = saturate(rounded, bits, narrow);
          raw.value[lane] = logit_t(biased);
          result.value[lane] = value;
          if (is_hidden) {
            block[t][lane] = gelu[lane][int(tile.slot) * GELU_BYTES + int(value) + 128];
          }
        }
        if (!is_hidden && tile.sink == Sink::GATE) {
          logits.write(raw);
        } else if (!is_hidden) {
          results.write(result);
        }
      }
      const int rest = int(tile.hidden_beats) - o * BLOCK_BEATS;
      const int beats = is_hidden ? (rest < BLOCK_BEATS ? rest : BLOCK_BEATS) : 0;
    HIDDEN_BEAT:
      for (int beat = 0; beat < beats; ++beat) {
#pragma HLS PIPELINE II = 1
        operand_t operand;
      HIDDEN_VALUE:
        for (int t = 0; t < T; ++t) {
#pragma HLS UNROLL
        HIDDEN_INPUT:
          for (int i = 0; i < I; ++i) {
#pragma HLS UNROLL
            operand.value[t][i] = block[t][beat * I + i];
          }
        }
        hidden.write(operand);
      }
    }
    if (tile.last_of_unit) {
      freed.write(tile.slot);
    }
  }
}

}  // namespace m3vit
