#include "ops/row_weights.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <limits>

#include "base/aligned_buffer.h"

namespace kvik::ops {

namespace {

// The kernels give Σ_j e^(s_j - top) · v_j, where s_j are the scores, of the keys that a row is let
// see. Shown one block of keys at a time, whose values are the unit vectors, they give the terms of
// the sum one by one, whatever the instruction set and the precision of the cache. What each block
// was divided by is put right once the largest score of all is known.
constexpr int kUnit = kernels::kKvBlock;  // elements of a value
constexpr int kRecordTile = 48;           // queries of one head that share a pass over the keys

constexpr std::size_t kFloatsOfLine = kAlignment / sizeof(float);

std::size_t whole_lines(std::size_t floats) {
  return (floats + kFloatsOfLine - 1) / kFloatsOfLine * kFloatsOfLine;
}

// Value block [kKvBlock, kUnit] whose row j is the j-th unit vector.
void fill_unit_values(CacheType type, void* block) {
  const auto bytes = static_cast<std::size_t>(kernels::cache_block_bytes(type, kUnit));
  std::fill_n(static_cast<std::uint8_t*>(block), bytes, std::uint8_t{0});
  if (type == CacheType::kI8) std::fill_n(static_cast<float*>(block), kernels::kKvBlock, 1.0F);
  auto* data = static_cast<std::uint8_t*>(block) + kernels::cache_scale_bytes(type);
  for (int j = 0; j < kUnit; ++j) {
    const int at = j * kUnit + j;
    switch (type) {
      case CacheType::kF32: reinterpret_cast<float*>(data)[at] = 1.0F; break;
      case CacheType::kBF16: reinterpret_cast<std::uint16_t*>(data)[at] = 0x3f80; break;
      case CacheType::kI8: data[at] = 1; break;
    }
  }
}

// Queries [first, first + count) of the run, of one head.
struct RecordTile {
  int head;
  std::int64_t first;
  int count;
};

class RowRecorder {
 public:
  RowRecorder(OpContext& context, const RowWeights& of, const RowRun& run,
              const AttentionRecord& record)
      : context_(context), of_(of), run_(run), record_(record), tables_(of.keys.tables(run)) {
    blocks_ = (of.keys.last(run, run.rows - 1)) / kernels::kKvBlock + 1;
  }

  void record();

 private:
  // A worker's own memory. In floats.
  struct Part {
    float* kernel;  // attention_scratch(head_dim, kUnit)
    float* bias;    // [kRecordTile, blocks · kKvBlock], if there is a bias
    void* program;  // the bias program's
    float* terms;   // [kRecordTile, kUnit]: e^(s - top of the block)
    float* tops;    // [blocks, kRecordTile]
    float* totals;  // [blocks, kRecordTile]
  };

  std::array<std::size_t, 6> sizes() const;
  Part part_of(float* memory) const;
  void record_tile(const RecordTile& tile, const Part& part) const;
  void record_block(const RecordTile& tile, std::int64_t block, const Part& part) const;
  void divide(const RecordTile& tile, const Part& part) const;
  float* row(const RecordTile& tile, int i) const {
    const std::int64_t query = run_.first_position + tile.first + i;
    return record_.weights + (tile.head * record_.queries + query) * record_.keys;
  }

