// Combine and store: one process, because both own the accumulators. Also the record, because it comes last.
#ifndef M3VIT_STORE_H
#define M3VIT_STORE_H

#include "stream.h"
#include "types.h"

namespace m3vit {

// for layer:
//   LINEAR: collect a tile's int8 rows, send their lines
//   otherwise: accumulator[token] += weight · row (the first contribution overwrites); a token whose last contribution
//              is in: residual << 16 added, rounded once to s16, sent. Dense layers: tile by tile during the last unit;
//              MoE: when the last expert is done
//   count, and let the writer retire the layer
// JOB_END: the job's entry. END: the record.
void store(std::uint32_t record, Stream<layer_t>& layers, Stream<tile_t>& tiles, Stream<result_t>& results,
           Stream<routed_t>& routed, Stream<std::uint32_t>& loaded, Stream<request_t>& requests,
           Stream<line_t>& residual_lines, Stream<outgoing_t>& outgoing);

}  // namespace m3vit

#endif  // M3VIT_STORE_H
