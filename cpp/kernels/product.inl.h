// The inner product of everything: C (+)= A·B for a few rows of A, in registers. Include a vec_*.h
// first.
//
// Each element of C is one accumulator that starts from 0 (or from what C holds) and takes one
// fused multiply-add per k, ascending. Neither the number of rows nor the column's place in a tile
// changes that chain, and storing it and loading it back between two calls does not either: that is
// where "numbers that do not move" comes from.
#pragma once

#include <cstddef>
#include <cstdint>

namespace kvik::kernels {
namespace {

struct Product {
  const float* a;  // [rows, k]
  std::ptrdiff_t a_stride;
  std::int64_t k;
  const float* b;  // [k, columns]
  std::ptrdiff_t b_stride;
  int columns;
  float* c;  // [rows, columns]
  std::ptrdiff_t c_stride;
  bool accumulate;  // C += A·B, else C = A·B
  // What will be read next. Of a B that streams it is fetched as if it followed B; otherwise it is
  // brought into L2 meanwhile, a line per k and tile. Null: what lies behind B, and nothing.
  const float* next = nullptr;
};

// How far ahead B is fetched when it streams from memory, in floats: 4 KiB.
constexpr std::ptrdiff_t kPrefetchAhead = 1024;
constexpr int kFloatsPerLine = 16;

// kRows x kVecs vectors of C, from column `column` on. Part says which lanes of the last vector
// exist. kStream: B comes from memory rather than from a cache. kNext: p.next is fetched.
template <int kRows, int kVecs, bool kStream, bool kNext = false, typename Part>
inline void product_tile(const Product& p, std::ptrdiff_t column, Part part) {
  Vec acc[kRows][kVecs];
  const auto load_row = [part](const float* from, Vec(&to)[kVecs]) {
#pragma GCC unroll 16
    for (int v = 0; v + 1 < kVecs; ++v) to[v] = load(from + v * kWidth);
    to[kVecs - 1] = load(from + (kVecs - 1) * kWidth, part);
  };
  float* c = p.c + column;
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
    if (p.accumulate) {
      load_row(c + r * p.c_stride, acc[r]);
    } else {
#pragma GCC unroll 16
      for (int v = 0; v < kVecs; ++v) acc[r][v] = zero();
    }
  }
  const float* a = p.a;
  const float* b = p.b + column;
  const float* next = nullptr;
  // Each column of tiles fetches its own stretch.
  if constexpr (kNext) next = p.next + column / (kVecs * kWidth) * p.k * kFloatsPerLine;
  const float* ahead = b + kPrefetchAhead;
  const std::int64_t turn = p.next != nullptr ? p.k - kPrefetchAhead / p.b_stride : -1;
  for (std::int64_t i = 0; i < p.k; ++i, ++a, b += p.b_stride) {
    if constexpr (kStream) {
      if (i == turn) ahead = p.next + column;
#pragma GCC unroll 16
      for (int f = 0; f < kVecs * kWidth; f += kFloatsPerLine) prefetch(ahead + f);
      ahead += p.b_stride;
    }
    if constexpr (kNext) prefetch_l2(next + i * kFloatsPerLine);
    Vec w[kVecs];
    load_row(b, w);
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      const Vec x = set(a[r * p.a_stride]);
#pragma GCC unroll 16
      for (int v = 0; v < kVecs; ++v) acc[r][v] = fma(x, w[v], acc[r][v]);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 16
    for (int v = 0; v + 1 < kVecs; ++v) store(c + r * p.c_stride + v * kWidth, acc[r][v]);
    store(c + r * p.c_stride + (kVecs - 1) * kWidth, acc[r][kVecs - 1], part);
  }
}

template <int kRows, bool kStream>
void product_rows(const Product& p) {
  constexpr int kVecs = tile_vecs(kRows);
  std::ptrdiff_t column = 0;
  for (; column + kVecs * kWidth <= p.columns; column += kVecs * kWidth) {
    if (!kStream && p.next != nullptr) {
      product_tile<kRows, kVecs, false, true>(p, column, Full{});
    } else {
      product_tile<kRows, kVecs, kStream>(p, column, Full{});
    }
  }
  const int rest = static_cast<int>(p.columns - column);
  if (rest == 0) return;
  const int vecs = (rest + kWidth - 1) / kWidth;  // 1 .. kVecs, the last one partial or full
  const Head last{rest - (vecs - 1) * kWidth};
  static_assert(kMaxTileVecs == 4);
  if (vecs == 1) return product_tile<kRows, 1, kStream>(p, column, last);
  if (vecs == 2) return product_tile<kRows, 2, kStream>(p, column, last);
  if constexpr (kVecs > 2) {
    if (vecs == 3) return product_tile<kRows, 3, kStream>(p, column, last);
    return product_tile<kRows, 4, kStream>(p, column, last);
  }
}

// rows in [1, kRows].
template <bool kStream, int kRows = kStream ? kTallTileRows : kTileRows>
inline void product(int rows, const Product& p) {
  if constexpr (kRows > 1) {
    if (rows < kRows) return product<kStream, kRows - 1>(rows, p);
  }
  product_rows<kRows, kStream>(p);
}

}  // namespace
}  // namespace kvik::kernels
