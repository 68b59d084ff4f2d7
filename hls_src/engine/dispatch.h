// Cuts layers into tiles of up to T tokens and gathers each tile's inputs.
#ifndef M3VIT_DISPATCH_H
#define M3VIT_DISPATCH_H

#include "stream.h"
#include "types.h"

namespace m3vit {

// for layer:
//   MOE: gate table over every tile of tokens; then, until the last expert: for u in units: tiles of the expert's queue
//   otherwise: for u in units: every tile of tokens
// A tile goes to the array as a descriptor followed by its inputs, beat by beat: one line of one token is read and one
// beat of all T tokens is sent per cycle, so tokens may lie anywhere in the input store.
void dispatch(Stream<layer_t>& layers, Stream<slot_t>& units, Stream<entry_t>& entries, Stream<signal_t>& ready,
              Stream<std::uint32_t>& freed, Stream<tile_t>& tiles, Stream<operand_t>& operands,
              const line_t store[STORE_LINES]);

}  // namespace m3vit

#endif  // M3VIT_DISPATCH_H
