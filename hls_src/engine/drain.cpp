#include "drain.h"

#include "numerics.h"

namespace m3vit {

namespace {

biased_t with_bias(const sums_t& sums, const group_t& group, int t, int lane) {
#pragma HLS INLINE
  return biased_t(biased_t(sums.value[t][lane]) + biased_t(group.bias[lane]));
}

narrow_t requantize(const sums_t& sums, const group_t& group, int t, int lane, int bits, bool narrow) {
#pragma HLS INLINE
  const rescaled_t value = rescaled_t(with_bias(sums, group, t, lane));
  return saturate(shift_round_even(value, int(group.shift[lane])), bits, narrow);
}

void hidden_tile(const sums_t& sums, const group_t& group, int slot, int beats, Stream<operand_t>& hidden,
                 const act_t gelu[O][WEIGHT_SLOTS * GELU_BYTES]) {
  act_t block[T][O];
#pragma HLS ARRAY_PARTITION variable = block complete dim = 0
HIDDEN_TOKEN:
  for (int t = 0; t < T; ++t) {
#pragma HLS PIPELINE II = 1
  HIDDEN_LANE:
    for (int lane = 0; lane < O; ++lane) {
#pragma HLS UNROLL
      const int value = requantize(sums, group, t, lane, ACTIVATION_BITS, false);
      block[t][lane] = gelu[lane][slot * GELU_BYTES + value + 128];
    }
  }
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

}  // namespace

void drain(Stream<tile_t>& tiles, Stream<sums_t>& sums, Stream<operand_t>& hidden, Stream<logits_t>& logits,
           Stream<tile_t>& result_tiles, Stream<result_t>& results, Stream<slot_t>& freed,
           const group_t groups[WEIGHT_SLOTS * SLOT_GROUPS], const act_t gelu[O][WEIGHT_SLOTS * GELU_BYTES]) {
TILES:
  while (true) {
    const tile_t tile = tiles.read();
    if (tile.sink == Sink::END) {
      break;
    }
    if (tile.sink != Sink::GATE) {
      result_tiles.write(tile);
    }
    const int slot = int(tile.slot);
    int group = slot * SLOT_GROUPS;
  HIDDEN_TILES:
    for (int o = 0; o < int(tile.hidden_tiles); ++o, ++group) {
      const int rest = int(tile.hidden_beats) - o * BLOCK_BEATS;
      hidden_tile(sums.read(), groups[group], slot, rest < BLOCK_BEATS ? rest : BLOCK_BEATS, hidden, gelu);
    }
  OUTPUT_TILES:
    for (int o = 0; o < int(tile.tiles); ++o, ++group) {
      const sums_t finished = sums.read();
      const group_t parameters = groups[group];
    OUTPUT_TOKEN:
      for (int t = 0; t < int(tile.count); ++t) {
#pragma HLS PIPELINE II = 1
        logits_t raw;
        result_t result;
      OUTPUT_LANE:
        for (int lane = 0; lane < O; ++lane) {
#pragma HLS UNROLL
          const int bits = tile.sink == Sink::LINEAR ? ACTIVATION_BITS : RESIDUAL_BITS;
          raw.value[lane] = logit_t(with_bias(finished, parameters, t, lane));
          result.value[lane] = requantize(finished, parameters, t, lane, bits, tile.narrow);
        }
        if (tile.sink == Sink::GATE) {
          logits.write(raw);
        } else {
          results.write(result);
        }
      }
    }
    if (tile.last_of_unit) {
      freed.write(tile.slot);
    }
  }
}

}  // namespace m3vit
