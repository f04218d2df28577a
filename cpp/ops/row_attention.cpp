#include "ops/row_attention.h"

#include <algorithm>
#include <array>
#include <string>
#include <vector>

#include "base/aligned_buffer.h"
#include "ops/row_batch.h"
#include "ops/row_keys.h"
#include "ops/row_weights.h"

namespace kvik::ops {

namespace {

// Queries of one head that share a pass over the keys: whole tiles of the kernels (of 4, 6 or 12
// rows), whose outputs stay in L2 beside the blocks.
constexpr int kQueryTile = 48;

// Below this many multiply-adds a call is shorter than waking the other threads.
constexpr double kSerialWork = 1 << 15;

std::size_t round_up(std::size_t value, std::size_t unit) {
  return (value + unit - 1) / unit * unit;
}

// One unit of work: the queries [first, first + count) of a run, for one key/value head.
struct Tile {
  const RowRun* run;
  int kv_head;
  std::int64_t first;
  int count;
};

// A part of one: the keys of a segment, and where their sums go.
struct Segment {
  std::int64_t index;
  kernels::AttentionPart part;
};

class RowAttentionKernel : public OpKernel {
 public:
  RowAttentionKernel(const graph::RowAttention& attention, const NodeInfo& info, int layer)
      : a_(attention),
        keys_(attention),
        layer_(layer),
        group_(attention.heads / attention.kv_heads) {
    const auto& shape = *info.graph.value(info.node.output(0)).shape;
    for (const graph::Expr& dim : shape) out_dims_.push_back(dim.constant().value_or(-1));
  }

  bool accepts_strided(int i) const override { return i < 3; }
  void run(OpContext& context) const override;
  OpCost cost(const OpContext& context) const override;
  OpDescription describe() const override;

 private:
  struct Operand {
    const float* data = nullptr;
    std::int64_t stride = 0;  // elements between rows
  };
  struct Rows {
    Operand q;   // [rows, heads · head_dim]
    Operand k;   // [rows, kv_heads · head_dim]
    Operand v;   // [rows, kv_heads · value_dim]
    float* out;  // [rows, heads · value_dim]
  };
  // A worker's own part of the workspace, and how it is divided. In floats.
  struct Scratch {
    float* kernel;  // attention_scratch(head_dim, value_dim)
    float* bias;    // [rows of a tile, max_keys], if there is a bias
    void* program;  // the bias program's
    std::int64_t max_keys;
  };
  struct ScratchSizes {
    std::size_t kernel, bias, program;
    std::size_t total() const { return kernel + bias + program; }
  };
  ScratchSizes scratch_sizes(const kernels::KernelTable& kernels, std::int64_t rows,
                             std::int64_t max_keys) const;

  Rows rows_of(OpContext& context, const RowBatch& batch) const;
  // One call of run(), and what its parts need of it.
  struct Call {
    const kernels::KernelTable& kernels;
    const RowBatch& batch;
    Rows rows;
    std::int64_t first_table;  // of this layer
    std::int64_t max_keys;
    ThreadPool& pool;
    bool alone;          // too little for more than the calling thread
    float* memory;       // the workspace: what the workers share, then what each has for itself
    std::size_t shared;  // floats of the former
    ScratchSizes sizes;  // of the latter
  };
  void store(const Call& call, const RowRun& run, int kv_head) const;
  void attend(const Call& call, const Tile& tile, const Scratch& scratch,
              const Segment* segment = nullptr, const void* next_block = nullptr) const;
  std::int64_t first_segment(const RowRun& run) const;
  std::int64_t segments_of(const RowRun& run) const;
  std::int64_t segments_to_share(const RowBatch& batch, int threads) const;
  std::size_t part_out_floats() const;
  std::size_t part_floats() const;
  template <typename Body>
  void for_each(const Call& call, std::int64_t units, Body body, std::int64_t each = 1) const;
  void run_whole(const Call& call, bool one_tile_each) const;
  void run_segments(const Call& call, std::int64_t segments) const;
  void record(OpContext& context, const Call& call) const;
  double work(const RowBatch& batch) const;

