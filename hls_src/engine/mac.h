// Multipliers: T x O x I of the array per cycle, and those of combine.
#ifndef M3VIT_MAC_H
#define M3VIT_MAC_H

#include "types.h"

namespace m3vit {

#if defined(__SYNTHESIS__) || defined(M3VIT_AP_TYPES)

// Two tokens share a multiplier: ((a1 << 18) + a0) · w fits a DSP48E2's 27 x 18 bits, and I <= 8 products in a row
// leave the low half within 18 bits as long as no weight is -128 (narrow range). The halves are parted once per row,
// with the borrow of the low half given back to the high one.
constexpr int LOW_BITS = 18;
static_assert(I <= 8, "products of the low half stay within 18 bits");
using pair_t = ap_int<LOW_BITS + 9>;
using packed_t = ap_int<48>;

inline void multiply(sums_t& sums, const operand_t& x, const weight_row_t& row, bool first) {
#pragma HLS INLINE
MAC_PAIR:
  for (int t = 0; t < T; t += 2) {
#pragma HLS UNROLL
  MAC_LANE:
    for (int o = 0; o < O; ++o) {
#pragma HLS UNROLL
      packed_t cascade = 0;
    MAC_INPUT:
      for (int i = 0; i < I; ++i) {
#pragma HLS UNROLL
        const pair_t pair = (pair_t(x.value[t + 1][i]) << LOW_BITS) + pair_t(x.value[t][i]);
        const packed_t product = pair * ap_int<8>(row.value[o * I + i]);
#pragma HLS BIND_OP variable = product op = mul impl = dsp
        cascade += product;
      }
      const ap_int<LOW_BITS> low = cascade.range(LOW_BITS - 1, 0);
      const ap_int<LOW_BITS + 3> high = ap_int<LOW_BITS + 3>(cascade >> LOW_BITS) + ap_int<2>(low < 0 ? 1 : 0);
      sums.value[t][o] = sum_t((first ? sum_t(0) : sums.value[t][o]) + sum_t(low));
      sums.value[t + 1][o] = sum_t((first ? sum_t(0) : sums.value[t + 1][o]) + sum_t(high));
    }
  }
}

// A unit's output times its combine weight: one multiplier of 16 x 18 bits.
inline share_t weighted(narrow_t value, weight_t weight) {
#pragma HLS INLINE
  return share_t(ap_int<16>(value) * ap_int<COMBINE_FRACTION + 2>(weight));
}

#else

inline share_t weighted(narrow_t value, weight_t weight) {
  return share_t(value) * share_t(weight);
}

inline void multiply(sums_t& sums, const operand_t& x, const weight_row_t& row, bool first) {
  for (int t = 0; t < T; ++t) {
    for (int o = 0; o < O; ++o) {
      int products = 0;
      for (int i = 0; i < I; ++i) {
        products += x.value[t][i] * row.value[o * I + i];
      }
      sums.value[t][o] = (first ? 0 : sums.value[t][o]) + products;
    }
  }
}

#endif

}  // namespace m3vit

#endif  // M3VIT_MAC_H
