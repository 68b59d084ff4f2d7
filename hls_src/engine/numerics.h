// The rules of docs/numerics.md that the engine applies. Integers only; everything that can overflow saturates.
#ifndef M3VIT_NUMERICS_H
#define M3VIT_NUMERICS_H

#include "types.h"

namespace m3vit {

// value · 2^-shift rounded half to even; exact for shift <= 0. `V` holds the result (RESCALED_BITS, COMBINE_BITS + 2).
template <class V>
V shift_round_even(V value, int shift) {
#pragma HLS INLINE
  if (shift <= 0) {
#if defined(__SYNTHESIS__) || defined(M3VIT_AP_TYPES)
    return V(value << unsigned(-shift));
#else
    return V(value * (V(1) << -shift));  // a product, because a negative native integer must not be shifted left
#endif
  }
  const V odd = V(value >> shift) & V(1);
  const V half = V((V(1) << (shift - 1)) - V(1));
  return V(V(value + half + odd) >> shift);
}

// Clips to -2^(bits-1) … 2^(bits-1) - 1, or to the same magnitude on both sides.
template <class V>
narrow_t saturate(V value, int bits, bool narrow) {
#pragma HLS INLINE
  const V high = V((V(1) << (bits - 1)) - V(1));
  const V low = narrow ? V(-high) : V(-high - V(1));
  const V clipped = value < low ? low : (value > high ? high : value);
  return narrow_t(int(clipped));
}

// ---- softmax of the gate (docs/numerics.md, 8)
using distance_t = uint<BIASED_BITS + 1 - OCTAVE_SHIFT_MIN>;  // octaves in Q8, after the largest left shift
static_assert(MAX_EXPERTS <= 256, "the sum of all powers fits total_t");

// 2^-(distance · 2^-shift / 256) in Q15, for distance >= 0.
inline power_t exp2_negative(distance_t distance, int shift) {
#pragma HLS INLINE
  const distance_t u = shift >= 0 ? distance_t(distance >> shift) : distance_t(distance << -shift);
  const int octave = (u >> (EXP2_BITS + 4)) != distance_t(0) ? 16 : int((u >> EXP2_BITS) & distance_t(15));
  const int index = int(u & distance_t(EXP2_ENTRIES - 1));
  return octave >= 16 ? power_t(0) : power_t(EXP2[index] >> octave);
}

// 2^-((largest - value) · 2^-shift / 256) in Q15.
inline power_t power(logit_t largest, logit_t value, int shift) {
#pragma HLS INLINE
  const logit_t distance = logit_t(largest - value);  // >= 0
  return exp2_negative(distance_t(std::uint64_t(distance)), shift);
}

static_assert(RECIPROCAL_BITS - 15 < 17, "the factor of a mantissa of 2^15 and more fits its 17 bits");

struct reciprocal_t {  // 1 / x = factor · 2^-(RECIPROCAL_BITS + exponent)
  uint<17> factor;
  uint<5> exponent;
};

// For x from 2^15 up: the largest logit alone contributes 2^15.
inline reciprocal_t reciprocal(total_t total) {
#pragma HLS INLINE
  int exponent = 0;
NORMALIZE:
  for (int bit = 16; bit < 24; ++bit) {
#pragma HLS UNROLL
    if (((std::uint32_t(total) >> bit) & 1U) != 0U) {
      exponent = bit - 15;
    }
  }
  const std::uint32_t mantissa = std::uint32_t(total) >> exponent;
  reciprocal_t result;
  result.factor = uint<17>((std::uint32_t{1} << RECIPROCAL_BITS) / (mantissa == 0 ? 1U : mantissa));
  result.exponent = uint<5>(exponent);
  return result;
}

inline weight_t gate_weight(power_t power, const reciprocal_t& scale) {
#pragma HLS INLINE
  using product_t = sint<36>;  // 16 + 17 bits, a sign, room for rounding
  const product_t product = product_t(std::int64_t(std::uint64_t(power) * std::uint64_t(scale.factor)));
  const int shift = RECIPROCAL_BITS - COMBINE_FRACTION + int(scale.exponent);
  const product_t rounded = shift_round_even(product, shift);
  return rounded > product_t(COMBINE_ONE - 1) ? weight_t(COMBINE_ONE - 1) : weight_t(int(rounded));
}

}  // namespace m3vit

#endif  // M3VIT_NUMERICS_H
