// From gate logits to the best experts of every token (docs/numerics.md, 8).
#ifndef M3VIT_SCORE_H
#define M3VIT_SCORE_H

#include "stream.h"
#include "types.h"

namespace m3vit {

// for MoE layer: for tile of T tokens: top-k (ties to the lower index), then the sum of the softmax's powers over all
// experts. The T tokens of a tile go side by side, one expert per cycle.
void score(Stream<layer_t>& layers, Stream<logits_t>& logits, Stream<scored_t>& scored);

}  // namespace m3vit

#endif  // M3VIT_SCORE_H
