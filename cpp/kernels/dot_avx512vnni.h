// Dot products of bytes for AVX-512 with VNNI: one instruction. The names are described in
// dot_avx512.h. Include vec_avx512.h first.
#pragma once

#include "kernels/kernels.h"

namespace kvik::kernels {
namespace {

constexpr int kDotRows = 6;     // 24 sums, 4 vectors of weights and a quad: 29 of 32 registers
constexpr int kNibbleRows = 3;  // 12 + 12 sums, 6 quads and a vector of weights
constexpr int kDotVecs = 4;
constexpr bool kDotsAreWide = true;

struct Weights {
  __m512i bytes;
};
struct Quad {
  __m512i bytes;
};

inline Int load_lines(const std::uint8_t* p) {
  return {_mm512_loadu_si512(p)};
}
inline Weights weights_of(Int bytes) {
  return {bytes.v};
}
inline Quad set_quad(const std::int8_t* p) {
  std::int32_t four;
  __builtin_memcpy(&four, p, 4);
  return {_mm512_set1_epi32(four)};
}
inline Int dot(Int sums, Weights w, Quad x) {
  // Not the intrinsic: GCC 12 copies the sums before and after it, and keeps them in memory.
  __asm__("vpdpbusd %2, %1, %0" : "+v"(sums.v) : "v"(w.bytes), "v"(x.bytes));
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
