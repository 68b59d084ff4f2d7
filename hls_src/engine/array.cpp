#include "array.h"

#include "mac.h"

namespace m3vit {

namespace {

constexpr int KEPT_BEATS = MAX_INPUT_BEATS > MAX_HIDDEN_BEATS ? MAX_INPUT_BEATS : MAX_HIDDEN_BEATS;

}  // namespace

void array(Stream<tile_t>& tiles, Stream<operand_t>& operands, Stream<operand_t>& hidden, Stream<row_t>& filled,
           Stream<tile_t>& drain_tiles, Stream<pair_sums_t> sums[PAIRS], const weight_row_t weights[WEIGHT_SLOTS * SLOT_ROWS]) {
  operand_t kept[KEPT_BEATS];  // operands of a layer, for its output tiles after the first
#pragma HLS AGGREGATE variable = kept
#pragma HLS BIND_STORAGE variable = kept type = ram_2p impl = lutram
  sums_t finished;
#pragma HLS ARRAY_PARTITION variable = finished.value complete dim = 0

TILES:
  while (true) {
    const tile_t tile = tiles.read();
    drain_tiles.write(tile);
    if (tile.sink == Sink::END) {
      break;
    }
    const bool two = tile.hidden_tiles != tiles_t(0);
    int row = int(tile.slot) * SLOT_ROWS;
    int group = int(tile.slot) * SLOT_GROUPS;
  LAYER:
    for (int layer = two ? 0 : 1; layer < 2; ++layer) {
      // Both layers go through one loop, so there is one set of multipliers. It runs empty between them: the second
      // layer waits for what drain makes of the first one's last sums, which must not be caught in a stalled pipeline.
      const int outputs = int(layer == 0 ? tile.hidden_tiles : tile.tiles);
      const bool from_hidden = two && layer == 1;
      const int beats = int(from_hidden ? tile.hidden_beats : tile.input_beats);
      operand_t last = {};  // with a single beat it is needed again before it is in `kept`
      int o = 0;
      int k = 0;
    PASS_BEAT:
      for (int step = 0; step < outputs * beats; ++step) {
        // The accumulator is added to every cycle: the addition has one cycle, the cascade before it as many as it
        // likes. `kept` is written in the first output tile and read in later ones, `beats` cycles apart: two at the
        // least, because a single beat comes from `last`.
#pragma HLS PIPELINE II = 1
#pragma HLS DEPENDENCE variable = kept inter RAW distance = 2 true
        if (k == 0 && tile.follow_load) {
          row = int(filled.read());  // the address comes with the token: no schedule can read the row before it
        }
        operand_t x;
        if (o == 0) {
          x = from_hidden ? hidden.read() : operands.read();
          kept[k] = x;
          last = x;
        } else {
          x = beats == 1 ? last : kept[k];
        }
        multiply(finished, x, weights[row], k == 0);
        ++row;
        if (k == beats - 1) {
        SEND_PAIR:
          for (int pair = 0; pair < PAIRS; ++pair) {
#pragma HLS UNROLL
            pair_sums_t part;
            part.group = place_t(group);
          SEND_LANE:
            for (int lane = 0; lane < O; ++lane) {
#pragma HLS UNROLL
              part.value[0][lane] = finished.value[2 * pair][lane];
              part.value[1][lane] = finished.value[2 * pair + 1][lane];
            }
            sums[pair].write(part);
          }
          ++group;
          ++o;
          k = 0;
        } else {
          ++k;
        }
      }
    }
  }
}

}  // namespace m3vit
