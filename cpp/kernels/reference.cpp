// The truth: every slot as plain loops, sums and functions in double where that is not the
// contract's business to forbid. It is also a usable instruction set (KVIK_ISA=reference) and keeps
// the same promises.
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>

#include "base/float16.h"
#include "kernels/dispatch.h"
#include "kernels/reference_cells.h"

namespace kvik::kernels {
namespace {

// ---- Functions of one number --------------------------------------------------------------------

double sigmoid(double x) {
  return 1.0 / (1.0 + std::exp(-x));
}

// x·Φ(x), with the complement so that nothing cancels for negative x.
double gelu_erf(double x) {
  return 0.5 * x * std::erfc(-x * 0.70710678118654752440);
}

// 0.5·x·(1 + tanh(√(2/π)·(x + 0.044715·x³))), written as x·sigmoid(2u): (1 + tanh u)/2.
double gelu_tanh(double x) {
  return x * sigmoid(2.0 * 0.79788456080286535588 * (x + 0.044715 * x * x * x));
}

double silu(double x) {
  return x * sigmoid(x);
}

float unary(Unary f, float x) {
  const double d = x;
  switch (f) {
    case Unary::kExp: return static_cast<float>(std::exp(d));
    case Unary::kTanh: return static_cast<float>(std::tanh(d));
    case Unary::kSigmoid: return static_cast<float>(sigmoid(d));
    case Unary::kErf: return static_cast<float>(std::erf(d));
    case Unary::kGeluErf: return static_cast<float>(gelu_erf(d));
    case Unary::kGeluTanh: return static_cast<float>(gelu_tanh(d));
    case Unary::kSilu: return static_cast<float>(silu(d));
    case Unary::kRelu: return x < 0.0f ? 0.0f : x;  // NaN and -0 pass
    case Unary::kSqrt: return std::sqrt(x);
    case Unary::kReciprocal: return 1.0f / x;
    case Unary::kNeg: return -x;
    case Unary::kAbs: return std::fabs(x);
    case Unary::kSin: return static_cast<float>(std::sin(d));
    case Unary::kCos: return static_cast<float>(std::cos(d));
    case Unary::kLog: return static_cast<float>(std::log(d));
    case Unary::kSquare: return x * x;
  }
  return x;
}

float activate(Activation activation, float x) {
  switch (activation) {
    case Activation::kNone: return x;
    case Activation::kGeluErf: return unary(Unary::kGeluErf, x);
    case Activation::kGeluTanh: return unary(Unary::kGeluTanh, x);
    case Activation::kSilu: return unary(Unary::kSilu, x);
    case Activation::kRelu: return unary(Unary::kRelu, x);
    case Activation::kTanh: return unary(Unary::kTanh, x);
    case Activation::kSigmoid: return unary(Unary::kSigmoid, x);
  }
  return x;
}

// A NaN in either operand is the result, as in numpy, torch and ONNX.
float binary(Binary f, float a, float b) {
  switch (f) {
    case Binary::kAdd: return a + b;
    case Binary::kSub: return a - b;
    case Binary::kMul: return a * b;
    case Binary::kDiv: return a / b;
    case Binary::kMin: return std::isnan(a) ? a : a < b ? a : b;
    case Binary::kMax: return std::isnan(a) ? a : a > b ? a : b;
  }
  return a;
}

void unary_f32(Unary f, const float* x, std::int64_t n, float* y) {
  for (std::int64_t i = 0; i < n; ++i) y[i] = unary(f, x[i]);
}

void binary_f32(Binary f, const float* a, int a_step, const float* b, int b_step, std::int64_t n,
                float* y) {
  for (std::int64_t i = 0; i < n; ++i) y[i] = binary(f, a[i * a_step], b[i * b_step]);
}

void silu_mul_f32(const float* gate, const float* up, std::int64_t n, float* y) {
  for (std::int64_t i = 0; i < n; ++i) y[i] = unary(Unary::kSilu, gate[i]) * up[i];
}

// ---- Matrix product -----------------------------------------------------------------------------

constexpr int kPanel = 16;

void pack_f32(const float* w, std::ptrdiff_t k_stride, std::ptrdiff_t c_stride, std::int64_t k,
              std::int64_t n, std::int64_t panel_begin, std::int64_t panel_end, float* packed) {
  for (std::int64_t panel = panel_begin; panel < panel_end; ++panel) {
    float* out = packed + panel * kPanel * k;  // [k, kPanel]
    for (std::int64_t i = 0; i < k; ++i) {
      for (int j = 0; j < kPanel; ++j) {
        const std::int64_t c = panel * kPanel + j;
        out[i * kPanel + j] = c < n ? w[i * k_stride + c * c_stride] : 0.0f;
      }
    }
  }
}

float finish(float sum, std::int64_t r, std::int64_t c, const MatmulEpilogue& epilogue) {
  if (epilogue.bias) sum += epilogue.bias[c];
  sum = activate(epilogue.activation, sum);
  if (epilogue.residual) sum += epilogue.residual[r * epilogue.residual_stride + c];
  return sum;
}

void matmul_f32(const float* x, std::ptrdiff_t x_stride, std::int64_t rows, std::int64_t k,
                const float* packed, std::int64_t n, std::int64_t panel_begin,
                std::int64_t panel_end, const MatmulEpilogue& epilogue, float* y,
                std::ptrdiff_t y_stride) {
  const std::int64_t column_end = std::min(n, panel_end * kPanel);
  for (std::int64_t r = 0; r < rows; ++r) {
    for (std::int64_t c = panel_begin * kPanel; c < column_end; ++c) {
      const float* w = packed + (c / kPanel) * kPanel * k + c % kPanel;
      float sum = 0.0f;
      for (std::int64_t i = 0; i < k; ++i) sum = std::fma(x[r * x_stride + i], w[i * kPanel], sum);
      y[r * y_stride + c] = finish(sum, r, c, epilogue);
    }
  }
}

// ---- Matrix product with low-precision weights --------------------------------------------------

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

// A row as bytes: what they stand for, and the factor that makes them, 0 where they are zeros.
struct RowScale {
  float scale;
  float inverse;

