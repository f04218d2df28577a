// Rows as bytes, and products of such rows with int8 and int4 weights. Include a vec_*.h, a
// dot_*.h, math.inl.h, elementwise.inl.h, product.inl.h and matmul.inl.h first.
#pragma once

#include "kernels/kernels.h"

namespace kvik::kernels {
namespace {

static_assert(kPanel % (kDotVecs * kWidth) == 0 && kGroup % kWidth == 0);

// ---- Rows ---------------------------------------------------------------------------------------

// The bits of max|x|: a NaN's are beyond an infinity's, so that neither is lost.
inline std::int32_t largest_magnitude(const float* x, std::int64_t k) {
  const Int magnitude = set_int(0x7fffffff);
  Int most = set_int(0);
  for_vectors(
      k, [&](std::int64_t i, auto part) { most = max(most, bits(load(x + i, part)) & magnitude); });
  return largest(most);
}

// What rows of bytes stand for, and the factor that makes them: 0 where they are zeros.
struct RowScale {
  float scale;
  float inverse;
};

inline RowScale row_scale(const float* x, std::int64_t k) {
  const std::int32_t most = largest_magnitude(x, k);
  float value;
  __builtin_memcpy(&value, &most, sizeof(value));
  if (most >= 0x7f800000) return {__builtin_nanf(""), 0.0f};
  if (value < 1e-30f) return {0.0f, 0.0f};
  return {value / 127.0f, 127.0f / value};
}

inline void quantize_row(const float* x, std::int64_t k, std::int8_t* q, float* scale,
                         std::int32_t* sums) {
  const std::int64_t groups = (k + kGroup - 1) / kGroup;
  const RowScale row = row_scale(x, k);
  *scale = row.scale;
  sums[groups] = 0;
  if (row.inverse == 0.0f) {
    for (std::int64_t i = 0; i < groups * kGroup; ++i) q[i] = 0;
    for (std::int64_t g = 0; g < groups; ++g) sums[g] = 0;
    return;
  }
  const Vec inverse = set(row.inverse);
  for (std::int64_t g = 0; g < groups; ++g) {
    Int total = set_int(0);
    for (std::int64_t i = g * kGroup; i < (g + 1) * kGroup; i += kWidth) {
      const std::int64_t left = k - i;
      const Vec v = left >= kWidth ? load(x + i)
                    : left > 0     ? load(x + i, Head{static_cast<int>(left)})
                                   : zero();
      const Int steps = to_int(round(v * inverse));
      total = total + steps;
      store_bytes(q + i, steps);
    }
    sums[g] = sum(total);
    sums[groups] += sums[g];
  }
}

void quantize_rows(const float* x, std::ptrdiff_t x_stride, std::int64_t rows, std::int64_t k,
                   std::int8_t* q, float* scale, std::int32_t* sums) {
  const std::int64_t groups = (k + kGroup - 1) / kGroup;
  for (std::int64_t r = 0; r < rows; ++r) {
    quantize_row(x + r * x_stride, k, q + r * groups * kGroup, scale + r, sums + r * (groups + 1));
  }
}

// ---- What the two products share ----------------------------------------------------------------

constexpr int kLine = 64;               // bytes that one load_lines brings, at most
constexpr int kFetchAhead = 4096;       // bytes; how far weights are fetched before their use
constexpr int kVecBytes = kWidth * 4;   // four k of kWidth columns
constexpr int kStepBytes = kPanel * 4;  // four k of a panel
constexpr int kTileBytes = kDotVecs * kVecBytes;

inline void fetch_ahead(const std::uint8_t* p) {
#pragma GCC unroll 8
  for (int b = 0; b < kTileBytes; b += kLine) {
    prefetch(reinterpret_cast<const float*>(p + b + kFetchAhead));
  }
}

// Rows [first, first + kRows) of x and, for the tile from `column` of a panel on, their results
// before the epilogue.
struct Tile {
  const QuantizedRows& x;
  std::int64_t first;
  int column;
  const float* column_scale;  // of the tile
  float* sums;                // [kRows, kPanel], from `column` on

