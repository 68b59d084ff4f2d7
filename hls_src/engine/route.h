// One queue of tokens per expert, and the order in which the experts are computed.
#ifndef M3VIT_ROUTE_H
#define M3VIT_ROUTE_H

#include "stream.h"
#include "types.h"

namespace m3vit {

// for MoE layer:
//   append every pick to its expert's linked list (one node per token and rank, however they spread), continue the CRC
//   name the experts that have a queue, in the order of the layer's schedule, to load, all of them before anything else
//   in the same order: for u in units: send the queue to dispatch, entry by entry
void route(Stream<layer_t>& layers, Stream<pick_t>& picks, Stream<resident_t>& resident, Stream<order_t>& order,
           Stream<entry_t>& entries, Stream<routed_t>& routed);

}  // namespace m3vit

#endif  // M3VIT_ROUTE_H
