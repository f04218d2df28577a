// Dot products of pairs of bfloat16 numbers with AVX512_BF16. tests/kernels/dot_bf16_emulated.h
// supplies the same name in software, so that what is written over it is tested everywhere. Include
// vec_avx512.h first.
#pragma once

#include "kernels/kernels.h"

namespace kvik::kernels {
namespace {

// sums + a.odd · b.odd, then + a.even · b.even, in fp32, each rounded to nearest; the odd number of
// a lane is its upper half. Subnormal numbers count as zeros, in operands and in results.
inline Vec dot_pairs(Vec sums, Int a, Int b) {
  // Not the intrinsic, as in dot_vnni.h.
  __asm__("vdpbf16ps %2, %1, %0" : "+v"(sums.v) : "v"(a.v), "v"(b.v));
  return sums;
}

}  // namespace
}  // namespace kvik::kernels