  graph::RowAttention a_;
  RowKeys keys_;
  int layer_;
  int group_;      // query heads that share a key/value head
  Dims out_dims_;  // -1: rows
};

RowAttentionKernel::Rows RowAttentionKernel::rows_of(OpContext& context,
                                                     const RowBatch& batch) const {
  const std::int64_t features[] = {std::int64_t{a_.heads} * a_.head_dim,
                                   std::int64_t{a_.kv_heads} * a_.head_dim,
                                   std::int64_t{a_.kv_heads} * a_.value_dim};
  const int inputs = keys_.from_source() ? 1 : 3;
  for (int i = 0; i < inputs; ++i) {
    const Tensor& input = context.input(i);
    if (input.dtype != DType::kF32 || input.elements() != batch.rows * features[i]) {
      fail(ErrorCode::kInvalidModel,
           std::string("input ") + "QKV"[i] + " is " + dtype_name(input.dtype) + input.dims.str() +
               "; expected float32 of " + std::to_string(features[i]) + " elements a row");
    }
  }
  Dims dims = out_dims_;
  for (int i = 0; i < dims.rank; ++i) {
    if (dims[i] < 0) dims[i] = batch.rows;
  }
  const auto operand = [&](int i) -> Operand {
    if (i >= inputs) return {};
    const Tensor& input = context.input(i);
    return {input.as<const float>(), input.contiguous() ? features[i] : input.row_stride};
  };
  return {.q = operand(0),
          .k = operand(1),
          .v = operand(2),
          .out = context.output(0, DType::kF32, dims).as<float>()};
}

// Multiply-adds of the whole call, nearly.
double RowAttentionKernel::work(const RowBatch& batch) const {
  double keys = 0;
  for (const RowRun& run : batch.runs) {
    const auto ends = static_cast<double>(keys_.seen(run, 0) + keys_.seen(run, run.rows - 1));
    keys += static_cast<double>(run.rows) * ends / 2;
  }
  return keys * a_.heads * (a_.head_dim + a_.value_dim);
}

void RowAttentionKernel::store(const Call& call, const RowRun& run, int kv_head) const {
  if (keys_.from_source()) return;
  const Operand &k = call.rows.k, &v = call.rows.v;
  store_rows(call.kernels, run.keys, call.first_table + kv_head,
             {.k = k.data + run.first_row * k.stride + std::int64_t{kv_head} * a_.head_dim,
              .k_stride = k.stride,
              .v = v.data + run.first_row * v.stride + std::int64_t{kv_head} * a_.value_dim,
              .v_stride = v.stride,
              .head_dim = a_.head_dim,
              .value_dim = a_.value_dim,
              .rows = run.rows,
              .first_position = run.first_position});
}

void RowAttentionKernel::attend(const Call& call, const Tile& tile, const Scratch& scratch,
                                const Segment* segment, const void* next_block) const {
  std::array<std::int64_t, kQueryTile> first_key{};
  std::array<std::int64_t, kQueryTile> last_key{};
  const std::int64_t table = call.first_table + tile.kv_head;
  const std::int64_t row = tile.run->first_row + tile.first;
  const std::int64_t position = tile.run->first_position + tile.first;
  const std::int64_t q_row = call.rows.q.stride;
  const std::int64_t out_row = std::int64_t{a_.heads} * a_.value_dim;
  kernels::AttentionArgs args{};
  args.head_dim = a_.head_dim;
  args.value_dim = a_.value_dim;
  const KvTables& tables = keys_.tables(*tile.run);
  args.cache = tables.cache;
  args.k_blocks = tables.k_blocks(table);
  args.v_blocks = tables.v_blocks(table);
  args.first_key = keys_.windowed() ? first_key.data() : nullptr;
  args.last_key = last_key.data();
  args.scale = a_.scale;
  args.softcap = a_.softcap;
  args.scratch = scratch.kernel;
  args.next_block = next_block;
  const std::int64_t run_begin = tile.run->first_position;
  const auto see = [&](int i, std::int64_t p) {
    if (keys_.windowed()) {
      first_key[static_cast<std::size_t>(i)] = keys_.first(*tile.run, p - run_begin);
    }
    last_key[static_cast<std::size_t>(i)] = keys_.last(*tile.run, p - run_begin);
  };
  // One query: the heads of the group are the rows of the call, so that they share one pass over
  // the keys. Several queries: they share the pass, and each head makes its own.
  const bool by_head = tile.count == 1 && group_ <= kQueryTile;
  const int calls = by_head ? 1 : group_;
  args.rows = by_head ? group_ : tile.count;
  args.q_stride = by_head ? a_.head_dim : q_row;
  args.out_stride = by_head ? a_.value_dim : out_row;
  args.bias = keys_.biased() ? scratch.bias : nullptr;
  args.bias_stride = scratch.max_keys;
  for (int i = 0; i < args.rows; ++i) see(i, by_head ? position : position + i);
  for (int c = 0; c < calls; ++c) {
    const std::int64_t head = std::int64_t{tile.kv_head} * group_ + c;
    const bool fill = keys_.biased() && (c == 0 || keys_.biased_by_head());
    for (int i = 0; fill && i < args.rows; ++i) {
      const auto at = static_cast<std::size_t>(i);
      std::int64_t first = first_key[at], last = last_key[at];
      if (segment != nullptr) {
        first = std::max(first, segment->index * kernels::kKvSegment);
        last = std::min(last, (segment->index + 1) * kernels::kKvSegment - 1);
      }
      keys_.fill_bias(by_head ? head + i : head, by_head ? position : position + i, first, last,
                      scratch.program, scratch.bias + i * scratch.max_keys);
    }
    args.q = call.rows.q.data + row * q_row + head * a_.head_dim;
    args.out = call.rows.out + row * out_row + head * a_.value_dim;
    if (segment != nullptr) {
      call.kernels.attention_part_f32(args, segment->index, segment->part);
    } else {
      call.kernels.attention_f32(args);
    }
  }
}

RowAttentionKernel::ScratchSizes RowAttentionKernel::scratch_sizes(
    const kernels::KernelTable& kernels, std::int64_t rows, std::int64_t max_keys) const {
  constexpr std::size_t unit = kAlignment / sizeof(float);
  ScratchSizes sizes{};
  sizes.kernel = round_up(kernels.attention_scratch(a_.head_dim, a_.value_dim), unit);
  if (keys_.biased()) {
    sizes.bias = static_cast<std::size_t>(rows * max_keys);
    sizes.program = round_up(keys_.scratch_bytes() / sizeof(float) + 1, unit);
  }
  return sizes;
}

// Each thread has units of its own, adjacent and the same ones at every call, so that it meets the
// keys that it stored and read before in its core's cache; then it helps the others. `each` at a
// time: which thread computes a unit does not change it.
template <typename Body>
void RowAttentionKernel::for_each(const Call& call, std::int64_t units, Body body,
                                  std::int64_t each) const {
  const auto part = [&](int worker, std::int64_t begin, std::int64_t end) {
    const ScratchSizes& sizes = call.sizes;
    float* own = call.memory + call.shared + sizes.total() * static_cast<std::size_t>(worker);
    const Scratch scratch{own, own + sizes.kernel, own + sizes.kernel + sizes.bias, call.max_keys};
    for (std::int64_t i = begin; i < end; ++i) body(i, scratch);
  };
  if (call.alone) {
    part(0, 0, units);
  } else {
    call.pool.share(units, each, part);
  }
}

// Rows together with all of their keys. Where there are enough heads for all threads, a unit is a
// head of a run: it stores its own keys and values, which are in the cache of the core that reads
// them, and needs nobody else's; the threads meet once. Adjacent ones, so that a thread knows which
// keys it will read next. Otherwise the threads share the queries of a head, once it is stored.
void RowAttentionKernel::run_whole(const Call& call, bool one_tile_each) const {
  const std::span<const RowRun> runs = call.batch.runs;
  const std::int64_t heads = static_cast<std::int64_t>(runs.size()) * a_.kv_heads;
  const std::int64_t threads = call.pool.threads();
  const auto run_of = [&](std::int64_t i) -> const RowRun& {
    return runs[static_cast<std::size_t>(i / a_.kv_heads)];
  };
  const auto tiles_of = [](const RowRun& run) { return (run.rows + kQueryTile - 1) / kQueryTile; };
  const auto attend_queries = [&](const RowRun& run, int kv_head, std::int64_t tile,
                                  const Scratch& scratch, const void* next = nullptr) {
    const std::int64_t first = tile * kQueryTile;
    const int count = static_cast<int>(std::min<std::int64_t>(kQueryTile, run.rows - first));
    attend(call, {&run, kv_head, first, count}, scratch, nullptr, next);
  };
  // Runs may differ in length: of several there must be many heads, so that they even out.
  const bool even = (runs.size() == 1 && heads % threads == 0) || heads >= 4 * threads;
  if (one_tile_each || even) {
    const auto body = [&](std::int64_t i, const Scratch& scratch) {
      const RowRun& run = run_of(i);
      const int kv_head = static_cast<int>(i % a_.kv_heads);
      const void* next = nullptr;
      if (one_tile_each && i + 1 < heads) {
        const auto next_head = static_cast<int>((i + 1) % a_.kv_heads);
        const RowRun& next_run = run_of(i + 1);
        next = keys_.tables(next_run).k_blocks(
            call.first_table + next_head)[keys_.first(next_run, 0) / kernels::kKvBlock];
      }
      store(call, run, kv_head);
      for (std::int64_t tile = 0; tile < tiles_of(run); ++tile) {
        attend_queries(run, kv_head, tile, scratch, next);
      }
    };
    for_each(call, heads, body, std::max<std::int64_t>(1, heads / (4 * threads)));
    return;
  }
  for_each(call, heads, [&](std::int64_t i, const Scratch&) {
    store(call, run_of(i), static_cast<int>(i % a_.kv_heads));
  });
  std::int64_t units = 0;
  for (const RowRun& run : runs) units += tiles_of(run) * a_.kv_heads;
  for_each(call, units, [&](std::int64_t i, const Scratch& scratch) {
    for (const RowRun& run : runs) {
      const std::int64_t tiles = tiles_of(run);
      if (i < tiles * a_.kv_heads) {  // the last queries see most keys: first
        return attend_queries(run, static_cast<int>(i / tiles), tiles - 1 - i % tiles, scratch);
      }
      i -= tiles * a_.kv_heads;
    }
  });
}

// Of a run of one row: the segments of its keys.
std::int64_t RowAttentionKernel::first_segment(const RowRun& run) const {
  return keys_.first(run, 0) / kernels::kKvSegment;
}
std::int64_t RowAttentionKernel::segments_of(const RowRun& run) const {
  return keys_.last(run, 0) / kernels::kKvSegment - first_segment(run) + 1;
}

// The segments of all runs together where the threads should share them: few heads, each of one
// row, and more than a segment of keys; else 0.
std::int64_t RowAttentionKernel::segments_to_share(const RowBatch& batch, int threads) const {
  const auto runs = static_cast<std::int64_t>(batch.runs.size());
  if (threads == 1 || runs * a_.kv_heads >= std::int64_t{4} * threads || group_ > kQueryTile) {
    return 0;
  }
  std::int64_t segments = 0;
  for (const RowRun& run : batch.runs) {
    if (run.rows != 1) return 0;
    segments += segments_of(run);
  }
  return segments > runs ? segments : 0;
}

// The sums of a group of heads over a segment: outputs [group, value_dim], then tops and totals.
std::size_t RowAttentionKernel::part_out_floats() const {
  return round_up(static_cast<std::size_t>(group_) * static_cast<std::size_t>(a_.value_dim),
                  kAlignment / sizeof(float));
}
std::size_t RowAttentionKernel::part_floats() const {
  return part_out_floats() +
         round_up(2 * static_cast<std::size_t>(group_), kAlignment / sizeof(float));
}

// One row a run: a unit is one head's segment; then the segments of each head are joined. Units are
// in the order of the segments of the first run's first head, of its next head, of the next run's.
void RowAttentionKernel::run_segments(const Call& call, std::int64_t segments) const {
  const auto part_of = [&](std::int64_t i) {
    float* out = call.memory + static_cast<std::size_t>(i) * part_floats();
    float* top = out + part_out_floats();
    return kernels::AttentionPart{out, a_.value_dim, top, top + group_};
  };
  for_each(call, segments * a_.kv_heads, [&](std::int64_t i, const Scratch& scratch) {
    std::int64_t left = i;
    for (const RowRun& run : call.batch.runs) {
      const std::int64_t count = segments_of(run);
      if (left >= count * a_.kv_heads) {
        left -= count * a_.kv_heads;
        continue;
      }
      const int kv_head = static_cast<int>(left / count);
      const Segment segment{first_segment(run) + left % count, part_of(i)};
      // The new position is in the last segment; the others need not wait for it.
      if (left % count == count - 1) store(call, run, kv_head);
      attend(call, {&run, kv_head, 0, 1}, scratch, &segment);
      return;
    }
  });
  std::int64_t next = 0;
  for (const RowRun& run : call.batch.runs) {
    const std::int64_t out_row = std::int64_t{a_.heads} * a_.value_dim;
    for (int kv_head = 0; kv_head < a_.kv_heads; ++kv_head) {
      const kernels::AttentionPart sums = part_of(next++);
      for (std::int64_t i = 1; i < segments_of(run); ++i) {
        call.kernels.attention_join_f32(sums, part_of(next++), group_, a_.value_dim);
      }
      call.kernels.attention_divide_f32(
          sums, group_, a_.value_dim,
          call.rows.out + run.first_row * out_row + std::int64_t{kv_head} * group_ * a_.value_dim,
          a_.value_dim);
    }
  }
}

void RowAttentionKernel::run(OpContext& context) const {
  const RowBatch* batch = context.row_batch();
  if (batch == nullptr) fail(ErrorCode::kInternal, "runs in a row program only");
  bool one_tile_each = true;
  std::int64_t max_keys = 0, tile_rows = group_ <= kQueryTile ? group_ : 1;
  for (const RowRun& run : batch->runs) {
    if (a_.mixing == graph::Mixing::kWhole && run.first_position != 0) {
      fail(ErrorCode::kInternal, "reads a whole sequence, of which a part was given");
    }
    tile_rows = std::max(tile_rows, std::min<std::int64_t>(run.rows, kQueryTile));
    one_tile_each = one_tile_each && run.rows <= kQueryTile;
    max_keys = std::max(max_keys, keys_.last(run, run.rows - 1) + 1);
  }
  max_keys = (max_keys + kernels::kKvBlock - 1) / kernels::kKvBlock * kernels::kKvBlock;
  const int threads = context.pool().threads();
  const std::int64_t segments = segments_to_share(*batch, threads);
  const std::size_t shared = static_cast<std::size_t>(segments * a_.kv_heads) * part_floats();
  const ScratchSizes sizes = scratch_sizes(context.kernels(), tile_rows, max_keys);
  // For all threads, whether they take part or not. A sequence that grows asks for more at a new
  // block (with a bias) or segment (where segments are shared) and not between.
  auto* memory = static_cast<float*>(context.workspace(
      (shared + sizes.total() * static_cast<std::size_t>(threads)) * sizeof(float)));
  const Call call{.kernels = context.kernels(),
                  .batch = *batch,
                  .rows = rows_of(context, *batch),
                  .first_table = batch->layer_tables[static_cast<std::size_t>(layer_)],
                  .max_keys = max_keys,
                  .pool = context.pool(),
                  .alone = work(*batch) < kSerialWork,
                  .memory = memory,
                  .shared = shared,
                  .sizes = sizes};
  if (segments > 0) {
    run_segments(call, segments);
  } else {
    run_whole(call, one_tile_each);
  }
  if (!batch->records.empty()) [[unlikely]]
    record(context, call);
}

// Once the keys of the run are stored. Takes the workspace for itself.
void RowAttentionKernel::record(OpContext& context, const Call& call) const {
  const AttentionRecord& record = call.batch.records[static_cast<std::size_t>(layer_)];
  if (record.weights == nullptr) return;
  if (call.batch.runs.size() != 1) {
    fail(ErrorCode::kInternal, "records the weights of one sequence at a time");
  }
  record_weights(context,
                 {.attention = a_,
                  .keys = keys_,
                  .q = call.rows.q.data,
                  .q_stride = call.rows.q.stride,
                  .first_table = call.first_table},
                 call.batch.runs[0], record);
}

// Each sequence's keys and values in reach are counted once, however many queries share them.
OpCost RowAttentionKernel::cost(const OpContext& context) const {
  const RowBatch& batch = *context.row_batch();
  OpCost cost;
  for (const RowRun& run : batch.runs) {
    double pairs = 0;  // of a query and a key that it sees
    for (std::int64_t i = 0; i < run.rows; ++i) pairs += static_cast<double>(keys_.seen(run, i));
    const std::int64_t keys = keys_.last(run, run.rows - 1) - keys_.first(run, 0) + 1;
    const double features = static_cast<double>(a_.head_dim) + static_cast<double>(a_.value_dim);
    const double key_bytes =
        features * kernels::cache_element_bytes(keys_.tables(run).cache) +
        2.0 * kernels::cache_scale_bytes(keys_.tables(run).cache) / kernels::kKvBlock;
    cost.bytes += static_cast<double>(keys) * a_.kv_heads * key_bytes;
    cost.operations += 2 * pairs * a_.heads * features;
  }
  return cost;
}

OpDescription RowAttentionKernel::describe() const {
  const std::string heads = a_.heads == a_.kv_heads
                                ? std::to_string(a_.heads)
                                : std::to_string(a_.heads) + "/" + std::to_string(a_.kv_heads);
  return {.shape = heads + " heads x " + std::to_string(a_.head_dim), .precision = "f32"};
}

void require(bool holds, const NodeInfo& info, const std::string& what) {
  if (!holds) fail(ErrorCode::kUnsupported, info.node.label() + ": " + what);
}

}  // namespace

void store_rows(const kernels::KernelTable& kernels, const KvTables& tables, std::int64_t table,
                const KvRows& rows) {
  for (std::int64_t i = 0; i < rows.rows;) {
    const std::int64_t position = rows.first_position + i;
    const std::int64_t block = position / kernels::kKvBlock;
    const std::int64_t slot = position % kernels::kKvBlock;
    const std::int64_t count = std::min(kernels::kKvBlock - slot, rows.rows - i);
    const kernels::CacheRows part{.k = rows.k + i * rows.k_stride,
                                  .k_stride = rows.k_stride,
                                  .v = rows.v + i * rows.v_stride,
                                  .v_stride = rows.v_stride,
                                  .head_dim = rows.head_dim,
                                  .value_dim = rows.value_dim,
                                  .slot = static_cast<int>(slot),
                                  .count = static_cast<int>(count)};
    kernels.store_kv(tables.cache, part, tables.k_blocks(table)[block],
                     tables.v_blocks(table)[block]);
    i += count;
  }
}

std::unique_ptr<OpKernel> make_row_attention(const graph::RowAttention& a, const NodeInfo& info) {
  constexpr int kMost = 1 << 20;  // of heads, and of dimensions of one
  require(a.heads > 0 && a.kv_heads > 0 && a.head_dim > 0 && a.value_dim > 0 &&
              a.heads % a.kv_heads == 0 && a.heads <= kMost && a.head_dim <= kMost &&
              a.value_dim <= kMost,
          info, "impossible head counts or sizes");
  const auto inputs = a.mixing == graph::Mixing::kSource ? std::size_t{1} : std::size_t{3};
  for (std::size_t i = 0; i < inputs; ++i) {
    require(info.dtype(i) == DType::kF32, info, "queries, keys and values must be float32");
  }
  require(info.graph.value(info.node.output(0)).shape.has_value(), info, "its output has no shape");
  require(!a.bias || a.bias->type() != graph::ExprType::kInt, info,
          "its bias must be boolean or float");
  const int layer = static_cast<int>(info.node.int_attr("layer", 0));
  return std::make_unique<RowAttentionKernel>(a, info, layer);
}

}  // namespace kvik::ops
