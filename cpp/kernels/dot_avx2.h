// Dot products of bytes for AVX2. The names are described in dot_avx512.h. Include vec_avx2.h
// first.
#pragma once

#include "kernels/kernels.h"

namespace kvik::kernels {
namespace {

// 2 x 4 sums, 4 halves of two quads, 2 halves of the weights and a product: 15 of 16 registers.
constexpr int kDotRows = 2;
constexpr int kNibbleRows = 1;  // 4 + 4 sums, 2 quads, 2 vectors of weights and a product
constexpr int kDotVecs = 4;
constexpr bool kDotsAreWide = false;
constexpr int kDotShift = 128;

struct Weights {
  __m256i even, odd;
};
struct Quad {
  __m256i even, odd;
};

inline Int load_lines(const std::uint8_t* p) {
  return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))};
}
inline Weights weights_of(Int bytes) {
  return {_mm256_and_si256(bytes.v, _mm256_set1_epi32(0x00ff00ff)), _mm256_srli_epi16(bytes.v, 8)};
}
inline Quad set_quad(const std::int8_t* p) {
  std::int32_t four;
  __builtin_memcpy(&four, p, 4);
  const __m256i bytes = _mm256_set1_epi32(four);
  return {_mm256_srai_epi16(_mm256_slli_epi16(bytes, 8), 8), _mm256_srai_epi16(bytes, 8)};
}
inline Int dot(Int sums, Weights w, Quad x) {
  const __m256i even = _mm256_madd_epi16(w.even, x.even);
  const __m256i odd = _mm256_madd_epi16(w.odd, x.odd);
  return {_mm256_add_epi32(sums.v, _mm256_add_epi32(even, odd))};
}

inline Int set_bytes(const std::int8_t* p) {
  std::int32_t four;
  __builtin_memcpy(&four, p, 4);
  return set_int(four);
}
// Weights of 4 bits: two products are at most 2 · 15 · 127 in magnitude, so that the sums of a
// group fit into 16 bits, two for each column, until finish_nibbles adds them up.
inline Int dot_nibbles(Int sums, Int nibbles, Int x) {
  return {_mm256_add_epi16(sums.v, _mm256_maddubs_epi16(nibbles.v, x.v))};
}
inline Int finish_nibbles(Int sums) {
  return {_mm256_madd_epi16(sums.v, _mm256_set1_epi16(1))};
}

}  // namespace
}  // namespace kvik::kernels
