// Matrix product with packed weights. Include a vec_*.h, math.inl.h, elementwise.inl.h and
// product.inl.h first.
#pragma once

#include "kernels/kernels.h"

namespace kvik::kernels {
namespace {

// Rows that pass over a block of weights before the next block is read, and steps of k in a block:
// kBlockK x kPanel floats (64 KiB with AVX-512) stay in L2 while up to kChunkRows rows pass. The
// sums of a chunk (12 KiB with AVX-512) wait between blocks in L1.
constexpr int kChunkRows = 48;
constexpr std::int64_t kBlockK = 256;
static_assert(kChunkRows % kTileRows == 0);
// Tiles that fetch a block, at a line per step of k and column of tiles.
constexpr int kFetchTiles = kPanel / kFloatsPerLine / (kPanel / (tile_vecs(kTileRows) * kWidth));

// Steps of k that are transposed together: a line of each column, into as many rows of a panel.
constexpr std::int64_t kTransposed = 16;

void pack_f32(const float* w, std::ptrdiff_t k_stride, std::ptrdiff_t c_stride, std::int64_t k,
              std::int64_t n, std::int64_t panel_begin, std::int64_t panel_end, float* packed) {
  for (std::int64_t panel = panel_begin; panel < panel_end; ++panel) {
    const std::int64_t column = panel * kPanel;
    const int columns = n - column < kPanel ? static_cast<int>(n - column) : kPanel;
    const float* from = w + column * c_stride;
    float* to = packed + column * k;  // [k, kPanel]
    for (std::int64_t begin = 0; begin < k; begin += kTransposed) {
      const std::int64_t end = k - begin < kTransposed ? k : begin + kTransposed;
      for (int j = 0; c_stride != 1 && j < columns; ++j) {
        const float* elements = from + j * c_stride;
        for (std::int64_t i = begin; i < end; ++i) to[i * kPanel + j] = elements[i * k_stride];
      }
      for (std::int64_t i = begin; i < end; ++i) {
        if (c_stride == 1)
          map(from + i * k_stride, columns, to + i * kPanel, [](Vec v) { return v; });
        for (int j = columns; j < kPanel; ++j) to[i * kPanel + j] = 0.0f;
      }
    }
  }
}

// y = activation(sums + bias) + residual, for one row of a panel.
template <typename F>
inline void finish_row(const float* sums, int columns, const float* bias, const float* residual,
                       float* y, F activation) {
  for_vectors(columns, [&](std::int64_t i, auto part) {
    Vec v = load(sums + i, part);
    if (bias) v = v + load(bias + i, part);
    v = activation(v);
    if (residual) v = v + load(residual + i, part);
    store(y + i, v, part);
  });
}

// The epilogue of `rows` rows of one panel, whose first column is `column`.
template <typename F>
void finish_rows(const float* sums, int rows, int columns, std::int64_t column,
                 std::int64_t first_row, const MatmulEpilogue& e, float* y, std::ptrdiff_t y_stride,
                 F activation) {
  const float* bias = e.bias ? e.bias + column : nullptr;
  for (int r = 0; r < rows; ++r) {
    const float* residual =
        e.residual ? e.residual + (first_row + r) * e.residual_stride + column : nullptr;
    finish_row(sums + r * kPanel, columns, bias, residual, y + (first_row + r) * y_stride + column,
               activation);
  }
}

void finish(const float* sums, int rows, int columns, std::int64_t column, std::int64_t first_row,
            const MatmulEpilogue& e, float* y, std::ptrdiff_t y_stride) {
  const auto apply = [&](auto activation) {
    finish_rows(sums, rows, columns, column, first_row, e, y, y_stride, activation);
  };
  switch (e.activation) {
    case Activation::kNone: return apply([](Vec v) { return v; });
    case Activation::kGeluErf: return apply([](Vec v) { return gelu_erf(v); });
    case Activation::kGeluTanh: return apply([](Vec v) { return gelu_tanh(v); });
    case Activation::kSilu: return apply([](Vec v) { return silu(v); });
    case Activation::kRelu: return apply([](Vec v) { return relu(v); });
    case Activation::kTanh: return apply([](Vec v) { return tanh(v); });
    case Activation::kSigmoid: return apply([](Vec v) { return sigmoid(v); });
  }
}

// sums [rows, kPanel] = x·panel for one chunk of rows; columns beyond `columns` stay as they are.
void multiply_chunk(const float* x, std::ptrdiff_t x_stride, int rows, std::int64_t k,
                    const float* panel, int columns, float* sums) {
  // One tall tile if it suffices, else tiles of nearly equal height: 13 rows are 5 + 4 + 4.
  const int tiles = rows <= kTallTileRows ? 1 : (rows + kTileRows - 1) / kTileRows;
  for (std::int64_t begin = 0; begin < k || begin == 0; begin += kBlockK) {
    Product p{.a = x + begin,
              .a_stride = x_stride,
              .k = k - begin < kBlockK ? k - begin : kBlockK,
              .b = panel + begin * kPanel,
              .b_stride = kPanel,
              .columns = columns,
              .c = sums,
              .c_stride = kPanel,
              .accumulate = begin != 0};
    // The first tile reads this block; the others meanwhile fetch the next one, which lies behind
    // it (after the last block of all they fetch into the void, which is harmless).
    const float* next = p.b + p.k * kPanel;
    for (int tile = 0; tile < tiles; ++tile) {
      const int tile_rows = rows / tiles + (tile < rows % tiles ? 1 : 0);
      if (tile == 0) {
        product<true>(tile_rows, p);
      } else {
        p.next =
            tile <= kFetchTiles ? next + (tile - 1) * (kBlockK * kPanel / kFetchTiles) : nullptr;
        product<false>(tile_rows, p);
      }
      p.a += tile_rows * x_stride;
      p.c += tile_rows * kPanel;
    }
  }
}

// Rows of the next chunk when `rows` are left: the last two chunks share what a full one would
// leave too few of.
inline int chunk_rows(std::int64_t rows) {
  if (rows >= 2 * kChunkRows) return kChunkRows;
  if (rows <= kChunkRows) return static_cast<int>(rows);
  const int tiles = static_cast<int>((rows + kTileRows - 1) / kTileRows);
  return (tiles + 1) / 2 * kTileRows;
}

void matmul_f32(const float* x, std::ptrdiff_t x_stride, std::int64_t rows, std::int64_t k,
                const float* packed, std::int64_t n, std::int64_t panel_begin,
                std::int64_t panel_end, const MatmulEpilogue& epilogue, float* y,
                std::ptrdiff_t y_stride) {
  alignas(64) float sums[kChunkRows * kPanel];
  for (std::int64_t panel = panel_begin; panel < panel_end; ++panel) {
    const std::int64_t column = panel * kPanel;
    const int columns = n - column < kPanel ? static_cast<int>(n - column) : kPanel;
    int chunk = 0;
    for (std::int64_t row = 0; row < rows; row += chunk) {
      chunk = chunk_rows(rows - row);
      multiply_chunk(x + row * x_stride, x_stride, chunk, k, packed + column * k, columns, sums);
      finish(sums, chunk, columns, column, row, epilogue, y, y_stride);
    }
  }
}

}  // namespace
}  // namespace kvik::kernels
