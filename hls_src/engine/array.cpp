#include "array.h"

#include "mac.h"

namespace m3vit {

namespace {

// One linear layer of a tile. The first output tile takes the operands from their stream and keeps them in `kept`.
void pass(int tiles, int beats, bool follow_load, int& row, Stream<operand_t>& operands, operand_t* kept,
          Stream<signal_t>& filled, Stream<sums_t>& sums, const weight_row_t weights[WEIGHT_SLOTS * SLOT_ROWS]) {
#pragma HLS INLINE
  sums_t finished;
#pragma HLS ARRAY_PARTITION variable = finished.value complete dim = 0
  operand_t last = {};  // taken from the stream: with a single beat it is needed again before it is in `kept`
PASS_TILE:
  for (int o = 0; o < tiles; ++o) {
  PASS_BEAT:
    for (int k = 0; k < beats; ++k) {
      // The accumulator is added to every cycle: the addition has one cycle, the cascade before it as many as it likes.
      // `kept` is written in the first output tile and read in later ones, `beats` cycles apart: two at the least,
      // because a single beat comes from `last`.
#pragma HLS PIPELINE II = 1
#pragma HLS LOOP_FLATTEN
#pragma HLS DEPENDENCE variable = kept inter RAW distance = 2 true
      if (k == 0 && follow_load) {
        filled.read();
      }
      operand_t x;
      if (o == 0) {
        x = operands.read();
        kept[k] = x;
        last = x;
      } else {
        x = beats == 1 ? last : kept[k];
      }
      multiply(finished, x, weights[row], k == 0);
      ++row;
      if (k == beats - 1) {
        sums.write(finished);
      }
    }
  }
}

}  // namespace

void array(Stream<tile_t>& tiles, Stream<operand_t>& operands, Stream<operand_t>& hidden, Stream<signal_t>& filled,
           Stream<tile_t>& drain_tiles, Stream<sums_t>& sums, const weight_row_t weights[WEIGHT_SLOTS * SLOT_ROWS]) {
  operand_t inputs[MAX_INPUT_BEATS];
  operand_t columns[MAX_HIDDEN_BEATS];
#pragma HLS AGGREGATE variable = inputs
#pragma HLS AGGREGATE variable = columns
#pragma HLS BIND_STORAGE variable = inputs type = ram_2p impl = lutram
#pragma HLS BIND_STORAGE variable = columns type = ram_2p impl = lutram
TILES:
  while (true) {
    const tile_t tile = tiles.read();
    drain_tiles.write(tile);
    if (tile.sink == Sink::END) {
      break;
    }
    int row = int(tile.slot) * SLOT_ROWS;
    if (tile.hidden_tiles != tiles_t(0)) {
      pass(int(tile.hidden_tiles), int(tile.input_beats), tile.follow_load, row, operands, inputs, filled, sums,
           weights);
      pass(int(tile.tiles), int(tile.hidden_beats), tile.follow_load, row, hidden, columns, filled, sums, weights);
    } else {
      pass(int(tile.tiles), int(tile.input_beats), tile.follow_load, row, operands, inputs, filled, sums, weights);
    }
  }
}

}  // namespace m3vit
