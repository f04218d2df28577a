// Products of rows of bytes with int8 and int4 weights through tile registers, for several rows at
// once; one row streams faster through vectors. Include table.inl.h over AVX-512 with VNNI and a
// tile_*.h first.
//
// The sums are the same integers as the vectors', and what follows them in fp32 is the same chain,
// so the results are the same bits.
#pragma once

#include "kernels/kernels.h"

namespace kvik::kernels {
namespace {

constexpr int kTileSide = 16;              // rows and columns of a tile of sums
constexpr int kTileK = 64;                 // k of a product of tiles: the bytes of a tile's row
constexpr int kTileBlock = 2 * kTileSide;  // rows and columns that four tiles of sums cover
static_assert(kTileSide == kWidth && kPanel % kTileBlock == 0);

// Fewer rows than this are one vector tile, which reads the weights once as well and streams them.
constexpr std::int64_t kFewestTileRows = kDotRows + 1;

// Brings the next panel into L2 while this one is multiplied, some lines a step.
class PanelFetch {
 public:
  PanelFetch(const std::uint8_t* begin, std::int64_t bytes, std::int64_t steps)
      : at_(begin), end_(begin + bytes), lines_((bytes / kLine + steps - 1) / steps) {}
  void step() {
    for (std::int64_t i = 0; i < lines_ && at_ < end_; ++i, at_ += kLine) {
      prefetch_l2(reinterpret_cast<const float*>(at_));
    }
  }

