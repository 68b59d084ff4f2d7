// From finished sums to values: bias, requantization, GELU.
#ifndef M3VIT_DRAIN_H
#define M3VIT_DRAIN_H

#include "stream.h"
#include "types.h"

namespace m3vit {

// for tile: hidden tiles:  int8 -> GELU -> back to the array, beat by beat
//           output tiles:  gate: raw logits to score; LINEAR: int8, otherwise int16 to store; one token per cycle
//           last of a unit: its weight slot is free (backward token)
void drain(Stream<tile_t>& tiles, Stream<pair_sums_t> sums[PAIRS], Stream<operand_t>& hidden, Stream<logits_t>& logits,
           Stream<tile_t>& result_tiles, Stream<result_t>& results, Stream<slot_t>& freed,
           const group_t groups[WEIGHT_SLOTS * SLOT_GROUPS], const act_t gelu[O][WEIGHT_SLOTS * GELU_BYTES]);

}  // namespace m3vit

#endif  // M3VIT_DRAIN_H
