// Reads the program, checks it and hands every process its layers.
#ifndef M3VIT_FETCH_H
#define M3VIT_FETCH_H

#include "stream.h"
#include "types.h"

namespace m3vit {

// for command in program:
//   BARRIER: wait until every layer handed out is stored
//   layer:   check; hand it to load, rows, dispatch, score, weigh, route, store (at most ENTRIES not yet stored)
//   JOB_END: to store alone
//   END or error: to everybody
void fetch(std::uint32_t program, std::uint32_t commands, Stream<command_request_t>& requests,
           Stream<command_t>& fetched, Stream<signal_t>& retired, Stream<layer_t>& load_layers,
           Stream<layer_t>& rows_layers, Stream<layer_t>& dispatch_layers, Stream<layer_t>& score_layers,
           Stream<layer_t>& weigh_layers, Stream<layer_t>& route_layers, Stream<layer_t>& store_layers);

}  // namespace m3vit

#endif  // M3VIT_FETCH_H