 private:
  const std::uint8_t* at_;
  const std::uint8_t* end_;
  std::int64_t lines_;
};

// ---- int8 ---------------------------------------------------------------------------------------

// Tiles 0 to 3: sums, two tiles of rows by two of columns; 4 and 5: rows; 6 and 7: weights.
inline TileShapes shapes_i8(int rows) {
  TileShapes shapes;
  const int first = rows < kTileSide ? rows : kTileSide, second = rows - first;
  for (int tile = 0; tile < 8; ++tile) {
    const int height = tile >= 6 ? kTileSide : tile < 2 || tile == 4 ? first : second;
    shapes.rows[tile] = static_cast<std::uint8_t>(height);
    shapes.bytes[tile] = height == 0 ? 0 : 64;
  }
  return shapes;
}

// sums [rows, kPanel] of up to kTileBlock rows and as many columns over `steps` of kTileK. kSecond:
// there are more than kTileSide rows.
template <bool kSecond>
inline void multiply_tiles(const std::int8_t* x, std::ptrdiff_t x_stride, const std::uint8_t* w,
                           std::int64_t steps, PanelFetch& fetch, std::int32_t* sums) {
  tile_zero<0>();
  tile_zero<1>();
  if constexpr (kSecond) {
    tile_zero<2>();
    tile_zero<3>();
  }
  for (std::int64_t s = 0; s < steps; ++s, x += kTileK, w += kTileK / 4 * kStepBytes) {
    tile_load<4>(x, x_stride);
    tile_load<6>(w, kStepBytes);
    tile_load<7>(w + kVecBytes, kStepBytes);
    tile_dot_unsigned<0, 4, 6>();
    tile_dot_unsigned<1, 4, 7>();
    if constexpr (kSecond) {
      tile_load<5>(x + kTileSide * x_stride, x_stride);
      tile_dot_unsigned<2, 5, 6>();
      tile_dot_unsigned<3, 5, 7>();
    }
    fetch.step();
  }
  constexpr std::ptrdiff_t kStride = kPanel * sizeof(std::int32_t);
  tile_store<0>(sums, kStride);
  tile_store<1>(sums + kTileSide, kStride);
  if constexpr (kSecond) {
    tile_store<2>(sums + kTileSide * kPanel, kStride);
    tile_store<3>(sums + kTileSide * kPanel + kTileSide, kStride);
  }
}

// What the tiles leave over: the k beyond whole steps, the shift, outliers and the scales. Sums
// become floats in place. vecs: those of a row that the tiles stored.
inline void finish_tiles(const QuantizedRows& x, const IntegerPanels& w, std::int64_t panel,
                         std::int64_t first_row, int rows, int vecs, float* sums) {
  const std::int64_t k = x.groups * kGroup, done = k / kTileK * kTileK;
  const std::uint8_t* const data = w.data + panel * k * kPanel;
  const std::uint8_t* rest = data + done * kPanel;
  const Tile tile{x, first_row, 0, w.column_scale + panel * kPanel, sums};
  for (int r = 0; r < rows; ++r) {
    const Int shift = set_int(tile.row_total(r) * kDotShift);
    Vec value[kPanel / kWidth];
    for (int v = 0; v < vecs; ++v) {
      Int sum = bits(load(sums + r * kPanel + v * kWidth));
      const std::uint8_t* weights = rest + v * kVecBytes;
      for (std::int64_t i = done; i < k; i += 4, weights += kStepBytes) {
        sum = dot(sum, weights_of(load_lines(weights)), set_quad(tile.row(r) + i));
      }
      value[v] = tile.scaled(r, v, to_float(sum - shift));
    }
    add_outliers_i8(tile, r, data, vecs, value);
    for (int v = 0; v < vecs; ++v) tile.finish(r, v, value[v]);
  }
}

void tiles_matmul_i8(const QuantizedRows& x, const IntegerPanels& w, std::int64_t n,
                     std::int64_t panel_begin, std::int64_t panel_end,
                     const MatmulEpilogue& epilogue, float* y, std::ptrdiff_t y_stride) {
  if (x.rows < kFewestTileRows) {
    return matmul_i8(x, w, n, panel_begin, panel_end, epilogue, y, y_stride);
  }
  alignas(64) float sums[kTileBlock * kPanel];  // 32-bit integers until finish_tiles
  auto* integers = reinterpret_cast<std::int32_t*>(sums);
  const std::int64_t k = x.groups * kGroup, steps = k / kTileK, panel_bytes = k * kPanel;
  const std::int64_t blocks = (x.rows + kTileBlock - 1) / kTileBlock;
  int shaped = 0;  // rows that the tiles have a shape for
  for (std::int64_t panel = panel_begin; panel < panel_end; ++panel) {
    const std::int64_t first_column = panel * kPanel;
    const int columns = n - first_column < kPanel ? static_cast<int>(n - first_column) : kPanel;
    const int pairs = (columns + kTileBlock - 1) / kTileBlock;
    const std::uint8_t* data = w.data + panel * panel_bytes;
    PanelFetch fetch(data + panel_bytes, panel + 1 < panel_end ? panel_bytes : 0,
                     blocks * pairs * (steps ? steps : 1));
    for (std::int64_t begin = 0; begin < x.rows; begin += kTileBlock) {
      const int rows = x.rows - begin < kTileBlock ? static_cast<int>(x.rows - begin) : kTileBlock;
      if (rows != shaped) tiles_begin(shapes_i8(rows));
      shaped = rows;
      for (int pair = 0; pair < pairs; ++pair) {
        const std::uint8_t* weights = data + pair * 2 * kVecBytes;
        std::int32_t* to = integers + pair * kTileBlock;
        if (rows > kTileSide) {
          multiply_tiles<true>(x.q + begin * k, k, weights, steps, fetch, to);
        } else {
          multiply_tiles<false>(x.q + begin * k, k, weights, steps, fetch, to);
        }
      }
      finish_tiles(x, w, panel, begin, rows, pairs * kTileBlock / kWidth, sums);
      finish(sums, rows, columns, first_column, begin, epilogue, y, y_stride);
    }
  }
  tiles_end();
}

// ---- int4 ---------------------------------------------------------------------------------------

// Groups whose weights are unpacked to bytes at a time (16 KiB), and rows that pass over them.
constexpr int kUnpackGroups = 8;
constexpr int kUnpackRows = 64;
constexpr int kGroupTiles = 4;  // tiles of sums that are in flight

// Tiles 0 to 3: sums of a group, each in turn; 4 and 5: rows; 6 and 7: weights.
inline TileShapes shapes_i4(int rows) {
  TileShapes shapes;
  for (int tile = 0; tile < 8; ++tile) {
    shapes.rows[tile] = static_cast<std::uint8_t>(tile < 6 ? rows : kGroup / 4);
    shapes.bytes[tile] = tile < 4 || tile >= 6 ? 64 : kGroup;
  }
  return shapes;
}

// The nibbles u of a group [kGroup / 8, kPanel, 4] as signed bytes 16 · (u - 8), which is what a
// nibble is once it stands in the upper half of its byte: [kGroup / 4, kPanel, 4].
inline void unpack_group(const std::uint8_t* nibbles, std::int8_t* bytes) {
  const Int upper = set_int(static_cast<std::int32_t>(0xf0f0f0f0u));
  const Int sign = set_int(static_cast<std::int32_t>(0x80808080u));
  for (int i = 0; i < kGroup / 8; ++i) {
    for (int b = 0; b < kStepBytes; b += kVecBytes) {
      const Int both = load_lines(nibbles + i * kStepBytes + b);
      store_lanes(bytes + 2 * i * kStepBytes + b, (shift_left<4>(both) & upper) ^ sign);
      store_lanes(bytes + (2 * i + 1) * kStepBytes + b, (both & upper) ^ sign);
    }
  }
}

// sums [rows, kPanel] += over `groups` groups from `group` on, for up to kTileSide rows from
// `first` on and kTileSide columns. weights: from unpack_group; scales: of the first group. kFull:
// there are kTileSide rows, whose sums stay in registers.
template <bool kFull>
inline void multiply_groups(const QuantizedRows& x, std::int64_t first, int rows,
                            std::int64_t group, int groups, const std::int8_t* weights,
                            const std::uint8_t* scales, float* sums) {
  alignas(64) std::int32_t integers[kGroupTiles][kTileSide * kTileSide];
  const std::ptrdiff_t stride = x.groups * kGroup;
  const std::int8_t* row = x.q + first * stride + group * kGroup;
  Vec total[kTileSide];
  if constexpr (kFull) {
#pragma GCC unroll 16
    for (int r = 0; r < kTileSide; ++r) total[r] = load(sums + r * kPanel);
  }
  for (int g = 0; g < groups; ++g, row += kGroup, weights += kGroup * kPanel) {
    std::int32_t* products = integers[g % kGroupTiles];
    const auto multiply = [&](auto tile) {
      constexpr int kSums = decltype(tile)::value, kRows = 4 + kSums % 2, kWeights = 6 + kSums % 2;
      tile_zero<kSums>();
      tile_load<kRows>(row, stride);
      tile_load<kWeights>(weights, kStepBytes);
      tile_dot_signed<kSums, kRows, kWeights>();
      tile_store<kSums>(products, kTileSide * sizeof(std::int32_t));
    };
    switch (g % kGroupTiles) {
      case 0: multiply(Constant<0>{}); break;
      case 1: multiply(Constant<1>{}); break;
      case 2: multiply(Constant<2>{}); break;
      case 3: multiply(Constant<3>{}); break;
    }
    // The products are 16 times those of the nibbles; both factors are powers of two.
    const Vec scale = load_half(scales + g * kGroupBytes) * set(1.0f / 16.0f);
    const auto add = [&](int r, Vec sum) {
      const auto* line = reinterpret_cast<const std::uint8_t*>(products + r * kTileSide);
      return fma(to_float(load_lines(line)), scale, sum);
    };
    if constexpr (kFull) {
#pragma GCC unroll 16
      for (int r = 0; r < kTileSide; ++r) total[r] = add(r, total[r]);
    } else {
      for (int r = 0; r < rows; ++r) {
        store(sums + r * kPanel, add(r, load(sums + r * kPanel)));
      }
    }
  }
  if constexpr (kFull) {
#pragma GCC unroll 16
    for (int r = 0; r < kTileSide; ++r) store(sums + r * kPanel, total[r]);
  }
}

// sums [rows, kPanel] of up to kUnpackRows rows with one panel.
inline void multiply_panel_i4(const QuantizedRows& x, std::int64_t first, int rows, int columns,
                              const std::uint8_t* panel, int& shaped, float* sums) {
  alignas(64) std::int8_t unpacked[kUnpackGroups * kGroup * kPanel];
  for (int i = 0; i < rows * kPanel; i += kWidth) store(sums + i, zero());
  for (std::int64_t group = 0; group < x.groups; group += kUnpackGroups) {
    const int groups =
        x.groups - group < kUnpackGroups ? static_cast<int>(x.groups - group) : kUnpackGroups;
    const std::uint8_t* packed = panel + group * kGroupBytes;
    for (int g = 0; g < groups; ++g) {
      unpack_group(packed + g * kGroupBytes + kScaleBytes, unpacked + g * kGroup * kPanel);
    }
    for (int row = 0; row < rows; row += kTileSide) {
      const int height = rows - row < kTileSide ? rows - row : kTileSide;
      if (height != shaped) tiles_begin(shapes_i4(height));
      shaped = height;
      for (int column = 0; column < columns; column += kTileSide) {
        float* to = sums + row * kPanel + column;
        const std::int8_t* weights = unpacked + column * 4;
        const std::uint8_t* scales = packed + 2 * column;
        if (height == kTileSide) {
          multiply_groups<true>(x, first + row, height, group, groups, weights, scales, to);
        } else {
          multiply_groups<false>(x, first + row, height, group, groups, weights, scales, to);
        }
      }
    }
  }
}

void tiles_matmul_i4(const QuantizedRows& x, const IntegerPanels& w, std::int64_t n,
                     std::int64_t panel_begin, std::int64_t panel_end,
                     const MatmulEpilogue& epilogue, float* y, std::ptrdiff_t y_stride) {
  if (x.rows < kFewestTileRows) {
    return matmul_i4(x, w, n, panel_begin, panel_end, epilogue, y, y_stride);
  }
  alignas(64) float sums[kUnpackRows * kPanel];
  const std::int64_t panel_bytes = x.groups * kGroupBytes;
  int shaped = 0;
  for (std::int64_t panel = panel_begin; panel < panel_end; ++panel) {
    const std::int64_t first_column = panel * kPanel;
    const int columns = n - first_column < kPanel ? static_cast<int>(n - first_column) : kPanel;
    for (std::int64_t begin = 0; begin < x.rows; begin += kUnpackRows) {
      const int rows =
          x.rows - begin < kUnpackRows ? static_cast<int>(x.rows - begin) : kUnpackRows;
      const std::uint8_t* const data = w.data + panel * panel_bytes;
      multiply_panel_i4(x, begin, rows, columns, data, shaped, sums);
      const Tile tile{x, begin, 0, w.column_scale + first_column, sums};
      for (int r = 0; r < rows; ++r) {
        Vec value[kPanel / kWidth];
        for (int v = 0; v < kPanel / kWidth; ++v) {
          value[v] = tile.scaled(r, v, load(sums + r * kPanel + v * kWidth));
        }
        add_outliers_i4(tile, r, data, kPanel / kWidth, value);
        for (int v = 0; v < kPanel / kWidth; ++v) tile.finish(r, v, value[v]);
      }
      finish(sums, rows, columns, first_column, begin, epilogue, y, y_stride);
    }
  }
  tiles_end();
}

}  // namespace
}  // namespace kvik::kernels
