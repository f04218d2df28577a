// Rows as bytes, and products of such rows with int8 and int4 weights. Include a vec_*.h, a
// dot_*.h, math.inl.h, elementwise.inl.h, product.inl.h and matmul.inl.h first.
#pragma once

#include "kernels/kernels.h"

namespace kvik::kernels {
namespace {

static_assert(kPanel % (kDotVecs * kWidth) == 0 && kGroup % kWidth == 0);

// ---- Rows ---------------------------------------------------------------------------------------

// The bits of max|x|, 0 without elements: a NaN's are beyond an infinity's, so that neither is
// lost.
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

inline RowScale row_scale(std::int32_t most) {
  float value;
  __builtin_memcpy(&value, &most, sizeof(value));
  if (most >= 0x7f800000) return {__builtin_nanf(""), 0.0f};
  if (value < 1e-30f) return {0.0f, 0.0f};
  return {value / 127.0f, 127.0f / value};
}

// Sums over a row, in the lanes of vectors.
struct RowSums {
  Int bytes;
  Int magnitudes;
};

// A group as bytes, of which `left` are the row's. The result has their sum in its lanes.
inline Int quantize_group(const float* x, std::int64_t left, Vec inverse, std::int8_t* q,
                          RowSums& row) {
  Int bytes = set_int(0);
  for (int i = 0; i < kGroup; i += kWidth) {
    const Vec v = left - i >= kWidth ? load(x + i)
                  : left - i > 0     ? load(x + i, Head{static_cast<int>(left - i)})
                                     : zero();
    const Int steps = to_int(round(v * inverse));
    bytes = bytes + steps;
    row.magnitudes = row.magnitudes + max(steps, set_int(0) - steps);
    store_bytes(q + i, steps);
  }
  row.bytes = row.bytes + bytes;
  return bytes;
}

inline float float_of(std::int32_t bits) {
  float value;
  __builtin_memcpy(&value, &bits, sizeof(value));
  return value;
}
inline float magnitude(float v) {
  return v < 0.0f ? -v : v;
}

// Adds a candidate, the places ascending. Returns the magnitude of the one that has to go for it,
// the smallest, the last of equals; 0: none.
inline float add_outlier(RowOutliers& found, std::int32_t place, float value) {
  int at = found.count;
  float gone = 0.0f;
  if (at < RowOutliers::kMost) {
    ++found.count;
  } else {
    at = 0;
    for (int j = 1; j < RowOutliers::kMost; ++j) {
      if (magnitude(found.value[j]) <= magnitude(found.value[at])) at = j;
    }
    if (magnitude(value) <= magnitude(found.value[at])) return magnitude(value);
    gone = magnitude(found.value[at]);
    for (; at + 1 < RowOutliers::kMost; ++at) {
      found.place[at] = found.place[at + 1];
      found.value[at] = found.value[at + 1];
    }
  }
  found.place[at] = place;
  found.value[at] = value;
  return gone;
}

// The candidates of a row, those whose bytes, made with `inverse`, are beyond a limit. Returns the
// largest magnitude of what is none, or no longer.
inline float find_outliers(const float* x, std::int64_t k, float inverse, std::int64_t magnitudes,
                           RowOutliers& found) {
  const Vec limit = set(static_cast<float>(RowOutliers::kTimesMean * magnitudes / k));
  // First which lanes hold any, of so many vectors, then what is in them: in one loop the few would
  // keep the registers of the many.
  constexpr int kVectors = 32;
  Vec rest = zero();
  float gone = 0.0f;
  for (std::int64_t begin = 0; begin < k; begin += kVectors * kWidth) {
    unsigned beyond[kVectors], any = 0;
    const int vectors = k - begin < kVectors * kWidth
                            ? static_cast<int>((k - begin + kWidth - 1) / kWidth)
                            : kVectors;
    for (int n = 0; n < vectors; ++n) {
      const std::int64_t i = begin + n * kWidth;
      const Vec v = abs(k - i < kWidth ? load(x + i, Head{static_cast<int>(k - i)}) : load(x + i));
      const Mask usual = round(v * set(inverse)) <= limit;
      beyond[n] = ~lane_bits(usual) & ((1u << kWidth) - 1);
      any |= beyond[n];
      rest = max(rest, select(usual, v, zero()));
    }
    for (int n = 0; any != 0 && n < vectors; ++n) {
      for (unsigned left = beyond[n]; left != 0; left &= left - 1) {
        const std::int64_t place = begin + n * kWidth + __builtin_ctz(left);
        const float smaller = add_outlier(found, static_cast<std::int32_t>(place), x[place]);
        gone = smaller > gone ? smaller : gone;
      }
    }
  }
  const float most = largest(rest);
  return most > gone ? most : gone;
}

inline void quantize_row(const float* x, std::int64_t k, bool group_sums, std::int8_t* q,
                         float* scale, std::int32_t* sums, RowOutliers& outliers) {
  const std::int64_t groups = (k + kGroup - 1) / kGroup;
  const std::int32_t most = largest_magnitude(x, k);
  RowScale row = row_scale(most);
  outliers.count = 0;
  const auto quantize = [&](std::int64_t g, const float* from, RowSums& all) {
    const Int bytes = quantize_group(from, k - g * kGroup, set(row.inverse), q + g * kGroup, all);
    if (group_sums) sums[g] = sum(bytes);
  };
  const auto finish = [&](const RowSums& all) {
    *scale = row.scale;
    sums[groups] = sum(all.bytes);
  };
  RowSums all{set_int(0), set_int(0)};
  if (row.inverse == 0.0f) {
    for (std::int64_t i = 0; i < groups * kGroup; ++i) q[i] = 0;
    for (std::int64_t g = 0; g < groups; ++g) sums[g] = 0;
    return finish(all);
  }
  for (std::int64_t g = 0; g < groups; ++g) quantize(g, x + g * kGroup, all);
  const std::int64_t magnitudes = sum(all.magnitudes);
  if (127 * k <= RowOutliers::kLargestTimesMean * magnitudes) return finish(all);
  const float rest = find_outliers(x, k, row.inverse, magnitudes, outliers);
  if (rest > RowOutliers::kLargestRest * float_of(most)) {
    outliers.count = 0;
    return finish(all);
  }
  std::int32_t rest_bits;
  __builtin_memcpy(&rest_bits, &rest, sizeof(rest));
  row = row_scale(rest_bits);
  all = {set_int(0), set_int(0)};
  int next = 0;
  for (std::int64_t g = 0; g < groups; ++g) {
    const std::int64_t begin = g * kGroup, end = begin + kGroup;
    if (next == outliers.count || outliers.place[next] >= end) {
      quantize(g, x + begin, all);
      continue;
    }
    alignas(64) float others[kGroup];
    map(x + begin, k < end ? k - begin : kGroup, others, [](Vec v) { return v; });
    for (; next < outliers.count && outliers.place[next] < end; ++next) {
      others[outliers.place[next] - begin] = 0.0f;
    }
    quantize(g, others, all);
  }
  finish(all);
}

void quantize_rows(const float* x, std::ptrdiff_t x_stride, std::int64_t rows, std::int64_t k,
                   bool group_sums, std::int8_t* q, float* scale, std::int32_t* sums,
                   RowOutliers* outliers) {
  const std::int64_t groups = (k + kGroup - 1) / kGroup;
  for (std::int64_t r = 0; r < rows; ++r) {
    quantize_row(x + r * x_stride, k, group_sums, q + r * groups * kGroup, scale + r,
                 sums + r * (groups + 1), outliers[r]);
  }
}

// ---- What the two products share ----------------------------------------------------------------

constexpr int kLine = 64;               // bytes that one load_lines brings, at most
constexpr int kFetchAhead = 4096;       // bytes; how far weights are fetched before their use
constexpr int kVecBytes = kWidth * 4;   // four k of kWidth columns
constexpr int kStepBytes = kPanel * 4;  // four k of a panel
constexpr int kTileBytes = kDotVecs * kVecBytes;

[[gnu::always_inline]] inline void fetch_ahead(const std::uint8_t* p) {
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
  const RowOutliers& outliers(int r) const { return x.outliers[first + r]; }
  Vec scaled(int r, int v, Vec value) const {
    return value * load(column_scale + v * kWidth) * set(x.scale[first + r]);
  }
  void finish(int r, int v, Vec value) const { store(sums + r * kPanel + v * kWidth, value); }
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

// Calls f with the number of rows as a Constant.
template <int kRows, typename F>
inline void with_rows(int rows, F f) {
  if constexpr (kRows > 1) {
    if (rows < kRows) return with_rows<kRows - 1>(rows, f);
  }
  f(Constant<kRows>{});
}

// The bytes that make a dot product the weight at place % 4 of four.
inline const std::int8_t* one_of_four(std::int32_t place) {
  alignas(4) static constexpr std::int8_t kOnes[4][4] = {
      {1, 0, 0, 0}, {0, 1, 0, 0}, {0, 0, 1, 0}, {0, 0, 0, 1}};
  return kOnes[place % 4];
}

// ---- int8 ---------------------------------------------------------------------------------------

// What the outliers of a tile's row add to the values of its first `vecs` vectors. panel: as a
// whole.
inline void add_outliers_i8(const Tile& tile, int r, const std::uint8_t* panel, int vecs,
                            Vec* value) {
  const RowOutliers& outliers = tile.outliers(r);
  for (int i = 0; i < outliers.count; ++i) {
    const std::uint8_t* step =
        panel + outliers.place[i] / 4 * std::int64_t{kStepBytes} + tile.column * 4;
    const Quad quad = set_quad(one_of_four(outliers.place[i]));
    const Vec x = set(outliers.value[i]);
    for (int v = 0; v < vecs; ++v) {
      const Weights bytes = weights_of(load_lines(step + v * kVecBytes));
      const Vec weight = to_float(dot(set_int(-kDotShift), bytes, quad));
      value[v] = fma(weight * load(tile.column_scale + v * kWidth), x, value[v]);
    }
  }
}

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
    Vec value[kDotVecs];
#pragma GCC unroll 16
    for (int v = 0; v < kDotVecs; ++v) {
      value[v] = tile.scaled(r, v, to_float(acc[r][v] - shift));
    }
    if (tile.outliers(r).count > 0) add_outliers_i8(tile, r, panel, kDotVecs, value);
#pragma GCC unroll 16
    for (int v = 0; v < kDotVecs; ++v) tile.finish(r, v, value[v]);
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

inline void add_outliers_i4(const Tile& tile, int r, const std::uint8_t* panel, int vecs,
                            Vec* value) {
  const RowOutliers& outliers = tile.outliers(r);
  for (int i = 0; i < outliers.count; ++i) {
    const std::int32_t place = outliers.place[i] % kGroup;
    const std::uint8_t* group = panel + outliers.place[i] / kGroup * std::int64_t{kGroupBytes};
    const std::uint8_t* step = group + kScaleBytes + place / 8 * kStepBytes + tile.column * 4;
    const auto quad = set_bytes(one_of_four(place));
    const Vec x = set(outliers.value[i]);
    for (int v = 0; v < vecs; ++v) {
      const Int both = load_lines(step + v * kVecBytes);
      const Int nibbles = (place % 8 < 4 ? both : shift_right<4>(both)) & set_int(0x0f0f0f0f);
      const Int u = finish_nibbles(dot_nibbles(set_int(0), nibbles, quad)) - set_int(8);
      const Vec weight = to_float(u) * load_half(group + 2 * (tile.column + v * kWidth));
      value[v] = fma(weight * load(tile.column_scale + v * kWidth), x, value[v]);
    }
  }
}

template <int kRows, bool kStream>
inline void tile_i4(const std::uint8_t* panel, const Tile& tile) {
  const std::uint8_t* const whole = panel;
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
    for (int v = 0; v < kDotVecs; ++v) total[r][v] = tile.scaled(r, v, total[r][v]);
    if (tile.outliers(r).count > 0) add_outliers_i4(tile, r, whole, kDotVecs, total[r]);
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
