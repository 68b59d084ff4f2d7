// The one process that reads the memory ports: commands, weights, input rows and residual rows, on request.
#ifndef M3VIT_READER_H
#define M3VIT_READER_H

#include "port.h"
#include "stream.h"

namespace m3vit {

// while anybody may still ask:
//   take waiting requests; send the oldest one's bursts out, as long as no more than two requests are in flight
//   otherwise receive the lines of the request that was sent first
// A request is the oldest whose layer is; weights, input and residual rows of one layer take turns.
void reader(Port read0, Port read1, Port read2, Port read3, std::uint64_t arena0, std::uint64_t arena1,
            std::uint64_t arena2, std::uint64_t arena3, Stream<command_request_t>& command_requests,
            Stream<request_t>& weight_requests, Stream<request_t>& input_requests,
            Stream<request_t>& residual_requests, Stream<command_t>& commands, Stream<line_t>& weight_lines,
            Stream<line_t>& input_lines, Stream<line_t>& residual_lines);

}  // namespace m3vit

#endif  // M3VIT_READER_H
