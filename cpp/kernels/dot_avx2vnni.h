// Dot products of bytes for AVX2 with AVX-VNNI: one instruction. The names are described in
// dot_avx512.h. Include vec_avx2.h first.
#pragma once

#include "kernels/kernels.h"

// The same instruction has two encodings. A test sets "{evex}" here to run it on a CPU that has it
// only as a part of AVX-512.
#if !defined(KVIK_VNNI_ENCODING)
#define KVIK_VNNI_ENCODING "%{vex%} "
#endif

namespace kvik::kernels {
namespace {

constexpr int kDotRows = 2;     // 8 sums, 2 quads and a vector of weights: 11 of 16 registers
constexpr int kNibbleRows = 1;  // 4 + 4 sums, 2 quads and 2 vectors of weights
constexpr int kDotVecs = 4;
constexpr bool kDotsAreWide = true;

struct Weights {
  __m256i bytes;
};
struct Quad {
  __m256i bytes;
};

inline Int load_lines(const std::uint8_t* p) {
  return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))};
}
inline Weights weights_of(Int bytes) {
  return {bytes.v};
}
inline Quad set_quad(const std::int8_t* p) {
  std::int32_t four;
  __builtin_memcpy(&four, p, 4);
  return {_mm256_set1_epi32(four)};
}
inline Int dot(Int sums, Weights w, Quad x) {
  __asm__(KVIK_VNNI_ENCODING "vpdpbusd %2, %1, %0" : "+x"(sums.v) : "x"(w.bytes), "x"(x.bytes));
  return sums;
}

inline Int set_bytes(const std::int8_t* p) {
  std::int32_t four;
  __builtin_memcpy(&four, p, 4);
  return set_int(four);
}
inline Int dot_nibbles(Int sums, Int nibbles, Int x) {
  return dot(sums, {nibbles.v}, {x.v});
}
inline Int finish_nibbles(Int sums) {
  return sums;
}

}  // namespace
}  // namespace kvik::kernels
