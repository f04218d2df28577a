// Attention over a blocked key/value cache with online softmax. Include a vec_*.h, math.inl.h,
// elementwise.inl.h, product.inl.h, bfloat16.inl.h and quantized.inl.h first.
//
// Blocks are visited in ascending order; per block and row: scores, new maximum, rescaled output,
// weighted values added key by key. Up to kTileRows rows share the loads of a block. A row's
// numbers do not depend on who shares its tile:
//   - every score is a chain of its own; those of invisible keys are replaced by -inf, whose weight
//     is exactly 0, before anything is made of them;
//   - values of invisible keys are not multiplied at all: the tile covers the keys that all of its
//     rows see, and each row adds those before and after by itself, in the same ascending order.
#pragma once

#include "kernels/kernels.h"

namespace kvik::kernels {
namespace {

// Rows that pass over a block before the next is read: their outputs stay in L2.
constexpr int kGroupRows = 64;
static_assert(kKvBlock % kWidth == 0);

// Keys of one block that a row sees: [begin, end) within the block.
struct Visible {
  int begin;
  int end;
  bool empty() const { return begin >= end; }
};

inline int within_block(std::int64_t key) {
  return key < 0 ? 0 : key < kKvBlock ? static_cast<int>(key) : kKvBlock;
}

// A worker's memory, carved from args.scratch.
struct AttentionScratch {
  float* scores;             // [kTileRows, kKvBlock]: scores, then weights
  float* wide_k;             // [head_dim, kKvBlock]: a block in fp32
  float* wide_v;             // [kKvBlock, value_dim]
  AttentionPart sums, more;  // of kGroupRows rows; `more` has an output of its own

  AttentionScratch(float* memory, int head_dim, int value_dim) {
    const auto take = [&](std::ptrdiff_t floats) {
      float* taken = memory;
      memory += floats;
      return taken;
    };
    scores = take(kTileRows * kKvBlock);
    wide_k = take(std::ptrdiff_t{head_dim} * kKvBlock);
    wide_v = take(std::ptrdiff_t{value_dim} * kKvBlock);
    sums = {nullptr, 0, take(kGroupRows), take(kGroupRows)};
    more = {take(std::ptrdiff_t{value_dim} * kGroupRows), value_dim, take(kGroupRows),
            take(kGroupRows)};
  }
};

std::size_t attention_scratch(int head_dim, int value_dim) {
  return static_cast<std::size_t>(kTileRows * kKvBlock + 4 * kGroupRows) +
         static_cast<std::size_t>(head_dim) * kKvBlock +
         static_cast<std::size_t>(value_dim) * (kKvBlock + kGroupRows);
}

// One block in fp32. Bytes are widened without their scales, which go to the scores and weights.
struct WideBlock {
  const float* k;
  const float* v;
  const float* k_scale;  // [kKvBlock], or null: 1
  const float* v_scale;
  const float* next_k;  // of the next block that is read, or null
};

// `n` elements (a multiple of kWidth) behind a block's scales as fp32: where they are, or in
// `wide`.
inline const float* widen_block(CacheType type, const void* block, std::int64_t n, float* wide) {
  const auto* data = static_cast<const std::uint8_t*>(block) + cache_scale_bytes(type);
  switch (type) {
    case CacheType::kF32: return reinterpret_cast<const float*>(data);
    case CacheType::kBF16:
      for (std::int64_t i = 0; i < n; i += kWidth) store(wide + i, load_bf16(data + 2 * i));
      break;
    case CacheType::kI8:
      for (std::int64_t i = 0; i < n; i += kWidth) store(wide + i, to_float(load_bytes(data + i)));
      break;
  }
  return wide;
}

inline WideBlock widen(const AttentionArgs& args, std::int64_t block, std::int64_t end,
                       const AttentionScratch& s) {
  const void* k = args.k_blocks[block];
  const void* v = args.v_blocks[block];
  const bool scaled = args.cache == CacheType::kI8;
  return {widen_block(args.cache, k, std::int64_t{args.head_dim} * kKvBlock, s.wide_k),
          widen_block(args.cache, v, std::int64_t{args.value_dim} * kKvBlock, s.wide_v),
          scaled ? static_cast<const float*>(k) : nullptr,
          scaled ? static_cast<const float*>(v) : nullptr,
          static_cast<const float*>(block + 1 < end ? args.k_blocks[block + 1] : args.next_block)};
}

// A group of rows on its way through a segment.
struct AttentionState {
  const AttentionArgs& args;
  float* scores;
  int first_row;       // of the group
  AttentionPart part;  // of the group