  const std::int8_t* row(int r) const { return x.q + (first + r) * x.groups * kGroup; }
  const std::int32_t* row_sums(int r) const { return x.sums + (first + r) * (x.groups + 1); }
  std::int32_t row_total(int r) const { return row_sums(r)[x.groups]; }
  // (value · column_scale) · scale
  void finish(int r, int v, Vec value) const {
    const Vec scaled = value * load(column_scale + v * kWidth) * set(x.scale[first + r]);
    store(sums + r * kPanel + v * kWidth, scaled);
  }
};

// Runs product(tile rows, tile) over all tiles of the panels, and the epilogue. Rows pass in chunks
// whose sums stay in L1; a panel is read from memory by the first tile and from L2 by the others.
template <int kMaxRows, typename Product>
void for_tiles(const QuantizedRows& x, const IntegerPanels& w, std::int64_t panel_bytes,
               std::int64_t n, std::int64_t panel_begin, std::int64_t panel_end,
               const MatmulEpilogue& epilogue, float* y, std::ptrdiff_t y_stride, Product product) {
  constexpr int kChunk = kChunkRows / kMaxRows * kMaxRows;
  alignas(64) float sums[kChunk * kPanel];
  for (std::int64_t panel = panel_begin; panel < panel_end; ++panel) {
    const std::int64_t first_column = panel * kPanel;
    const int columns = n - first_column < kPanel ? static_cast<int>(n - first_column) : kPanel;
    const std::uint8_t* data = w.data + panel * panel_bytes;
    for (std::int64_t begin = 0; begin < x.rows; begin += kChunk) {
      const int chunk = x.rows - begin < kChunk ? static_cast<int>(x.rows - begin) : kChunk;
      for (int row = 0; row < chunk; row += kMaxRows) {
        const int rows = chunk - row < kMaxRows ? chunk - row : kMaxRows;
        for (int column = 0; column < columns; column += kDotVecs * kWidth) {
          product(rows, begin + row == 0, data,
                  Tile{x, begin + row, column, w.column_scale + first_column + column,
                       sums + row * kPanel + column});
        }
      }
      finish(sums, chunk, columns, first_column, begin, epilogue, y, y_stride);
    }
  }
}

template <int kCount>
struct Constant {
  static constexpr int value = kCount;
};

// Calls f with the number of rows as a Constant.
template <int kRows, typename F>
inline void with_rows(int rows, F f) {
  if constexpr (kRows > 1) {
    if (rows < kRows) return with_rows<kRows - 1>(rows, f);
  }
  f(Constant<kRows>{});
}

// ---- int8 ---------------------------------------------------------------------------------------

template <int kRows, bool kStream>
inline void tile_i8(const std::uint8_t* panel, const Tile& tile) {
  Int acc[kRows][kDotVecs];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 16
    for (int v = 0; v < kDotVecs; ++v) acc[r][v] = set_int(0);
  }
  const std::int64_t steps = tile.x.groups * (kGroup / 4);
  const std::uint8_t* w = panel + tile.column * 4;
  for (std::int64_t i = 0; i < steps; ++i, w += kStepBytes) {
    if constexpr (kStream) fetch_ahead(w);
    Quad x[kRows];
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) x[r] = set_quad(tile.row(r) + 4 * i);
#pragma GCC unroll 16
    for (int v = 0; v < kDotVecs; ++v) {
      const Weights bytes = weights_of(load_lines(w + v * kVecBytes));
#pragma GCC unroll 16
      for (int r = 0; r < kRows; ++r) acc[r][v] = dot(acc[r][v], bytes, x[r]);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
    const Int shift = set_int(tile.row_total(r) * kDotShift);
#pragma GCC unroll 16
    for (int v = 0; v < kDotVecs; ++v) tile.finish(r, v, to_float(acc[r][v] - shift));
  }
}

void matmul_i8(const QuantizedRows& x, const IntegerPanels& w, std::int64_t n,
               std::int64_t panel_begin, std::int64_t panel_end, const MatmulEpilogue& epilogue,
               float* y, std::ptrdiff_t y_stride) {
  for_tiles<kDotRows>(x, w, x.groups * kGroup * kPanel, n, panel_begin, panel_end, epilogue, y,
                      y_stride,
                      [](int rows, bool stream, const std::uint8_t* panel, const Tile& tile) {
                        with_rows<kDotRows>(rows, [&](auto count) {
                          if (stream) return tile_i8<decltype(count)::value, true>(panel, tile);
                          tile_i8<decltype(count)::value, false>(panel, tile);
                        });
                      });
}

// ---- int4 ---------------------------------------------------------------------------------------

constexpr int kScaleBytes = 2 * kPanel;
constexpr int kGroupBytes = kScaleBytes + kGroup / 8 * kStepBytes;

template <int kRows, bool kStream>
inline void tile_i4(const std::uint8_t* panel, const Tile& tile) {
  Vec total[kRows][kDotVecs];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 16
    for (int v = 0; v < kDotVecs; ++v) total[r][v] = zero();
  }
  // One row alone: a chain for each half of the nibbles, since the latency of one would bound it;
  // and the upper half is left where it is, 16 times its value.
  constexpr bool kApart = kRows == 1 && kDotsAreWide;
  const Int nibble = set_int(0x0f0f0f0f);
  for (std::int64_t g = 0; g < tile.x.groups; ++g, panel += kGroupBytes) {
    Int acc[kRows][kDotVecs], upper[kDotVecs];
#pragma GCC unroll 16
    for (int v = 0; v < kDotVecs; ++v) {
      upper[v] = set_int(0);
#pragma GCC unroll 16
      for (int r = 0; r < kRows; ++r) acc[r][v] = set_int(0);
    }
    const std::uint8_t* w = panel + kScaleBytes + tile.column * 4;
#pragma GCC unroll 1
    for (int i = 0; i < kGroup / 8; ++i, w += kStepBytes) {
      if constexpr (kStream) fetch_ahead(w);
      decltype(set_bytes(nullptr)) low[kRows], high[kRows];  // as dot_nibbles takes them
#pragma GCC unroll 16
      for (int r = 0; r < kRows; ++r) {
        low[r] = set_bytes(tile.row(r) + g * kGroup + 8 * i);
        high[r] = set_bytes(tile.row(r) + g * kGroup + 8 * i + 4);
      }
#pragma GCC unroll 16
      for (int v = 0; v < kDotVecs; ++v) {
        const Int bytes = load_lines(w + v * kVecBytes);
        const Int first = bytes & nibble;
        if constexpr (kApart) {
          acc[0][v] = dot_nibbles(acc[0][v], first, low[0]);
          upper[v] = dot_nibbles(upper[v], bytes ^ first, high[0]);
          continue;
        }
        const Int second = shift_right<4>(bytes) & nibble;
#pragma GCC unroll 16
        for (int r = 0; r < kRows; ++r) {
          acc[r][v] = dot_nibbles(acc[r][v], first, low[r]);
          acc[r][v] = dot_nibbles(acc[r][v], second, high[r]);
        }
      }
    }
    Int shift[kRows];
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) shift[r] = set_int(8 * tile.row_sums(r)[g]);
#pragma GCC unroll 16
    for (int v = 0; v < kDotVecs; ++v) {
      const Vec scale = load_half(panel + 2 * (tile.column + v * kWidth));
#pragma GCC unroll 16
      for (int r = 0; r < kRows; ++r) {
        Int sums = finish_nibbles(acc[r][v]) - shift[r];
        if constexpr (kApart) sums = sums + shift_right<4>(upper[v]);
        total[r][v] = fma(to_float(sums), scale, total[r][v]);
      }
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 16
    for (int v = 0; v < kDotVecs; ++v) tile.finish(r, v, total[r][v]);
  }
}

void matmul_i4(const QuantizedRows& x, const IntegerPanels& w, std::int64_t n,
               std::int64_t panel_begin, std::int64_t panel_end, const MatmulEpilogue& epilogue,
               float* y, std::ptrdiff_t y_stride) {
  for_tiles<kNibbleRows>(x, w, x.groups * kGroupBytes, n, panel_begin, panel_end, epilogue, y,
                         y_stride,
                         [](int rows, bool stream, const std::uint8_t* panel, const Tile& tile) {
                           with_rows<kNibbleRows>(rows, [&](auto count) {
                             if (stream) return tile_i4<decltype(count)::value, true>(panel, tile);
                             tile_i4<decltype(count)::value, false>(panel, tile);
                           });
                         });
}

}  // namespace
}  // namespace kvik::kernels
