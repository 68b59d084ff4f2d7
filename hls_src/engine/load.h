// Fills weight slots in the order in which the array needs them, as far ahead as slots are free.
#ifndef M3VIT_LOAD_H
#define M3VIT_LOAD_H

#include "stream.h"
#include "types.h"

namespace m3vit {

// for layer:
//   NO_PREFETCH: wait until every slot is free
//   MOE: unit(gate table); for expert in the order of route: for u in units: unit(expert · units + u)
//   otherwise: for u in units: unit(u)
// unit: take a free slot (backward token `freed`), name it to dispatch, fill it line by line, and tell the array of
// every output tile whose rows are there (forward token `filled`: the first of them). Resident experts are named and
// not loaded again.
// The stores have one writer, this process; rows are read by the array, groups and GELU tables by drain.
void load(Stream<layer_t>& layers, Stream<order_t>& order, Stream<resident_t>& resident, Stream<request_t>& requests,
          Stream<line_t>& lines, Stream<slot_t>& freed, Stream<slot_t>& units, Stream<row_t>& filled,
          Stream<std::uint32_t>& loaded, weight_row_t weights[WEIGHT_SLOTS * SLOT_ROWS],
          group_t groups[WEIGHT_SLOTS * SLOT_GROUPS], act_t gelu[O][WEIGHT_SLOTS * GELU_BYTES]);

}  // namespace m3vit

#endif  // M3VIT_LOAD_H
