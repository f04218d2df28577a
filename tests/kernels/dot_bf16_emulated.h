// The name of kernels/dot_bf16.h in software: VDPBF16PS as Intel's manual has it, the odd numbers
// of a pair before the even ones.
#pragma once

#include <cstdint>

#include "flushing_fma.h"

namespace kvik::kernels {
namespace {

inline Vec dot_pairs(Vec sums, Int a, Int b) {
  alignas(64) float sum[kWidth];
  alignas(64) std::uint16_t x[2 * kWidth], y[2 * kWidth];
  store(sum, sums);
  store_lanes(x, a);
  store_lanes(y, b);
  for (int i = 0; i < kWidth; ++i) {
    for (const int half : {1, 0}) {
      sum[i] = fma_flushing(wide_bf16(x + 2 * i + half), wide_bf16(y + 2 * i + half), sum[i]);
    }
  }
  return load(sum);
}

}  // namespace
}  // namespace kvik::kernels
