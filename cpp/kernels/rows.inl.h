// Slots that reduce or turn one row at a time: norms, softmax, rotary embedding. Include a vec_*.h,
// math.inl.h and elementwise.inl.h first.
#pragma once

#include "kernels/kernels.h"

namespace kvik::kernels {
namespace {

inline Vec keep(Vec v, Full, float /*fill*/) {
  return v;
}
inline Vec keep(Vec v, Head head, float fill) {
  return select(lanes(head), v, set(fill));
}

// Σ term(i, part) over the vectors of [0, n), in an order that depends on n alone. Four partial
// sums keep the adders busy and the rounding error down.
template <typename Term>
inline float sum_over(std::int64_t n, Term term) {
  Vec s0 = zero(), s1 = zero(), s2 = zero(), s3 = zero();
  std::int64_t i = 0;
  for (; i + 4 * kWidth <= n; i += 4 * kWidth) {
    s0 = s0 + term(i, Full{});
    s1 = s1 + term(i + kWidth, Full{});
    s2 = s2 + term(i + 2 * kWidth, Full{});
    s3 = s3 + term(i + 3 * kWidth, Full{});
  }
  for (; i + kWidth <= n; i += kWidth) s0 = s0 + term(i, Full{});
  if (i < n) {
    const Head rest{static_cast<int>(n - i)};
    s1 = s1 + keep(term(i, rest), rest, 0.0f);
  }
  return sum((s0 + s1) + (s2 + s3));
}

void layer_norm_f32(const float* x, std::ptrdiff_t x_stride, std::int64_t rows, std::int64_t n,
                    const float* scale, const float* bias, float epsilon, float* y,
                    std::ptrdiff_t y_stride) {
  const float count = static_cast<float>(n);
  for (std::int64_t r = 0; r < rows; ++r, x += x_stride, y += y_stride) {
    const Vec mean = set(sum_over(n, [&](auto i, auto part) { return load(x + i, part); }) / count);
    const float squares = sum_over(n, [&](auto i, auto part) {
      const Vec d = load(x + i, part) - mean;
      return d * d;
    });
    const Vec inverse = set(1.0f) / sqrt(set(squares / count + epsilon));
    for_vectors(n, [&](std::int64_t i, auto part) {
      Vec z = (load(x + i, part) - mean) * inverse;
      if (scale && bias) {
        z = fma(z, load(scale + i, part), load(bias + i, part));
      } else if (scale) {
        z = z * load(scale + i, part);
      } else if (bias) {
        z = z + load(bias + i, part);
      }
      store(y + i, z, part);
    });
  }
}

void rms_norm_f32(const float* x, std::ptrdiff_t x_stride, std::int64_t rows, std::int64_t n,
                  const float* scale, float epsilon, float* y, std::ptrdiff_t y_stride) {
  const float count = static_cast<float>(n);
  for (std::int64_t r = 0; r < rows; ++r, x += x_stride, y += y_stride) {
    const float squares = sum_over(n, [&](auto i, auto part) {
      const Vec v = load(x + i, part);
      return v * v;
    });
    const Vec inverse = set(1.0f) / sqrt(set(squares / count + epsilon));
    for_vectors(n, [&](std::int64_t i, auto part) {
      const Vec z = load(x + i, part) * inverse;
      store(y + i, scale ? z * load(scale + i, part) : z, part);
    });
  }
}

void softmax_f32(const float* x, std::ptrdiff_t x_stride, std::int64_t rows, std::int64_t n,
                 float* y, std::ptrdiff_t y_stride) {
  for (std::int64_t r = 0; r < rows; ++r, x += x_stride, y += y_stride) {
    Vec top = set(-kInfinity);
    for_vectors(n, [&](std::int64_t i, auto part) {
      top = max(top, keep(load(x + i, part), part, -kInfinity));
    });
    // A NaN in the row may hide from the maximum, but not from the sum. All -inf: -inf - -inf.
    const Vec shift = set(largest(top));
    const float total = sum_over(n, [&](auto i, auto part) {
      const Vec e = exp(load(x + i, part) - shift);
      store(y + i, e, part);
      return e;
    });
    const Vec inverse = set(1.0f / total);
    map(y, n, y, [&](Vec e) { return e * inverse; });
  }
}

// Pairs (i, i + half): both halves are whole vectors of their own.
inline void rotate_halves(const float* x, int half, const float* cos, const float* sin, float* y) {
  for_vectors(half, [&](std::int64_t i, auto part) {
    const Vec c = load(cos + i, part), s = load(sin + i, part);
    const Vec x1 = load(x + i, part), x2 = load(x + half + i, part);
    store(y + i, fnma(x2, s, x1 * c), part);
    store(y + half + i, fma(x2, c, x1 * s), part);
  });
}

// Pairs (2i, 2i + 1): x·(c, c) + (x2, x1)·(-s, s).
inline void rotate_pairs(const float* x, int half, const float* cos, const float* sin, float* y) {
  for_vectors(2 * half, [&](std::int64_t i, auto part) {
    const Vec c = load_twice(cos + i / 2, part);
    const Vec s = negate_even(load_twice(sin + i / 2, part));
    const Vec v = load(x + i, part);
    store(y + i, fma(swap_pairs(v), s, v * c), part);
  });
}

void rotary_f32(const float* x, int heads, int head_dim, int half, bool interleaved,
                const float* cos, const float* sin, float* y) {
  for (int h = 0; h < heads; ++h, x += head_dim, y += head_dim) {
    if (interleaved) {
      rotate_pairs(x, half, cos, sin, y);
    } else {
      rotate_halves(x, half, cos, sin, y);
    }
    if (y != x) map(x + 2 * half, head_dim - 2 * half, y + 2 * half, [](Vec v) { return v; });
  }
}

}  // namespace
}  // namespace kvik::kernels
