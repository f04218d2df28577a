// Vec for NEON (aarch64): 4 floats, 32 registers. The names are described in vec_avx512.h.
#pragma once

#include <arm_neon.h>

#include <cstddef>
#include <cstdint>

namespace kvik::kernels {
namespace {

constexpr int kWidth = 4;
constexpr int kRegisters = 32;

// Register tiles; a multiply-add takes its scalar of x from a lane.
//   up to 6 rows x 4:  24 accumulators, 4 vectors of weights and a scalar are 29 of 32 registers.
//                      Per step 10 loads feed 24 fused multiply-adds.
//   up to 12 rows x 2: 27 registers, 14 loads for as many multiply-adds; 7 to 12 rows then read the
//                      weights from memory once.
// A panel is the width of the taller tile's four vectors, one cache line of fp32 a step, so that a
// single row reads it from one end to the other.
constexpr int kTileRows = 6;
constexpr int kTallTileRows = 12;
constexpr int kMaxTileVecs = 4;
constexpr int tile_vecs(int rows) {
  return rows <= 6 ? 4 : 2;
}
constexpr int kPanel = 16;

struct Vec {
  float32x4_t v;
};
struct Int {
  int32x4_t v;
};
struct Mask {
  uint32x4_t m;  // all bits of a chosen lane
};

struct Full {};
struct Head {
  int n;
};

// ---- Comparison ----
inline Mask operator<(Vec a, Vec b) {
  return {vcltq_f32(a.v, b.v)};
}
inline Mask operator<=(Vec a, Vec b) {
  return {vcleq_f32(a.v, b.v)};
}
inline Mask operator==(Vec a, Vec b) {
  return {vceqq_f32(a.v, b.v)};
}
inline Mask is_nan(Vec a) {
  return {vmvnq_u32(vceqq_f32(a.v, a.v))};
}
inline Vec select(Mask mask, Vec a, Vec b) {
  return {vbslq_f32(mask.m, a.v, b.v)};
}
inline bool all(Mask mask) {
  return vminvq_u32(mask.m) != 0;
}
// Bit i: whether lane i is chosen.
inline unsigned lane_bits(Mask mask) {
  constexpr std::uint32_t kBits[] = {1, 2, 4, 8};
  return vaddvq_u32(vandq_u32(mask.m, vld1q_u32(kBits)));
}

// ---- Memory ----
inline Mask lanes_between(int begin, int end) {
  constexpr std::int32_t kLanes[] = {0, 1, 2, 3};
  const int32x4_t lane = vld1q_s32(kLanes);
  return {vandq_u32(vcgeq_s32(lane, vdupq_n_s32(begin)), vcltq_s32(lane, vdupq_n_s32(end)))};
}
inline Mask lanes(Head head) {
  return lanes_between(0, head.n);
}

inline Vec load(const float* p, Full = {}) {
  return {vld1q_f32(p)};
}
// There is no masked load: lane by lane what is not all or nothing.
inline Vec load(const float* p, Mask mask) {
  if (all(mask)) return load(p);
  float32x4_t v = vdupq_n_f32(0.0f);
  if (vgetq_lane_u32(mask.m, 0)) v = vld1q_lane_f32(p, v, 0);
  if (vgetq_lane_u32(mask.m, 1)) v = vld1q_lane_f32(p + 1, v, 1);
  if (vgetq_lane_u32(mask.m, 2)) v = vld1q_lane_f32(p + 2, v, 2);
  if (vgetq_lane_u32(mask.m, 3)) v = vld1q_lane_f32(p + 3, v, 3);
  return {v};
}
inline Vec load(const float* p, Head head) {
  if (head.n >= kWidth) return load(p);
  const float32x4_t none = vdupq_n_f32(0.0f);
  if (head.n < 2) return {head.n < 1 ? none : vld1q_lane_f32(p, none, 0)};
  const float32x4_t two = vcombine_f32(vld1_f32(p), vget_low_f32(none));
  return {head.n < 3 ? two : vld1q_lane_f32(p + 2, two, 2)};
}
inline void store(float* p, Vec a, Full = {}) {
  vst1q_f32(p, a.v);
}
inline void store(float* p, Vec a, Head head) {
  if (head.n >= kWidth) return store(p, a);
  if (head.n < 1) return;
  if (head.n == 1) return vst1q_lane_f32(p, a.v, 0);
  vst1_f32(p, vget_low_f32(a.v));
  if (head.n == 3) vst1q_lane_f32(p + 2, a.v, 2);
}
[[gnu::always_inline]] inline void prefetch(const float* p) {
  __builtin_prefetch(p);
}
[[gnu::always_inline]] inline void prefetch_l2(const float* p) {
  __builtin_prefetch(p, 0, 2);
}
inline Vec set(float a) {
  return {vdupq_n_f32(a)};
}
inline Vec zero() {
  return {vdupq_n_f32(0.0f)};
}

// ---- Arithmetic ----
inline Vec operator+(Vec a, Vec b) {
  return {vaddq_f32(a.v, b.v)};
}
inline Vec operator-(Vec a, Vec b) {
  return {vsubq_f32(a.v, b.v)};
}
inline Vec operator*(Vec a, Vec b) {
  return {vmulq_f32(a.v, b.v)};
}
inline Vec operator/(Vec a, Vec b) {
  return {vdivq_f32(a.v, b.v)};
}
inline Vec fma(Vec a, Vec b, Vec c) {
  return {vfmaq_f32(c.v, a.v, b.v)};
}
inline Vec fnma(Vec a, Vec b, Vec c) {
  return {vfmsq_f32(c.v, a.v, b.v)};
}
// Not FMIN and FMAX: those yield a NaN whichever operand it is in, and +0 of two zeros.
inline Vec min(Vec a, Vec b) {
  return select(a < b, a, b);
}
inline Vec max(Vec a, Vec b) {
  return select(b < a, a, b);
}
inline Vec sqrt(Vec a) {
  return {vsqrtq_f32(a.v)};
}
inline Vec round(Vec a) {
  return {vrndnq_f32(a.v)};
}

// ---- Bits ----
inline Int set_int(std::int32_t a) {
  return {vdupq_n_s32(a)};
}
inline Int bits(Vec a) {
  return {vreinterpretq_s32_f32(a.v)};
}
inline Vec from_bits(Int a) {
  return {vreinterpretq_f32_s32(a.v)};
}
inline Int to_int(Vec a) {
  return {vcvtnq_s32_f32(a.v)};
}
inline Vec to_float(Int a) {
  return {vcvtq_f32_s32(a.v)};
}
inline Int operator+(Int a, Int b) {
  return {vaddq_s32(a.v, b.v)};
}
inline Int operator-(Int a, Int b) {
  return {vsubq_s32(a.v, b.v)};
}
inline Int operator&(Int a, Int b) {
  return {vandq_s32(a.v, b.v)};
}
inline Int operator|(Int a, Int b) {
  return {vorrq_s32(a.v, b.v)};
}
inline Int operator^(Int a, Int b) {
  return {veorq_s32(a.v, b.v)};
}
template <int kBits>
inline Int shift_left(Int a) {
  return {vshlq_n_s32(a.v, kBits)};
}
template <int kBits>
inline Int shift_right(Int a) {
  return {vshrq_n_s32(a.v, kBits)};
}
inline Int max(Int a, Int b) {
  return {vmaxq_s32(a.v, b.v)};
}
inline std::int32_t sum(Int a) {
  return vaddvq_s32(a.v);
}
inline std::int32_t largest(Int a) {
  return vmaxvq_s32(a.v);
}
inline void store_lanes(void* p, Int a) {
  vst1q_u8(static_cast<std::uint8_t*>(p), vreinterpretq_u8_s32(a.v));
}
inline void store_bytes(std::int8_t* p, Int a) {
  const int16x4_t words = vqmovn_s32(a.v);
  const int8x8_t bytes = vqmovn_s16(vcombine_s16(words, words));
  const std::int32_t four = vget_lane_s32(vreinterpret_s32_s8(bytes), 0);
  __builtin_memcpy(p, &four, 4);
}
inline void store_upper(std::uint16_t* p, Int a) {
  vst1_u16(p, vshrn_n_u32(vreinterpretq_u32_s32(a.v), 16));
}
inline void store_half(std::uint8_t* p, Vec a) {
  vst1_u8(p, vreinterpret_u8_f16(vcvt_f16_f32(a.v)));
}
inline Vec load_half(const std::uint8_t* p) {
  return {vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8(p)))};
}
inline Vec load_bf16(const std::uint8_t* p) {
  return {vreinterpretq_f32_u32(vshll_n_u16(vreinterpret_u16_u8(vld1_u8(p)), 16))};
}
inline Int load_bytes(const std::uint8_t* p) {
  std::int32_t four;
  __builtin_memcpy(&four, p, 4);
  const int8x8_t bytes = vreinterpret_s8_s32(vdup_n_s32(four));
  return {vmovl_s16(vget_low_s16(vmovl_s8(bytes)))};
}
inline Mask is_zero(Int a) {
  return {vceqzq_s32(a.v)};
}

