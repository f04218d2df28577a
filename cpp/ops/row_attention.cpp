#include "ops/row_attention.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <limits>
#include <optional>
#include <string>
#include <vector>

#include "base/aligned_buffer.h"
#include "graph/expr_eval.h"
#include "ops/row_batch.h"

namespace kvik::ops {

namespace {

// Queries of one head that share a pass over the keys. Their scores against one block of keys
// (kQueryTile · kKvBlock floats, 8 KiB) stay in L1 beside the block.
constexpr int kQueryTile = 32;

// Below this many multiply-adds a call is shorter than waking the other threads.
constexpr double kSerialWork = 1 << 17;

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

class RowAttentionKernel : public OpKernel {
 public:
  RowAttentionKernel(const graph::RowAttention& attention, const NodeInfo& info, int layer)
      : a_(attention), layer_(layer), group_(attention.heads / attention.kv_heads) {
    const auto& shape = *info.graph.value(info.node.output(0)).shape;
    for (const graph::Expr& dim : shape) out_dims_.push_back(dim.constant().value_or(-1));
    if (attention.bias) {
      bias_.emplace(*attention.bias);
      bias_by_head_ = attention.bias->has_index(0);
    }
  }

  void run(OpContext& context) const override;
  OpCost cost(const OpContext& context) const override;
  OpDescription describe() const override;

 private:
  struct Rows {
    const float* q;  // [rows, heads · head_dim]
    const float* k;  // [rows, kv_heads · head_dim]
    const float* v;  // [rows, kv_heads · value_dim]
    float* out;      // [rows, heads · value_dim]
  };
  // A worker's own part of the workspace, and how it is divided. In floats.
  struct Scratch {
    float* kernel;  // attention_scratch(kQueryTile, value_dim)
    float* bias;    // [kQueryTile, max_keys], if there is a bias
    void* program;  // the bias program's
    std::int64_t max_keys;
  };
  struct ScratchSizes {
    std::size_t kernel, bias, program;
    std::size_t total() const { return kernel + bias + program; }
  };
  ScratchSizes scratch_sizes(const kernels::KernelTable& kernels, std::int64_t max_keys) const;

  Rows rows_of(OpContext& context, const RowBatch& batch) const;
  void store(const kernels::KernelTable& kernels, const Rows& rows, const RowRun& run,
             std::int64_t table, int kv_head) const;
  void attend(const kernels::KernelTable& kernels, const Rows& rows, const Tile& tile,
              std::int64_t table, const Scratch& scratch) const;
  void fill_bias(std::int64_t head, std::int64_t position, std::int64_t first, std::int64_t last,
                 void* program_scratch, float* bias) const;
  double work(const RowBatch& batch) const;
  std::int64_t seen(const RowRun& run, std::int64_t i) const;

