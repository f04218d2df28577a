// Largest errors of the elementary functions over (a stride of) all floats, against the C library
// in double, and their values at the special arguments.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>

#include "kernels/support.h"

using namespace kvik::test;
using kvik::kernels::KernelTable;
using kvik::kernels::Unary;

namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

double exact(Unary f, double x) {
  switch (f) {
    case Unary::kExp: return std::exp(x);
    case Unary::kTanh: return std::tanh(x);
    case Unary::kSigmoid: return 1.0 / (1.0 + std::exp(-x));
    case Unary::kErf: return std::erf(x);
    case Unary::kGeluErf: return 0.5 * x * std::erfc(-x * std::sqrt(0.5));
    case Unary::kGeluTanh: {
      const double u = std::sqrt(2.0 / std::acos(-1.0)) * (x + 0.044715 * x * x * x);
      return x / (1.0 + std::exp(-2.0 * u));
    }
    case Unary::kSilu: return x / (1.0 + std::exp(-x));
    case Unary::kRelu: return x < 0.0 ? 0.0 : x;
    case Unary::kSqrt: return std::sqrt(x);
    case Unary::kReciprocal: return 1.0 / x;
    case Unary::kNeg: return -x;
    case Unary::kAbs: return std::fabs(x);
    case Unary::kSin: return std::sin(x);
    case Unary::kCos: return std::cos(x);
    case Unary::kLog: return std::log(x);
    case Unary::kSquare: return x * x;
  }
  return x;
}

// What a function promises: |error| <= ulps · ulp(result) + absolute · max(1, |x|).
struct Promise {
  Unary f;
  const char* name;
  double ulps;
  double absolute;
};

// As math.inl.h states them. The last digit of a correctly rounded operation is half an ulp.
const Promise kPromises[] = {
    {Unary::kExp, "exp", 1.1, 0.0},           {Unary::kTanh, "tanh", 1.5, 0.0},
    {Unary::kSigmoid, "sigmoid", 2.5, 0.0},   {Unary::kErf, "erf", 1.3, 0.0},
    {Unary::kGeluErf, "gelu_erf", 0.0, 2e-7}, {Unary::kGeluTanh, "gelu_tanh", 32.0, 1e-7},
    {Unary::kSilu, "silu", 3.5, 1e-43},       {Unary::kRelu, "relu", 0.0, 0.0},
    {Unary::kSqrt, "sqrt", 0.5, 0.0},         {Unary::kReciprocal, "reciprocal", 0.5, 0.0},
    {Unary::kNeg, "neg", 0.0, 0.0},           {Unary::kAbs, "abs", 0.0, 0.0},
    {Unary::kSin, "sin", 1.7, 0.0},           {Unary::kCos, "cos", 1.7, 0.0},
    {Unary::kLog, "log", 0.9, 0.0},           {Unary::kSquare, "square", 0.5, 0.0},
};

float float_of(std::uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

double tolerance(const Promise& p, double x, double want) {
  return p.ulps * ulp(want) + p.absolute * std::max(1.0, std::fabs(x));
}

// One of every `stride` floats, both signs, all exponents, subnormals, infinities and NaNs.
// KVIK_TEST_FLOAT_STRIDE=1 takes every float (an hour).
std::uint64_t stride() {
  const char* text = std::getenv("KVIK_TEST_FLOAT_STRIDE");
  return text ? std::max(1ull, std::strtoull(text, nullptr, 10)) : 4099;
}

void sweep(const KernelTable& table, const Promise& promise) {
  constexpr int kBatch = 4096;
  static float x[kBatch], y[kBatch];
  double worst = 0.0;
  float worst_x = 0.0f, worst_y = 0.0f;
  std::int64_t wrong = 0, unnoticed = 0, normal = 0;
  const std::uint64_t step = stride();
  for (std::uint64_t bits = 0; bits < (std::uint64_t{1} << 32);) {
    int n = 0;
    for (; n < kBatch && bits < (std::uint64_t{1} << 32); bits += step) {
      x[n++] = float_of(static_cast<std::uint32_t>(bits));
    }
    table.unary_f32(promise.f, x, n, y);
    for (int i = 0; i < n; ++i) {
      const double want = exact(promise.f, x[i]);
      const double allowed = tolerance(promise, x[i], want);
      // Overflow is right when the exact value rounds to infinity, or may within the promise.
      const bool overflow = std::isinf(y[i]) && std::fabs(want) + allowed >= 0x1.ffffffp127 &&
                            std::signbit(y[i]) == std::signbit(want);
      if (!overflow && !close(y[i], want, allowed)) ++wrong;
      if (!std::isfinite(want) || !std::isfinite(y[i]) || std::fabs(want) < 0x1p-126) continue;
      const double ulps = std::fabs(y[i] - want) / ulp(want);
      if (ulps > worst) worst = ulps, worst_x = x[i], worst_y = y[i];
      // The same comparison must notice a result that is wrong by a thousandth, unless the promise
      // is an absolute one and the result is small.
      if (promise.absolute != 0.0 && std::fabs(want) < 0.01) continue;
      ++normal;
      if (close(y[i] * 1.001f, want, allowed)) ++unnoticed;
    }
  }
  std::printf("  %-9s %-10s %8.3f ulp at x=%.9g (y=%.9g)\n", table.name, promise.name, worst,
              static_cast<double>(worst_x), static_cast<double>(worst_y));
  CHECK_EQ(wrong, 0) << table.name << " " << promise.name;
  CHECK(normal > 0) << table.name << " " << promise.name;
  CHECK_EQ(unnoticed, 0) << table.name << " " << promise.name;
}

float apply(const KernelTable& table, Unary f, float x) {
  float y = 0.0f;
  table.unary_f32(f, &x, 1, &y);
  return y;
}

}  // namespace

