// Vec for AVX2 with FMA: 8 floats, 16 registers. The names are described in vec_avx512.h.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

namespace kvik::kernels {
namespace {

constexpr int kWidth = 8;
constexpr int kRegisters = 16;

// Register tiles. Up to 3 rows take 4 vectors, so that a single row has 4 chains in flight and a
// panel is read in one pass; 4 to 6 rows take 2: 12 accumulators, 2 vectors of weights and a
// broadcast make 15 of the 16 registers, and 12 chains hide the latency of 4 on two units. There
// are no registers for taller ones.
constexpr int kTileRows = 6;
constexpr int kTallTileRows = 6;
constexpr int kMaxTileVecs = 4;
constexpr int tile_vecs(int rows) {
  return rows <= 3 ? 4 : 2;
}
constexpr int kPanel = 32;

struct Vec {
  __m256 v;
};
struct Int {
  __m256i v;
};
struct Mask {
  __m256 m;  // all bits of a chosen lane
};

struct Full {};
struct Head {
  int n;
};

// ---- Memory ----
inline Mask lanes_between(int begin, int end) {
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  const __m256i from = _mm256_cmpgt_epi32(_mm256_set1_epi32(begin), lane);  // lane < begin
  const __m256i to = _mm256_cmpgt_epi32(_mm256_set1_epi32(end), lane);      // lane < end
  return {_mm256_castsi256_ps(_mm256_andnot_si256(from, to))};
}
inline Mask lanes(Head head) {
  return lanes_between(0, head.n);
}

inline Vec load(const float* p, Full = {}) {
  return {_mm256_loadu_ps(p)};
}
inline Vec load(const float* p, Mask mask) {
  return {_mm256_maskload_ps(p, _mm256_castps_si256(mask.m))};
}
inline Vec load(const float* p, Head head) {
  return load(p, lanes(head));
}
inline void store(float* p, Vec a, Full = {}) {
  _mm256_storeu_ps(p, a.v);
}
inline void store(float* p, Vec a, Head head) {
  _mm256_maskstore_ps(p, _mm256_castps_si256(lanes(head).m), a.v);
}
[[gnu::always_inline]] inline void prefetch(const float* p) {
  _mm_prefetch(reinterpret_cast<const char*>(p), _MM_HINT_T0);
}
[[gnu::always_inline]] inline void prefetch_l2(const float* p) {
  _mm_prefetch(reinterpret_cast<const char*>(p), _MM_HINT_T1);
}
inline Vec set(float a) {
  return {_mm256_set1_ps(a)};
}
inline Vec zero() {
  return {_mm256_setzero_ps()};
}

// ---- Arithmetic ----
inline Vec operator+(Vec a, Vec b) {
  return {_mm256_add_ps(a.v, b.v)};
}
inline Vec operator-(Vec a, Vec b) {
  return {_mm256_sub_ps(a.v, b.v)};
}
inline Vec operator*(Vec a, Vec b) {
  return {_mm256_mul_ps(a.v, b.v)};
}
inline Vec operator/(Vec a, Vec b) {
  return {_mm256_div_ps(a.v, b.v)};
}
inline Vec fma(Vec a, Vec b, Vec c) {
  return {_mm256_fmadd_ps(a.v, b.v, c.v)};
}
inline Vec fnma(Vec a, Vec b, Vec c) {
  return {_mm256_fnmadd_ps(a.v, b.v, c.v)};
}
inline Vec min(Vec a, Vec b) {
  return {_mm256_min_ps(a.v, b.v)};
}
inline Vec max(Vec a, Vec b) {
  return {_mm256_max_ps(a.v, b.v)};
}
inline Vec sqrt(Vec a) {
  return {_mm256_sqrt_ps(a.v)};
}
inline Vec round(Vec a) {
  return {_mm256_round_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}

// ---- Comparison ----
inline Mask operator<(Vec a, Vec b) {
  return {_mm256_cmp_ps(a.v, b.v, _CMP_LT_OQ)};
}
inline Mask operator<=(Vec a, Vec b) {
  return {_mm256_cmp_ps(a.v, b.v, _CMP_LE_OQ)};
}
inline Mask operator==(Vec a, Vec b) {
  return {_mm256_cmp_ps(a.v, b.v, _CMP_EQ_OQ)};
}
inline Mask is_nan(Vec a) {
  return {_mm256_cmp_ps(a.v, a.v, _CMP_UNORD_Q)};
}
inline Vec select(Mask mask, Vec a, Vec b) {
  return {_mm256_blendv_ps(b.v, a.v, mask.m)};
}
inline bool all(Mask mask) {
  return _mm256_movemask_ps(mask.m) == 0xff;
}
// Bit i: whether lane i is chosen.
inline unsigned lane_bits(Mask mask) {
  return static_cast<unsigned>(_mm256_movemask_ps(mask.m));
}

// ---- Bits ----
inline Int set_int(std::int32_t a) {
  return {_mm256_set1_epi32(a)};
}
inline Int bits(Vec a) {
  return {_mm256_castps_si256(a.v)};
}
inline Vec from_bits(Int a) {
  return {_mm256_castsi256_ps(a.v)};
}
inline Int to_int(Vec a) {
  return {_mm256_cvtps_epi32(a.v)};
}
inline Vec to_float(Int a) {
  return {_mm256_cvtepi32_ps(a.v)};
}
inline Int operator+(Int a, Int b) {
  return {_mm256_add_epi32(a.v, b.v)};
}
inline Int operator-(Int a, Int b) {
  return {_mm256_sub_epi32(a.v, b.v)};
}
inline Int operator&(Int a, Int b) {
  return {_mm256_and_si256(a.v, b.v)};
}
inline Int operator|(Int a, Int b) {
  return {_mm256_or_si256(a.v, b.v)};
}
inline Int operator^(Int a, Int b) {
  return {_mm256_xor_si256(a.v, b.v)};
}
template <int kBits>
inline Int shift_left(Int a) {
  return {_mm256_slli_epi32(a.v, kBits)};
}
template <int kBits>
inline Int shift_right(Int a) {
  return {_mm256_srai_epi32(a.v, kBits)};
}
inline Int max(Int a, Int b) {
  return {_mm256_max_epi32(a.v, b.v)};
}
inline std::int32_t sum(Int a) {
  __m128i half = _mm_add_epi32(_mm256_castsi256_si128(a.v), _mm256_extracti128_si256(a.v, 1));
  half = _mm_add_epi32(half, _mm_shuffle_epi32(half, 0x4e));
  return _mm_cvtsi128_si32(_mm_add_epi32(half, _mm_shuffle_epi32(half, 0xb1)));
}
inline std::int32_t largest(Int a) {
  __m128i half = _mm_max_epi32(_mm256_castsi256_si128(a.v), _mm256_extracti128_si256(a.v, 1));
  half = _mm_max_epi32(half, _mm_shuffle_epi32(half, 0x4e));
  return _mm_cvtsi128_si32(_mm_max_epi32(half, _mm_shuffle_epi32(half, 0xb1)));
}
inline void store_lanes(void* p, Int a) {
  _mm256_storeu_si256(static_cast<__m256i*>(p), a.v);
}
inline void store_bytes(std::int8_t* p, Int a) {
  const __m128i words =
      _mm_packs_epi32(_mm256_castsi256_si128(a.v), _mm256_extracti128_si256(a.v, 1));
  _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packs_epi16(words, words));
}
inline void store_upper(std::uint16_t* p, Int a) {
  const __m256i words = _mm256_srli_epi32(a.v, 16);
  _mm_storeu_si128(
      reinterpret_cast<__m128i*>(p),
      _mm_packus_epi32(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1)));
}
inline void store_half(std::uint8_t* p, Vec a) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                   _mm256_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
inline Vec load_half(const std::uint8_t* p) {
  return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
}
inline Vec load_bf16(const std::uint8_t* p) {
  const __m128i upper = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(upper), 16))};
}
inline Int load_bytes(const std::uint8_t* p) {
  return {_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)))};
}
inline Mask is_zero(Int a) {
  return {_mm256_castsi256_ps(_mm256_cmpeq_epi32(a.v, _mm256_setzero_si256()))};
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
  // Pairs of rows, then of pairs: within each half of the lanes; then the halves.
  __m256 a[kWidth], b[kWidth];
#pragma GCC unroll 4
  for (int i = 0; i < kWidth; i += 2) {
    a[i] = _mm256_unpacklo_ps(rows[i].v, rows[i + 1].v);
    a[i + 1] = _mm256_unpackhi_ps(rows[i].v, rows[i + 1].v);
  }
#pragma GCC unroll 2
  for (int i = 0; i < kWidth; i += 4) {
    const auto pair = [&](int at) { return _mm256_castps_pd(a[i + at]); };
    b[i] = _mm256_castpd_ps(_mm256_unpacklo_pd(pair(0), pair(2)));
    b[i + 1] = _mm256_castpd_ps(_mm256_unpackhi_pd(pair(0), pair(2)));
    b[i + 2] = _mm256_castpd_ps(_mm256_unpacklo_pd(pair(1), pair(3)));
    b[i + 3] = _mm256_castpd_ps(_mm256_unpackhi_pd(pair(1), pair(3)));
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {  // of columns i and i + 4
    rows[i].v = _mm256_permute2f128_ps(b[i], b[i + 4], 0x20);
    rows[i + 4].v = _mm256_permute2f128_ps(b[i], b[i + 4], 0x31);
  }
}

inline float first(Vec a) {
  return _mm256_cvtss_f32(a.v);
}
inline float sum(Vec a) {
  __m128 half = _mm_add_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
  half = _mm_add_ps(half, _mm_movehl_ps(half, half));
  return _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
}
inline float largest(Vec a) {
  __m128 half = _mm_max_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
  half = _mm_max_ps(half, _mm_movehl_ps(half, half));
  return _mm_cvtss_f32(_mm_max_ss(half, _mm_movehdup_ps(half)));
}
inline Vec swap_pairs(Vec a) {
  return {_mm256_permute_ps(a.v, 0xb1)};
}
inline Vec load_twice(const float* p, Head head) {
  const Vec low = load(p, Head{head.n / 2});
  return {_mm256_permutevar8x32_ps(low.v, _mm256_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3))};
}
inline Vec load_twice(const float* p, Full) {
  return load_twice(p, Head{kWidth});
}
inline Vec negate_even(Vec a) {
  const __m256 sign = _mm256_castsi256_ps(_mm256_set1_epi64x(0x0000000080000000));
  return {_mm256_xor_ps(a.v, sign)};
}

}  // namespace
}  // namespace kvik::kernels
