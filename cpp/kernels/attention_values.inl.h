// Weighted sums of cached values. Include product.inl.h first.
#pragma once

#include "kernels/kernels.h"

namespace kvik::kernels {
namespace {

// Positions [begin, end) of a block or a span.
struct Visible {
  int begin;
  int end;
  bool empty() const { return begin >= end; }
};

// Values of adjacent blocks, and the rows that sum them: out[r] += Σ weights[r, j] · v[j] over the
// positions j in keys[r], ascending. Others are not multiplied, whatever they hold.
struct ValueRun {
  const float* weights;  // of the first row and the first block's first position
  std::ptrdiff_t weights_stride;
  const float* const* blocks;  // each [kKvBlock, dim]
  int dim;
  float* out;  // [rows, dim]
  std::ptrdiff_t out_stride;
  const Visible* keys;  // of each row, begin <= end; from the first block's first position on
  // What is read next, or null. Of blocks that stream it is fetched as if it followed them;
  // otherwise a line of it is brought into L2 with each position.
  const float* next;
};

// Positions that all rows sum, and those that any of them does: all of the former in the latter.
struct SharedKeys {
  Visible all;
  Visible any;

  SharedKeys(const Visible* keys, int rows) : all{0, INT32_MAX}, any{INT32_MAX, 0} {
    for (int r = 0; r < rows; ++r) {
      if (keys[r].begin > all.begin) all.begin = keys[r].begin;
      if (keys[r].end < all.end) all.end = keys[r].end;
      if (keys[r].empty()) continue;
      if (keys[r].begin < any.begin) any.begin = keys[r].begin;
      if (keys[r].end > any.end) any.end = keys[r].end;
    }
    if (any.empty()) any = {0, 0};
    if (all.empty()) all = {any.end, any.end};
  }
};

// Adds positions [begin, end) to the sums of a tile's rows, from column `column` on. kAll: all rows
// take them. last: the end of what any of them takes. kStream: blocks come from memory.
template <bool kStream, bool kAll, int kRows, int kVecs, typename Part>
[[gnu::always_inline]] inline void add_positions(const ValueRun& run, int begin, int end, int last,
                                                 std::ptrdiff_t column,
                                                 TileSums<kRows, kVecs, Part>& sums) {
  while (begin < end) {
    const int block = begin / kKvBlock, behind = (block + 1) * kKvBlock;
    const int stop = end < behind ? end : behind;
    const float* v = run.blocks[block] + std::ptrdiff_t{begin % kKvBlock} * run.dim + column;
    const float* a = run.weights + begin;
    // Fetching goes on in the next block once it has reached what is read last of this one.
    const float* next = behind < last ? run.blocks[block + 1] : run.next;
    const int turn = next == nullptr ? INT32_MAX
                                     : (behind < last ? behind : last) -
                                           static_cast<int>(kPrefetchAhead) / run.dim;
    const float* ahead = v + kPrefetchAhead;
    if (begin > turn) ahead = next + column + std::ptrdiff_t{begin - turn} * run.dim;
    for (; begin < stop; ++begin, ++a, v += run.dim) {
      if constexpr (kStream) {
        if (begin == turn) ahead = next + column;
#pragma GCC unroll 16
        for (int f = 0; f < kVecs * kWidth; f += kFloatsPerLine) prefetch(ahead + f);
        ahead += run.dim;
      } else if (run.next != nullptr) {
        prefetch_l2(run.next + std::ptrdiff_t{begin} * kFloatsPerLine);
      }
      if constexpr (kAll) {
        sums.add(a, run.weights_stride, v);
      } else {
        sums.add(a, run.weights_stride, v, [&](int r, Vec after, Vec before) {
          const auto place = static_cast<unsigned>(begin - run.keys[r].begin);
          const bool takes = place < static_cast<unsigned>(run.keys[r].end - run.keys[r].begin);
          return select(lanes_between(0, takes ? kWidth : 0), after, before);
        });
      }
    }
  }
}

// The sums stay in registers from block to block.
template <int kRows, int kVecs, bool kStream, typename Part>
inline void values_tile(const ValueRun& run, const SharedKeys& shared, std::ptrdiff_t column,
                        Part part) {
  TileSums<kRows, kVecs, Part> sums{part, {}};
  const Visible all = shared.all, any = shared.any;
  float* out = run.out + column;
  sums.read(out, run.out_stride);
  add_positions<kStream, false>(run, any.begin, all.begin, any.end, column, sums);
  add_positions<kStream, true>(run, all.begin, all.end, any.end, column, sums);
  add_positions<kStream, false>(run, all.end, any.end, any.end, column, sums);
  sums.write(out, run.out_stride);
}

// rows in [1, kTileRows].
template <bool kStream, int kRows = kTileRows>
inline void add_values(int rows, const ValueRun& run) {
  if constexpr (kRows > 1) {
    if (rows < kRows) return add_values<kStream, kRows - 1>(rows, run);
  }
  const SharedKeys shared(run.keys, rows);
  if (shared.any.empty()) return;
  for_column_tiles<tile_vecs(kRows)>(run.dim, [&](std::ptrdiff_t column, auto vecs, auto part) {
    values_tile<kRows, decltype(vecs)::value, kStream>(run, shared, column, part);
  });
}

}  // namespace
}  // namespace kvik::kernels
