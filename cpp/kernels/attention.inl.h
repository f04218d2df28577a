// Attention over a blocked key/value cache with online softmax. Include a vec_*.h, math.inl.h,
// elementwise.inl.h and product.inl.h first.
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

std::size_t attention_scratch(int /*rows*/, int /*value_dim*/) {
  return kTileRows * kKvBlock + 2 * kGroupRows;
}

// Keys of one block that a row sees: [begin, end) within the block.
struct Visible {
  int begin;
  int end;
  bool empty() const { return begin >= end; }
};

inline int within_block(std::int64_t key) {
  return key < 0 ? 0 : key < kKvBlock ? static_cast<int>(key) : kKvBlock;
}

// The running state of a group of rows; the sums themselves are in args.out.
struct AttentionState {
  const AttentionArgs& args;
  float* scores;  // [kTileRows, kKvBlock]: scores, then weights
  float* top;     // [kGroupRows]: the largest score so far
  float* total;   // [kGroupRows]: the sum of the weights so far
  int first_row;  // of the group

  Visible visible(int row, std::int64_t block) const {
    const std::int64_t origin = block * kKvBlock;
    const std::int64_t first = (args.first_key ? args.first_key[row] : 0) - origin;
    const std::int64_t end = args.last_key[row] - origin + 1;
    return {within_block(first), within_block(end)};
  }
};

// Turns one row's products into weights, and rescales what the row has so far.
void weigh_row(const AttentionState& state, int row, std::int64_t block, Visible keys,
               float* scores) {
  const AttentionArgs& args = state.args;
  const float* bias = args.bias ? args.bias + row * args.bias_stride + block * kKvBlock : nullptr;
  const Vec hidden = set(-kInfinity);
  const Vec scale = set(args.scale);
  Vec top_lanes = hidden;
  for (int j = 0; j < kKvBlock; j += kWidth) {
    const Mask seen = lanes_between(keys.begin - j, keys.end - j);
    Vec s = load(scores + j) * scale;
    if (args.softcap != 0.0f) {
      const Vec cap = set(args.softcap);
      s = cap * tanh(s / cap);
    }
    if (bias) s = s + load(bias + j, seen);
    s = select(seen, s, hidden);
    store(scores + j, s);
    top_lanes = max(top_lanes, s);
  }
  float& top = state.top[row - state.first_row];
  float& total = state.total[row - state.first_row];
  const float block_top = largest(top_lanes);
  const float new_top = block_top > top ? block_top : top;
  // While every key is hidden by a bias of -inf, 0 stands in, so that their weights are 0.
  const Vec shift = set(new_top == -kInfinity ? 0.0f : new_top);
  Vec sums = zero();
  for (int j = 0; j < kKvBlock; j += kWidth) {
    const Vec weight = exp(load(scores + j) - shift);
    store(scores + j, weight);
    sums = sums + weight;
  }
  const Vec shrink = exp(set(top) - shift);
  top = new_top;
  total = total * first(shrink) + sum(sums);
  if (first(shrink) != 1.0f) {
    float* out = args.out + row * args.out_stride;
    map(out, args.value_dim, out, [&](Vec v) { return v * shrink; });
  }
}

// Adds weights · values of the keys in `keys` to `rows` rows of the output.
void add_values(const AttentionState& state, int row, int rows, const float* v_block, Visible keys,
                const float* weights) {
  if (keys.empty()) return;
  const AttentionArgs& args = state.args;
  product<false>(rows, {.a = weights + keys.begin,
                        .a_stride = kKvBlock,
                        .k = keys.end - keys.begin,
                        .b = v_block + static_cast<std::ptrdiff_t>(keys.begin) * args.value_dim,
                        .b_stride = args.value_dim,
                        .columns = args.value_dim,
                        .c = args.out + row * args.out_stride,
                        .c_stride = args.out_stride,
                        .accumulate = true});
}

