// Numbers to bfloat16, and the matrix product with bfloat16 weights that are widened to fp32 in
// registers. Include a vec_*.h, math.inl.h, elementwise.inl.h, product.inl.h and matmul.inl.h
// first.
//
// The chain of fused multiply-adds is that of matmul_f32: one accumulator per output, k ascending.
#pragma once

#include "kernels/kernels.h"

namespace kvik::kernels {
namespace {

// Lines of 32 bits hold two k of a column: the even one below, the odd one above.
inline Vec even_half(Int pair) {
  return from_bits(shift_left<16>(pair));
}
inline Vec odd_half(Int pair) {
  return from_bits(pair & set_int(static_cast<std::int32_t>(0xffff0000u)));
}

// One number, to nearest, ties to even; a NaN stays one.
inline std::uint16_t bf16_of(float x) {
  std::uint32_t u;
  __builtin_memcpy(&u, &x, sizeof(u));
  if (x != x) return static_cast<std::uint16_t>((u | 0x00400000u) >> 16);
  return static_cast<std::uint16_t>((u + 0x7fffu + (u >> 16 & 1u)) >> 16);
}

// The same for a vector; the upper 16 bits of each lane hold the result.
inline Int round_to_bf16(Vec x) {
  const Int u = bits(x);
  const Int odd = shift_right<16>(u) & set_int(1);
  const Int rounded = u + set_int(0x7fff) + odd;
  const Int quiet = u | set_int(0x00400000);
  return bits(select(is_nan(x), from_bits(quiet), from_bits(rounded)));
}

// Not by the instruction that some CPUs have, which takes subnormal numbers for zeros.
void round_rows(const float* x, std::ptrdiff_t x_stride, std::int64_t rows, std::int64_t k,
                std::uint16_t* out) {
  static_assert(kGroup % kWidth == 0);
  const std::int64_t padded = (k + kGroup - 1) / kGroup * kGroup;
  for (std::int64_t r = 0; r < rows; ++r, x += x_stride, out += rounded_stride(k)) {
    for (std::int64_t i = 0; i < padded; i += kWidth) {
      const std::int64_t left = k - i;
      const Vec v = left >= kWidth ? load(x + i)
                    : left > 0     ? load(x + i, Head{static_cast<int>(left)})
                                   : zero();
      store_upper(out + i, round_to_bf16(v));
    }
  }
}

// kRows x kVecs vectors of sums from column `column` of a panel on.
template <int kRows, int kVecs, bool kStream>
inline void tile_bf16(const float* x, std::ptrdiff_t x_stride, std::int64_t k,
                      const std::uint16_t* panel, int column, float* sums) {
  Vec acc[kRows][kVecs];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 16
    for (int v = 0; v < kVecs; ++v) acc[r][v] = zero();
  }
  // As floats, because that is what load takes; they are pairs of 16-bit numbers until split.
  const float* w = reinterpret_cast<const float*>(panel) + column;
  std::int64_t i = 0;
  for (; i + 2 <= k; i += 2, w += kPanel) {
    if constexpr (kStream) {
#pragma GCC unroll 16
      for (int f = 0; f < kVecs * kWidth; f += kFloatsPerLine) prefetch(w + kPrefetchAhead + f);
    }
    Int pairs[kVecs];
#pragma GCC unroll 16
    for (int v = 0; v < kVecs; ++v) pairs[v] = bits(load(w + v * kWidth));
#pragma GCC unroll 16
    for (int v = 0; v < kVecs; ++v) {
      const Vec even = even_half(pairs[v]);
#pragma GCC unroll 16
      for (int r = 0; r < kRows; ++r) acc[r][v] = fma(set(x[r * x_stride + i]), even, acc[r][v]);
    }
#pragma GCC unroll 16
    for (int v = 0; v < kVecs; ++v) {
      const Vec odd = odd_half(pairs[v]);
#pragma GCC unroll 16
      for (int r = 0; r < kRows; ++r) {
        acc[r][v] = fma(set(x[r * x_stride + i + 1]), odd, acc[r][v]);
      }
    }
  }
  if (i < k) {  // the last k has no partner
#pragma GCC unroll 16
    for (int v = 0; v < kVecs; ++v) {
      const Vec even = even_half(bits(load(w + v * kWidth)));
#pragma GCC unroll 16
      for (int r = 0; r < kRows; ++r) acc[r][v] = fma(set(x[r * x_stride + i]), even, acc[r][v]);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 16
    for (int v = 0; v < kVecs; ++v) store(sums + r * kPanel + column + v * kWidth, acc[r][v]);
  }
}

template <int kRows, bool kStream>
void rows_bf16(const float* x, std::ptrdiff_t x_stride, std::int64_t k, const std::uint16_t* panel,
               int columns, float* sums) {
  // One tile less than in fp32 where registers are tight: the pairs wait in registers too.
  constexpr int kVecs =
      kRows * tile_vecs(kRows) * 2 > kRegisters ? tile_vecs(kRows) / 2 : tile_vecs(kRows);
  for (int column = 0; column < columns; column += kVecs * kWidth) {
    tile_bf16<kRows, kVecs, kStream>(x, x_stride, k, panel, column, sums);
  }
}

template <bool kStream, int kRows = kTileRows>
inline void multiply_bf16(int rows, const float* x, std::ptrdiff_t x_stride, std::int64_t k,
                          const std::uint16_t* panel, int columns, float* sums) {
  if constexpr (kRows > 1) {
    if (rows < kRows) {
      return multiply_bf16<kStream, kRows - 1>(rows, x, x_stride, k, panel, columns, sums);
    }
  }
  rows_bf16<kRows, kStream>(x, x_stride, k, panel, columns, sums);
}

void matmul_bf16(const float* x, std::ptrdiff_t x_stride, std::int64_t rows, std::int64_t k,
                 const std::uint16_t* packed, std::int64_t n, std::int64_t panel_begin,
                 std::int64_t panel_end, const MatmulEpilogue& epilogue, float* y,
                 std::ptrdiff_t y_stride) {
  alignas(64) float sums[kChunkRows * kPanel];
  for (std::int64_t panel = panel_begin; panel < panel_end; ++panel) {
    const std::int64_t column = panel * kPanel;
    const int columns = n - column < kPanel ? static_cast<int>(n - column) : kPanel;
    const std::uint16_t* data = packed + column * ((k + 1) / 2 * 2);
    for (std::int64_t begin = 0; begin < rows; begin += kChunkRows) {
      const int chunk = rows - begin < kChunkRows ? static_cast<int>(rows - begin) : kChunkRows;
      for (int row = 0; row < chunk; row += kTileRows) {
        const int tile = chunk - row < kTileRows ? chunk - row : kTileRows;
        const float* from = x + (begin + row) * x_stride;
        if (begin + row == 0) {
          multiply_bf16<true>(tile, from, x_stride, k, data, columns, sums + row * kPanel);
        } else {
          multiply_bf16<false>(tile, from, x_stride, k, data, columns, sums + row * kPanel);
        }
      }
      finish(sums, chunk, columns, column, begin, epilogue, y, y_stride);
    }
  }
}

}  // namespace
}  // namespace kvik::kernels
