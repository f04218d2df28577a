// Attention over a blocked key/value cache with online softmax. Include a vec_*.h, math.inl.h,
// elementwise.inl.h, product.inl.h, bfloat16.inl.h, quantized.inl.h and attention_values.inl.h
// first.
//
// A segment is passed in spans of a few blocks, in ascending order; per span and row: all scores,
// new maximum, rescaled output, weighted values added key by key. What is done once a span (across
// the lanes, and to the whole output) is then little beside the products. Up to kTileRows rows
// share the loads of a block. A row's numbers do not depend on who shares its tile:
//   - spans lie at fixed positions;
//   - every score is a chain of its own; those of invisible keys are replaced by -inf, whose weight
//     is exactly 0, before anything is made of them;
//   - values of invisible keys are not multiplied at all: where a tile's rows do not all see a key,
//     those that do add it alone, in the same ascending order.
#pragma once

#include "kernels/kernels.h"

namespace kvik::kernels {
namespace {

// Rows that pass over a block before the next is read: their scores and outputs stay in L2.
constexpr int kGroupRows = 64;
static_assert(kKvBlock % kWidth == 0);

constexpr std::int64_t kSpanBlocks = 4;
constexpr int kSpanKeys = static_cast<int>(kSpanBlocks * kKvBlock);
static_assert(kKvSegment % kSpanKeys == 0);

inline int within(std::int64_t key, int length) {
  return key < 0 ? 0 : key < length ? static_cast<int>(key) : length;
}

// A worker's memory, carved from args.scratch.
struct AttentionScratch {
  float* scores;             // [kGroupRows, kSpanKeys]: scores, then weights
  float* wide_k;             // [head_dim, kKvBlock]: a block in fp32
  float* wide_v;             // [kKvBlock, value_dim]
  AttentionPart sums, more;  // of kGroupRows rows; `more` has an output of its own

  AttentionScratch(float* memory, int head_dim, int value_dim) {
    const auto take = [&](std::ptrdiff_t floats) {
      float* taken = memory;
      memory += floats;
      return taken;
    };
    scores = take(kGroupRows * kSpanKeys);
    wide_k = take(std::ptrdiff_t{head_dim} * kKvBlock);
    wide_v = take(std::ptrdiff_t{value_dim} * kKvBlock);
    sums = {nullptr, 0, take(kGroupRows), take(kGroupRows)};
    more = {take(std::ptrdiff_t{value_dim} * kGroupRows), value_dim, take(kGroupRows),
            take(kGroupRows)};
  }
};

std::size_t attention_scratch(int head_dim, int value_dim) {
  return static_cast<std::size_t>(kGroupRows * kSpanKeys + 4 * kGroupRows) +
         static_cast<std::size_t>(head_dim) * kKvBlock +
         static_cast<std::size_t>(value_dim) * (kKvBlock + kGroupRows);
}

// `n` elements (a multiple of kWidth) behind a block's scales as fp32: where they are, or in
// `wide`. Bytes are widened without their scales, which go to the scores and weights.
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

// A group of rows on its way through a segment.
struct AttentionState {
  const AttentionArgs& args;
  const AttentionScratch& scratch;
  int first_row;       // of the group
  AttentionPart part;  // of the group

  // Of `length` positions from `origin` on, those that a row sees.
  Visible visible(int row, std::int64_t origin, int length) const {
    const std::int64_t first = (args.first_key ? args.first_key[row] : 0) - origin;
    const std::int64_t end = args.last_key[row] - origin + 1;
    return {within(first, length), within(end, length)};
  }
  float* out(int row) const { return part.out + (row - first_row) * part.out_stride; }
  float* scores(int row) const {
    return scratch.scores + std::ptrdiff_t{row - first_row} * kSpanKeys;
  }
};

// The blocks of a span that some row sees: [begin, end).
struct Span {
  std::int64_t begin;
  std::int64_t end;
  const void* next;  // the K block that is read after them, or null
  bool first;        // of the segment

  std::int64_t origin() const { return begin / kSpanBlocks * kSpanKeys; }  // its first position
};

// Up to kTileRows adjacent rows that all see some of a span.
struct SpanTile {
  int row;
  int rows;
  Visible keys;  // that any of them sees