  graph::RowAttention a_;
  int layer_;
  int group_;      // query heads that share a key/value head
  Dims out_dims_;  // -1: rows
  std::optional<graph::ExprProgram> bias_;
  bool bias_by_head_ = false;  // it differs between heads
};

RowAttentionKernel::Rows RowAttentionKernel::rows_of(OpContext& context,
                                                     const RowBatch& batch) const {
  const std::int64_t features[] = {std::int64_t{a_.heads} * a_.head_dim,
                                   std::int64_t{a_.kv_heads} * a_.head_dim,
                                   std::int64_t{a_.kv_heads} * a_.value_dim};
  for (int i = 0; i < 3; ++i) {
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
  return {.q = context.input(0).as<const float>(),
          .k = context.input(1).as<const float>(),
          .v = context.input(2).as<const float>(),
          .out = context.output(0, DType::kF32, dims).as<float>()};
}

// Multiply-adds of the whole call.
double RowAttentionKernel::work(const RowBatch& batch) const {
  double keys = 0;
  for (const RowRun& run : batch.runs) {
    const auto rows = static_cast<double>(run.rows);
    keys += rows * (static_cast<double>(run.first_position) + (rows + 1) / 2);
  }
  return keys * a_.heads * (a_.head_dim + a_.value_dim);
}

void RowAttentionKernel::store(const kernels::KernelTable& kernels, const Rows& rows,
                               const RowRun& run, std::int64_t table, int kv_head) const {
  float* const* k_blocks = run.k_blocks(table);
  float* const* v_blocks = run.v_blocks(table);
  const std::int64_t k_stride = std::int64_t{a_.kv_heads} * a_.head_dim;
  const std::int64_t v_stride = std::int64_t{a_.kv_heads} * a_.value_dim;
  for (std::int64_t i = 0; i < run.rows; ++i) {
    const std::int64_t row = run.first_row + i;
    const std::int64_t position = run.first_position + i;
    const std::int64_t block = position / kernels::kKvBlock;
    kernels.store_kv_f32(rows.k + row * k_stride + std::int64_t{kv_head} * a_.head_dim, a_.head_dim,
                         rows.v + row * v_stride + std::int64_t{kv_head} * a_.value_dim,
                         a_.value_dim, static_cast<int>(position % kernels::kKvBlock),
                         k_blocks[block], v_blocks[block]);
  }
}

void RowAttentionKernel::attend(const kernels::KernelTable& kernels, const Rows& rows,
                                const Tile& tile, std::int64_t table,
                                const Scratch& scratch) const {
  std::array<std::int64_t, kQueryTile> first_key{};
  std::array<std::int64_t, kQueryTile> last_key{};
  const std::int64_t row = tile.run->first_row + tile.first;
  const std::int64_t position = tile.run->first_position + tile.first;
  const std::int64_t q_row = std::int64_t{a_.heads} * a_.head_dim;
  const std::int64_t out_row = std::int64_t{a_.heads} * a_.value_dim;
  kernels::AttentionArgs args{};
  args.head_dim = a_.head_dim;
  args.value_dim = a_.value_dim;
  args.k_blocks = tile.run->k_blocks(table);
  args.v_blocks = tile.run->v_blocks(table);
  args.first_key = a_.window > 0 ? first_key.data() : nullptr;
  args.last_key = last_key.data();
  args.scale = a_.scale;
  args.softcap = a_.softcap;
  args.scratch = scratch.kernel;
  const auto see = [&](int i, std::int64_t p) {
    if (a_.window > 0) {
      first_key[static_cast<std::size_t>(i)] = std::max<std::int64_t>(0, p - a_.window + 1);
    }
    last_key[static_cast<std::size_t>(i)] = p;
  };
  // One query: the heads of the group are the rows of the call, so that they share one pass over
  // the keys. Several queries: they share the pass, and each head makes its own.
  const bool by_head = tile.count == 1 && group_ <= kQueryTile;
  const int calls = by_head ? 1 : group_;
  args.rows = by_head ? group_ : tile.count;
  args.q_stride = by_head ? a_.head_dim : q_row;
  args.out_stride = by_head ? a_.value_dim : out_row;
  args.bias = bias_ ? scratch.bias : nullptr;
  args.bias_stride = scratch.max_keys;
  for (int i = 0; i < args.rows; ++i) see(i, by_head ? position : position + i);
  for (int call = 0; call < calls; ++call) {
    const std::int64_t head = std::int64_t{tile.kv_head} * group_ + call;
    for (int i = 0; bias_ && (call == 0 || bias_by_head_) && i < args.rows; ++i) {
      const auto at = static_cast<std::size_t>(i);
      fill_bias(by_head ? head + i : head, by_head ? position : position + i, first_key[at],
                last_key[at], scratch.program, scratch.bias + i * scratch.max_keys);
    }
    args.q = rows.q + row * q_row + head * a_.head_dim;
    args.out = rows.out + row * out_row + head * a_.value_dim;
    kernels.attention_f32(args);
  }
}

RowAttentionKernel::ScratchSizes RowAttentionKernel::scratch_sizes(
    const kernels::KernelTable& kernels, std::int64_t max_keys) const {
  constexpr std::size_t unit = kAlignment / sizeof(float);
  ScratchSizes sizes{};
  sizes.kernel = round_up(kernels.attention_scratch(kQueryTile, a_.value_dim), unit);
  if (bias_) {
    sizes.bias = static_cast<std::size_t>(kQueryTile * max_keys);
    sizes.program = round_up(bias_->scratch_bytes() / sizeof(float) + 1, unit);
  }
  return sizes;
}

// The bias of one query and head for the keys [first, last], at bias[first ...].
void RowAttentionKernel::fill_bias(std::int64_t head, std::int64_t position, std::int64_t first,
                                   std::int64_t last, void* program_scratch, float* bias) const {
  constexpr int kKeyAxis = 2;
  const std::array<std::int64_t, graph::ExprProgram::kMaxIndices> indices{head, position, 0};
  for (std::int64_t key = first; key <= last; key += graph::ExprProgram::kLanes) {
    const int n =
        static_cast<int>(std::min<std::int64_t>(graph::ExprProgram::kLanes, last - key + 1));
    bool ok = false;
    if (bias_->type() == graph::ExprType::kFloat) {
      ok = bias_->eval(indices, kKeyAxis, key, n, program_scratch, bias + key);
    } else {
      std::array<std::int64_t, graph::ExprProgram::kLanes> visible{};
      ok = bias_->eval(indices, kKeyAxis, key, n, program_scratch, visible.data());
      for (int i = 0; i < n; ++i) {
        bias[key + i] = visible[static_cast<std::size_t>(i)] != 0
                            ? 0.0F
                            : -std::numeric_limits<float>::infinity();
      }
    }
    if (!ok) {
      fail(ErrorCode::kInvalidArgument,
           "the attention bias has no value for query position " + std::to_string(position));
    }
  }
}

void RowAttentionKernel::run(OpContext& context) const {
  const RowBatch* batch = context.row_batch();
  if (batch == nullptr) fail(ErrorCode::kInternal, "runs in a row program only");
  const kernels::KernelTable& kernels = context.kernels();
  const Rows rows = rows_of(context, *batch);
  const std::int64_t first_table = batch->layer_tables[static_cast<std::size_t>(layer_)];

  std::int64_t tiles = 0;
  bool one_tile_each = true;
  std::int64_t max_keys = 0;
  for (const RowRun& run : batch->runs) {
    tiles += (run.rows + kQueryTile - 1) / kQueryTile;
    one_tile_each = one_tile_each && run.rows <= kQueryTile;
    max_keys = std::max(max_keys, run.first_position + run.rows);
  }
  max_keys = (max_keys + kernels::kKvBlock - 1) / kernels::kKvBlock * kernels::kKvBlock;
  const ScratchSizes sizes = scratch_sizes(kernels, max_keys);
  // Always for all threads, so that a growing sequence asks for no more than its first step did.
  const int threads = context.pool().threads();
  auto* workspace = static_cast<float*>(
      context.workspace(sizes.total() * static_cast<std::size_t>(threads) * sizeof(float)));
  const int workers = work(*batch) < kSerialWork ? 1 : threads;

  // Threads take units of work as they come free: which thread computes a row does not change it.
  const auto for_each = [&](std::int64_t units, auto&& body) {
    std::atomic<std::int64_t> next{0};
    context.pool().run(
        [&](int worker, int) {
          float* own = workspace + sizes.total() * static_cast<std::size_t>(worker);
          const Scratch scratch{own, own + sizes.kernel, own + sizes.kernel + sizes.bias, max_keys};
          for (std::int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < units;) {
            body(i, scratch);
          }
        },
        workers);
  };

  if (one_tile_each) {
    // A unit stores its own head's keys and values and needs nobody else's: one meeting of the
    // threads instead of two.
    const auto runs = static_cast<std::int64_t>(batch->runs.size());
    for_each(runs * a_.kv_heads, [&](std::int64_t i, const Scratch& scratch) {
      const RowRun& run = batch->runs[static_cast<std::size_t>(i / a_.kv_heads)];
      const int kv_head = static_cast<int>(i % a_.kv_heads);
      store(kernels, rows, run, first_table + kv_head, kv_head);
      attend(kernels, rows, {&run, kv_head, 0, static_cast<int>(run.rows)}, first_table + kv_head,
             scratch);
    });
    return;
  }
  const auto runs = static_cast<std::int64_t>(batch->runs.size());
  for_each(runs * a_.kv_heads, [&](std::int64_t i, const Scratch&) {
    const int kv_head = static_cast<int>(i % a_.kv_heads);
    store(kernels, rows, batch->runs[static_cast<std::size_t>(i / a_.kv_heads)],
          first_table + kv_head, kv_head);
  });
  for_each(tiles * a_.kv_heads, [&](std::int64_t i, const Scratch& scratch) {
    const int kv_head = static_cast<int>(i % a_.kv_heads);
    std::int64_t left = tiles - 1 - i / a_.kv_heads;  // the last queries see most keys: first
    for (const RowRun& run : batch->runs) {
      const std::int64_t own = (run.rows + kQueryTile - 1) / kQueryTile;
      if (left < own) {
        const std::int64_t first = left * kQueryTile;
        const int count = static_cast<int>(std::min<std::int64_t>(kQueryTile, run.rows - first));
        attend(kernels, rows, {&run, kv_head, first, count}, first_table + kv_head, scratch);
        return;
      }
      left -= own;
    }
  });
}

// Each sequence's keys and values in reach are counted once, however many queries share them.
OpCost RowAttentionKernel::cost(const OpContext& context) const {
  const RowBatch& batch = *context.row_batch();
  OpCost cost;
  for (const RowRun& run : batch.runs) {
    double pairs = 0;  // of a query and a key that it sees
    for (std::int64_t i = 0; i < run.rows; ++i) pairs += static_cast<double>(seen(run, i));
    const std::int64_t keys = std::min(run.first_position + run.rows, seen(run, 0) + run.rows - 1);
    const double features = static_cast<double>(a_.head_dim) + static_cast<double>(a_.value_dim);
    cost.bytes += static_cast<double>(keys) * a_.kv_heads * features * sizeof(float);
    cost.operations += 2 * pairs * a_.heads * features;
  }
  return cost;
}

// Keys that the run's query i sees.
std::int64_t RowAttentionKernel::seen(const RowRun& run, std::int64_t i) const {
  const std::int64_t keys = run.first_position + i + 1;
  return a_.window > 0 ? std::min<std::int64_t>(keys, a_.window) : keys;
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

std::unique_ptr<OpKernel> make_row_attention(const graph::RowAttention& a, const NodeInfo& info) {
  require(a.heads > 0 && a.kv_heads > 0 && a.head_dim > 0 && a.value_dim > 0 &&
              a.heads % a.kv_heads == 0,
          info, "impossible head counts or sizes");
  require(
      info.dtype(0) == DType::kF32 && info.dtype(1) == DType::kF32 && info.dtype(2) == DType::kF32,
      info, "queries, keys and values must be float32");
  require(info.graph.value(info.node.output(0)).shape.has_value(), info, "its output has no shape");
  require(!a.bias || a.bias->type() != graph::ExprType::kInt, info,
          "its bias must be boolean or float");
  const int layer = static_cast<int>(info.node.int_attr("layer", 0));
  return std::make_unique<RowAttentionKernel>(a, info, layer);
}

}  // namespace kvik::ops
