// Weights of the chosen experts: the softmax at their logits (docs/numerics.md, 8).
#ifndef M3VIT_WEIGH_H
#define M3VIT_WEIGH_H

#include "stream.h"
#include "types.h"

namespace m3vit {

// for MoE layer: for token: for its top-k experts: pick and weight, one per cycle
void weigh(Stream<layer_t>& layers, Stream<scored_t>& scored, Stream<pick_t>& picks);

}  // namespace m3vit

#endif  // M3VIT_WEIGH_H
