// Dot products of bytes for NEON, with SDOT where the file is compiled for it and with widening
// multiplications where not. The names are described in dot_avx512.h. Include vec_neon.h first.
//
// Both multiply signed by signed bytes. Weights of 8 bits therefore lose their shift when they are
// loaded, u xor 128 = u - 128 as a signed byte, and D comes out as it is; weights of 4 bits fit as
// they are, and the sums of the rows undo their shift as everywhere.
#pragma once

#include "kernels/kernels.h"

namespace kvik::kernels {
namespace {

#if defined(__ARM_FEATURE_DOTPROD)
// 6 x 4 sums, 6 quads, a vector of weights and the constant of its shift are all 32 registers.
constexpr int kDotRows = 6;
#else
// 4 x 4 sums, 4 quads, a vector of weights, the constant of its shift and the two halves of a
// product are 24 registers.
constexpr int kDotRows = 4;
#endif
// 8 + 8 sums, 4 quads, 2 vectors of weights, the mask and the halves of a product: 25 registers.
constexpr int kNibbleRows = 2;
constexpr int kDotVecs = 4;
constexpr bool kDotsAreWide = false;
constexpr int kDotShift = 0;

struct Weights {
  int8x16_t bytes;
};
#if defined(__ARM_FEATURE_DOTPROD)
// SDOT takes the four bytes of a row from a lane, for all columns: nothing is broadcast.
struct Quad {
  int8x8_t bytes;
};
inline Quad set_quad(const std::int8_t* p) {
  std::uint32_t four;
  __builtin_memcpy(&four, p, 4);
  return {vcreate_s8(four)};
}
inline Int dot(Int sums, Weights w, Quad x) {
  return {vdotq_lane_s32(sums.v, w.bytes, x.bytes, 0)};
}
#else
struct Quad {
  int8x16_t bytes;
};
inline Quad set_quad(const std::int8_t* p) {
  std::int32_t four;
  __builtin_memcpy(&four, p, 4);
  return {vreinterpretq_s8_s32(vdupq_n_s32(four))};
}
// Two products of a column are at most 2 · 128 · 127 in magnitude, which 16 bits hold.
inline Int dot(Int sums, Weights w, Quad x) {
  const int16x8_t low = vmull_s8(vget_low_s8(w.bytes), vget_low_s8(x.bytes));
  const int16x8_t high = vmull_high_s8(w.bytes, x.bytes);
  return {vpadalq_s16(sums.v, vpaddq_s16(low, high))};
}
#endif

inline Int load_lines(const std::uint8_t* p) {
  return {vreinterpretq_s32_u8(vld1q_u8(p))};
}
inline Weights weights_of(Int bytes) {
  return {veorq_s8(vreinterpretq_s8_s32(bytes.v), vdupq_n_s8(-128))};
}

inline Quad set_bytes(const std::int8_t* p) {
  return set_quad(p);
}
inline Int dot_nibbles(Int sums, Int nibbles, Quad x) {
  return dot(sums, {vreinterpretq_s8_s32(nibbles.v)}, x);
}
inline Int finish_nibbles(Int sums) {
  return sums;
}

}  // namespace
}  // namespace kvik::kernels