// In two factors, because 2^n itself may be out of range: the first product is exact, the second
// rounds once, also into the subnormals.
inline Vec scale_by_power(Vec a, Vec n) {
  const Int whole = to_int(n);
  const Int half = shift_right<1>(whole);
  const Int bias = set_int(127);
  const Vec first_factor = from_bits(shift_left<23>(half + bias));
  const Vec second_factor = from_bits(shift_left<23>(whole - half + bias));
  return a * first_factor * second_factor;
}

// ---- Across lanes ----
// rows[i] lane j becomes rows[j] lane i.
inline void transpose(Vec (&rows)[kWidth]) {
  const float32x4x2_t first = vzipq_f32(rows[0].v, rows[2].v);
  const float32x4x2_t second = vzipq_f32(rows[1].v, rows[3].v);
  const float32x4x2_t low = vzipq_f32(first.val[0], second.val[0]);
  const float32x4x2_t high = vzipq_f32(first.val[1], second.val[1]);
  rows[0].v = low.val[0];
  rows[1].v = low.val[1];
  rows[2].v = high.val[0];
  rows[3].v = high.val[1];
}

inline float first(Vec a) {
  return vgetq_lane_f32(a.v, 0);
}
inline float sum(Vec a) {  // (a0 + a1) + (a2 + a3)
  return vaddvq_f32(a.v);
}
inline float largest(Vec a) {
  return vmaxvq_f32(a.v);
}
inline Vec swap_pairs(Vec a) {
  return {vrev64q_f32(a.v)};
}
inline Vec load_twice(const float* p, Head head) {
  const Vec low = load(p, Head{head.n / 2});
  return {vzip1q_f32(low.v, low.v)};
}
inline Vec load_twice(const float* p, Full) {
  return load_twice(p, Head{kWidth});
}
inline Vec negate_even(Vec a) {
  const uint32x4_t sign = vreinterpretq_u32_u64(vdupq_n_u64(0x0000000080000000));
  return {vreinterpretq_f32_u32(veorq_u32(vreinterpretq_u32_f32(a.v), sign))};
}

}  // namespace
}  // namespace kvik::kernels
