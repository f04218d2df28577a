// The truth: every slot as plain loops, sums and functions in double where that is not the
// contract's business to forbid. It is also a usable instruction set (KVIK_ISA=reference) and keeps
// the same promises.
#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/dispatch.h"
#include "kernels/reference.h"

namespace kvik::kernels {

namespace reference {

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

}  // namespace

float finish(float sum, std::int64_t r, std::int64_t c, const MatmulEpilogue& epilogue) {
  if (epilogue.bias) sum += epilogue.bias[c];
  sum = activate(epilogue.activation, sum);
  if (epilogue.residual) sum += epilogue.residual[r * epilogue.residual_stride + c];
  return sum;
}

namespace {

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

}  // namespace reference

const KernelTable kReferenceTable = {
    .isa = Isa::kReference,
    .name = "reference",
    .panel = reference::kPanel,
    .pack_f32 = reference::pack_f32,
    .matmul_f32 = reference::matmul_f32,
    .pack_i8 = reference::pack_i8,
    .pack_i4 = reference::pack_i4,
    .pack_bf16 = reference::pack_bf16,
    .quantize_rows = reference::quantize_rows,
    .matmul_i8 = reference::matmul_i8,
    .matmul_i4 = reference::matmul_i4,
    .matmul_bf16 = reference::matmul_bf16,
    .rounds_rows = false,
    .round_rows = reference::round_rows,
    .matmul_bf16_rows = reference::matmul_bf16_rows,
    .attention_f32 = reference::attention_f32,
    .attention_scratch = reference::attention_scratch,
    .attention_part_f32 = reference::attention_part_f32,
    .attention_join_f32 = reference::attention_join_f32,
    .attention_divide_f32 = reference::attention_divide_f32,
    .store_kv = reference::store_kv,
    .layer_norm_f32 = reference::layer_norm_f32,
    .rms_norm_f32 = reference::rms_norm_f32,
    .softmax_f32 = reference::softmax_f32,
    .rotary_f32 = reference::rotary_f32,
    .unary_f32 = reference::unary_f32,
    .binary_f32 = reference::binary_f32,
    .silu_mul_f32 = reference::silu_mul_f32,
    .weighted_sum_f32 = reference::weighted_sum_f32,
    .recurrent_cell_f32 = reference::recurrent_cell_f32,
};

}  // namespace kvik::kernels
