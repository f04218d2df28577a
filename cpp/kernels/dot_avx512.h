// Dot products of bytes for AVX-512 without VNNI. Every dot_*.h supplies the same names, described
// here once; quantized.inl.h is written over them. Include vec_avx512.h first.
#pragma once

#include "kernels/kernels.h"

namespace kvik::kernels {
namespace {

// Rows of an integer product's register tile: 4 x 4 sums, 8 halves of four quads, 2 halves of the
// weights and a product are 27 of 32 registers.
constexpr int kDotRows = 4;
// Of a product with int4 weights, whose sums in fp32 stand beside those of a group: 8 + 8 sums, 4
// quads, 2 vectors of weights and a product.
constexpr int kNibbleRows = 2;
constexpr int kDotVecs = 4;  // vectors of columns in a tile
// dot_nibbles takes any unsigned bytes and sums in 32 bits, not only nibbles in 16.
constexpr bool kDotsAreWide = false;
// What the weights of dot() still have of the shift that they are stored with.
constexpr int kDotShift = 128;

// The weights of kWidth columns, four unsigned bytes of each. Halves of 16 bits, because the
// instruction that multiplies bytes adds two products in 16 bits and saturates there.
struct Weights {
  __m512i even, odd;
};
// Four signed bytes of a row, for every column.
struct Quad {
  __m512i even, odd;
};

inline Int load_lines(const std::uint8_t* p) {  // kWidth · 4 bytes
  return {_mm512_loadu_si512(p)};
}
inline Weights weights_of(Int bytes) {
  return {_mm512_and_si512(bytes.v, _mm512_set1_epi32(0x00ff00ff)), _mm512_srli_epi16(bytes.v, 8)};
}
inline Quad set_quad(const std::int8_t* p) {
  std::int32_t four;
  __builtin_memcpy(&four, p, 4);
  const __m512i bytes = _mm512_set1_epi32(four);
  return {_mm512_srai_epi16(_mm512_slli_epi16(bytes, 8), 8), _mm512_srai_epi16(bytes, 8)};
}
// sums + Σ of the four products of each column, exact modulo 2^32.
inline Int dot(Int sums, Weights w, Quad x) {
  const __m512i even = _mm512_madd_epi16(w.even, x.even);
  const __m512i odd = _mm512_madd_epi16(w.odd, x.odd);
  return {_mm512_add_epi32(sums.v, _mm512_add_epi32(even, odd))};
}

inline Int set_bytes(const std::int8_t* p) {
  std::int32_t four;
  __builtin_memcpy(&four, p, 4);
  return set_int(four);
}
// Weights of 4 bits: two products are at most 2 · 15 · 127 in magnitude, so that the sums of a
// group fit into 16 bits, two for each column, until finish_nibbles adds them up.
inline Int dot_nibbles(Int sums, Int nibbles, Int x) {
  return {_mm512_add_epi16(sums.v, _mm512_maddubs_epi16(nibbles.v, x.v))};
}
inline Int finish_nibbles(Int sums) {
  return {_mm512_madd_epi16(sums.v, _mm512_set1_epi16(1))};
}

}  // namespace
}  // namespace kvik::kernels
