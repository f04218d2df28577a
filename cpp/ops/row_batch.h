// The rows that a row program runs on, as the operators with a sequence state see them.
#pragma once

#include <cstdint>
#include <span>

#include "kernels/kernels.h"
#include "kvik/cache_type.h"

namespace kvik::ops {

// Key and value blocks of one sequence, for kernels::AttentionArgs: table t holds the pointers to
// the blocks of one (layer, key/value head), block b covering the positions [b·kKvBlock,
// (b+1)·kKvBlock). Keys at tables + 2·t·stride, values at + (2·t + 1)·stride.
struct KvTables {
  void* const* tables = nullptr;
  std::int64_t stride = 0;
  CacheType cache = CacheType::kF32;  // what the blocks hold

  void* const* k_blocks(std::int64_t table) const { return tables + 2 * table * stride; }
  void* const* v_blocks(std::int64_t table) const { return tables + (2 * table + 1) * stride; }

  // Of a table that holds the state of a recurrent layer instead: what it is after `position`,
  // `width` floats.
  float* state(std::int64_t table, std::int64_t position, std::int64_t width) const {
    void* block = v_blocks(table)[position / kernels::kKvBlock];
    return static_cast<float*>(block) + position % kernels::kKvBlock * width;
  }
};

// Adjacent rows of the batch that are adjacent tokens of one sequence: row first_row + i holds the
// token at position first_position + i. Of a sequence that is read as a whole: all of its tokens.
struct RowRun {
  std::int64_t first_row = 0;
  std::int64_t rows = 0;
  std::int64_t first_position = 0;
  // The sequence's own. Blocks up to the last row's position are there and may be written at the
  // run's positions.
  KvTables keys;
  // Those of its source, all written, where an attention reads one.
  KvTables source;
  std::int64_t source_length = 0;
  // The states that recurrent layers begin with where the source gives them.
  const float* source_states = nullptr;
};

struct RowBatch {
  std::span<const RowRun> runs;  // in the order of their rows; they cover the batch
  std::int64_t rows = 0;
  // The first table of each attention layer, of the sequence's own or of its source; its key/value
  // heads follow. Then the table of each recurrent layer that keeps its states.
  std::span<const std::int64_t> layer_tables;
};

}  // namespace kvik::ops
