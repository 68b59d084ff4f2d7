// Fills the input store, a ring of lines in which layers follow each other without gaps.
#ifndef M3VIT_ROWS_H
#define M3VIT_ROWS_H

#include "stream.h"
#include "types.h"

namespace m3vit {

// Rows of such a layer are needed once, tile by tile; those of any other until the layer is over.
inline bool streams_past(const layer_t& layer) {
#pragma HLS INLINE
  return layer.kind != Kind::MOE && layer.units == 1;
}

// for layer: for tile of T tokens: wait for room (backward token `freed`: lines given back), write the tile's lines,
// tell dispatch (forward token `ready`). What dispatch gives back in one piece, a tile or a whole layer, is a grant; no
// more than FREED_AHEAD grants are open, so that dispatch never waits to give one back.
void rows(Stream<layer_t>& layers, Stream<std::uint32_t>& freed, Stream<request_t>& requests, Stream<line_t>& lines,
          Stream<signal_t>& ready, line_t store[STORE_LINES]);

}  // namespace m3vit

#endif  // M3VIT_ROWS_H
