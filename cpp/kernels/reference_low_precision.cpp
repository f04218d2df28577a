// The reference's packing of weights to int8, int4 and bfloat16, rows as bytes, and their products:
// sums of integers, and the contract's chain of fp32 operations after them.
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>

#include "base/float16.h"
#include "kernels/reference.h"

namespace kvik::kernels::reference {

namespace {

// Element (i, c) of a block [k, columns], 0 beyond.
struct Block {
  const float* w;
  std::int64_t k;
  int columns;
  float at(std::int64_t i, int c) const { return i < k && c < columns ? w[i * columns + c] : 0.0f; }
  // max|w| of a column; NaN where one is not finite.
  float largest(int c) const {
    float most = 0.0f;
    for (std::int64_t i = 0; i < k; ++i) {
      if (!std::isfinite(at(i, c))) return std::numeric_limits<float>::quiet_NaN();
      most = std::max(most, std::fabs(at(i, c)));
    }
    return most;
  }
};

float reciprocal(float x) {
  return x == 0.0f ? 0.0f : 1.0f / x;
}

float rounded_within(float x, float low, float high) {
  return std::nearbyint(std::min(std::max(x, low), high));
}

// The scale of one group of a column, before it is rounded for storage.
float group_scale(const float (&w)[kGroup]) {
  float extreme = 0.0f;
  for (const float value : w) extreme = std::fabs(value) > std::fabs(extreme) ? value : extreme;
  float best = 0.0f, scale = 0.0f;
  for (const float place : {-7.2f, -7.6f, -8.0f, -8.4f, -8.8f}) {
    const float inverse = place * reciprocal(extreme);
    float wq = 0.0f, qq = 0.0f;
    for (const float value : w) {
      const float q = rounded_within(value * inverse, -8.0f, 7.0f);
      wq = std::fma(value, q, wq);
      qq = std::fma(q, q, qq);
    }
    // Σ (w - s·q)² is Σ w² less this.
    const float taken = wq * wq * reciprocal(qq);
    if (taken > best) {
      best = taken;
      scale = wq * reciprocal(qq);
    }
  }
  return scale;
}

bool is_outlier(const RowOutliers& outliers, std::int64_t i) {
  return std::find(outliers.place, outliers.place + outliers.count, i) !=
         outliers.place + outliers.count;
}

// The outliers of a row whose bytes `row` makes.
RowOutliers row_outliers(const float* x, std::int64_t k, const RowScale& row) {
  std::int64_t magnitudes = 0;
  for (std::int64_t i = 0; i < k; ++i) magnitudes += std::abs(row.byte(x[i]));
  if (127 * k <= RowOutliers::kLargestTimesMean * magnitudes) return {};
  const auto is_candidate = [&](std::int64_t i) {
    return std::abs(row.byte(x[i])) * k > RowOutliers::kTimesMean * magnitudes;
  };
  const auto comes_before = [&](std::int64_t i, std::int64_t j) {
    const float a = std::fabs(x[i]), b = std::fabs(x[j]);
    return a > b || (a == b && i < j);
  };
  RowOutliers out{};
  float largest = 0.0f, rest = 0.0f;
  for (std::int64_t i = 0; i < k; ++i) {
    largest = std::max(largest, std::fabs(x[i]));
    int place = is_candidate(i) ? 0 : RowOutliers::kMost;
    for (std::int64_t j = 0; j < k && place < RowOutliers::kMost; ++j) {
      if (is_candidate(j) && comes_before(j, i)) ++place;
    }
    if (place < RowOutliers::kMost) {
      out.place[out.count] = static_cast<std::int32_t>(i);
      out.value[out.count++] = x[i];
    } else {
      rest = std::max(rest, std::fabs(x[i]));
    }
  }
  if (rest > RowOutliers::kLargestRest * largest) out.count = 0;
  return out;
}

// D(r, c, g) for weights u(k, c) stored with a shift.
template <typename Weight>
std::int32_t group_dot(const QuantizedRows& x, std::int64_t r, std::int64_t g, int shift,
                       Weight weight) {
  std::int32_t sum = 0;
  for (std::int64_t i = g * kGroup; i < (g + 1) * kGroup; ++i) {
    sum += x.q[r * x.groups * kGroup + i] * (weight(i) - shift);
  }
  return sum;
}

}  // namespace

void pack_i8(const float* w, std::int64_t k, int columns, std::uint8_t* panel,
             float* column_scale) {
  const Block block{w, k, columns};
  for (int c = 0; c < kPanel; ++c) {
    const float most = block.largest(c);
    const float inverse = std::isnan(most) ? 0.0f : 127.0f * reciprocal(most);
    column_scale[c] = most / 127.0f;
    for (std::int64_t i = 0; i < (k + kGroup - 1) / kGroup * kGroup; ++i) {
      const float value = std::isnan(most) ? 0.0f : block.at(i, c);
      panel[(i / 4 * kPanel + c) * 4 + i % 4] = static_cast<std::uint8_t>(
          static_cast<int>(rounded_within(value * inverse, -127.0f, 127.0f)) + 128);
    }
  }
}

void pack_i4(const float* data, std::int64_t k, int columns, std::uint8_t* panel,
             float* column_scale) {
  constexpr std::int64_t kGroupBytes = (2 + kGroup / 2) * kPanel;
  const Block block{data, k, columns};
  for (int c = 0; c < kPanel; ++c) {
    const float most = block.largest(c);
    const float power = std::isnan(most) ? most
                        : most < 1e-30f  ? 1.0f
                                         : std::ldexp(1.0f, std::ilogb(most));
    column_scale[c] = power;
    for (std::int64_t g = 0; g < (k + kGroup - 1) / kGroup; ++g) {
      float w[kGroup];
      for (int i = 0; i < kGroup; ++i) {
        w[i] = std::isnan(most) ? 0.0f : block.at(g * kGroup + i, c);
      }
      const Float16 stored(std::isnan(most) ? 0.0f : group_scale(w) / power);
      const float inverse =
          std::isnan(most) ? 0.0f : reciprocal(static_cast<float>(stored) * power);
      std::uint8_t* group = panel + g * kGroupBytes;
      std::memcpy(group + 2 * c, &stored.bits, 2);
      for (int i = 0; i < kGroup; ++i) {
        const int u = static_cast<int>(rounded_within(w[i] * inverse, -8.0f, 7.0f)) + 8;
        std::uint8_t& byte = group[2 * kPanel + (i / 8 * kPanel + c) * 4 + i % 4];
        byte = static_cast<std::uint8_t>(i % 8 < 4 ? u : byte | u << 4);
      }
    }
  }
}

void pack_bf16(const float* w, std::int64_t k, int columns, std::uint16_t* panel) {
  const Block block{w, k, columns};
  for (std::int64_t i = 0; i < (k + 1) / 2 * 2; ++i) {
    for (int c = 0; c < kPanel; ++c) {
      panel[(i / 2 * kPanel + c) * 2 + i % 2] = BFloat16::from_float(block.at(i, c));
    }
  }
}

std::int8_t RowScale::byte(float x) const {
  return static_cast<std::int8_t>(inverse == 0.0f ? 0.0f : std::nearbyint(x * inverse));
}

RowScale row_scale(const float* x, std::int64_t k, const RowOutliers& apart) {
  float largest = 0.0f;
  for (std::int64_t i = 0; i < k; ++i) {
    if (!std::isfinite(x[i])) return {std::numeric_limits<float>::quiet_NaN(), 0.0f};
    if (!is_outlier(apart, i)) largest = std::max(largest, std::fabs(x[i]));
  }
  if (largest < 1e-30f) return {0.0f, 0.0f};
  return {largest / 127.0f, 127.0f / largest};
}

void quantize_rows(const float* x, std::ptrdiff_t x_stride, std::int64_t rows, std::int64_t k,
                   bool /*group_sums*/, std::int8_t* q, float* scale, std::int32_t* sums,
                   RowOutliers* outliers) {
  const std::int64_t groups = (k + kGroup - 1) / kGroup;
  for (std::int64_t r = 0; r < rows; ++r, x += x_stride) {
    RowScale row = row_scale(x, k, {});
    const RowOutliers apart = row_outliers(x, k, row);
    if (apart.count > 0) row = row_scale(x, k, apart);
    outliers[r] = apart;
    scale[r] = row.scale;
    std::int32_t total = 0;
    for (std::int64_t g = 0; g < groups; ++g) {
      std::int32_t sum = 0;
      for (std::int64_t i = g * kGroup; i < (g + 1) * kGroup; ++i) {
        *q = i >= k || is_outlier(apart, i) ? std::int8_t{0} : row.byte(x[i]);
        sum += *q++;
      }
      *sums++ = sum;
      total += sum;
    }
    *sums++ = total;
  }
}

void matmul_i8(const QuantizedRows& x, const IntegerPanels& w, std::int64_t n,
               std::int64_t panel_begin, std::int64_t panel_end, const MatmulEpilogue& epilogue,
               float* y, std::ptrdiff_t y_stride) {
  const std::int64_t column_end = std::min(n, panel_end * kPanel);
  for (std::int64_t r = 0; r < x.rows; ++r) {
    for (std::int64_t c = panel_begin * kPanel; c < column_end; ++c) {
      const std::uint8_t* panel = w.data + c / kPanel * x.groups * kGroup * kPanel;
      const auto weight = [&](std::int64_t i) -> int {
        return panel[(i / 4 * kPanel + c % kPanel) * 4 + i % 4];
      };
      std::int32_t sum = 0;
      for (std::int64_t g = 0; g < x.groups; ++g) sum += group_dot(x, r, g, 128, weight);
      float f = static_cast<float>(sum) * w.column_scale[c] * x.scale[r];
      for (int i = 0; i < x.outliers[r].count; ++i) {
        const auto u = static_cast<float>(weight(x.outliers[r].place[i]) - 128);
        f = std::fma(u * w.column_scale[c], x.outliers[r].value[i], f);
      }
      y[r * y_stride + c] = finish(f, r, c, epilogue);
    }
  }
}

void matmul_i4(const QuantizedRows& x, const IntegerPanels& w, std::int64_t n,
               std::int64_t panel_begin, std::int64_t panel_end, const MatmulEpilogue& epilogue,
               float* y, std::ptrdiff_t y_stride) {
  constexpr int kGroupBytes = (2 + kGroup / 2) * kPanel;
  const std::int64_t column_end = std::min(n, panel_end * kPanel);
  for (std::int64_t r = 0; r < x.rows; ++r) {
    for (std::int64_t c = panel_begin * kPanel; c < column_end; ++c) {
      const std::uint8_t* panel = w.data + c / kPanel * x.groups * kGroupBytes;
      const auto weight = [&](std::int64_t i) -> int {
        const std::int64_t place = i % kGroup;
        const std::int64_t at = (place / 8 * kPanel + c % kPanel) * 4 + place % 4;
        return (panel[i / kGroup * kGroupBytes + 2 * kPanel + at] >> (place % 8 / 4 * 4)) & 0xf;
      };
      const auto scale_of = [&](std::int64_t group) {
        std::uint16_t scale = 0;
        std::memcpy(&scale, panel + group * kGroupBytes + c % kPanel * 2, 2);
        return Float16::to_float(scale);
      };
      float f = 0.0f;
      for (std::int64_t g = 0; g < x.groups; ++g) {
        f = std::fma(static_cast<float>(group_dot(x, r, g, 8, weight)), scale_of(g), f);
      }
      f = f * w.column_scale[c] * x.scale[r];
      for (int i = 0; i < x.outliers[r].count; ++i) {
        const std::int64_t place = x.outliers[r].place[i];
        const float u = static_cast<float>(weight(place) - 8) * scale_of(place / kGroup);
        f = std::fma(u * w.column_scale[c], x.outliers[r].value[i], f);
      }
      y[r * y_stride + c] = finish(f, r, c, epilogue);
    }
  }
}

void matmul_bf16(const float* x, std::ptrdiff_t x_stride, std::int64_t rows, std::int64_t k,
                 const std::uint16_t* packed, std::int64_t n, std::int64_t panel_begin,
                 std::int64_t panel_end, const MatmulEpilogue& epilogue, float* y,
                 std::ptrdiff_t y_stride) {
  const std::int64_t column_end = std::min(n, panel_end * kPanel);
  for (std::int64_t r = 0; r < rows; ++r) {
    for (std::int64_t c = panel_begin * kPanel; c < column_end; ++c) {
      const std::uint16_t* panel = packed + c / kPanel * kPanel * ((k + 1) / 2 * 2);
      float sum = 0.0f;
      for (std::int64_t i = 0; i < k; ++i) {
        const std::uint16_t weight = panel[(i / 2 * kPanel + c % kPanel) * 2 + i % 2];
        sum = std::fma(x[r * x_stride + i], BFloat16::to_float(weight), sum);
      }
      y[r * y_stride + c] = finish(sum, r, c, epilogue);
    }
  }
}

void round_rows(const float* x, std::ptrdiff_t x_stride, std::int64_t rows, std::int64_t k,
                std::uint16_t* out) {
  for (std::int64_t r = 0; r < rows; ++r, x += x_stride, out += rounded_stride(k)) {
    for (std::int64_t i = 0; i < (k + kGroup - 1) / kGroup * kGroup; ++i) {
      out[i] = i < k ? BFloat16::from_float(x[i]) : std::uint16_t{0};
    }
  }
}

// Sums in double: the order that an instruction set chooses is its own affair.
void matmul_bf16_rows(const RoundedRows& x, const std::uint16_t* packed, std::int64_t n,
                      std::int64_t panel_begin, std::int64_t panel_end,
                      const MatmulEpilogue& epilogue, float* y, std::ptrdiff_t y_stride) {
  const std::int64_t column_end = std::min(n, panel_end * kPanel);
  for (std::int64_t r = 0; r < x.rows; ++r) {
    const std::uint16_t* row = x.data + r * rounded_stride(x.k);
    for (std::int64_t c = panel_begin * kPanel; c < column_end; ++c) {
      const std::uint16_t* panel = packed + c / kPanel * kPanel * ((x.k + 1) / 2 * 2);
      double sum = 0.0;
      for (std::int64_t i = 0; i < x.k; ++i) {
        const std::uint16_t weight = panel[(i / 2 * kPanel + c % kPanel) * 2 + i % 2];
        sum += static_cast<double>(BFloat16::to_float(row[i])) * BFloat16::to_float(weight);
      }
      y[r * y_stride + c] = finish(static_cast<float>(sum), r, c, epilogue);
    }
  }
}

}  // namespace kvik::kernels::reference
