// Writes lines into stripes: lines that follow each other are gathered up to the end of their stripe, then the four
// blocks go out as bursts, two ports side by side.
#ifndef M3VIT_OUTPUT_H
#define M3VIT_OUTPUT_H

#include "port.h"

namespace m3vit {

struct gathered_t {
  line_t line[BURST_BEATS];
  std::uint32_t stripe;
  int first;  // beat of line[0]
  int count;
};

struct writer_t {
  std::uint64_t arena[WRITE_PORTS];
  int open[WRITE_PORTS];  // bursts without a response
};

inline void answer(Port& port, int& open) {
#pragma HLS INLINE
  port.write_response();
  --open;
}

// Waits until every burst has its response.
inline void settle(Port& write0, Port& write1, writer_t& writer) {
#pragma HLS INLINE
SETTLE:
  while (writer.open[0] != 0 || writer.open[1] != 0) {
    if (writer.open[0] != 0) {
      answer(write0, writer.open[0]);
    }
    if (writer.open[1] != 0) {
      answer(write1, writer.open[1]);
    }
  }
}

inline void flush(Port& write0, Port& write1, writer_t& writer, gathered_t& gathered) {
FLUSH_BLOCKS:
  for (int block = 0; block < PORTS; block += WRITE_PORTS) {
    if (gathered.count != 0) {
      if (writer.open[0] == OUTSTANDING) {
        answer(write0, writer.open[0]);
      }
      if (writer.open[1] == OUTSTANDING) {
        answer(write1, writer.open[1]);
      }
      const std::uint64_t first = std::uint64_t(gathered.first);
      write0.write_request(block_address(writer.arena[0], gathered.stripe, block) + first, std::size_t(gathered.count));
      write1.write_request(block_address(writer.arena[1], gathered.stripe, block + 1) + first,
                           std::size_t(gathered.count));
    FLUSH_BEATS:
      for (int beat = 0; beat < gathered.count; ++beat) {
#pragma HLS PIPELINE II = 1
        write0.write(make_beat(gathered.line[beat], block));
        write1.write(make_beat(gathered.line[beat], block + 1));
      }
      ++writer.open[0];
      ++writer.open[1];
    }
  }
  gathered.count = 0;
}

// Line `index` of the tensor that begins at `stripe`.
inline void put_line(Port& write0, Port& write1, writer_t& writer, gathered_t& gathered, std::uint32_t stripe,
                     std::uint32_t index, const line_t& line) {
#pragma HLS INLINE
  const std::uint32_t own = stripe + index / BURST_BEATS;
  const int beat = int(index % BURST_BEATS);
  if (gathered.count != 0 && (own != gathered.stripe || beat != gathered.first + gathered.count)) {
    flush(write0, write1, writer, gathered);
  }
  if (gathered.count == 0) {
    gathered.stripe = own;
    gathered.first = beat;
  }
  gathered.line[gathered.count] = line;
  ++gathered.count;
  if (beat == BURST_BEATS - 1) {
    flush(write0, write1, writer, gathered);
  }
}

// Plain bytes, a line's worth, at an arena offset.
inline void put_bytes(Port& write0, writer_t& writer, std::uint32_t offset, const line_t& bytes) {
#pragma HLS INLINE
  if (writer.open[0] == OUTSTANDING) {
    answer(write0, writer.open[0]);
  }
  write0.write_request((writer.arena[0] + offset) / PORT_BYTES, COMMAND_BEATS);
PUT_BYTES:
  for (int beat = 0; beat < COMMAND_BEATS; ++beat) {
#pragma HLS PIPELINE II = 1
    write0.write(make_beat(bytes, beat));
  }
  ++writer.open[0];
}

}  // namespace m3vit

#endif  // M3VIT_OUTPUT_H