// One block for `rows` <= kTileRows adjacent rows that all see some of it.
void attend_tile(const AttentionState& state, int row, int rows, std::int64_t block,
                 const Visible* keys) {
  const AttentionArgs& args = state.args;
  const float* v_block = args.v_blocks[block];
  product<false>(rows, {.a = args.q + row * args.q_stride,
                        .a_stride = args.q_stride,
                        .k = args.head_dim,
                        .b = args.k_blocks[block],
                        .b_stride = kKvBlock,
                        .columns = kKvBlock,
                        .c = state.scores,
                        .c_stride = kKvBlock,
                        .accumulate = false});
  Visible shared{0, kKvBlock};
  for (int r = 0; r < rows; ++r) {
    weigh_row(state, row + r, block, keys[r], state.scores + r * kKvBlock);
    shared.begin = keys[r].begin > shared.begin ? keys[r].begin : shared.begin;
    shared.end = keys[r].end < shared.end ? keys[r].end : shared.end;
  }
  if (shared.empty()) shared = {kKvBlock, kKvBlock};  // each row by itself
  for (int r = 0; r < rows; ++r) {
    const Visible before{keys[r].begin, keys[r].end < shared.begin ? keys[r].end : shared.begin};
    add_values(state, row + r, 1, v_block, before, state.scores + r * kKvBlock);
  }
  add_values(state, row, rows, v_block, shared, state.scores);
  for (int r = 0; r < rows; ++r) {
    const Visible after{shared.end, keys[r].end};
    add_values(state, row + r, 1, v_block, after, state.scores + r * kKvBlock);
  }
}

void attend_group(const AttentionState& state, int rows) {
  const AttentionArgs& args = state.args;
  const int first_row = state.first_row;
  std::int64_t first_key = INT64_MAX, last_key = -1;
  for (int r = 0; r < rows; ++r) {
    const std::int64_t first = args.first_key ? args.first_key[first_row + r] : 0;
    const std::int64_t last = args.last_key[first_row + r];
    if (first <= last) {
      first_key = first < first_key ? first : first_key;
      last_key = last > last_key ? last : last_key;
    }
    state.top[r] = -kInfinity;
    state.total[r] = 0.0f;
    float* out = args.out + (first_row + r) * args.out_stride;
    map(out, args.value_dim, out, [](Vec) { return zero(); });
  }
  if (last_key < 0) return;
  for (std::int64_t block = first_key / kKvBlock; block <= last_key / kKvBlock; ++block) {
    for (int r = 0; r < rows;) {
      Visible keys[kTileRows];
      int tile = 0;
      while (tile < kTileRows && r + tile < rows) {
        keys[tile] = state.visible(first_row + r + tile, block);
        if (keys[tile].empty()) break;
        ++tile;
      }
      if (tile > 0) attend_tile(state, first_row + r, tile, block, keys);
      r += tile > 0 ? tile : 1;
    }
  }
  for (int r = 0; r < rows; ++r) {
    if (state.total[r] == 0.0f) continue;  // nothing visible: zeros already
    float* out = args.out + (first_row + r) * args.out_stride;
    const Vec total = set(state.total[r]);
    map(out, args.value_dim, out, [&](Vec v) { return v / total; });
  }
}

void attention_f32(const AttentionArgs& args) {
  float* top = args.scratch + kTileRows * kKvBlock;
  for (int row = 0; row < args.rows; row += kGroupRows) {
    const AttentionState state{args, args.scratch, top, top + kGroupRows, row};
    attend_group(state, args.rows - row < kGroupRows ? args.rows - row : kGroupRows);
  }
}

void store_kv_f32(const float* k, int head_dim, const float* v, int value_dim, int slot,
                  float* k_block, float* v_block) {
  for (int d = 0; d < head_dim; ++d) k_block[d * kKvBlock + slot] = k[d];
  map(v, value_dim, v_block + static_cast<std::ptrdiff_t>(slot) * value_dim,
      [](Vec a) { return a; });
}

}  // namespace
}  // namespace kvik::kernels
