#include "reader.h"

namespace m3vit {

namespace {

enum Source : int { WEIGHTS, INPUTS, RESIDUALS, SOURCES };
constexpr int IN_FLIGHT = 2;  // requests whose bursts are out
static_assert(REQUEST_STRIPES * IN_FLIGHT <= OUTSTANDING || OUTSTANDING == 1, "bursts in flight per port");
constexpr int SENT_ALONE = OUTSTANDING == 1 ? 1 : IN_FLIGHT;

struct held_t {  // the next request of every source, and which sources may still ask
  request_t request[SOURCES];
  bool valid[SOURCES];
  bool open[SOURCES];
};

void hold(held_t& held, int source, Stream<request_t>& requests) {
#pragma HLS INLINE
  if (held.open[source] && !held.valid[source] && !requests.empty()) {
    held.request[source] = requests.read();
    held.valid[source] = held.request[source].stripes != uint<8>(0);
    held.open[source] = held.valid[source];  // a request for nothing is the last
  }
}

// Which of the requests at hand to serve, SOURCES for none. Of equal age the one after the last served goes first.
int choose(const held_t& held, int last) {
#pragma HLS INLINE
  int chosen = SOURCES;
CHOOSE:
  for (int step = 1; step <= SOURCES; ++step) {
#pragma HLS UNROLL
    const int source = (last + step) % SOURCES;
    if (held.valid[source] && (chosen == SOURCES || held.request[source].age < held.request[chosen].age)) {
      chosen = source;
    }
  }
  return chosen;
}

}  // namespace

void reader(Port read0, Port read1, Port read2, Port read3, std::uint64_t arena0, std::uint64_t arena1,
            std::uint64_t arena2, std::uint64_t arena3, Stream<command_request_t>& command_requests,
            Stream<request_t>& weight_requests, Stream<request_t>& input_requests,
            Stream<request_t>& residual_requests, Stream<command_t>& commands, Stream<line_t>& weight_lines,
            Stream<line_t>& input_lines, Stream<line_t>& residual_lines) {
  held_t held;
#pragma HLS ARRAY_PARTITION variable = held.request complete
#pragma HLS ARRAY_PARTITION variable = held.valid complete
#pragma HLS ARRAY_PARTITION variable = held.open complete
CLEAR:
  for (int source = 0; source < SOURCES; ++source) {
#pragma HLS UNROLL
    held.valid[source] = false;
    held.open[source] = true;
  }
  bool commands_open = true;
  int last = SOURCES - 1;
  int sent_source[IN_FLIGHT] = {0, 0};
  int sent_stripes[IN_FLIGHT] = {0, 0};
  int first = 0;
  int sent = 0;

SERVE:
  while (commands_open || held.open[WEIGHTS] || held.open[INPUTS] || held.open[RESIDUALS] || sent != 0) {
    hold(held, WEIGHTS, weight_requests);
    hold(held, INPUTS, input_requests);
    hold(held, RESIDUALS, residual_requests);
    const int chosen = choose(held, last);
    if (sent == 0 && commands_open && !command_requests.empty()) {
      // Only between bursts, whose beats would come first.
      const command_request_t request = command_requests.read();
      commands_open = !request.last;
      if (!request.last) {
        command_t command;
#pragma HLS ARRAY_PARTITION variable = command.word complete
        read0.read_request((arena0 + request.offset) / PORT_BYTES, COMMAND_BEATS);
      COMMAND:
        for (int beat = 0; beat < COMMAND_BEATS; ++beat) {
#pragma HLS PIPELINE II = 1
          line_t bytes = {};
          take_beat(read0.read(), 0, bytes);
        WORDS:
          for (int i = 0; i < PORT_BYTES / 4; ++i) {
#pragma HLS UNROLL
            std::uint32_t word = 0;
          WORD_BYTES:
            for (int j = 0; j < 4; ++j) {
#pragma HLS UNROLL
              word |= std::uint32_t(std::uint8_t(bytes.byte[4 * i + j])) << (8 * j);
            }
            command.word[beat * (PORT_BYTES / 4) + i] = word;
          }
        }
        commands.write(command);
      }
    } else if (chosen != SOURCES && sent < SENT_ALONE && !(commands_open && !command_requests.empty())) {
      const request_t request = held.request[chosen];
    SEND:
      for (int i = 0; i < int(request.stripes); ++i) {
#pragma HLS PIPELINE II = 1
        read0.read_request(block_address(arena0, request.stripe + std::uint32_t(i), 0), BURST_BEATS);
        read1.read_request(block_address(arena1, request.stripe + std::uint32_t(i), 1), BURST_BEATS);
        read2.read_request(block_address(arena2, request.stripe + std::uint32_t(i), 2), BURST_BEATS);
        read3.read_request(block_address(arena3, request.stripe + std::uint32_t(i), 3), BURST_BEATS);
      }
      const int place = (first + sent) % IN_FLIGHT;
      sent_source[place] = chosen;
      sent_stripes[place] = int(request.stripes);
      ++sent;
      held.valid[chosen] = false;
      last = chosen;
    } else if (sent != 0) {
      const int source = sent_source[first];
    RECEIVE:
      for (int beat = 0; beat < sent_stripes[first] * BURST_BEATS; ++beat) {
#pragma HLS PIPELINE II = 1
        line_t line;
        take_beat(read0.read(), 0, line);
        take_beat(read1.read(), 1, line);
        take_beat(read2.read(), 2, line);
        take_beat(read3.read(), 3, line);
        if (source == WEIGHTS) {
          weight_lines.write(line);
        } else if (source == INPUTS) {
          input_lines.write(line);
        } else {
          residual_lines.write(line);
        }
      }
      first = (first + 1) % IN_FLIGHT;
      --sent;
    } else if (commands_open || held.open[WEIGHTS] || held.open[INPUTS] || held.open[RESIDUALS]) {
      wait_any(command_requests, weight_requests, input_requests, residual_requests);
    }
  }
}

}  // namespace m3vit
