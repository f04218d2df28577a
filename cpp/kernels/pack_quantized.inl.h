// Weights to panels of int8, int4 and bfloat16. Include a vec_*.h, elementwise.inl.h,
// bfloat16.inl.h and quantized.inl.h first. The equations are those of kernels.h, in the order of
// reference_low_precision.cpp.
#pragma once

#include "kernels/kernels.h"

namespace kvik::kernels {
namespace {

// kWidth columns of a block [k, columns], zeros beyond k and columns.
struct ColumnVector {
  const float* block;
  std::int64_t k;
  std::ptrdiff_t stride;
  int present;  // columns of this vector that exist

  ColumnVector(const float* w, std::int64_t k_, int columns, int first)
      : block(w + first),
        k(k_),
        stride(columns),
        present(columns - first > kWidth ? kWidth
                : columns - first > 0    ? columns - first
                                         : 0) {}
  Vec at(std::int64_t i) const {
    if (i >= k || present == 0) return zero();
    return present == kWidth ? load(block + i * stride) : load(block + i * stride, Head{present});
  }
  // max|w|; NaN where a weight is not finite.
  Vec largest() const {
    const Int magnitude = set_int(0x7fffffff);
    Int most = set_int(0);
    for (std::int64_t i = 0; i < k; ++i) most = max(most, bits(at(i)) & magnitude);
    const Vec value = from_bits(most);
    return select(value < set(__builtin_inff()), value, set(__builtin_nanf("")));
  }
};

inline Vec reciprocal_or_zero(Vec x) {
  return select(x == zero(), zero(), set(1.0f) / x);
}

inline Vec within(Vec x, float low, float high) {
  return min(max(x, set(low)), set(high));
}

// x, or 0 in columns that are not finite.
inline Vec if_finite(Mask not_finite, Vec x) {
  return select(not_finite, zero(), x);
}

void pack_i8(const float* block, std::int64_t k, int columns, std::uint8_t* panel,
             float* column_scale) {
  const std::int64_t steps = (k + kGroup - 1) / kGroup * kGroup / 4;
  for (int first = 0; first < kPanel; first += kWidth) {
    const ColumnVector w(block, k, columns, first);
    const Vec most = w.largest();
    const Mask bad = is_nan(most);
    store(column_scale + first, most / set(127.0f));
    const Vec inverse = if_finite(bad, set(127.0f) * reciprocal_or_zero(most));
    const auto place = [&](std::int64_t i) {
      const Vec value = if_finite(bad, w.at(i)) * inverse;
      return to_int(round(within(value, -127.0f, 127.0f))) + set_int(128);
    };
    for (std::int64_t s = 0; s < steps; ++s) {
      const Int low = place(4 * s) | shift_left<8>(place(4 * s + 1));
      const Int high = place(4 * s + 2) | shift_left<8>(place(4 * s + 3));
      store_lanes(panel + (s * kPanel + first) * 4, low | shift_left<16>(high));
    }
  }
}

// The scales of a group of kWidth columns, before they are rounded for storage.
inline Vec group_scale(const Vec (&w)[kGroup]) {
  constexpr float kPlaces[] = {-7.2f, -7.6f, -8.0f, -8.4f, -8.8f};
  const Int magnitude = set_int(0x7fffffff);
  Vec extreme = zero(), most = zero();
  for (const Vec& value : w) {
    const Vec size = from_bits(bits(value) & magnitude);
    const Mask larger = most < size;
    extreme = select(larger, value, extreme);
    most = select(larger, size, most);
  }
  const Vec inverse_extreme = reciprocal_or_zero(extreme);
  Vec best = zero(), scale = zero();
  for (const float place : kPlaces) {
    const Vec inverse = set(place) * inverse_extreme;
    Vec wq = zero(), qq = zero();
    for (const Vec& value : w) {
      const Vec q = round(within(value * inverse, -8.0f, 7.0f));
      wq = fma(value, q, wq);
      qq = fma(q, q, qq);
    }
    const Vec inverse_qq = reciprocal_or_zero(qq);
    const Vec taken = wq * wq * inverse_qq;
    const Mask better = best < taken;
    best = select(better, taken, best);
    scale = select(better, wq * inverse_qq, scale);
  }
  return scale;
}

void pack_i4(const float* block, std::int64_t k, int columns, std::uint8_t* panel,
             float* column_scale) {
  const std::int64_t groups = (k + kGroup - 1) / kGroup;
  for (int first = 0; first < kPanel; first += kWidth) {
    const ColumnVector columns_of_w(block, k, columns, first);
    const Vec most = columns_of_w.largest();
    const Mask bad = is_nan(most);
    // The exponent alone is the power of two at or below.
    const Vec exponent = from_bits(bits(most) & set_int(0x7f800000));
    const Vec power = select(most < set(1e-30f), set(1.0f), exponent);
    store(column_scale + first, select(bad, most, power));
    for (std::int64_t g = 0; g < groups; ++g) {
      Vec w[kGroup];
      for (int i = 0; i < kGroup; ++i) w[i] = if_finite(bad, columns_of_w.at(g * kGroup + i));
      std::uint8_t* group = panel + g * kGroupBytes;
      std::uint8_t* stored = group + 2 * first;
      store_half(stored, if_finite(bad, group_scale(w) / power));
      const Vec inverse = if_finite(bad, reciprocal_or_zero(load_half(stored) * power));
      const auto place = [&](int i) {
        return to_int(round(within(w[i] * inverse, -8.0f, 7.0f))) + set_int(8);
      };
      for (int s = 0; s < kGroup / 8; ++s) {
        const auto both = [&](int j) {  // a byte of two k
          return place(8 * s + j) | shift_left<4>(place(8 * s + 4 + j));
        };
        const Int low = both(0) | shift_left<8>(both(1));
        const Int high = both(2) | shift_left<8>(both(3));
        store_lanes(group + kScaleBytes + (s * kPanel + first) * 4, low | shift_left<16>(high));
      }
    }
  }
}

void pack_bf16(const float* block, std::int64_t k, int columns, std::uint16_t* panel) {
  for (int first = 0; first < kPanel; first += kWidth) {
    const ColumnVector w(block, k, columns, first);
    for (std::int64_t i = 0; i < k; i += 2) {
      const Int even = shift_right<16>(round_to_bf16(w.at(i))) & set_int(0xffff);
      const Int odd = round_to_bf16(w.at(i + 1)) & set_int(static_cast<std::int32_t>(0xffff0000u));
      store_lanes(panel + (i / 2 * kPanel + first) * 2, even | odd);
    }
  }
}

}  // namespace
}  // namespace kvik::kernels
