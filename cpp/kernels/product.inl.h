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
#include <type_traits>

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

// kRows x kVecs vectors of C in registers. Part says which lanes of the last vector of a row exist.
template <int kRows, int kVecs, typename Part>
struct TileSums {
  Part part;
  Vec sum[kRows][kVecs];

  [[gnu::always_inline]] void load_row(const float* from, Vec (&to)[kVecs]) const {
#pragma GCC unroll 16
    for (int v = 0; v + 1 < kVecs; ++v) to[v] = load(from + v * kWidth);
    to[kVecs - 1] = load(from + (kVecs - 1) * kWidth, part);
  }
  [[gnu::always_inline]] void clear() {
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 16
      for (int v = 0; v < kVecs; ++v) sum[r][v] = zero();
    }
  }
  [[gnu::always_inline]] void read(const float* c, std::ptrdiff_t stride) {
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) load_row(c + r * stride, sum[r]);
  }
  [[gnu::always_inline]] void write(float* c, std::ptrdiff_t stride) const {
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 16
      for (int v = 0; v + 1 < kVecs; ++v) store(c + r * stride + v * kWidth, sum[r][v]);
      store(c + r * stride + (kVecs - 1) * kWidth, sum[r][kVecs - 1], part);
    }
  }
  // One k: a is the first row's, b the first column's. change(r, after, before): the sum of row r.
  template <typename Change>
  [[gnu::always_inline]] void add(const float* a, std::ptrdiff_t a_stride, const float* b,
                                  Change change) {
    Vec w[kVecs];
    load_row(b, w);
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      const Vec x = set(a[r * a_stride]);
#pragma GCC unroll 16
      for (int v = 0; v < kVecs; ++v) sum[r][v] = change(r, fma(x, w[v], sum[r][v]), sum[r][v]);
    }
  }
  [[gnu::always_inline]] void add(const float* a, std::ptrdiff_t a_stride, const float* b) {
    add(a, a_stride, b, [](int, Vec after, Vec) { return after; });
  }
};

template <int kCount>
struct Constant {
  static constexpr int value = kCount;
};

// Calls f(first column, number of vectors as a Constant, Part) on tiles of up to kVecs vectors that
// cover `columns`.
template <int kVecs, typename F>
inline void for_column_tiles(int columns, F f) {
  std::ptrdiff_t column = 0;
  for (; column + kVecs * kWidth <= columns; column += kVecs * kWidth) {
    f(column, Constant<kVecs>{}, Full{});
  }
  const int rest = static_cast<int>(columns - column);
  if (rest == 0) return;
  const int vecs = (rest + kWidth - 1) / kWidth;  // 1 .. kVecs, the last one partial or full
  const Head last{rest - (vecs - 1) * kWidth};
  static_assert(kMaxTileVecs == 4);
  if (vecs == 1) return f(column, Constant<1>{}, last);
  if (vecs == 2) return f(column, Constant<2>{}, last);
  if constexpr (kVecs > 2) {
    if (vecs == 3) return f(column, Constant<3>{}, last);
    return f(column, Constant<4>{}, last);
  }
}

// kRows x kVecs vectors of C, from column `column` on. kStream: B comes from memory rather than
// from a cache. kNext: p.next is fetched.
template <int kRows, int kVecs, bool kStream, bool kNext = false, typename Part>
inline void product_tile(const Product& p, std::ptrdiff_t column, Part part) {
  TileSums<kRows, kVecs, Part> sums{part, {}};
  float* c = p.c + column;
  if (p.accumulate) {
    sums.read(c, p.c_stride);
  } else {
    sums.clear();
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
    sums.add(a, p.a_stride, b);
  }
  sums.write(c, p.c_stride);
}

template <int kRows, bool kStream>
void product_rows(const Product& p) {
  for_column_tiles<tile_vecs(kRows)>(
      p.columns, [&]<typename Part>(std::ptrdiff_t column, auto vecs, Part part) {
        constexpr int kVecs = decltype(vecs)::value;
        if constexpr (!kStream && std::is_same_v<Part, Full>) {
          if (p.next != nullptr) return product_tile<kRows, kVecs, false, true>(p, column, part);
        }
        product_tile<kRows, kVecs, kStream>(p, column, part);
      });
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
