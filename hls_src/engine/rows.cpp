#include "rows.h"

#include "lines.h"

namespace m3vit {

void rows(Stream<layer_t>& layers, Stream<std::uint32_t>& freed, Stream<request_t>& requests, Stream<line_t>& lines,
          Stream<signal_t>& ready, line_t store[STORE_LINES]) {
  std::uint32_t room = STORE_LINES;
  int granted = 0;  // grants that have not come back
  int head = 0;     // where the next line goes
LAYERS:
  for (layer_t layer = layers.read(); layer.kind != Kind::END; layer = layers.read()) {
    ahead_t ahead = begin_lines(layer.input, layer.input_stripes, layer.age, requests);
    const bool by_tile = streams_past(layer);
  TILES:
    for (int token = 0; token < int(layer.tokens); token += T) {
      const int tokens = int(layer.tokens) - token < T ? int(layer.tokens) - token : T;
      const std::uint32_t wanted = std::uint32_t(tokens) * std::uint32_t(layer.input_lines);
      const bool grants = by_tile || token == 0;
    ROOM:
      while (room < wanted || (grants && granted == FREED_AHEAD)) {
        room += freed.read();
        --granted;
      }
      room -= wanted;
      granted += grants ? 1 : 0;
    LINES:
      for (std::uint32_t i = 0; i < wanted; ++i) {
#pragma HLS PIPELINE II = 1
        store[head] = take_line(ahead, requests, lines);
        head = head == STORE_LINES - 1 ? 0 : head + 1;
      }
      ready.write(signal_t(1));
    }
    skip_lines(ahead, requests, lines);
  }
  end_lines(requests);
LEFT:
  for (; granted != 0; --granted) {
    freed.read();
  }
}

}  // namespace m3vit