  // The vectors of a block's positions that hold such keys; `at`: of the block, in the span.
  Visible lanes(int at) const {
    const int begin = within(keys.begin - at, kKvBlock), end = within(keys.end - at, kKvBlock);
    return {begin / kWidth * kWidth, (end + kWidth - 1) / kWidth * kWidth};
  }
  // The same of the whole span.
  Visible lanes() const {
    return {keys.begin / kWidth * kWidth, (keys.end + kWidth - 1) / kWidth * kWidth};
  }
};

int tiles_of(const AttentionState& state, int first_row, int rows, std::int64_t origin,
             SpanTile* tiles) {
  int count = 0;
  for (int r = 0; r < rows;) {
    SpanTile tile{first_row + r, 0, {kSpanKeys, 0}};
    while (tile.rows < kTileRows && r + tile.rows < rows) {
      const Visible keys = state.visible(tile.row + tile.rows, origin, kSpanKeys);
      if (keys.empty()) break;
      tile.keys.begin = keys.begin < tile.keys.begin ? keys.begin : tile.keys.begin;
      tile.keys.end = keys.end > tile.keys.end ? keys.end : tile.keys.end;
      ++tile.rows;
    }
    if (tile.rows > 0) tiles[count++] = tile;
    r += tile.rows > 0 ? tile.rows : 1;
  }
  return count;
}

// Whether scores are products of queries and keys times a positive scale (that can be multiplied by
// log2 e) and nothing else: they then stay products until their weights are made.
inline bool plain(const AttentionArgs& args) {
  return args.scale > 0.0f && args.scale < 1e38f && args.softcap == 0.0f && args.bias == nullptr &&
         args.cache != CacheType::kI8;
}

// What the scores of a span, and `top` until the end of the segment, are to be multiplied by.
inline float score_unit(const AttentionArgs& args) {
  return plain(args) ? args.scale : 1.0f;
}

// One row's products: -inf where it does not see the key. Returns the largest.
inline float hide_row(Visible keys, Visible lanes, float* scores) {
  const Vec hidden = set(-kInfinity);
  Vec top = hidden;
  for (int j = lanes.begin; j < lanes.end; j += kWidth) {
    Vec s = load(scores + j);
    if (j < keys.begin || j + kWidth > keys.end) {
      s = select(lanes_between(keys.begin - j, keys.end - j), s, hidden);
      store(scores + j, s);
    }
    top = max(top, s);
  }
  return largest(top);
}

// One row's products as scores: scaled, capped, biased, and -inf where the row does not see the
// key. Returns the largest.
float score_row(const AttentionArgs& args, int row, std::int64_t origin, Visible keys,
                Visible lanes, float* scores) {
  const float* bias = args.bias ? args.bias + row * args.bias_stride + origin : nullptr;
  const Vec hidden = set(-kInfinity), scale = set(args.scale), cap = set(args.softcap);
  Vec top = hidden;
  for (int j = lanes.begin; j < lanes.end; j += kWidth) {
    const Mask seen = lanes_between(keys.begin - j, keys.end - j);
    Vec s = load(scores + j);
    if (args.cache == CacheType::kI8) {
      const void* block = args.k_blocks[(origin + j) / kKvBlock];
      s = s * load(static_cast<const float*>(block) + j % kKvBlock);
    }
    s = s * scale;
    if (args.softcap != 0.0f) s = cap * tanh(s / cap);
    if (bias) s = s + load(bias + j, seen);
    s = select(seen, s, hidden);
    store(scores + j, s);
    top = max(top, s);
  }
  return largest(top);
}

// 2^(distance · factor) for a score that is not above the shift, or NaN: 0 below 2^-126, which
// beside the largest weight of all, 1, would add nothing. It is the difference that is multiplied:
// it is 0 for the largest score, however large that is, and masks of -3.4e38 would become infinite.
inline Vec weight_of(Vec distance, Vec factor) {
  const Vec least = set(-126.0f), power = distance * factor;
  return select(power < least, zero(), exp2(max(least, power)));
}

// One row's scores as weights; returns their sum.
float weigh_row(const AttentionArgs& args, std::int64_t origin, Visible lanes, float factor,
                float shift, float* scores) {
  Vec sums = zero();
  for (int j = lanes.begin; j < lanes.end; j += kWidth) {
    const Vec weight = weight_of(load(scores + j) - set(shift), set(factor));
    sums = sums + weight;
    if (args.cache == CacheType::kI8) {
      const void* block = args.v_blocks[(origin + j) / kKvBlock];
      store(scores + j, weight * load(static_cast<const float*>(block) + j % kKvBlock));
    } else {
      store(scores + j, weight);
    }
  }
  return sum(sums);
}

// Turns the products of a tile's rows into weights, and rescales what the rows have so far. In
// steps over all rows, and not row by row: each step ends in a long chain of operations, and those
// of several rows overlap.
void weigh_tile(const AttentionState& state, const Span& span, const SpanTile& tile) {
  constexpr int kRows = (kTileRows + kWidth - 1) / kWidth * kWidth;
  float span_top[kRows], shift[kRows], shrink[kRows];
  const AttentionArgs& args = state.args;
  const std::int64_t origin = span.origin();
  const Visible lanes = tile.lanes();
  const bool products = plain(args);
  const float factor = score_unit(args) * 1.44269504f;  // log2 e
  float* top = state.part.top + (tile.row - state.first_row);
  float* total = state.part.total + (tile.row - state.first_row);
  for (int r = 0; r < tile.rows; ++r) {
    const int row = tile.row + r;
    const Visible keys = state.visible(row, origin, kSpanKeys);
    span_top[r] = products ? hide_row(keys, lanes, state.scores(row))
                           : score_row(args, row, origin, keys, lanes, state.scores(row));
  }
  for_vectors(tile.rows, [&](std::int64_t i, auto part) {
    const Vec before = load(top + i, part), here = load(span_top + i, part);
    const Vec now = select(before < here, here, before);
    // While every key is hidden by a bias of -inf, 0 stands in, so that their weights are 0.
    const Vec offset = select(now == set(-kInfinity), zero(), now);
    store(top + i, now, part);
    store(shift + i, offset, part);
    store(shrink + i, weight_of(before - offset, set(factor)), part);
  });
  for (int r = 0; r < tile.rows; ++r) {
    const float weights =
        weigh_row(args, origin, lanes, factor, shift[r], state.scores(tile.row + r));
    total[r] = total[r] * shrink[r] + weights;
  }
  if (span.first) return;  // zeros so far
  for (int r = 0; r < tile.rows; ++r) {
    if (shrink[r] == 1.0f) continue;
    float* out = state.out(tile.row + r);
    map(out, args.value_dim, out, [&](Vec v) { return v * set(shrink[r]); });
  }
}

// Whether blocks come from memory, as they are: few rows make one pass over them.
inline bool streams(const AttentionArgs& args) {
  return args.rows <= kTileRows && args.cache == CacheType::kF32;
}

inline void multiply_block(const AttentionArgs& args, int rows, const Product& p) {
  if (streams(args)) {
    product<true>(rows, p);
  } else {
    product<false>(rows, p);
  }
}

// Tiles that fetch a block while they pass over another, a line a step: about as much as one of 64
// dimensions. What lies behind a smaller one is fetched for nothing.
constexpr int kFetchingTiles = kKvBlock / kFloatsPerLine;

// What tile `i` fetches while it passes over a K block. The first ones bring what is read next: the
// following K block, at last the first V block. Those after them bring the V block of the same
// positions: values of fp32 pass span by span, and fetch no more than the block behind it.
inline const float* fetched_by(int i, const AttentionArgs& args, const Span& span,
                               std::int64_t block) {
  if (i >= 2 * kFetchingTiles) return nullptr;
  const void* next = i >= kFetchingTiles    ? args.v_blocks[block]
                     : block + 1 < span.end ? args.k_blocks[block + 1]
                                            : args.v_blocks[span.begin];
  return static_cast<const float*>(next) +
         std::ptrdiff_t{i % kFetchingTiles} * args.head_dim * kFloatsPerLine;
}

// Adds the values of blocks [begin, end), which are in fp32, to the output of a tile's rows. next:
// see ValueRun. stream: the blocks come from memory.
void add_blocks(const AttentionState& state, const SpanTile& tile, std::int64_t begin,
                std::int64_t end, const float* const* blocks, const float* next, bool stream) {
  const AttentionArgs& args = state.args;
  const std::int64_t origin = begin * kKvBlock;
  Visible keys[kTileRows];
  for (int r = 0; r < tile.rows; ++r) {
    keys[r] = state.visible(tile.row + r, origin, static_cast<int>((end - begin) * kKvBlock));
  }
  const ValueRun run{.weights = state.scores(tile.row) + origin % kSpanKeys,
                     .weights_stride = kSpanKeys,
                     .blocks = blocks,
                     .dim = args.value_dim,
                     .out = state.out(tile.row),
                     .out_stride = state.part.out_stride,
                     .keys = keys,
                     .next = next};
  if (stream) {
    add_values<true>(tile.rows, run);
  } else {
    add_values<false>(tile.rows, run);
  }
}

// Rows [first_row, first_row + rows) <= kGroupRows and one span.
void attend_span(const AttentionState& state, int first_row, int rows, const Span& span) {
  const AttentionArgs& args = state.args;
  const AttentionScratch& scratch = state.scratch;
  const std::int64_t origin = span.origin();
  SpanTile tiles[kGroupRows];
  const int count = tiles_of(state, first_row, rows, origin, tiles);
  for (std::int64_t block = span.begin; block < span.end; ++block) {
    const int at = static_cast<int>(block * kKvBlock - origin);
    const float* k = widen_block(args.cache, args.k_blocks[block],
                                 std::int64_t{args.head_dim} * kKvBlock, scratch.wide_k);
    for (int i = 0; i < count; ++i) {
      const Visible lanes = tiles[i].lanes(at);
      if (lanes.empty()) continue;
      multiply_block(args, tiles[i].rows,
                     {.a = args.q + tiles[i].row * args.q_stride,
                      .a_stride = args.q_stride,
                      .k = args.head_dim,
                      .b = k + lanes.begin,
                      .b_stride = kKvBlock,
                      .columns = lanes.end - lanes.begin,
                      .c = state.scores(tiles[i].row) + at + lanes.begin,
                      .c_stride = kSpanKeys,
                      .accumulate = false,
                      .next = fetched_by(i, args, span, block)});
    }
  }
  for (int i = 0; i < count; ++i) weigh_tile(state, span, tiles[i]);
  // Blocks that are there in fp32 pass together, others one by one through the scratch.
  const bool wide = args.cache == CacheType::kF32, few = count <= kFetchingTiles;
  const std::int64_t together = wide ? kSpanBlocks : 1;
  for (std::int64_t begin = span.begin; begin < span.end; begin += together) {
    const std::int64_t end = begin + together < span.end ? begin + together : span.end;
    const void* next = end < span.end ? args.v_blocks[end] : span.next;
    // What each tile fetches of it: a line for each position.
    const std::ptrdiff_t share = (end - begin) * kKvBlock * kFloatsPerLine;
    const std::int64_t floats = cache_block_bytes(args.cache, args.value_dim) / 4;
    const float* blocks[kSpanBlocks];
    for (std::int64_t block = begin; block < end; ++block) {
      blocks[block - begin] = widen_block(args.cache, args.v_blocks[block],
                                          std::int64_t{args.value_dim} * kKvBlock, scratch.wide_v);
    }
    for (int i = 0; i < count; ++i) {
      const bool fetches = next != nullptr && i * share < floats;
      add_blocks(state, tiles[i], begin, end, blocks,
                 fetches ? static_cast<const float*>(next) + i * share : nullptr,
                 wide && few && i == 0);
    }
  }
}

// Rows [first_row, first_row + rows) <= kGroupRows and one segment.
void attend_segment(const AttentionArgs& args, const AttentionScratch& scratch, int first_row,
                    int rows, std::int64_t segment, const AttentionPart& part) {
  const AttentionState state{args, scratch, first_row, part};
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
  for (bool first = true; block < end; first = false) {
    const std::int64_t behind = (block / kSpanBlocks + 1) * kSpanBlocks;
    const std::int64_t span_end = behind < end ? behind : end;
    const void* next = span_end < end ? args.k_blocks[span_end] : args.next_block;
    attend_span(state, first_row, rows, {block, span_end, next, first});
    block = span_end;
  }
  for (int r = 0; r < rows; ++r) part.top[r] *= score_unit(args);
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

// The same of fp32 where a dimension's positions are adjacent, by squares in registers as far as
// they reach.
inline void store_columns(const float* x, std::ptrdiff_t stride, int count, int dim,
                          BlockOrder order, float* to) {
  const int positions = count / kWidth * kWidth, dims = dim / kWidth * kWidth;
  for (int p = 0; p < positions; p += kWidth) {
    for (int d = 0; d < dims; d += kWidth) {
      Vec square[kWidth];
#pragma GCC unroll 16
      for (int i = 0; i < kWidth; ++i) square[i] = load(x + (p + i) * stride + d);
      transpose(square);
#pragma GCC unroll 16
      for (int i = 0; i < kWidth; ++i) store(to + (d + i) * order.dim_stride + p, square[i]);
    }
  }
  const auto same = [](float v, int) { return v; };
  store_elements(x + dims, stride, positions, dim - dims, order, to + dims * order.dim_stride,
                 same);
  store_elements(x + positions * stride, stride, count - positions, dim, order, to + positions,
                 same);
}

inline void store_block(CacheType type, const float* x, std::ptrdiff_t stride, int count, int dim,
                        int slot, BlockOrder order, void* block) {
  auto* data = static_cast<std::uint8_t*>(block) + cache_scale_bytes(type) +
               slot * order.position_stride * cache_element_bytes(type);
  switch (type) {
    case CacheType::kF32:
      if (order.position_stride == 1) {
        return store_columns(x, stride, count, dim, order, reinterpret_cast<float*>(data));
      }
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
