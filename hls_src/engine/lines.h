// Asking for stripes ahead of taking their lines: at most LINES_AHEAD lines are under way per process, so that the
// requests of the three processes interleave at the reader and each has the next stripes on their way while it works.
#ifndef M3VIT_LINES_H
#define M3VIT_LINES_H

#include "stream.h"
#include "types.h"

namespace m3vit {

struct ahead_t {
  std::uint32_t stripe;
  std::uint32_t to_ask;  // stripes
  std::uint32_t age;
  int under_way;         // lines asked for and not taken
};

inline void ask_lines(ahead_t& ahead, Stream<request_t>& requests) {
#pragma HLS INLINE
  if (ahead.to_ask != 0 && ahead.under_way <= LINES_AHEAD - REQUEST_LINES) {
    const std::uint32_t stripes = ahead.to_ask < REQUEST_STRIPES ? ahead.to_ask : std::uint32_t(REQUEST_STRIPES);
    request_t request;
    request.stripe = ahead.stripe;
    request.stripes = uint<8>(stripes);
    request.age = ahead.age;
    requests.write(request);
    ahead.stripe += stripes;
    ahead.to_ask -= stripes;
    ahead.under_way += int(stripes) * BURST_BEATS;
  }
}

// Asks for the first of `stripes` stripes, if there are any.
inline ahead_t begin_lines(std::uint32_t stripe, std::uint32_t stripes, std::uint32_t age,
                           Stream<request_t>& requests) {
#pragma HLS INLINE
  ahead_t ahead;
  ahead.stripe = stripe;
  ahead.to_ask = stripes;
  ahead.age = age;
  ahead.under_way = 0;
  ask_lines(ahead, requests);
  return ahead;
}

// The next line. At most one request per line, so that loops take a line per cycle; it is sent while a whole request is
// still under way, so a pipeline that waits for a line never holds back the request that brings it.
inline line_t take_line(ahead_t& ahead, Stream<request_t>& requests, Stream<line_t>& lines) {
#pragma HLS INLINE
  ask_lines(ahead, requests);
  --ahead.under_way;
  return lines.read();
}

// Takes what pads the last stripe.
inline void skip_lines(ahead_t& ahead, Stream<request_t>& requests, Stream<line_t>& lines) {
SKIP_LINES:
  while (ahead.under_way != 0 || ahead.to_ask != 0) {
#pragma HLS PIPELINE II = 1
    take_line(ahead, requests, lines);
  }
}

// Says that no request will follow.
inline void end_lines(Stream<request_t>& requests) {
#pragma HLS INLINE
  request_t request;
  request.stripe = 0;
  request.stripes = uint<8>(0);
  request.age = 0;
  requests.write(request);
}

}  // namespace m3vit

#endif  // M3VIT_LINES_H
