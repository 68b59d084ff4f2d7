#include "writer.h"

namespace m3vit {

namespace {

struct open_t {  // bursts without a response
  int bursts[WRITE_PORTS];
};

void answer(Port& port, int& bursts) {
#pragma HLS INLINE
  port.write_response();
  --bursts;
}

// Room for one more burst on both ports.
void make_room(Port& write0, Port& write1, open_t& open) {
#pragma HLS INLINE
  if (open.bursts[0] == OUTSTANDING) {
    answer(write0, open.bursts[0]);
  }
  if (open.bursts[1] == OUTSTANDING) {
    answer(write1, open.bursts[1]);
  }
}

void settle(Port& write0, Port& write1, open_t& open) {
#pragma HLS INLINE
SETTLE:
  while (open.bursts[0] != 0 || open.bursts[1] != 0) {
    if (open.bursts[0] != 0) {
      answer(write0, open.bursts[0]);
    }
    if (open.bursts[1] != 0) {
      answer(write1, open.bursts[1]);
    }
  }
}

}  // namespace

void writer(Port write0, Port write1, std::uint64_t arena0, std::uint64_t arena1, Stream<outgoing_t>& outgoing,
            Stream<signal_t>& retired) {
  line_t lines[BURST_BEATS];
#pragma HLS AGGREGATE variable = lines
#pragma HLS BIND_STORAGE variable = lines type = ram_2p impl = lutram
  open_t open = {{0, 0}};

  outgoing_t item = outgoing.read();
#pragma HLS ARRAY_PARTITION variable = item.line.byte complete
ITEMS:
  while (item.kind != Outgoing::END) {
    if (item.kind == Outgoing::LINE) {
      const std::uint32_t stripe = item.place / BURST_BEATS;
      const std::uint64_t first = item.place % BURST_BEATS;
      int count = 0;
      bool more = true;
    GATHER:
      while (more) {
        // After the last line of a layer comes RETIRE: looking at what follows never waits for ever.
#pragma HLS PIPELINE II = 1
        lines[count] = item.line;
        ++count;
        const std::uint32_t following = item.place + 1;
        item = outgoing.read();
        more = item.kind == Outgoing::LINE && item.place == following && following % BURST_BEATS != 0;
      }
    BLOCKS:
      for (int block = 0; block < PORTS; block += WRITE_PORTS) {
        make_room(write0, write1, open);
        write0.write_request(block_address(arena0, stripe, block) + first, std::size_t(count));
        write1.write_request(block_address(arena1, stripe, block + 1) + first, std::size_t(count));
      BLOCK_BEATS_OUT:
        for (int beat = 0; beat < count; ++beat) {
#pragma HLS PIPELINE II = 1
          const line_t line = lines[beat];
#pragma HLS ARRAY_PARTITION variable = line.byte complete
          write0.write(make_beat(line, block));
          write1.write(make_beat(line, block + 1));
        }
        ++open.bursts[0];
        ++open.bursts[1];
      }
    } else {
      if (item.kind == Outgoing::PIECE) {
        make_room(write0, write1, open);
        write0.write_request((arena0 + item.place) / PORT_BYTES, LINE_BYTES / PORT_BYTES);
      PIECE_BEATS:
        for (int beat = 0; beat < LINE_BYTES / PORT_BYTES; ++beat) {
#pragma HLS PIPELINE II = 1
          write0.write(make_beat(item.line, beat));
        }
        ++open.bursts[0];
      } else {
        settle(write0, write1, open);
        if (item.kind == Outgoing::RETIRE) {
          retired.write(signal_t(1));
        }
      }
      item = outgoing.read();
    }
  }
}

}  // namespace m3vit
