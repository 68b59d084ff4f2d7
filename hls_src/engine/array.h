// The multiply-accumulate array: T tokens x O outputs x I inputs per cycle, output-stationary.
#ifndef M3VIT_ARRAY_H
#define M3VIT_ARRAY_H

#include "stream.h"
#include "types.h"

namespace m3vit {

// for tile: for o in hidden tiles: for k in input beats:  sums += inputs[k] · row      sums to drain, which sends the
//           for o in output tiles: for k in hidden beats: sums += hidden[k] · row      hidden tile back as beats
// (without hidden columns only the second line, over the inputs). One row of weights per cycle. In the first tile of a
// unit, whose weights may still be on their way, every output tile begins at the row that `filled` names.
void array(Stream<tile_t>& tiles, Stream<operand_t>& operands, Stream<operand_t>& hidden, Stream<row_t>& filled,
           Stream<tile_t>& drain_tiles, Stream<pair_sums_t> sums[PAIRS], const weight_row_t weights[WEIGHT_SLOTS * SLOT_ROWS]);

}  // namespace m3vit

#endif  // M3VIT_ARRAY_H
