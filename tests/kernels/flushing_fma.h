// The arithmetic of the instructions on bfloat16 numbers (VDPBF16PS, TDPBF16PS) in software, after
// the pseudo-code of Intel's manual: fp32, rounded to nearest with ties to even, subnormal operands
// are zeros of their sign ("DAZ") and so are subnormal results ("FTZ"), whatever MXCSR says. Which
// of several NaNs comes out is not followed.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

namespace kvik::kernels {
namespace {

inline float wide_bf16(const void* p) {  // a bfloat16 number in memory
  std::uint16_t half;
  std::memcpy(&half, p, sizeof half);
  const std::uint32_t bits = static_cast<std::uint32_t>(half) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline float flushed(float x) {
  return std::fabs(x) < 0x1p-126f ? std::copysign(0.0f, x) : x;
}

// a·b + c.
inline float fma_flushing(float a, float b, float c) {
  a = flushed(a), b = flushed(b), c = flushed(c);
  const float sum = std::fma(a, b, c);
  if (!(std::fabs(sum) <= 0x1p-126f)) return sum;  // a NaN too
  // A result is subnormal if it is after it was rounded to 24 bits, whatever its exponent: closer
  // to 2^-126 than half of that last place is not.
  const double exact = std::fma(static_cast<double>(a), static_cast<double>(b), double{c});
  return std::fabs(exact) < 0x1p-126 - 0x1p-151 ? std::copysign(0.0f, sum) : sum;
}
inline float add_flushing(float a, float b) {
  return fma_flushing(a, 1.0f, b);
}

}  // namespace
}  // namespace kvik::kernels