KVIK_TEST(errors_over_all_floats) {
  for_each_isa([](const KernelTable& table) {
    for (const Promise& promise : kPromises) sweep(table, promise);
  });
}

// Angles as rotary embeddings have them: positions times frequencies up to 1, and the range border.
KVIK_TEST(sine_of_large_angles) {
  for_each_isa([](const KernelTable& table) {
    Random random(1);
    for (int i = 0; i < 200000; ++i) {
      const float limit = i % 2 ? 1e5f : 3e5f;
      const float x = random.uniform(-limit, limit);
      for (Unary f : {Unary::kSin, Unary::kCos}) {
        const double want = exact(f, x);
        const float got = apply(table, f, x);
        CHECK(close(got, want, 1.7 * ulp(want)))
            << table.name << " x=" << show(x) << " got " << show(got);
      }
    }
  });
}

KVIK_TEST(special_values) {
  struct Case {
    Unary f;
    float x, y;
  };
  const Case cases[] = {
      {Unary::kExp, kInf, kInf},        {Unary::kExp, -kInf, 0.0f},
      {Unary::kExp, 0.0f, 1.0f},        {Unary::kExp, 88.72283f, 3.40279852e+38f},
      {Unary::kExp, 88.72284f, kInf},   {Unary::kExp, -103.97283f, 0x1p-149f},
      {Unary::kExp, -104.0f, 0.0f},     {Unary::kTanh, kInf, 1.0f},
      {Unary::kTanh, -kInf, -1.0f},     {Unary::kTanh, -0.0f, -0.0f},
      {Unary::kSigmoid, kInf, 1.0f},    {Unary::kSigmoid, -kInf, 0.0f},
      {Unary::kSigmoid, 0.0f, 0.5f},    {Unary::kErf, kInf, 1.0f},
      {Unary::kErf, -kInf, -1.0f},      {Unary::kErf, -0.0f, -0.0f},
      {Unary::kGeluErf, kInf, kInf},    {Unary::kGeluTanh, kInf, kInf},
      {Unary::kGeluErf, -kInf, kNan},   {Unary::kGeluTanh, -kInf, kNan},
      {Unary::kSilu, kInf, kInf},       {Unary::kSilu, -kInf, kNan},
      {Unary::kRelu, -kInf, 0.0f},      {Unary::kRelu, -0.0f, -0.0f},
      {Unary::kSqrt, -1.0f, kNan},      {Unary::kSqrt, -0.0f, -0.0f},
      {Unary::kReciprocal, 0.0f, kInf}, {Unary::kReciprocal, -0.0f, -kInf},
      {Unary::kNeg, 0.0f, -0.0f},       {Unary::kAbs, -0.0f, 0.0f},
      {Unary::kSin, kInf, kNan},        {Unary::kCos, -kInf, kNan},
      {Unary::kSin, -0.0f, -0.0f},      {Unary::kCos, 0.0f, 1.0f},
      {Unary::kLog, 0.0f, -kInf},       {Unary::kLog, -0.0f, -kInf},
      {Unary::kLog, -1.0f, kNan},       {Unary::kLog, -kInf, kNan},
      {Unary::kLog, kInf, kInf},        {Unary::kLog, 1.0f, 0.0f},
      {Unary::kSquare, -kInf, kInf},
  };
  for_each_isa([&](const KernelTable& table) {
    for (const Case& c : cases) {
      const float got = apply(table, c.f, c.x);
      const bool same = std::isnan(c.y)                  ? std::isnan(got)
                        : std::isinf(c.y) || c.y == 0.0f ? same_bits(got, c.y)
                                                         : close(got, c.y, ulp(c.y));
      CHECK(same) << table.name << " function " << static_cast<int>(c.f) << " of " << show(c.x)
                  << ": got " << show(got) << ", want " << show(c.y);
    }
    for (const Promise& p : kPromises) CHECK(std::isnan(apply(table, p.f, kNan))) << p.name;
  });
}

int main(int argc, char** argv) {
  return kvik::test::run_all(argc, argv);
}
