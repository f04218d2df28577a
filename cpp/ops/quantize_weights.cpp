#include "ops/quantize_weights.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <vector>

#include "base/float16.h"

namespace kvik::ops {

namespace {

using kernels::kGroup;

constexpr int kMaxWidth = 64;  // columns of the widest panel

std::int64_t groups_of(std::int64_t k) {
  return (k + kGroup - 1) / kGroup;
}

// The nearest integer, ties to even, for |x| < 2^22: adding 1.5 · 2^23 leaves it in the low bits.
// Plain arithmetic, so that compilers vectorise the loops around it.
inline std::int32_t nearest(float x) {
  return std::bit_cast<std::int32_t>(x + 0x1.8p23f) - std::bit_cast<std::int32_t>(0x1.8p23f);
}

inline float reciprocal(float x) {
  return x == 0.0f ? 0.0f : 1.0f / x;
}

// One group of a panel: kGroup rows of `width` columns, padded with zeros.
struct Group {
  alignas(64) float w[kGroup][kMaxWidth];

  void load(const float* block, std::int64_t k, int columns, std::int64_t group) {
    std::memset(w, 0, sizeof(w));
    const std::int64_t begin = group * kGroup, end = std::min<std::int64_t>(begin + kGroup, k);
    for (std::int64_t i = begin; i < end; ++i) {
      std::memcpy(w[i - begin], block + i * columns,
                  static_cast<std::size_t>(columns) * sizeof(float));
    }
  }
};

// scale[c]: the step for the kGroup weights of column c, integers in [-8, 7], chosen so that
// Σ (w - scale·q)² is small. For integers q that rounding w/s gives, the best scale is
// Σ w·q / Σ q², and what it leaves is Σ w² - (Σ w·q)² / Σ q²: of a few s, the one that takes the
// most away. Each s puts the weight of largest magnitude at a place near -8, the end with one more
// step.
void choose_scales(const Group& group, int width, float* scale) {
  constexpr float kPlaces[] = {-7.2f, -7.6f, -8.0f, -8.4f, -8.8f};
  alignas(64) float extreme[kMaxWidth] = {}, best[kMaxWidth] = {};
  for (const auto& row : group.w) {
    for (int c = 0; c < width; ++c) {
      extreme[c] = std::fabs(row[c]) > std::fabs(extreme[c]) ? row[c] : extreme[c];
    }
  }
  std::fill_n(scale, width, 0.0f);
  for (const float place : kPlaces) {
    alignas(64) float inverse[kMaxWidth], wq[kMaxWidth] = {}, qq[kMaxWidth] = {};
    for (int c = 0; c < width; ++c) inverse[c] = place * reciprocal(extreme[c]);
    for (const auto& row : group.w) {
      for (int c = 0; c < width; ++c) {
        const float steps = std::min(std::max(row[c] * inverse[c], -8.0f), 7.0f);
        const float q = static_cast<float>(nearest(steps));
        wq[c] += row[c] * q;
        qq[c] += q * q;
      }
    }
    for (int c = 0; c < width; ++c) {
      const float taken = wq[c] * wq[c] * reciprocal(qq[c]);
      if (taken > best[c]) {
        best[c] = taken;
        scale[c] = wq[c] * reciprocal(qq[c]);
      }
    }
  }
}

// A power of two that brings the column's scales into binary16's best range, near 1.
float column_power(float largest_scale) {
  if (largest_scale == 0.0f || !std::isfinite(largest_scale)) return 1.0f;
  return std::ldexp(1.0f, std::clamp(std::ilogb(largest_scale), -100, 100));
}

// Writes a group's integers, shifted by 8, as nibbles in the order of kernels.h.
void store_nibbles(const Group& group, const float* scale, int width, std::uint8_t* out) {
  alignas(64) float inverse[kMaxWidth];
  for (int c = 0; c < width; ++c) inverse[c] = reciprocal(scale[c]);
  const auto steps = [&](int i, int c) {
    const float value = std::min(std::max(group.w[i][c] * inverse[c], -8.0f), 7.0f);
    return static_cast<unsigned>(nearest(value) + 8);
  };
  for (int i = 0; i < kGroup / 8; ++i, out += 4 * width) {
    for (int j = 0; j < 4; ++j) {
      for (int c = 0; c < width; ++c) {
        out[4 * c + j] =
            static_cast<std::uint8_t>(steps(8 * i + j, c) | steps(8 * i + 4 + j, c) << 4);
      }
    }
  }
}

}  // namespace

std::size_t panel_bytes_bf16(std::int64_t k, int width) {
  return static_cast<std::size_t>((k + 1) / 2 * 2 * width) * sizeof(std::uint16_t);
}

std::size_t panel_bytes_i8(std::int64_t k, int width) {
  return static_cast<std::size_t>(groups_of(k) * kGroup * width);
}

std::size_t panel_bytes_i4(std::int64_t k, int width) {
  return static_cast<std::size_t>(groups_of(k) * (2 + kGroup / 2) * width);
}

void pack_bf16(const float* block, std::int64_t k, int columns, int width, std::uint16_t* panel) {
  std::fill_n(panel, panel_bytes_bf16(k, width) / sizeof(*panel), std::uint16_t{0});
  for (std::int64_t i = 0; i < k; ++i) {
    std::uint16_t* out = panel + i / 2 * 2 * width + i % 2;
    for (int c = 0; c < columns; ++c) out[2 * c] = BFloat16::from_float(block[i * columns + c]);
  }
}

void pack_i8(const float* block, std::int64_t k, int columns, int width, std::uint8_t* panel,
             float* column_scale) {
  alignas(64) float largest[kMaxWidth] = {}, inverse[kMaxWidth] = {};
  for (std::int64_t i = 0; i < k; ++i) {
    for (int c = 0; c < columns; ++c) {
      largest[c] = std::max(largest[c], std::fabs(block[i * columns + c]));
    }
  }
  for (int c = 0; c < width; ++c) {
    column_scale[c] = largest[c] / 127.0f;
    inverse[c] = 127.0f * reciprocal(largest[c]);
  }
  std::fill_n(panel, panel_bytes_i8(k, width), std::uint8_t{128});
  for (std::int64_t i = 0; i < k; ++i) {
    std::uint8_t* out = panel + i / 4 * 4 * width + i % 4;
    for (int c = 0; c < columns; ++c) {
      out[4 * c] = static_cast<std::uint8_t>(nearest(block[i * columns + c] * inverse[c]) + 128);
    }
  }
}

void pack_i4(const float* block, std::int64_t k, int columns, int width, std::uint8_t* panel,
             float* column_scale) {
  const std::int64_t groups = groups_of(k);
  const std::size_t group_bytes = static_cast<std::size_t>(2 + kGroup / 2) * width;
  // The scales of all groups first: the power of two of a column depends on the largest.
  std::vector<float> scales(static_cast<std::size_t>(groups * width));
  Group group;
  std::fill_n(column_scale, width, 0.0f);
  for (std::int64_t g = 0; g < groups; ++g) {
    float* scale = scales.data() + g * width;
    group.load(block, k, columns, g);
    choose_scales(group, width, scale);
    for (int c = 0; c < width; ++c) {
      column_scale[c] = std::max(column_scale[c], std::fabs(scale[c]));
    }
  }
  for (int c = 0; c < width; ++c) column_scale[c] = column_power(column_scale[c]);
  for (std::int64_t g = 0; g < groups; ++g) {
    float* scale = scales.data() + g * width;
    std::uint8_t* out = panel + static_cast<std::size_t>(g) * group_bytes;
    for (int c = 0; c < width; ++c) {
      const Float16 stored(scale[c] / column_scale[c]);
      std::memcpy(out + 2 * c, &stored.bits, 2);
      scale[c] = static_cast<float>(stored) * column_scale[c];  // what the integers are scaled by
    }
    group.load(block, k, columns, g);
    store_nibbles(group, scale, width, out + 2 * width);
  }
}

}  // namespace kvik::ops
