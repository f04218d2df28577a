// Products of rows in bfloat16 with bfloat16 weights through vectors. Include table.inl.h over
// AVX-512 and a dot_bf16*.h first.
//
// One accumulator per output, pairs of k ascending, whatever the number of rows.
#pragma once

#include "kernels/kernels.h"

namespace kvik::kernels {
namespace {

// Rows of a register tile: 6 x 4 sums, 4 vectors of weights and a pair are 29 of 32 registers. CPUs
// start one product of this width a cycle: 24 chains are well over the latency of each.
constexpr int kPairRows = 6;
constexpr int kPairVecs = kPanel / kWidth;

// sums [kRows, kPanel] over `pairs` pairs of k. kStream: the panel comes from memory.
template <int kRows, bool kStream>
inline void tile_pairs(const std::uint16_t* x, std::ptrdiff_t x_stride, std::int64_t pairs,
                       const std::uint8_t* w, float* sums) {
  Vec acc[kRows][kPairVecs];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 16
    for (int v = 0; v < kPairVecs; ++v) acc[r][v] = zero();
  }
  for (std::int64_t i = 0; i < pairs; ++i, w += kStepBytes) {
    if constexpr (kStream) fetch_ahead(w);
    Int weights[kPairVecs];
#pragma GCC unroll 16
    for (int v = 0; v < kPairVecs; ++v) weights[v] = load_lines(w + v * kVecBytes);
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      std::int32_t two;
      __builtin_memcpy(&two, x + r * x_stride + 2 * i, sizeof(two));
      const Int pair = set_int(two);
#pragma GCC unroll 16
      for (int v = 0; v < kPairVecs; ++v) acc[r][v] = dot_pairs(acc[r][v], weights[v], pair);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 16
    for (int v = 0; v < kPairVecs; ++v) store(sums + r * kPanel + v * kWidth, acc[r][v]);
  }
}

void matmul_bf16_rows(const RoundedRows& x, const std::uint16_t* packed, std::int64_t n,
                      std::int64_t panel_begin, std::int64_t panel_end,
                      const MatmulEpilogue& epilogue, float* y, std::ptrdiff_t y_stride) {
  alignas(64) float sums[kChunkRows * kPanel];
  const std::int64_t pairs = (x.k + 1) / 2, stride = rounded_stride(x.k);
  const auto* panels = reinterpret_cast<const std::uint8_t*>(packed);
  for (std::int64_t panel = panel_begin; panel < panel_end; ++panel) {
    const std::int64_t column = panel * kPanel;
    const int columns = n - column < kPanel ? static_cast<int>(n - column) : kPanel;
    const std::uint8_t* data = panels + panel * pairs * kStepBytes;
    for (std::int64_t begin = 0; begin < x.rows; begin += kChunkRows) {
      const int chunk = x.rows - begin < kChunkRows ? static_cast<int>(x.rows - begin) : kChunkRows;
      // Tiles of nearly equal height: 7 rows are 4 + 3.
      const int tiles = (chunk + kPairRows - 1) / kPairRows;
      for (int tile = 0, row = 0; tile < tiles; ++tile) {
        const int height = chunk / tiles + (tile < chunk % tiles ? 1 : 0);
        const std::uint16_t* from = x.data + (begin + row) * stride;
        with_rows<kPairRows>(height, [&](auto count) {
          constexpr int kRows = decltype(count)::value;
          if (begin + row == 0) {
            tile_pairs<kRows, true>(from, stride, pairs, data, sums + row * kPanel);
          } else {
            tile_pairs<kRows, false>(from, stride, pairs, data, sums + row * kPanel);
          }
        });
        row += height;
      }
      finish(sums, chunk, columns, column, begin, epilogue, y, y_stride);
    }
  }
}

constexpr KernelTable make_bf16_table(Isa isa, const char* name) {
  KernelTable table = make_table(isa, name);
  table.rounds_rows = true;
  table.matmul_bf16_rows = matmul_bf16_rows;
  return table;
}

}  // namespace
}  // namespace kvik::kernels
