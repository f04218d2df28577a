// Vec for AVX-512 (F, BW, DQ, VL): 16 floats, 32 registers, a mask register per comparison.
//
// Every vec_*.h supplies the same names, described here once; the *.inl.h algorithms are written
// over them. All of it lives in an anonymous namespace: an ISA file must not emit a symbol that
// another file's could be merged with.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/x86_intrinsics.h"

namespace kvik::kernels {
namespace {

constexpr int kWidth = 16;  // lanes
constexpr int kRegisters = 32;

// Register tiles of a matrix product: some rows of tile_vecs(rows) accumulators each.
//   up to 6 rows x 4:  24 accumulators, 4 vectors of weights and a broadcast: 29 of 32 registers.
//                      Per step 10 loads feed 24 fused multiply-adds, 12 cycles of the two units;
//                      24 chains are well over the 8 that hide a latency of 4. Measured 93 % of
//                      peak with the weights in L2.
//   up to 12 rows x 2: 27 registers, 14 loads for as many multiply-adds, measured 75 % of peak; but
//                      7 to 12 rows then read the weights once, which is what bounds them.
constexpr int kTileRows = 6;
constexpr int kTallTileRows = 12;
constexpr int kMaxTileVecs = 4;
constexpr int tile_vecs(int rows) {
  return rows <= 6 ? 4 : 2;
}
constexpr int kPanel = 64;  // columns of a panel of packed weights

struct Vec {
  __m512 v;
};
struct Int {  // as many 32-bit integers
  __m512i v;
};
struct Mask {
  __mmask16 m;
};

// Which lanes an access touches: all of them, or the first n. What is not touched is not read, and
// reads as zero.
struct Full {};
struct Head {
  int n;
};

// ---- Memory ----
inline Mask lanes_between(int begin, int end) {  // lanes in [begin, end), for any begin, end
  begin = begin < 0 ? 0 : begin > kWidth ? kWidth : begin;
  end = end < begin ? begin : end > kWidth ? kWidth : end;
  return {static_cast<__mmask16>((1u << end) - (1u << begin))};
}
inline Mask lanes(Head head) {
  return lanes_between(0, head.n);
}

inline Vec load(const float* p, Full = {}) {
  return {_mm512_loadu_ps(p)};
}
inline Vec load(const float* p, Mask mask) {
  return {_mm512_maskz_loadu_ps(mask.m, p)};
}
inline Vec load(const float* p, Head head) {
  return load(p, lanes(head));
}
inline void store(float* p, Vec a, Full = {}) {
  _mm512_storeu_ps(p, a.v);
}
inline void store(float* p, Vec a, Head head) {
  _mm512_mask_storeu_ps(p, lanes(head).m, a.v);
}
// Always inline: GCC takes a function that does nothing but fetch for one without effects, and
// drops calls of it.
[[gnu::always_inline]] inline void prefetch(const float* p) {
  _mm_prefetch(reinterpret_cast<const char*>(p), _MM_HINT_T0);
}
[[gnu::always_inline]] inline void prefetch_l2(const float* p) {
  _mm_prefetch(reinterpret_cast<const char*>(p), _MM_HINT_T1);
}
inline Vec set(float a) {
  return {_mm512_set1_ps(a)};
}
inline Vec zero() {
  return {_mm512_setzero_ps()};
}

// ---- Arithmetic ----
inline Vec operator+(Vec a, Vec b) {
  return {_mm512_add_ps(a.v, b.v)};
}
inline Vec operator-(Vec a, Vec b) {
  return {_mm512_sub_ps(a.v, b.v)};
}
inline Vec operator*(Vec a, Vec b) {
  return {_mm512_mul_ps(a.v, b.v)};
}
inline Vec operator/(Vec a, Vec b) {
  return {_mm512_div_ps(a.v, b.v)};
}
inline Vec fma(Vec a, Vec b, Vec c) {
  return {_mm512_fmadd_ps(a.v, b.v, c.v)};
}  // a·b + c
inline Vec fnma(Vec a, Vec b, Vec c) {
  return {_mm512_fnmadd_ps(a.v, b.v, c.v)};
}  // c - a·b
inline Vec min(Vec a, Vec b) {
  return {_mm512_min_ps(a.v, b.v)};
}  // b when either is NaN
inline Vec max(Vec a, Vec b) {
  return {_mm512_max_ps(a.v, b.v)};
}  // b when either is NaN
inline Vec sqrt(Vec a) {
  return {_mm512_sqrt_ps(a.v)};
}
inline Vec round(Vec a) {  // to the nearest integer, ties to even
  return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
// a · 2^n for integral n in [-252, 254], rounded once: subnormal results are right, not flushed.
inline Vec scale_by_power(Vec a, Vec n) {
  return {_mm512_scalef_ps(a.v, n.v)};
}

// ---- Comparison: false where an operand is NaN ----
inline Mask operator<(Vec a, Vec b) {
  return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ)};
}
inline Mask operator<=(Vec a, Vec b) {
  return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_LE_OQ)};
}
inline Mask operator==(Vec a, Vec b) {
  return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_EQ_OQ)};
}
inline Mask is_nan(Vec a) {
  return {_mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q)};
}
inline Vec select(Mask mask, Vec a, Vec b) {  // mask ? a : b
  return {_mm512_mask_blend_ps(mask.m, b.v, a.v)};
}
inline bool all(Mask mask) {
  return mask.m == 0xffff;
}
// Bit i: whether lane i is chosen.
inline unsigned lane_bits(Mask mask) {
  return mask.m;
}

