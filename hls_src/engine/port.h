// Memory ports: manual bursts, because every burst is one block of a stripe and several are in flight at once. Vitis
// has hls::burst_maxi for them, in its C simulation too, whose arguments co-simulation replaces; without Vitis a port
// of our own has the same calls and checks the rules of the bus (simulation/port_model.h).
#ifndef M3VIT_PORT_H
#define M3VIT_PORT_H

#include "types.h"

#if defined(__SYNTHESIS__) || defined(__VITIS_HLS__)
#define M3VIT_BURST_MAXI 1
#include <ap_int.h>
#include <hls_burst_maxi.h>
#else
#include "simulation/port_model.h"
#endif

namespace m3vit {

#ifdef M3VIT_BURST_MAXI
using beat_t = ap_uint<8 * PORT_BYTES>;
using Port = hls::burst_maxi<beat_t>;
#else
using beat_t = sim::Beat;
using Port = sim::Port;
#endif

// Bytes of one port's beat within a line, and back.
inline void take_beat(const beat_t& beat, int port, line_t& line) {
#pragma HLS INLINE
TAKE_BEAT:
  for (int i = 0; i < PORT_BYTES; ++i) {
#pragma HLS UNROLL
#ifdef M3VIT_BURST_MAXI
    line.byte[port * PORT_BYTES + i] = act_t(ap_int<8>(beat.range(8 * i + 7, 8 * i)));
#else
    line.byte[port * PORT_BYTES + i] = act_t(beat.byte[i]);
#endif
  }
}

inline beat_t make_beat(const line_t& line, int port) {
#pragma HLS INLINE
  beat_t beat;
MAKE_BEAT:
  for (int i = 0; i < PORT_BYTES; ++i) {
#pragma HLS UNROLL
#ifdef M3VIT_BURST_MAXI
    beat.range(8 * i + 7, 8 * i) = ap_uint<8>(ap_int<8>(line.byte[port * PORT_BYTES + i]));
#else
    beat.byte[i] = std::uint8_t(line.byte[port * PORT_BYTES + i]);
#endif
  }
  return beat;
}

// Address, in beats, of the block of `port` in a stripe of the arena that begins at byte address `arena`.
inline std::uint64_t block_address(std::uint64_t arena, std::uint32_t stripe, int port) {
#pragma HLS INLINE
  return (arena + std::uint64_t(stripe) * STRIPE_BYTES) / PORT_BYTES + std::uint64_t(port) * BURST_BEATS;
}

}  // namespace m3vit

#endif  // M3VIT_PORT_H
