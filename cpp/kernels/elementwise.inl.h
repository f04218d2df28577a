// Element-wise slots. Include a vec_*.h and math.inl.h first.
#pragma once

#include "kernels/kernels.h"

namespace kvik::kernels {
namespace {

// Calls body(i, Full{}) for every full vector of [0, n), then body(i, Head{rest}) for the rest: the
// same code for both, so that an element's result does not depend on its place.
template <typename Body>
inline void for_vectors(std::int64_t n, Body body) {
  std::int64_t i = 0;
  for (; i + kWidth <= n; i += kWidth) body(i, Full{});
  if (i < n) body(i, Head{static_cast<int>(n - i)});
}

template <typename F>
inline void map(const float* x, std::int64_t n, float* y, F f) {
  for_vectors(n, [&](std::int64_t i, auto part) { store(y + i, f(load(x + i, part)), part); });
}

void unary_f32(Unary f, const float* x, std::int64_t n, float* y) {
  switch (f) {
    case Unary::kExp: return map(x, n, y, [](Vec v) { return exp(v); });
    case Unary::kTanh: return map(x, n, y, [](Vec v) { return tanh(v); });
    case Unary::kSigmoid: return map(x, n, y, [](Vec v) { return sigmoid(v); });
    case Unary::kErf: return map(x, n, y, [](Vec v) { return erf(v); });
    case Unary::kGeluErf: return map(x, n, y, [](Vec v) { return gelu_erf(v); });
    case Unary::kGeluTanh: return map(x, n, y, [](Vec v) { return gelu_tanh(v); });
    case Unary::kSilu: return map(x, n, y, [](Vec v) { return silu(v); });
    case Unary::kRelu: return map(x, n, y, [](Vec v) { return relu(v); });
    case Unary::kSqrt: return map(x, n, y, [](Vec v) { return sqrt(v); });
    case Unary::kReciprocal: return map(x, n, y, [](Vec v) { return set(1.0f) / v; });
    case Unary::kNeg: return map(x, n, y, [](Vec v) { return negate(v); });
    case Unary::kAbs: return map(x, n, y, [](Vec v) { return abs(v); });
    case Unary::kSin: return map(x, n, y, [](Vec v) { return sin(v); });
    case Unary::kCos: return map(x, n, y, [](Vec v) { return cos(v); });
    case Unary::kLog: return map(x, n, y, [](Vec v) { return log(v); });
    case Unary::kSquare: return map(x, n, y, [](Vec v) { return v * v; });
  }
}

// One loop per combination of steps: a scalar operand is broadcast once.
template <typename F>
inline void zip(const float* a, int a_step, const float* b, int b_step, std::int64_t n, float* y,
                F f) {
  if (n <= 0) return;
  if (a_step != 0 && b_step != 0) {
    for_vectors(n, [&](std::int64_t i, auto part) {
      store(y + i, f(load(a + i, part), load(b + i, part)), part);
    });
  } else if (a_step != 0) {
    const Vec scalar = set(*b);
    for_vectors(
        n, [&](std::int64_t i, auto part) { store(y + i, f(load(a + i, part), scalar), part); });
  } else {
    const Vec scalar = set(*a);
    for_vectors(n, [&](std::int64_t i, auto part) {
      store(y + i, f(scalar, b_step != 0 ? load(b + i, part) : set(*b)), part);
    });
  }
}

void binary_f32(Binary f, const float* a, int a_step, const float* b, int b_step, std::int64_t n,
                float* y) {
  auto apply = [&](auto op) { zip(a, a_step, b, b_step, n, y, op); };
  switch (f) {
    case Binary::kAdd: return apply([](Vec u, Vec v) { return u + v; });
    case Binary::kSub: return apply([](Vec u, Vec v) { return u - v; });
    case Binary::kMul: return apply([](Vec u, Vec v) { return u * v; });
    case Binary::kDiv: return apply([](Vec u, Vec v) { return u / v; });
    // min and max yield the second operand when either is NaN: put back a NaN in the first.
    case Binary::kMin: return apply([](Vec u, Vec v) { return select(is_nan(u), u, min(u, v)); });
    case Binary::kMax: return apply([](Vec u, Vec v) { return select(is_nan(u), u, max(u, v)); });
  }
}

void silu_mul_f32(const float* gate, const float* up, std::int64_t n, float* y) {
  for_vectors(n, [&](std::int64_t i, auto part) {
    store(y + i, silu(load(gate + i, part)) * load(up + i, part), part);
  });
}

void weighted_sum_f32(const float* const* x, const float* w, int taps, std::int64_t n,
                      const float* bias, float* y) {
  // kVecs chains, so that the latency of one hides behind the others.
  const auto columns = [&]<int kVecs>(std::int64_t i, auto part) {
    Vec sums[kVecs];
    for (Vec& sum : sums) sum = zero();
    for (int t = 0; t < taps; ++t) {
      if (x[t] == nullptr) continue;
#pragma GCC unroll 4
      for (int v = 0; v < kVecs; ++v) {
        const std::int64_t at = i + v * kWidth;
        sums[v] = fma(load(x[t] + at, part), load(w + t * n + at, part), sums[v]);
      }
    }
#pragma GCC unroll 4
    for (int v = 0; v < kVecs; ++v) {
      const std::int64_t at = i + v * kWidth;
      store(y + at, bias ? sums[v] + load(bias + at, part) : sums[v], part);
    }
  };
  std::int64_t i = 0;
  for (; i + 4 * kWidth <= n; i += 4 * kWidth) columns.template operator()<4>(i, Full{});
  for (; i + kWidth <= n; i += kWidth) columns.template operator()<1>(i, Full{});
  if (i < n) columns.template operator()<1>(i, Head{static_cast<int>(n - i)});
}

}  // namespace
}  // namespace kvik::kernels
