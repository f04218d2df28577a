// Products of rows in bfloat16 with bfloat16 weights through tile registers. Include tiles.inl.h
// first.
//
// One row takes the same instruction as many, in tiles of fewer rows: its order of additions and
// its zeros for subnormal numbers are its own, and no vector instruction makes the same bits.
// Whatever the rows, each step takes 32 k, the last one padded with zeros, k ascending.
#pragma once

#include "kernels/kernels.h"

namespace kvik::kernels {
namespace {

constexpr int kBf16Step = kTileK / 2;                       // k of a product of tiles
constexpr int kBf16StepBytes = kBf16Step / 2 * kStepBytes;  // of a panel
static_assert(kBf16Step == kGroup && kBf16Step / 2 == kTileSide && kPanel == 4 * kTileSide);

// More than kTileSide rows: as for int8. Fewer: tiles 0 to 3 are sums, side by side; 4: rows; 5 to
// 7: weights, in turn.
inline TileShapes shapes_bf16(int rows) {
  if (rows > kTileSide) return shapes_i8(rows);
  TileShapes shapes;
  for (int tile = 0; tile < 8; ++tile) {
    shapes.rows[tile] = static_cast<std::uint8_t>(tile < 5 ? rows : kTileSide);
    shapes.bytes[tile] = 64;
  }
  return shapes;
}

// One panel. The last step is padded with zeros, so that no tile reads beyond the panel and none
// needs another shape.
struct Bf16Panel {
  const std::uint8_t* whole;
  std::int64_t steps;  // that are in `whole`
  const std::uint8_t* last;
  bool has_last;
};

inline Bf16Panel bf16_panel(const std::uint8_t* data, std::int64_t k, std::uint8_t* last) {
  const Bf16Panel panel{data, k / kBf16Step, last, k % kBf16Step != 0};
  if (!panel.has_last) return panel;
  const std::uint8_t* rest = data + panel.steps * kBf16StepBytes;
  const int bytes = static_cast<int>((k % kBf16Step + 1) / 2) * kStepBytes;
  for (int b = 0; b < kBf16StepBytes; b += kVecBytes) {
    store_lanes(last + b, b < bytes ? load_lines(rest + b) : set_int(0));
  }
  return panel;
}

// Fetches panels of which each line is read once, from memory: two steps (8 KiB) ahead, a quarter
// of a step with each tile.
struct Bf16Stream {
  [[gnu::always_inline]] void tile(const std::uint8_t* step, int t) {
    constexpr int kAhead = 2 * kBf16StepBytes, kShare = kBf16StepBytes / 4;
#pragma GCC unroll 16
    for (int b = 0; b < kShare; b += kLine) {
      prefetch(reinterpret_cast<const float*>(step + kAhead + t * kShare + b));
    }
  }
};
// Fetches the next panel while rows pass over this one.
struct Bf16Next {
  PanelFetch& fetch;
  void tile(const std::uint8_t*, int t) {
    if (t == 0) fetch.step();
  }
};

// sums [rows, kPanel] of up to kTileSide rows and all columns of a panel. A product starts every 16
// cycles and is done after 52: four tiles of sums keep the unit busy, and it takes the weights at
// 64 bytes a cycle. x_stride: in bytes.
template <typename Fetch>
inline void multiply_few_bf16(const std::uint16_t* x, std::ptrdiff_t x_stride,
                              const Bf16Panel& panel, Fetch fetch, float* sums) {
  tile_zero<0>();
  tile_zero<1>();
  tile_zero<2>();
  tile_zero<3>();
  const std::uint8_t* place = panel.whole;  // in the panel, also of what is read from `last`
  const auto step = [&](const std::uint8_t* w) {
    tile_load<4>(x, x_stride);
    fetch.tile(place, 0);
    tile_load<5>(w, kStepBytes);
    tile_dot_bf16<0, 4, 5>();
    fetch.tile(place, 1);
    tile_load<6>(w + kVecBytes, kStepBytes);
    tile_dot_bf16<1, 4, 6>();
    fetch.tile(place, 2);
    tile_load<7>(w + 2 * kVecBytes, kStepBytes);
    tile_dot_bf16<2, 4, 7>();
    fetch.tile(place, 3);
    tile_load<5>(w + 3 * kVecBytes, kStepBytes);
    tile_dot_bf16<3, 4, 5>();
  };
  for (std::int64_t s = 0; s < panel.steps; ++s, x += kBf16Step, place += kBf16StepBytes) {
    step(place);
  }
  if (panel.has_last) step(panel.last);
  constexpr std::ptrdiff_t kStride = kPanel * sizeof(float);
  tile_store<0>(sums, kStride);
  tile_store<1>(sums + kTileSide, kStride);
  tile_store<2>(sums + 2 * kTileSide, kStride);
  tile_store<3>(sums + 3 * kTileSide, kStride);
}

// sums [rows, kPanel] of more than kTileSide rows, up to kTileBlock, and kTileBlock columns, from
// byte `column` of a pair of k on: four products for four tiles that are loaded.
inline void multiply_many_bf16(const std::uint16_t* x, std::ptrdiff_t x_stride,
                               const Bf16Panel& panel, int column, PanelFetch& fetch, float* sums) {
  tile_zero<0>();
  tile_zero<1>();
  tile_zero<2>();
  tile_zero<3>();
  const auto step = [&](const std::uint8_t* w) {
    const auto* second = reinterpret_cast<const std::uint8_t*>(x) + kTileSide * x_stride;
    tile_load<4>(x, x_stride);
    tile_load<6>(w, kStepBytes);
    tile_load<7>(w + kVecBytes, kStepBytes);
    tile_dot_bf16<0, 4, 6>();
    tile_dot_bf16<1, 4, 7>();
    tile_load<5>(second, x_stride);
    tile_dot_bf16<2, 5, 6>();
    tile_dot_bf16<3, 5, 7>();
    fetch.step();
  };
  const std::uint8_t* w = panel.whole + column;
  for (std::int64_t s = 0; s < panel.steps; ++s, x += kBf16Step, w += kBf16StepBytes) step(w);
  if (panel.has_last) step(panel.last + column);
  constexpr std::ptrdiff_t kStride = kPanel * sizeof(float);
  tile_store<0>(sums, kStride);
  tile_store<1>(sums + kTileSide, kStride);
  tile_store<2>(sums + kTileSide * kPanel, kStride);
  tile_store<3>(sums + kTileSide * kPanel + kTileSide, kStride);
}

void tiles_matmul_bf16(const RoundedRows& x, const std::uint16_t* packed, std::int64_t n,
                       std::int64_t panel_begin, std::int64_t panel_end,
                       const MatmulEpilogue& epilogue, float* y, std::ptrdiff_t y_stride) {
  alignas(64) float sums[kTileBlock * kPanel];
  alignas(64) std::uint8_t last[kBf16StepBytes];
  const std::int64_t stride = rounded_stride(x.k), x_bytes = 2 * stride;
  const std::int64_t panel_bytes = (x.k + 1) / 2 * kStepBytes;
  const std::int64_t steps = (x.k + kBf16Step - 1) / kBf16Step;
  const std::int64_t rest = x.rows % kTileBlock;
  const std::int64_t blocks = x.rows / kTileBlock + (rest > kTileSide ? 1 : 0);  // of many rows
  const bool few = rest > 0 && rest <= kTileSide;                                // after them
  const auto* panels = reinterpret_cast<const std::uint8_t*>(packed);
  int shaped = 0;  // rows that the tiles have a shape for
  for (std::int64_t p = panel_begin; p < panel_end; ++p) {
    const std::int64_t first_column = p * kPanel;
    const int columns = n - first_column < kPanel ? static_cast<int>(n - first_column) : kPanel;
    const int pairs = (columns + kTileBlock - 1) / kTileBlock;
    const std::uint8_t* data = panels + p * panel_bytes;
    const Bf16Panel panel = bf16_panel(data, x.k, last);
    const std::int64_t fetches = (blocks * pairs + (few ? 1 : 0)) * steps;
    PanelFetch fetch(data + panel_bytes, p + 1 < panel_end ? panel_bytes : 0,
                     fetches ? fetches : 1);
    for (std::int64_t begin = 0; begin < x.rows; begin += kTileBlock) {
      const int rows = x.rows - begin < kTileBlock ? static_cast<int>(x.rows - begin) : kTileBlock;
      if (rows != shaped) tiles_begin(shapes_bf16(rows));
      shaped = rows;
      const std::uint16_t* from = x.data + begin * stride;
      if (rows > kTileSide) {
        for (int pair = 0; pair < pairs; ++pair) {
          multiply_many_bf16(from, x_bytes, panel, pair * 2 * kVecBytes, fetch,
                             sums + pair * kTileBlock);
        }
      } else if (begin > 0) {
        multiply_few_bf16(from, x_bytes, panel, Bf16Next{fetch}, sums);
      } else {
        multiply_few_bf16(from, x_bytes, panel, Bf16Stream{}, sums);
      }
      finish(sums, rows, columns, first_column, begin, epilogue, y, y_stride);
    }
  }
  if (shaped != 0) tiles_end();
}

}  // namespace
}  // namespace kvik::kernels
