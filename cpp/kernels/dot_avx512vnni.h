// Dot products of bytes for AVX-512 with VNNI: one instruction. The names are described in
// dot_avx512.h. Include vec_avx512.h first.
#pragma once

#include "kernels/kernels.h"

namespace kvik::kernels {
namespace {

constexpr int kDotRows = 6;  // 24 sums, 4 vectors of weights and a quad: 29 of 32 registers
constexpr int kDotVecs = 4;

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
  return {_mm512_dpbusd_epi32(sums.v, w.bytes, x.bytes)};
}

}  // namespace
}  // namespace kvik::kernels
