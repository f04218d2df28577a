// exp in IEEE double from additions and multiplications alone, so that every platform gives the
// same bits; libm's differs between systems in the last one.
#pragma once

#include <bit>
#include <cstdint>

namespace kvik::runtime {

// e^x for x <= 0; 0 below -708. Relative error below 1e-15.
inline double portable_exp(double x) {
  constexpr double kLog2e = 0x1.71547652b82fep+0;
  constexpr double kLn2High = 0x1.62e42fee00000p-1;  // 32 bits: its product with k is exact
  constexpr double kLn2Low = 0x1.a39ef35793c76p-33;
  constexpr double kRound = 0x1.8p52;  // adding and subtracting it rounds to an integer
  const bool vanishes = !(x > -708.0);
  const double clamped = vanishes ? -708.0 : x;
  const double k = (clamped * kLog2e + kRound) - kRound;
  const double r = (clamped - k * kLn2High) - k * kLn2Low;  // |r| <= ln(2)/2
  // Taylor to r^13 / 13!: the next term is below 5e-18.
  double p = 1.0 / 6227020800.0;
  p = p * r + 1.0 / 479001600.0;
  p = p * r + 1.0 / 39916800.0;
  p = p * r + 1.0 / 3628800.0;
  p = p * r + 1.0 / 362880.0;
  p = p * r + 1.0 / 40320.0;
  p = p * r + 1.0 / 5040.0;
  p = p * r + 1.0 / 720.0;
  p = p * r + 1.0 / 120.0;
  p = p * r + 1.0 / 24.0;
  p = p * r + 1.0 / 6.0;
  p = p * r + 0.5;
  p = p * r + 1.0;
  p = p * r + 1.0;
  const auto exponent = static_cast<std::uint64_t>(static_cast<std::int64_t>(k) + 1023);
  const double scaled = p * std::bit_cast<double>(exponent << 52);
  return vanishes ? 0.0 : scaled;
}

}  // namespace kvik::runtime
