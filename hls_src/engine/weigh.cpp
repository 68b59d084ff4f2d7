#include "weigh.h"

#include "numerics.h"

namespace m3vit {

void weigh(Stream<layer_t>& layers, Stream<scored_t>& scored, Stream<pick_t>& picks) {
LAYERS:
  for (layer_t layer = layers.read(); layer.kind != Kind::END; layer = layers.read()) {
    const int top_k = int(layer.top_k);
    const int shift = int(layer.gate_shift);
    scored_t item = {};
#pragma HLS ARRAY_PARTITION variable = item.value complete
#pragma HLS ARRAY_PARTITION variable = item.expert complete
    int rank = 0;
  WEIGH:
    for (std::uint32_t pair = 0; pair < layer.pairs; ++pair) {
      // The reciprocal is computed for every pick of a token anew: its divider takes a value per cycle, and a loop over
      // all picks of the layer waits for it once.
#pragma HLS PIPELINE II = 1
      if (rank == 0) {
        item = scored.read();
      }
      pick_t pick;
      pick.expert = item.expert[rank];
      pick.weight = gate_weight(power(item.value[0], item.value[rank], shift), reciprocal(item.total));
      picks.write(pick);
      rank = rank == top_k - 1 ? 0 : rank + 1;
    }
  }
}

}  // namespace m3vit
