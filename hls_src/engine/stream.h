// Streams between processes. In synthesis they are hls::stream; in C simulation our own bounded ones, which block the
// process that reads an empty or writes a full one, as hardware does (hls::stream of C simulation never blocks).
#ifndef M3VIT_STREAM_H
#define M3VIT_STREAM_H

#include "stream_word.h"

#ifdef __SYNTHESIS__

#include <hls_stream.h>

namespace m3vit {

template <class V>
using Stream = hls::stream<typename StreamWord<V>::type>;
template <class V, int DEPTH>
using Channel = hls::stream<typename StreamWord<V>::type, DEPTH>;

// Hardware polls: the loop around looks again in the next cycle.
template <class... Streams>
void wait_any(Streams&...) {
#pragma HLS INLINE
}

}  // namespace m3vit

#else

#include "simulation/stream_model.h"

#endif

#endif  // M3VIT_STREAM_H
