// The one process that writes to memory.
#ifndef M3VIT_WRITER_H
#define M3VIT_WRITER_H

#include "port.h"
#include "stream.h"

namespace m3vit {

// until END:
//   LINE:   gather the lines that follow it up to the end of their stripe, then send the stripe's four blocks as
//           bursts, two ports side by side
//   PIECE:  send it as a burst of its own
//   SETTLE: wait for every write response; RETIRE: then tell fetch as well (backward token `retired`)
void writer(Port write0, Port write1, std::uint64_t arena0, std::uint64_t arena1, Stream<outgoing_t>& outgoing,
            Stream<signal_t>& retired);

}  // namespace m3vit

#endif  // M3VIT_WRITER_H
