// What an element of a stream may be.
#ifndef M3VIT_STREAM_WORD_H
#define M3VIT_STREAM_WORD_H

namespace m3vit {

// Vitis packs the struct of a stream into one word, of at most so many bits (UG1399, aggregate). Bytes of C++ are never
// fewer than those bits: no member is narrower than in hardware, and padding counts.
constexpr int STREAM_WORD_BITS = 4096;

template <class V>
struct StreamWord {
  static_assert(sizeof(V) * 8 <= STREAM_WORD_BITS, "an element of a stream fits one word");
  using type = V;
};

}  // namespace m3vit

#endif  // M3VIT_STREAM_WORD_H
