// Elementary functions over Vec. Include a vec_*.h first.
//
// Largest errors against the exact value, promised and checked over the floats by
// tests/kernels/test_math.cpp (ulp: units in the last place of the result; of the smallest
// subnormal where the result is subnormal):
//
//   exp      1.1 ulp    overflow gives inf, subnormal results are rounded, not flushed
//   log      0.9 ulp    log(0) = -inf, log(x < 0) = NaN, subnormal arguments are exact
//   tanh     1.5 ulp
//   sigmoid  2.5 ulp    also where the result is tiny
//   erf      1.3 ulp
//   silu     3.5 ulp    plus 1e-43·|x|: left of -87 it is a product with a subnormal
//   sin, cos 1.7 ulp    up to |x| = 131072; beyond it each lane goes through the C library
//
// gelu_erf is right to 2e-7·max(1, |x|), gelu_tanh to 32 ulp plus 1e-7·max(1, |x|). Both of -inf
// are NaN, as is silu of -inf: -inf times 0. NaN in gives NaN out everywhere. The polynomials are
// minimax fits (Remez).
#pragma once

#include <cstdint>

namespace kvik::kernels {
namespace {

constexpr float kInfinity = __builtin_huge_valf();
constexpr std::int32_t kSignBit = INT32_MIN;

inline Vec abs(Vec a) {
  return from_bits(bits(a) & set_int(INT32_MAX));
}
inline Vec negate(Vec a) {
  return from_bits(bits(a) ^ set_int(kSignBit));
}
// The magnitude of a with the sign of b.
inline Vec copy_sign(Vec a, Vec b) {
  return from_bits((bits(a) & set_int(INT32_MAX)) | (bits(b) & set_int(kSignBit)));
}

// c0 + x·(c1 + x·(c2 + ...)), highest power first: Horner with one fused step per coefficient.
inline Vec horner(Vec /*x*/, Vec value) {
  return value;
}
template <typename... Rest>
inline Vec horner(Vec x, Vec value, float coefficient, Rest... rest) {
  return horner(x, fma(value, x, set(coefficient)), rest...);
}

// e^x = 2^n · e^r with n = round(x / ln 2), |r| <= ln(2)/2.
inline Vec exp(Vec x) {
  // Below this e^x rounds to 0. Such lanes go another way: a result that underflows costs a hundred
  // cycles, and the scores of hidden keys are -inf. NaN is not below.
  const Mask vanishes = x < set(-103.9721f);
  // e^89 is inf: beyond it nothing changes. The operand order lets NaN by.
  x = select(vanishes, zero(), min(set(89.0f), x));
  const Vec n = round(x * set(1.44269504f));
  Vec r = fnma(n, set(6.931471825e-01f), x);  // ln 2 in two floats
  r = fnma(n, set(-1.904654212e-09f), r);
  const Vec p = horner(r, set(1.395049156e-03f), 8.368889801e-03f, 4.166620597e-02f,
                       1.666651815e-01f, 5.0e-01f);
  return select(vanishes, zero(), scale_by_power(fma(r * r, p, r) + set(1.0f), n));
}

// ln x = e·ln 2 + ln(1 + f), x = 2^e·(1 + f), 1 + f in [√½, √2).
inline Vec log(Vec x) {
  const Mask subnormal = x < set(1.17549435e-38f);
  const Vec scaled = select(subnormal, x * set(8388608.0f), x);  // 2^23
  const Int magnitude = bits(scaled) - set_int(0x3f3504f3);      // √½
  const Vec exponent = to_float(shift_right<23>(magnitude)) - select(subnormal, set(23.0f), zero());
  const Vec f = from_bits((magnitude & set_int(0x007fffff)) + set_int(0x3f3504f3)) - set(1.0f);
  const Vec p = horner(f, set(6.915546209e-02f), -1.178986579e-01f, 1.187292412e-01f,
                       -1.238433495e-01f, 1.421866417e-01f, -1.666925251e-01f, 2.000222653e-01f,
                       -2.499998659e-01f, 3.333331048e-01f);
  const Vec square = f * f;
  Vec low = fma(square * f, p, exponent * set(-1.904654212e-09f));
  low = fnma(set(0.5f), square, low);
  Vec result = fma(exponent, set(6.931471825e-01f), low + f);
  result = select(x == zero(), set(-kInfinity), result);
  result = select(x == set(kInfinity), x, result);
  const Vec nan = set(__builtin_nanf(""));
  return select(x < zero(), nan, select(is_nan(x), x, result));
}

// 1 / (1 + e^-x), through e^-|x| so that the tiny side keeps its relative precision.
inline Vec sigmoid(Vec x) {
  const Vec e = exp(negate(abs(x)));
  return select(x < zero(), e, set(1.0f)) / (set(1.0f) + e);
}

inline Vec silu(Vec x) {
  return x * sigmoid(x);
}

// x + x³·P(x²) near 0, else 1 - 2 / (e^2|x| + 1).
inline Vec tanh(Vec x) {
  const Vec a = abs(x);
  const Vec square = x * x;
  const Vec p = horner(square, set(-5.717045628e-03f), 2.065058798e-02f, -5.374349654e-02f,
                       1.333149076e-01f, -3.333328366e-01f);
  const Vec small = fma(square * x, p, x);
  const Vec large = set(1.0f) - set(2.0f) / (exp(a + a) + set(1.0f));
  return copy_sign(select(a < set(0.625f), small, large), x);  // -0 stays -0
}

// x + x·P(x²) below 1, else 1 - e^Q(|x|) with Q = ln erfc; from 4 on erf rounds to 1.
inline Vec erf(Vec x) {
  const Vec a = min(set(4.0f), abs(x));  // NaN passes
  const Vec square = x * x;
  const Vec p = horner(square, set(7.889122935e-05f), -8.020842215e-04f, 5.189535674e-03f,
                       -2.685444430e-02f, 1.128360033e-01f, -3.761262596e-01f, 1.283791661e-01f);
  const Vec small = fma(x, p, x);
  const Vec q = horner(a, set(1.855739101e-04f), -2.939606318e-03f, 2.180531435e-02f,
                       -1.030373648e-01f, -6.382256746e-01f, -1.127040029e+00f, -3.537205339e-04f);
  const Vec large = set(1.0f) - exp(q);
  return select(a < set(1.0f), small, copy_sign(large, x));
}

// 2^x for -126 <= x <= 128 and NaN, right to 1.5 ulp (as far as GELU and attention show): without
// the care for underflow that exp takes.
inline Vec exp2(Vec x) {
  const Vec n = round(x);
  const Vec r = x - n;
  const Vec p = horner(r, set(1.535336206e-04f), 1.339887454e-03f, 9.618437358e-03f,
                       5.550332471e-02f, 2.402264791e-01f, 6.931472029e-01f);
  return scale_by_power(fma(r, p, set(1.0f)), n);
}

// x·Φ(x), with Φ(-|x|) = 2^Q(|x|). Beyond 5.6 that is less than 2^-26.
inline Vec gelu_erf(Vec x) {
  const Vec limit = set(5.6f);
  const Vec a = min(limit, abs(x));  // NaN passes
  const Vec q = horner(a, set(-2.772052748e-06f), 3.862079049e-05f, -1.825478095e-04f,
                       -1.458696244e-04f, 7.075471085e-03f, -5.250502819e-02f, -4.592049074e-01f,
                       -1.151105723e+00f, -9.999999783e-01f);
  const Vec tail = select(a < limit, exp2(q), zero());
  return x * select(x < zero(), tail, set(1.0f) - tail);
}

// x/2·(1 + tanh u) = x·sigmoid(2u) = x / (1 + 2^z), u = √(2/π)·(x + 0.044715·x³), z = -2u·log2 e.
// Where 2^z is inf the result is -0, and rightly nearly so.
inline Vec gelu_tanh(Vec x) {
  const Vec z = fma(x * x, set(-0.1029432396f), set(-2.302208198f)) * x;
  return x / (set(1.0f) + exp2(max(set(-126.0f), min(set(128.0f), z))));
}

inline Vec relu(Vec x) {
  return max(zero(), x);
}  // NaN and -0 pass

// Beyond this the three-part reduction of sine and cosine loses bits.
constexpr float kTrigonometricLimit = 131072.0f;

// sin (quarter = 0) or cos (quarter = 1): |x| = n·π/2 + r, |r| <= π/4, then by quadrant.
inline Vec sine(Vec x, int quarter) {
  const Vec magnitude = abs(x);
  const Vec n = round(magnitude * set(0.636619772f));
  Vec r = fnma(n, set(1.570796371e+00f), magnitude);  // π/2 in three floats
  r = fnma(n, set(-4.371138829e-08f), r);
  r = fnma(n, set(-1.715124510e-15f), r);
  const Int quadrant = to_int(n) + set_int(quarter);
  const Vec square = r * r;
  const Vec s = horner(square, set(-1.951723534e-04f), 8.332177997e-03f, -1.666665524e-01f);
  const Vec c = horner(square, set(2.443837911e-05f), -1.388736651e-03f, 4.166664556e-02f, -0.5f);
  const Vec sin_r = fma(square * r, s, r);
  const Vec cos_r = fma(square, c, set(1.0f));
  const Vec value = select(is_zero(quadrant & set_int(1)), sin_r, cos_r);
  const Int sign_of_x = quarter == 0 ? bits(x) & set_int(kSignBit) : set_int(0);
  return from_bits(bits(value) ^ shift_left<30>(quadrant & set_int(2)) ^ sign_of_x);
}

// Sine or cosine of the lanes that are out of range (or NaN) through the C library.
inline Vec far_sine(Vec x, Vec near, int quarter) {
  alignas(64) float in[kWidth], out[kWidth];
  store(in, x);
  store(out, near);
  for (int i = 0; i < kWidth; ++i) {
    const float magnitude = in[i] < 0.0f ? -in[i] : in[i];
    if (magnitude <= kTrigonometricLimit) continue;
    const double value = in[i];
    out[i] = static_cast<float>(quarter == 0 ? __builtin_sin(value) : __builtin_cos(value));
  }
  return load(out);
}

inline Vec sin(Vec x) {
  const Vec near = sine(x, 0);
  return all(abs(x) <= set(kTrigonometricLimit)) ? near : far_sine(x, near, 0);
}
inline Vec cos(Vec x) {
  const Vec near = sine(x, 1);
  return all(abs(x) <= set(kTrigonometricLimit)) ? near : far_sine(x, near, 1);
}

}  // namespace
}  // namespace kvik::kernels
