// Dot products of bytes with VNNI, as part of AVX-512 or of AVX2: one instruction. The names are
// described in dot_avx512.h. Include a vec_*.h first.
#pragma once

#include "kernels/kernels.h"

// The instruction has two encodings: with AVX2 it is "%{vex%} ", which must be said, since that of
// AVX-512 is the assembler's choice.
#if !defined(KVIK_VNNI_ENCODING)
#define KVIK_VNNI_ENCODING ""
#endif

namespace kvik::kernels {
namespace {

// With 32 registers 24 sums, 4 vectors of weights and a quad; with 16, 8 sums, 2 quads and a
// vector.
constexpr int kDotRows = kRegisters == 32 ? 6 : 2;
// 12 + 12 sums, 6 quads and a vector of weights; or 4 + 4 sums, 2 quads and 2 vectors of weights.
constexpr int kNibbleRows = kRegisters == 32 ? 3 : 1;
constexpr int kDotVecs = 4;
constexpr bool kDotsAreWide = true;
constexpr int kDotShift = 128;

struct Weights {
  Int bytes;
};
struct Quad {
  Int bytes;
};

inline Int load_lines(const std::uint8_t* p) {
  return bits(load(reinterpret_cast<const float*>(p)));
}
inline Weights weights_of(Int bytes) {
  return {bytes};
}
inline Int set_bytes(const std::int8_t* p) {
  std::int32_t four;
  __builtin_memcpy(&four, p, 4);
  return set_int(four);
}
inline Quad set_quad(const std::int8_t* p) {
  return {set_bytes(p)};
}
inline Int dot(Int sums, Weights w, Quad x) {
  // Not the intrinsic: GCC 12 copies the sums before and after it, and keeps them in memory.
  __asm__(KVIK_VNNI_ENCODING "vpdpbusd %2, %1, %0" : "+v"(sums.v) : "v"(w.bytes.v), "v"(x.bytes.v));
  return sums;
}

inline Int dot_nibbles(Int sums, Int nibbles, Int x) {
  return dot(sums, {nibbles}, {x});
}
inline Int finish_nibbles(Int sums) {
  return sums;
}

}  // namespace
}  // namespace kvik::kernels