  OpContext& context_;
  const RowWeights& of_;
  const RowRun& run_;
  const AttentionRecord& record_;
  const KvTables& tables_;
  std::int64_t blocks_ = 0;  // that some query sees
  const void** values_ = nullptr;
};

std::array<std::size_t, 6> RowRecorder::sizes() const {
  const auto blocks = static_cast<std::size_t>(blocks_);
  const bool biased = of_.keys.biased();
  return {whole_lines(context_.kernels().attention_scratch(of_.attention.head_dim, kUnit)),
          biased ? kRecordTile * blocks * kernels::kKvBlock : 0,
          biased ? whole_lines(of_.keys.scratch_bytes() / sizeof(float) + 1) : 0,
          std::size_t{kRecordTile} * kUnit,
          kRecordTile * blocks,
          kRecordTile * blocks};
}

RowRecorder::Part RowRecorder::part_of(float* memory) const {
  const std::array<std::size_t, 6> size = sizes();
  std::array<float*, 6> at{};
  for (std::size_t i = 0; i < size.size(); ++i) {
    at[i] = memory;
    memory += size[i];
  }
  return {at[0], at[1], at[2], at[3], at[4], at[5]};
}

void RowRecorder::record() {
  std::size_t each = 0;
  for (const std::size_t floats : sizes()) each += floats;
  const auto threads = static_cast<std::size_t>(context_.pool().threads());
  const auto unit = static_cast<std::size_t>(kernels::cache_block_bytes(CacheType::kF32, kUnit));
  const std::size_t pointers =
      whole_lines(static_cast<std::size_t>(blocks_) * sizeof(void*) / sizeof(float) + 1);
  auto* memory =
      static_cast<float*>(context_.workspace(unit + (pointers + each * threads) * sizeof(float)));
  fill_unit_values(tables_.cache, memory);
  values_ = reinterpret_cast<const void**>(memory + unit / sizeof(float));
  std::fill_n(values_, blocks_, static_cast<const void*>(memory));
  float* const parts = memory + unit / sizeof(float) + pointers;

  const std::int64_t tiles = (run_.rows + kRecordTile - 1) / kRecordTile;
  const std::int64_t units = tiles * of_.attention.heads;
  std::atomic<std::int64_t> next{0};
  context_.pool().run([&](int worker, int) {
    const Part part = part_of(parts + each * static_cast<std::size_t>(worker));
    for (std::int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < units;) {
      const std::int64_t first = i / of_.attention.heads * kRecordTile;
      record_tile(
          {.head = static_cast<int>(i % of_.attention.heads),
           .first = first,
           .count = static_cast<int>(std::min<std::int64_t>(kRecordTile, run_.rows - first))},
          part);
    }
  });
}

void RowRecorder::record_tile(const RecordTile& tile, const Part& part) const {
  for (std::int64_t block = 0; block < blocks_; ++block) record_block(tile, block, part);
  divide(tile, part);
}

void RowRecorder::record_block(const RecordTile& tile, std::int64_t block, const Part& part) const {
  const graph::RowAttention& a = of_.attention;
  const std::int64_t begin = block * kernels::kKvBlock, end = begin + kernels::kKvBlock;
  const std::int64_t stride = blocks_ * kernels::kKvBlock;
  const std::int64_t table = of_.first_table + tile.head / (a.heads / a.kv_heads);
  std::array<std::int64_t, kRecordTile> first_key{}, last_key{};
  for (int i = 0; i < tile.count; ++i) {
    const auto at = static_cast<std::size_t>(i);
    first_key[at] = std::max(of_.keys.first(run_, tile.first + i), begin);
    last_key[at] = std::min(of_.keys.last(run_, tile.first + i), end - 1);
    if (of_.keys.biased()) {
      of_.keys.fill_bias(tile.head, run_.first_position + tile.first + i, first_key[at],
                         last_key[at], part.program, part.bias + i * stride);
    }
  }
  kernels::AttentionArgs args{};
  args.q = of_.q + tile.first * of_.q_stride + std::int64_t{tile.head} * a.head_dim;
  args.q_stride = of_.q_stride;
  args.rows = tile.count;
  args.head_dim = a.head_dim;
  args.value_dim = kUnit;
  args.cache = tables_.cache;
  args.k_blocks = tables_.k_blocks(table);
  args.v_blocks = values_;
  args.first_key = first_key.data();
  args.last_key = last_key.data();
  args.scale = a.scale;
  args.softcap = a.softcap;
  args.bias = of_.keys.biased() ? part.bias : nullptr;
  args.bias_stride = stride;
  args.scratch = part.kernel;
  context_.kernels().attention_part_f32(
      args, begin / kernels::kKvSegment,
      {part.terms, kUnit, part.tops + block * kRecordTile, part.totals + block * kRecordTile});
  for (int i = 0; i < tile.count; ++i) {
    const auto at = static_cast<std::size_t>(i);
    for (std::int64_t key = first_key[at]; key <= last_key[at]; ++key) {
      row(tile, i)[key] = part.terms[i * kUnit + key - begin];
    }
  }
}

// From e^(s - top of the block) to e^(s - top) / Σ e^(s - top).
void RowRecorder::divide(const RecordTile& tile, const Part& part) const {
  for (int i = 0; i < tile.count; ++i) {
    double top = -std::numeric_limits<double>::infinity(), total = 0.0;
    for (std::int64_t b = 0; b < blocks_; ++b) {
      top = std::max(top, static_cast<double>(part.tops[b * kRecordTile + i]));
    }
    const auto shrink = [&](std::int64_t b) {
      return std::exp(static_cast<double>(part.tops[b * kRecordTile + i]) - top);
    };
    for (std::int64_t b = 0; b < blocks_; ++b) {
      const float own = part.totals[b * kRecordTile + i];
      if (own != 0.0F) total += static_cast<double>(own) * shrink(b);
    }
    if (total == 0.0) continue;  // every key is hidden: zeros already
    const std::int64_t first = of_.keys.first(run_, tile.first + i);
    const std::int64_t last = of_.keys.last(run_, tile.first + i);
    for (std::int64_t key = first; key <= last;) {
      const std::int64_t block = key / kernels::kKvBlock;
      const double factor =
          part.totals[block * kRecordTile + i] == 0.0F ? 0.0 : shrink(block) / total;
      const std::int64_t end = std::min(last + 1, (block + 1) * kernels::kKvBlock);
      for (; key < end; ++key) {
        float& weight = row(tile, i)[key];
        weight = static_cast<float>(static_cast<double>(weight) * factor);
      }
    }
  }
}

}  // namespace

void record_weights(OpContext& context, const RowWeights& of, const RowRun& run,
                    const AttentionRecord& record) {
  RowRecorder(context, of, run, record).record();
}

}  // namespace kvik::ops