// ---- Bits ----
inline Int set_int(std::int32_t a) {
  return {_mm512_set1_epi32(a)};
}
inline Int bits(Vec a) {
  return {_mm512_castps_si512(a.v)};
}
inline Vec from_bits(Int a) {
  return {_mm512_castsi512_ps(a.v)};
}
inline Int to_int(Vec a) {
  return {_mm512_cvtps_epi32(a.v)};
}  // of an integral value
inline Vec to_float(Int a) {
  return {_mm512_cvtepi32_ps(a.v)};
}
inline Int operator+(Int a, Int b) {
  return {_mm512_add_epi32(a.v, b.v)};
}
inline Int operator-(Int a, Int b) {
  return {_mm512_sub_epi32(a.v, b.v)};
}
inline Int operator&(Int a, Int b) {
  return {_mm512_and_si512(a.v, b.v)};
}
inline Int operator|(Int a, Int b) {
  return {_mm512_or_si512(a.v, b.v)};
}
inline Int operator^(Int a, Int b) {
  return {_mm512_xor_si512(a.v, b.v)};
}
template <int kBits>
inline Int shift_left(Int a) {
  return {_mm512_slli_epi32(a.v, kBits)};
}
template <int kBits>
inline Int shift_right(Int a) {  // with the sign
  return {_mm512_srai_epi32(a.v, kBits)};
}
inline Int max(Int a, Int b) {
  return {_mm512_max_epi32(a.v, b.v)};
}
inline std::int32_t sum(Int a) {
  return _mm512_reduce_add_epi32(a.v);
}
inline std::int32_t largest(Int a) {
  return _mm512_reduce_max_epi32(a.v);
}
inline void store_lanes(void* p, Int a) {
  _mm512_storeu_si512(p, a.v);
}
// The low byte of each lane, which must hold it with its sign.
inline void store_bytes(std::int8_t* p, Int a) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(a.v));
}
// The upper 16 bits of each lane.
inline void store_upper(std::uint16_t* p, Int a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                      _mm512_cvtepi32_epi16(_mm512_srli_epi32(a.v, 16)));
}
// kWidth numbers to binary16, to nearest, ties to even.
inline void store_half(std::uint8_t* p, Vec a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                      _mm512_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
// kWidth binary16 numbers.
inline Vec load_half(const std::uint8_t* p) {
  return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}
// kWidth bfloat16 numbers, and kWidth signed bytes.
inline Vec load_bf16(const std::uint8_t* p) {
  const __m256i upper = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(upper), 16))};
}
inline Int load_bytes(const std::uint8_t* p) {
  return {_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
}
inline Mask is_zero(Int a) {
  return {_mm512_testn_epi32_mask(a.v, a.v)};
}

// ---- Across lanes: one fixed tree ----
// rows[i] lane j becomes rows[j] lane i.
inline void transpose(Vec (&rows)[kWidth]) {
  // Pairs of rows, then of pairs: within each quarter of the lanes; then the quarters.
  __m512 a[kWidth], b[kWidth];
#pragma GCC unroll 8
  for (int i = 0; i < kWidth; i += 2) {
    a[i] = _mm512_unpacklo_ps(rows[i].v, rows[i + 1].v);
    a[i + 1] = _mm512_unpackhi_ps(rows[i].v, rows[i + 1].v);
  }
#pragma GCC unroll 4
  for (int i = 0; i < kWidth; i += 4) {
    const auto pair = [&](int at) { return _mm512_castps_pd(a[i + at]); };
    b[i] = _mm512_castpd_ps(_mm512_unpacklo_pd(pair(0), pair(2)));
    b[i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(pair(0), pair(2)));
    b[i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(pair(1), pair(3)));
    b[i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(pair(1), pair(3)));
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {  // of columns i, i + 4, i + 8 and i + 12
    const __m512 low = _mm512_shuffle_f32x4(b[i], b[i + 4], 0x44);
    const __m512 low_end = _mm512_shuffle_f32x4(b[i], b[i + 4], 0xee);
    const __m512 high = _mm512_shuffle_f32x4(b[i + 8], b[i + 12], 0x44);
    const __m512 high_end = _mm512_shuffle_f32x4(b[i + 8], b[i + 12], 0xee);
    rows[i].v = _mm512_shuffle_f32x4(low, high, 0x88);
    rows[i + 4].v = _mm512_shuffle_f32x4(low, high, 0xdd);
    rows[i + 8].v = _mm512_shuffle_f32x4(low_end, high_end, 0x88);
    rows[i + 12].v = _mm512_shuffle_f32x4(low_end, high_end, 0xdd);
  }
}

inline float first(Vec a) {
  return _mm512_cvtss_f32(a.v);
}
inline float sum(Vec a) {
  const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1));
  __m128 quarter = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
  quarter = _mm_add_ps(quarter, _mm_movehl_ps(quarter, quarter));
  return _mm_cvtss_f32(_mm_add_ss(quarter, _mm_movehdup_ps(quarter)));
}
inline float largest(Vec a) {  // of lanes without NaN; with NaN, some lane or NaN
  const __m256 half = _mm256_max_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1));
  __m128 quarter = _mm_max_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
  quarter = _mm_max_ps(quarter, _mm_movehl_ps(quarter, quarter));
  return _mm_cvtss_f32(_mm_max_ss(quarter, _mm_movehdup_ps(quarter)));
}
// (a1, a0, a3, a2, ...)
inline Vec swap_pairs(Vec a) {
  return {_mm512_permute_ps(a.v, 0xb1)};
}
// (p0, p0, p1, p1, ...) for the pairs of a full vector, or of the first n lanes (n even).
inline Vec load_twice(const float* p, Head head) {
  const __mmask8 mask = static_cast<__mmask8>((1u << (head.n / 2)) - 1u);
  const __m512 low = _mm512_castps256_ps512(_mm256_maskz_loadu_ps(mask, p));
  const __m512i index = _mm512_set_epi32(7, 7, 6, 6, 5, 5, 4, 4, 3, 3, 2, 2, 1, 1, 0, 0);
  return {_mm512_permutexvar_ps(index, low)};
}
inline Vec load_twice(const float* p, Full) {
  return load_twice(p, Head{kWidth});
}
// Changes the sign of the even lanes.
inline Vec negate_even(Vec a) {
  const __m512i sign = _mm512_set1_epi64(0x0000000080000000);
  return {_mm512_castsi512_ps(_mm512_xor_si512(_mm512_castps_si512(a.v), sign))};
}

}  // namespace
}  // namespace kvik::kernels