  Visible visible(int row, std::int64_t block) const {
    const std::int64_t origin = block * kKvBlock;
    const std::int64_t first = (args.first_key ? args.first_key[row] : 0) - origin;
    const std::int64_t end = args.last_key[row] - origin + 1;
    return {within_block(first), within_block(end)};
  }
  float* out(int row) const { return part.out + (row - first_row) * part.out_stride; }
};

// The vectors of a block's positions that hold what some row of a tile sees.
struct Lanes {
  int begin;
  int end;
};

// One row's products as scores: scaled, capped, biased, and -inf where the row does not see the
// key. Returns the largest.
float score_row(const AttentionState& state, int row, std::int64_t block, const WideBlock& wide,
                Visible keys, Lanes lanes, float* scores) {
  const AttentionArgs& args = state.args;
  const float* bias = args.bias ? args.bias + row * args.bias_stride + block * kKvBlock : nullptr;
  const Vec hidden = set(-kInfinity);
  const Vec scale = set(args.scale);
  Vec top = hidden;
  // Most often there is nothing but the scale.
  const bool whole = keys.begin <= lanes.begin && keys.end >= lanes.end;
  if (whole && !wide.k_scale && args.softcap == 0.0f && !bias) {
    for (int j = lanes.begin; j < lanes.end; j += kWidth) {
      const Vec s = load(scores + j) * scale;
      store(scores + j, s);
      top = max(top, s);
    }
    return largest(top);
  }
  for (int j = lanes.begin; j < lanes.end; j += kWidth) {
    const Mask seen = lanes_between(keys.begin - j, keys.end - j);
    Vec s = load(scores + j);
    if (wide.k_scale) s = s * load(wide.k_scale + j);
    s = s * scale;
    if (args.softcap != 0.0f) {
      const Vec cap = set(args.softcap);
      s = cap * tanh(s / cap);
    }
    if (bias) s = s + load(bias + j, seen);
    s = select(seen, s, hidden);
    store(scores + j, s);
    top = max(top, s);
  }
  return largest(top);
}

// One row's scores as weights e^(score - shift); returns their sum.
float weigh_row(const WideBlock& wide, Lanes lanes, float shift, float* scores) {
  Vec sums = zero();
  for (int j = lanes.begin; j < lanes.end; j += kWidth) {
    const Vec weight = exp(load(scores + j) - set(shift));
    store(scores + j, wide.v_scale ? weight * load(wide.v_scale + j) : weight);
    sums = sums + weight;
  }
  return sum(sums);
}

// Turns the products of `rows` <= kTileRows rows into weights, and rescales what the rows have so
// far. In steps over all rows, and not row by row: each step ends in a long chain of operations,
// and those of several rows overlap.
void weigh_tile(const AttentionState& state, int row, int rows, std::int64_t block,
                const WideBlock& wide, const Visible* keys, Lanes lanes) {
  constexpr int kRows = (kTileRows + kWidth - 1) / kWidth * kWidth;
  float block_top[kRows], shift[kRows], shrink[kRows];
  float* top = state.part.top + (row - state.first_row);
  float* total = state.part.total + (row - state.first_row);
  for (int r = 0; r < rows; ++r) {
    block_top[r] =
        score_row(state, row + r, block, wide, keys[r], lanes, state.scores + r * kKvBlock);
  }
  for_vectors(rows, [&](std::int64_t i, auto part) {
    const Vec before = load(top + i, part), here = load(block_top + i, part);
    const Vec now = select(before < here, here, before);
    // While every key is hidden by a bias of -inf, 0 stands in, so that their weights are 0.
    const Vec offset = select(now == set(-kInfinity), zero(), now);
    store(top + i, now, part);
    store(shift + i, offset, part);
    store(shrink + i, exp(before - offset), part);
  });
  for (int r = 0; r < rows; ++r) {
    const float weights = weigh_row(wide, lanes, shift[r], state.scores + r * kKvBlock);
    total[r] = total[r] * shrink[r] + weights;
  }
  for (int r = 0; r < rows; ++r) {
    if (shrink[r] == 1.0f) continue;
    float* out = state.out(row + r);
    map(out, state.args.value_dim, out, [&](Vec v) { return v * set(shrink[r]); });
  }
}

// A product of rows with a block, which comes from memory where few rows make one pass over it.
inline void multiply_block(const AttentionArgs& args, int rows, const Product& p) {
  if (args.rows <= kTileRows && args.cache == CacheType::kF32) {
    product<true>(rows, p);
  } else {
    product<false>(rows, p);
  }
}

// Adds weights · values of the keys in `keys` to `rows` rows of the output. next: see Product.
void add_values(const AttentionState& state, int row, int rows, const float* v_block, Visible keys,
                const float* weights, const float* next = nullptr) {
  if (keys.empty()) return;
  const AttentionArgs& args = state.args;
  multiply_block(args, rows,
                 {.a = weights + keys.begin,
                  .a_stride = kKvBlock,
                  .k = keys.end - keys.begin,
                  .b = v_block + static_cast<std::ptrdiff_t>(keys.begin) * args.value_dim,
                  .b_stride = args.value_dim,
                  .columns = args.value_dim,
                  .c = state.out(row),
                  .c_stride = state.part.out_stride,
                  .accumulate = true,
                  .next = next});
}

// One block for `rows` <= kTileRows adjacent rows that all see some of it.
void attend_tile(const AttentionState& state, int row, int rows, std::int64_t block,
                 const WideBlock& wide, const Visible* keys) {
  const AttentionArgs& args = state.args;
  Visible some{kKvBlock, 0}, shared{0, kKvBlock};  // keys that any row sees, and that all see
  for (int r = 0; r < rows; ++r) {
    some.begin = keys[r].begin < some.begin ? keys[r].begin : some.begin;
    some.end = keys[r].end > some.end ? keys[r].end : some.end;
    shared.begin = keys[r].begin > shared.begin ? keys[r].begin : shared.begin;
    shared.end = keys[r].end < shared.end ? keys[r].end : shared.end;
  }
  const Lanes lanes{some.begin / kWidth * kWidth, (some.end + kWidth - 1) / kWidth * kWidth};
  const Product scores{.a = args.q + row * args.q_stride,
                       .a_stride = args.q_stride,
                       .k = args.head_dim,
                       .b = wide.k + lanes.begin,
                       .b_stride = kKvBlock,
                       .columns = lanes.end - lanes.begin,
                       .c = state.scores + lanes.begin,
                       .c_stride = kKvBlock,
                       .accumulate = false,
                       .next = wide.v};
  multiply_block(args, rows, scores);
  weigh_tile(state, row, rows, block, wide, keys, lanes);
  if (shared.empty()) shared = {kKvBlock, kKvBlock};  // each row by itself
  for (int r = 0; r < rows; ++r) {
    const Visible before{keys[r].begin, keys[r].end < shared.begin ? keys[r].end : shared.begin};
    add_values(state, row + r, 1, wide.v, before, state.scores + r * kKvBlock);
  }
  add_values(state, row, rows, wide.v, shared, state.scores, wide.next_k);
  for (int r = 0; r < rows; ++r) {
    const Visible after{shared.end, keys[r].end};
    add_values(state, row + r, 1, wide.v, after, state.scores + r * kKvBlock);
  }
}

// Rows [first_row, first_row + rows) <= kGroupRows and one segment.
void attend_segment(const AttentionArgs& args, const AttentionScratch& scratch, int first_row,
                    int rows, std::int64_t segment, const AttentionPart& part) {
  const AttentionState state{args, scratch.scores, first_row, part};
  std::int64_t first_key = INT64_MAX, last_key = -1;
  for (int r = 0; r < rows; ++r) {
    const std::int64_t first = args.first_key ? args.first_key[first_row + r] : 0;
    const std::int64_t last = args.last_key[first_row + r];
    if (first <= last) {
      first_key = first < first_key ? first : first_key;
      last_key = last > last_key ? last : last_key;
    }
    part.top[r] = -kInfinity;
    part.total[r] = 0.0f;
    float* out = state.out(first_row + r);
    map(out, args.value_dim, out, [](Vec) { return zero(); });
  }
  if (last_key < 0) return;
  constexpr std::int64_t kBlocks = kKvSegment / kKvBlock;
  std::int64_t block = first_key / kKvBlock, end = last_key / kKvBlock + 1;
  block = block < segment * kBlocks ? segment * kBlocks : block;
  end = end > (segment + 1) * kBlocks ? (segment + 1) * kBlocks : end;
  for (; block < end; ++block) {
    const WideBlock wide = widen(args, block, end, scratch);
    for (int r = 0; r < rows;) {
      Visible keys[kTileRows];
      int tile = 0;
      while (tile < kTileRows && r + tile < rows) {
        keys[tile] = state.visible(first_row + r + tile, block);
        if (keys[tile].empty()) break;
        ++tile;
      }
      if (tile > 0) attend_tile(state, first_row + r, tile, block, wide, keys);
      r += tile > 0 ? tile : 1;
    }
  }
}

// A row that saw nothing on one side takes the other's bits.
void attention_join_f32(const AttentionPart& sums, const AttentionPart& more, int rows,
                        int value_dim) {
  for (int r = 0; r < rows; ++r) {
    if (more.total[r] == 0.0f) continue;
    float* out = sums.out + r * sums.out_stride;
    const float* other = more.out + r * more.out_stride;
    if (sums.total[r] == 0.0f) {
      map(other, value_dim, out, [](Vec v) { return v; });
      sums.top[r] = more.top[r];
      sums.total[r] = more.total[r];
      continue;
    }
    const float top = more.top[r] > sums.top[r] ? more.top[r] : sums.top[r];
    const Vec shift = set(top == -kInfinity ? 0.0f : top);
    const Vec shrink = exp(set(sums.top[r]) - shift), factor = exp(set(more.top[r]) - shift);
    for_vectors(value_dim, [&](std::int64_t i, auto part) {
      store(out + i, fma(load(other + i, part), factor, load(out + i, part) * shrink), part);
    });
    sums.top[r] = top;
    sums.total[r] = first(fma(set(more.total[r]), factor, set(sums.total[r]) * shrink));
  }
}

void attention_divide_f32(const AttentionPart& sums, int rows, int value_dim, float* out,
                          std::ptrdiff_t out_stride) {
  for (int r = 0; r < rows; ++r) {
    const float total = sums.total[r];
    // Nothing visible: zeros already.
    const Vec divisor = set(total == 0.0f ? 1.0f : total);
    map(sums.out + r * sums.out_stride, value_dim, out + r * out_stride,
        [&](Vec v) { return v / divisor; });
  }
}

void attention_f32(const AttentionArgs& args) {
  const AttentionScratch scratch(args.scratch, args.head_dim, args.value_dim);
  for (int row = 0; row < args.rows; row += kGroupRows) {
    const int rows = args.rows - row < kGroupRows ? args.rows - row : kGroupRows;
    AttentionPart sums = scratch.sums;
    sums.out = args.out + row * args.out_stride;
    sums.out_stride = args.out_stride;
    std::int64_t segment = INT64_MAX, last = 0;
    for (int r = row; r < row + rows; ++r) {
      const std::int64_t own = args.first_key ? args.first_key[r] / kKvSegment : 0;
      segment = own < segment ? own : segment;
      last = args.last_key[r] / kKvSegment > last ? args.last_key[r] / kKvSegment : last;
    }
    attend_segment(args, scratch, row, rows, segment, sums);
    while (++segment <= last) {
      attend_segment(args, scratch, row, rows, segment, scratch.more);
      attention_join_f32(sums, scratch.more, rows, args.value_dim);
    }
    attention_divide_f32(sums, rows, args.value_dim, sums.out, sums.out_stride);
  }
}

void attention_part_f32(const AttentionArgs& args, std::int64_t segment,
                        const AttentionPart& part) {
  const AttentionScratch scratch(args.scratch, args.head_dim, args.value_dim);
  for (int row = 0; row < args.rows; row += kGroupRows) {
    const int rows = args.rows - row < kGroupRows ? args.rows - row : kGroupRows;
    attend_segment(
        args, scratch, row, rows, segment,
        {part.out + row * part.out_stride, part.out_stride, part.top + row, part.total + row});
  }
}

// ---- Storing ------------------------------------------------------------------------------------

// Keys (or values) as they lie in a block: element (position p, dimension d) at
// p · position_stride + d · dim_stride.
struct BlockOrder {
  std::ptrdiff_t position_stride;
  std::ptrdiff_t dim_stride;
};

// store(i, value) of every element, dimension by dimension where a dimension's positions are
// adjacent, so that whole lines are written.
template <typename T, typename Convert>
inline void store_elements(const float* x, std::ptrdiff_t stride, int count, int dim,
                           BlockOrder order, T* to, Convert convert) {
  if (order.dim_stride == 1) {
    for (int p = 0; p < count; ++p) {
      for (int d = 0; d < dim; ++d)
        to[p * order.position_stride + d] = convert(x[p * stride + d], p);
    }
    return;
  }
  // Rows may be a power of two apart, and then share the same few sets of a cache: some dimensions
  // of every row are brought together first, each line of a row being read once.
  constexpr int kDims = 16;
  alignas(64) float near[kKvBlock * kDims];
  for (int begin = 0; begin < dim; begin += kDims) {
    const int dims = dim - begin < kDims ? dim - begin : kDims;
    for (int p = 0; p < count; ++p) {
      map(x + p * stride + begin, dims, near + p * kDims, [](Vec v) { return v; });
    }
    for (int d = 0; d < dims; ++d) {
      T* line = to + (begin + d) * order.dim_stride;
      for (int p = 0; p < count; ++p) line[p] = convert(near[p * kDims + d], p);
    }
  }
}

inline void store_block(CacheType type, const float* x, std::ptrdiff_t stride, int count, int dim,
                        int slot, BlockOrder order, void* block) {
  auto* data = static_cast<std::uint8_t*>(block) + cache_scale_bytes(type) +
               slot * order.position_stride * cache_element_bytes(type);
  switch (type) {
    case CacheType::kF32:
      return store_elements(x, stride, count, dim, order, reinterpret_cast<float*>(data),
                            [](float v, int) { return v; });
    case CacheType::kBF16:
      return store_elements(x, stride, count, dim, order, reinterpret_cast<std::uint16_t*>(data),
                            [](float v, int) { return bf16_of(v); });
    case CacheType::kI8: break;
  }
  float inverse[kKvBlock];
  auto* scale = static_cast<float*>(block) + slot;
  for (int p = 0; p < count; ++p) {
    const RowScale row = row_scale(largest_magnitude(x + p * stride, dim));
    scale[p] = row.scale;
    inverse[p] = row.inverse;
  }
  store_elements(
      x, stride, count, dim, order, reinterpret_cast<std::int8_t*>(data), [&](float v, int p) {
        // A row that is not finite has the factor 0; what it holds must not reach an
        // integer.
        return inverse[p] == 0.0f ? std::int8_t{0}
                                  : static_cast<std::int8_t>(__builtin_rintf(v * inverse[p]));
      });
}

void store_kv(CacheType type, const CacheRows& rows, void* k_block, void* v_block) {
  store_block(type, rows.k, rows.k_stride, rows.count, rows.head_dim, rows.slot, {1, kKvBlock},
              k_block);
  store_block(type, rows.v, rows.v_stride, rows.count, rows.value_dim, rows.slot,
              {rows.value_dim, 1}, v_block);
}

}  // namespace
}  // namespace kvik::kernels