  std::int8_t byte(float x) const {
    return static_cast<std::int8_t>(inverse == 0.0f ? 0.0f : std::nearbyint(x * inverse));
  }
};

bool is_outlier(const RowOutliers& outliers, std::int64_t i) {
  return std::find(outliers.place, outliers.place + outliers.count, i) !=
         outliers.place + outliers.count;
}

// Of a row without its outliers.
RowScale row_scale(const float* x, std::int64_t k, const RowOutliers& apart) {
  float largest = 0.0f;
  for (std::int64_t i = 0; i < k; ++i) {
    if (!std::isfinite(x[i])) return {std::numeric_limits<float>::quiet_NaN(), 0.0f};
    if (!is_outlier(apart, i)) largest = std::max(largest, std::fabs(x[i]));
  }
  if (largest < 1e-30f) return {0.0f, 0.0f};
  return {largest / 127.0f, 127.0f / largest};
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

// ---- Attention ----------------------------------------------------------------------------------

// Element `at` of a block, at `position`.
double cached(CacheType type, const void* block, std::int64_t position, std::int64_t at) {
  const auto* data = static_cast<const std::uint8_t*>(block) + cache_scale_bytes(type);
  switch (type) {
    case CacheType::kF32: return reinterpret_cast<const float*>(data)[at];
    case CacheType::kBF16:
      return BFloat16::to_float(reinterpret_cast<const std::uint16_t*>(data)[at]);
    case CacheType::kI8: break;
  }
  return static_cast<double>(static_cast<const float*>(block)[position]) *
         reinterpret_cast<const std::int8_t*>(data)[at];
}

// The score of query r and key j, after scale, cap and bias.
double score(const AttentionArgs& args, int r, std::int64_t j) {
  const float* q = args.q + r * args.q_stride;
  const void* block = args.k_blocks[j / kKvBlock];
  const std::int64_t position = j % kKvBlock;
  double s = 0.0;
  for (int d = 0; d < args.head_dim; ++d) {
    s += static_cast<double>(q[d]) * cached(args.cache, block, position, d * kKvBlock + position);
  }
  s *= args.scale;
  if (args.softcap != 0.0f) s = args.softcap * std::tanh(s / args.softcap);
  if (args.bias) s += args.bias[r * args.bias_stride + j];
  return s;
}

// One row of a segment.
void attend(const AttentionArgs& args, int r, std::int64_t segment, float* out, float* top,
            float* total) {
  const double kHidden = -std::numeric_limits<double>::infinity();
  const std::int64_t first = std::max(args.first_key ? args.first_key[r] : 0, segment * kKvSegment);
  const std::int64_t last = std::min(args.last_key[r], (segment + 1) * kKvSegment - 1);
  double largest = kHidden;
  for (std::int64_t j = first; j <= last; ++j) largest = std::max(largest, score(args, r, j));
  *top = static_cast<float>(largest);
  // Every key hidden: all weights 0 (or NaN), below. Not `top`, which is rounded: the weight of a
  // large score would not be 1.
  const double shift = largest == kHidden ? 0.0 : largest;
  double sum = 0.0;
  double* sums = reinterpret_cast<double*>(args.scratch);  // [value_dim]
  std::fill(sums, sums + args.value_dim, 0.0);
  for (std::int64_t j = first; j <= last; ++j) {
    const double weight = std::exp(score(args, r, j) - shift);
    const std::int64_t position = j % kKvBlock;
    sum += weight;
    for (int d = 0; d < args.value_dim; ++d) {
      sums[d] += weight * cached(args.cache, args.v_blocks[j / kKvBlock], position,
                                 position * args.value_dim + d);
    }
  }
  *total = static_cast<float>(sum);
  for (int d = 0; d < args.value_dim; ++d) out[d] = static_cast<float>(sums[d]);
}

void attention_part_f32(const AttentionArgs& args, std::int64_t segment,
                        const AttentionPart& part) {
  for (int r = 0; r < args.rows; ++r) {
    attend(args, r, segment, part.out + r * part.out_stride, part.top + r, part.total + r);
  }
}

void attention_join_f32(const AttentionPart& sums, const AttentionPart& more, int rows,
                        int value_dim) {
  for (int r = 0; r < rows; ++r) {
    if (more.total[r] == 0.0f) continue;
    float* out = sums.out + r * sums.out_stride;
    const float* other = more.out + r * more.out_stride;
    const bool first = sums.total[r] == 0.0f;
    const float top = first ? more.top[r] : std::max(sums.top[r], more.top[r]);
    const double shift = std::isinf(top) ? 0.0 : top;
    const double shrink = first ? 0.0 : std::exp(sums.top[r] - shift);
    const double factor = first ? 1.0 : std::exp(more.top[r] - shift);
    for (int d = 0; d < value_dim; ++d) {
      out[d] = static_cast<float>(out[d] * shrink + other[d] * factor);
    }
    sums.total[r] = static_cast<float>(sums.total[r] * shrink + more.total[r] * factor);
    sums.top[r] = top;
  }
}

void attention_divide_f32(const AttentionPart& sums, int rows, int value_dim, float* out,
                          std::ptrdiff_t out_stride) {
  for (int r = 0; r < rows; ++r) {
    const float total = sums.total[r] == 0.0f ? 1.0f : sums.total[r];
    for (int d = 0; d < value_dim; ++d) {
      out[r * out_stride + d] = sums.out[r * sums.out_stride + d] / total;
    }
  }
}

void attention_f32(const AttentionArgs& args) {
  float* other = args.scratch + 2 * args.value_dim;  // [value_dim], behind the sums of attend()
  for (int r = 0; r < args.rows; ++r) {
    float top = 0.0f, total = 0.0f, more_top = 0.0f, more_total = 0.0f;
    float* out = args.out + r * args.out_stride;
    const AttentionPart sums{out, 0, &top, &total}, more{other, 0, &more_top, &more_total};
    std::int64_t segment = args.first_key ? args.first_key[r] / kKvSegment : 0;
    attend(args, r, segment, out, &top, &total);
    while (++segment <= args.last_key[r] / kKvSegment) {
      attend(args, r, segment, other, &more_top, &more_total);
      attention_join_f32(sums, more, 1, args.value_dim);
    }
    attention_divide_f32(sums, 1, args.value_dim, out, 0);
  }
}

std::size_t attention_scratch(int /*head_dim*/, int value_dim) {
  return 3 * static_cast<std::size_t>(value_dim);  // value_dim doubles and floats
}

// x [dim] to the elements at, at + step, ... of a block.
void store_row(CacheType type, const float* x, int dim, int slot, std::int64_t at,
               std::int64_t step, void* block) {
  auto* data = static_cast<std::uint8_t*>(block) + cache_scale_bytes(type);
  const RowScale row = row_scale(x, dim, {});
  if (type == CacheType::kI8) static_cast<float*>(block)[slot] = row.scale;
  for (int d = 0; d < dim; ++d, at += step) {
    switch (type) {
      case CacheType::kF32: reinterpret_cast<float*>(data)[at] = x[d]; break;
      case CacheType::kBF16:
        reinterpret_cast<std::uint16_t*>(data)[at] = BFloat16::from_float(x[d]);
        break;
      case CacheType::kI8: reinterpret_cast<std::int8_t*>(data)[at] = row.byte(x[d]); break;
    }
  }
}

void store_kv(CacheType type, const CacheRows& rows, void* k_block, void* v_block) {
  for (int p = 0; p < rows.count; ++p) {
    const int slot = rows.slot + p;
    store_row(type, rows.k + p * rows.k_stride, rows.head_dim, slot, slot, kKvBlock, k_block);
    store_row(type, rows.v + p * rows.v_stride, rows.value_dim, slot,
              std::int64_t{slot} * rows.value_dim, 1, v_block);
  }
}

// ---- Rows ---------------------------------------------------------------------------------------

void layer_norm_f32(const float* x, std::ptrdiff_t x_stride, std::int64_t rows, std::int64_t n,
                    const float* scale, const float* bias, float epsilon, float* y,
                    std::ptrdiff_t y_stride) {
  for (std::int64_t r = 0; r < rows; ++r, x += x_stride, y += y_stride) {
    double mean = 0.0, variance = 0.0;
    for (std::int64_t i = 0; i < n; ++i) mean += x[i];
    mean /= static_cast<double>(n);
    for (std::int64_t i = 0; i < n; ++i) variance += (x[i] - mean) * (x[i] - mean);
    variance /= static_cast<double>(n);
    const double inverse = 1.0 / std::sqrt(variance + epsilon);
    for (std::int64_t i = 0; i < n; ++i) {
      const double z = (x[i] - mean) * inverse;
      y[i] = static_cast<float>(z * (scale ? scale[i] : 1.0) + (bias ? bias[i] : 0.0));
    }
  }
}

void rms_norm_f32(const float* x, std::ptrdiff_t x_stride, std::int64_t rows, std::int64_t n,
                  const float* scale, float epsilon, float* y, std::ptrdiff_t y_stride) {
  for (std::int64_t r = 0; r < rows; ++r, x += x_stride, y += y_stride) {
    double squares = 0.0;
    for (std::int64_t i = 0; i < n; ++i) squares += static_cast<double>(x[i]) * x[i];
    const double inverse = 1.0 / std::sqrt(squares / static_cast<double>(n) + epsilon);
    for (std::int64_t i = 0; i < n; ++i) {
      y[i] = static_cast<float>(x[i] * inverse * (scale ? scale[i] : 1.0));
    }
  }
}

void softmax_f32(const float* x, std::ptrdiff_t x_stride, std::int64_t rows, std::int64_t n,
                 float* y, std::ptrdiff_t y_stride) {
  for (std::int64_t r = 0; r < rows; ++r, x += x_stride, y += y_stride) {
    double largest = -std::numeric_limits<double>::infinity();
    for (std::int64_t i = 0; i < n; ++i) largest = std::max(largest, static_cast<double>(x[i]));
    double sum = 0.0;
    for (std::int64_t i = 0; i < n; ++i) sum += std::exp(x[i] - largest);
    for (std::int64_t i = 0; i < n; ++i) {
      y[i] = static_cast<float>(std::exp(x[i] - largest) / sum);
    }
  }
}

void rotary_f32(const float* x, int heads, int head_dim, int half, bool interleaved,
                const float* cos, const float* sin, float* y) {
  for (int h = 0; h < heads; ++h, x += head_dim, y += head_dim) {
    for (int i = 0; i < half; ++i) {
      const int i1 = interleaved ? 2 * i : i;
      const int i2 = interleaved ? 2 * i + 1 : i + half;
      const float x1 = x[i1], x2 = x[i2];
      y[i1] = x1 * cos[i] - x2 * sin[i];
      y[i2] = x1 * sin[i] + x2 * cos[i];
    }
    if (y != x) std::copy(x + 2 * half, x + head_dim, y + 2 * half);
  }
}

}  // namespace

const KernelTable kReferenceTable = {
    .isa = Isa::kReference,
    .name = "reference",
    .panel = kPanel,
    .pack_f32 = pack_f32,
    .matmul_f32 = matmul_f32,
    .pack_i8 = pack_i8,
    .pack_i4 = pack_i4,
    .pack_bf16 = pack_bf16,
    .quantize_rows = quantize_rows,
    .matmul_i8 = matmul_i8,
    .matmul_i4 = matmul_i4,
    .matmul_bf16 = matmul_bf16,
    .rounds_rows = false,
    .round_rows = round_rows,
    .matmul_bf16_rows = matmul_bf16_rows,
    .attention_f32 = attention_f32,
    .attention_scratch = attention_scratch,
    .attention_part_f32 = attention_part_f32,
    .attention_join_f32 = attention_join_f32,
    .attention_divide_f32 = attention_divide_f32,
    .store_kv = store_kv,
    .layer_norm_f32 = layer_norm_f32,
    .rms_norm_f32 = rms_norm_f32,
    .softmax_f32 = softmax_f32,
    .rotary_f32 = rotary_f32,
    .unary_f32 = unary_f32,
    .binary_f32 = binary_f32,
    .silu_mul_f32 = silu_mul_f32,
    .weighted_sum_f32 = reference::weighted_sum_f32,
    .recurrent_cell_f32 = reference::recurrent_cell_f32,
};

}  // namespace kvik::kernels
