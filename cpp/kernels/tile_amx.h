// The tile registers of AMX: eight of up to 16 rows by 64 bytes. tests/kernels/tile_emulated.h
// supplies the same names in software, so that what is written over them is tested everywhere.
//
// Assembly, not intrinsics: GCC's are macros over literal register numbers, which a template's
// parameter is not.
#pragma once

#include <cstddef>

#include "kernels/tile_shapes.h"

namespace kvik::kernels {
namespace {

// Sets the shapes, and every tile to zeros.
inline void tiles_begin(const TileShapes& shapes) {
  __asm__ volatile("ldtilecfg %0" : : "m"(shapes));
}
// Without tiles in use the system has 8 KiB less to save when it switches threads.
inline void tiles_end() {
  __asm__ volatile("tilerelease");
}
template <int kTile>
inline void tile_zero() {
  __asm__ volatile("tilezero %%tmm%c0" : : "i"(kTile));
}
template <int kTile>
inline void tile_load(const void* from, std::ptrdiff_t stride) {  // stride in bytes
  __asm__ volatile("tileloadd (%0,%1,1), %%tmm%c2"
                   :
                   : "r"(from), "r"(stride), "i"(kTile)
                   : "memory");
}
template <int kTile>
inline void tile_store(void* to, std::ptrdiff_t stride) {
  __asm__ volatile("tilestored %%tmm%c2, (%0,%1,1)"
                   :
                   : "r"(to), "r"(stride), "i"(kTile)
                   : "memory");
}
// sums[m, n] += Σ_k a[m, k] · b[k/4, 4n + k%4] in 32 bits, modulo 2^32. a: signed bytes; b:
// unsigned or signed ones.
template <int kSums, int kA, int kB>
inline void tile_dot_unsigned() {
  __asm__ volatile("tdpbsud %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(kSums), "i"(kA), "i"(kB));
}
template <int kSums, int kA, int kB>
inline void tile_dot_signed() {
  __asm__ volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(kSums), "i"(kA), "i"(kB));
}
// sums[m, n] += Σ_k a[m, k] · b[k/2, 2n + k%2] in fp32, of bfloat16 numbers. Subnormal numbers
// count as zeros, in operands and in results. The sums over even k and over odd k start from 0,
// each k ascending, and are added to each other, then to sums.
template <int kSums, int kA, int kB>
inline void tile_dot_bf16() {
  __asm__ volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(kSums), "i"(kA), "i"(kB));
}

}  // namespace
}  // namespace kvik::kernels
