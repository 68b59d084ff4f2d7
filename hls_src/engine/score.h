// From gate logits to chosen experts and their weights (docs/numerics.md, 8).
#ifndef M3VIT_SCORE_H
#define M3VIT_SCORE_H

#include "stream.h"
#include "types.h"

namespace m3vit {

// for MoE layer: for tile of T tokens: top-k (ties to the lower index), softmax over all experts, read at the chosen
// ones The T tokens of a tile go side by side, one expert per cycle.
void score(Stream<layer_t>& layers, Stream<logits_t>& logits, Stream<pick_t>& picks);

}  // namespace m3vit

#endif  // M3VIT_SCORE_H
