// The names of kernels/tile_amx.h in software, as strict as the processor: an instruction on tiles
// whose shapes do not fit, or that have none, ends the program as the processor would.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <initializer_list>

#include "flushing_fma.h"
#include "kernels/tile_shapes.h"

namespace kvik::kernels {
namespace {

struct EmulatedTiles {
  bool shaped = false;
  int rows[8] = {}, bytes[8] = {};
  std::uint8_t data[8][16][64] = {};
};
thread_local EmulatedTiles emulated;

inline void require(bool legal, const char* what) {
  if (legal) return;
  std::fprintf(stderr, "illegal tile instruction: %s\n", what);
  std::abort();
}
inline void require_shape(int tile) {
  require(emulated.shaped, "no shapes are set on this thread");
  require(emulated.rows[tile] > 0 && emulated.bytes[tile] > 0, "the tile has no shape");
}

inline void tiles_begin(const TileShapes& shapes) {
  emulated = {};
  require(shapes.palette == 1 && shapes.start_row == 0, "palette or first row");
  for (int t = 0; t < 16; ++t) {
    require(t < 8 || (shapes.rows[t] == 0 && shapes.bytes[t] == 0), "a tile beyond the eighth");
    require(shapes.rows[t] <= 16 && shapes.bytes[t] <= 64, "a shape beyond 16 rows of 64 bytes");
    require((shapes.rows[t] == 0) == (shapes.bytes[t] == 0), "rows without bytes");
    if (t < 8) emulated.rows[t] = shapes.rows[t], emulated.bytes[t] = shapes.bytes[t];
  }
  for (const std::uint8_t byte : shapes.reserved) require(byte == 0, "reserved bytes");
  emulated.shaped = true;
}
inline void tiles_end() {
  emulated = {};
}
template <int kTile>
inline void tile_zero() {
  require_shape(kTile);
  std::memset(emulated.data[kTile], 0, sizeof emulated.data[kTile]);
}
template <int kTile>
inline void tile_load(const void* from, std::ptrdiff_t stride) {
  require_shape(kTile);
  std::memset(emulated.data[kTile], 0, sizeof emulated.data[kTile]);
  for (int r = 0; r < emulated.rows[kTile]; ++r) {
    std::memcpy(emulated.data[kTile][r], static_cast<const char*>(from) + r * stride,
                static_cast<std::size_t>(emulated.bytes[kTile]));
  }
}
template <int kTile>
inline void tile_store(void* to, std::ptrdiff_t stride) {
  require_shape(kTile);
  for (int r = 0; r < emulated.rows[kTile]; ++r) {
    std::memcpy(static_cast<char*>(to) + r * stride, emulated.data[kTile][r],
                static_cast<std::size_t>(emulated.bytes[kTile]));
  }
}
inline void require_product(int sums, int a, int b) {
  for (const int tile : {sums, a, b}) require_shape(tile);
  require(sums != a && sums != b && a != b, "the same tile twice");
  require(emulated.rows[sums] == emulated.rows[a], "rows of the sums and of the first factor");
  require(emulated.bytes[sums] == emulated.bytes[b],
          "columns of the sums and of the second factor");
  require(emulated.bytes[a] == 4 * emulated.rows[b], "k of the two factors");
  for (const int tile : {sums, a, b}) require(emulated.bytes[tile] % 4 == 0, "part of a column");
}
template <typename B, int kSums, int kA, int kB>
inline void tile_dot() {
  require_product(kSums, kA, kB);
  for (int m = 0; m < emulated.rows[kA]; ++m) {
    for (int n = 0; n < emulated.bytes[kB] / 4; ++n) {
      std::uint32_t sum;
      std::memcpy(&sum, emulated.data[kSums][m] + 4 * n, 4);
      for (int k = 0; k < emulated.bytes[kA]; ++k) {
        const int a = static_cast<std::int8_t>(emulated.data[kA][m][k]);
        const int b = static_cast<B>(emulated.data[kB][k / 4][4 * n + k % 4]);
        sum += static_cast<std::uint32_t>(a * b);
      }
      std::memcpy(emulated.data[kSums][m] + 4 * n, &sum, 4);
    }
  }
}
template <int kSums, int kA, int kB>
inline void tile_dot_unsigned() {
  tile_dot<std::uint8_t, kSums, kA, kB>();
}
template <int kSums, int kA, int kB>
inline void tile_dot_signed() {
  tile_dot<std::int8_t, kSums, kA, kB>();
}
// TDPBF16PS as Intel's manual has it: for each output the sum over the even k and the one over the
// odd k, from 0, one fused step after another; then both together; then what was in the tile.
template <int kSums, int kA, int kB>
inline void tile_dot_bf16() {
  require_product(kSums, kA, kB);
  for (int m = 0; m < emulated.rows[kA]; ++m) {
    for (int n = 0; n < emulated.bytes[kB] / 4; ++n) {
      float even = 0.0f, odd = 0.0f;
      for (int k = 0; k < emulated.bytes[kA] / 4; ++k) {
        const std::uint8_t* a = emulated.data[kA][m] + 4 * k;
        const std::uint8_t* b = emulated.data[kB][k] + 4 * n;
        even = fma_flushing(wide_bf16(a), wide_bf16(b), even);
        odd = fma_flushing(wide_bf16(a + 2), wide_bf16(b + 2), odd);
      }
      float sum;
      std::memcpy(&sum, emulated.data[kSums][m] + 4 * n, 4);
      sum = add_flushing(sum, add_flushing(even, odd));
      std::memcpy(emulated.data[kSums][m] + 4 * n, &sum, 4);
    }
  }
}

}  // namespace
}  // namespace kvik::kernels
