// ONNX Attention (opsets 23 to 25) for any inputs.
//
// It runs the same attention kernel as the cached decoder, with keys and values packed into the
// same blocks of kKvBlock positions, so that both give the same bits. Elements of other float
// types are converted to float32 on the way in and back on the way out.
#include <cmath>
#include <limits>

#include "ops/attention_plan.h"
#include "ops/families.h"
#include "ops/support.h"

namespace kvik::ops {

namespace {

constexpr float kHidden = -std::numeric_limits<float>::infinity();

template <typename T>
void widen_row(const T* from, std::int64_t n, float* to) {
  for (std::int64_t i = 0; i < n; ++i) to[i] = static_cast<float>(widen(from[i]));
}

// ---- Keys and values -------------------------------------------------------------------------

// Position t of one key/value head: in the past, then in the new keys (values).
template <typename T>
const T* position(const HeadView& past, const HeadView& now, std::int64_t b, std::int64_t h,
                  std::int64_t t) {
  return t < past.length ? past.at<T>(b, h, t) : now.at<T>(b, h, t - past.length);
}

// Packs block `block` of head (b, h); slots beyond the last position are zero.
template <typename T>
void pack_block(const kernels::KernelTable& table, const AttentionPlan& p, std::int64_t b,
                std::int64_t h, std::int64_t block, float* k_block, float* v_block, float* row) {
  using kernels::kKvBlock;
  const std::int64_t first = block * kKvBlock;
  const std::int64_t count = std::min<std::int64_t>(kKvBlock, p.total - first);
  if (count < kKvBlock) {
    std::fill_n(k_block, p.head_dim * kKvBlock, 0.0f);
    std::fill_n(v_block, p.value_dim * kKvBlock, 0.0f);
  }
  if constexpr (std::is_same_v<T, float>) {
    const std::int64_t past = p.past_k.length;
    if (first >= past || first + count <= past) {  // equally far from each other
      const kernels::CacheRows rows{.k = position<float>(p.past_k, p.k, b, h, first),
                                    .k_stride = (first < past ? p.past_k : p.k).s_stride,
                                    .v = position<float>(p.past_v, p.v, b, h, first),
                                    .v_stride = (first < past ? p.past_v : p.v).s_stride,
                                    .head_dim = p.head_dim,
                                    .value_dim = p.value_dim,
                                    .slot = 0,
                                    .count = static_cast<int>(count)};
      return table.store_kv(CacheType::kF32, rows, k_block, v_block);
    }
  }
  for (std::int64_t slot = 0; slot < count; ++slot) {
    kernels::CacheRows rows{.head_dim = p.head_dim,
                            .value_dim = p.value_dim,
                            .slot = static_cast<int>(slot),
                            .count = 1};
    const T* k = position<T>(p.past_k, p.k, b, h, first + slot);
    const T* v = position<T>(p.past_v, p.v, b, h, first + slot);
    if constexpr (std::is_same_v<T, float>) {
      rows.k = k;
      rows.v = v;
    } else {
      widen_row(k, p.head_dim, row);
      widen_row(v, p.value_dim, row + p.head_dim);
      rows.k = row;
      rows.v = row + p.head_dim;
    }
    table.store_kv(CacheType::kF32, rows, k_block, v_block);
  }
}

// present = concat(past, new) along the positions: [B, H, total, d].
template <typename T>
void store_present(OpContext& context, const AttentionPlan& p, int output, DType dtype,
                   const HeadView& past, const HeadView& now, std::int64_t width) {
  if (!context.wants_output(output)) return;
  T* out =
      context.output(output, dtype, Dims{p.batch, p.kv_heads, p.total, width}).template as<T>();
  parallel_for(context, p.batch * p.kv_heads, p.total * width,
               [&](std::int64_t begin, std::int64_t end) {
                 for (std::int64_t i = begin; i < end; ++i) {
                   for (std::int64_t t = 0; t < p.total; ++t) {
                     const T* from = position<T>(past, now, i / p.kv_heads, i % p.kv_heads, t);
                     std::copy_n(from, width, out + (i * p.total + t) * width);
                   }
                 }
               });
}

// ---- Mask ------------------------------------------------------------------------------------

// The mask as float rows of `total` values: true is 0, false is -inf, and what a shorter mask
// leaves out is hidden. `out` is [mask rows, total].
void widen_mask(const Tensor& mask, const AttentionPlan& p, float* out) {
  const std::int64_t width = mask.dims.back();
  const std::int64_t rows = mask.elements() / std::max<std::int64_t>(width, 1);
  const bool spread = width == 1 && p.total != 1;  // one value for all keys
  const auto fill = [&](const auto& value) {
    for (std::int64_t r = 0; r < rows; ++r) {
      float* to = out + r * p.total;
      for (std::int64_t j = 0; j < p.total; ++j) {
        to[j] = spread ? value(r) : j < width ? value(r * width + j) : kHidden;
      }
    }
  };
  if (mask.dtype == DType::kBool) {
    const std::uint8_t* m = mask.as<std::uint8_t>();
    return fill([m](std::int64_t i) { return m[i] != 0 ? 0.0f : kHidden; });
  }
  visit_float(mask.dtype, [&]<typename T>() {
    const T* m = mask.as<T>();
    fill([m](std::int64_t i) { return static_cast<float>(widen(m[i])); });
  });
}

// Rows of float mask: bias of query s of head (b, h) starts at data + offset(b, h) + s ·
// row_stride.
struct MaskView {
  const float* data = nullptr;
  std::int64_t b_stride = 0, h_stride = 0, row_stride = 0;

  const float* at(std::int64_t b, std::int64_t h, std::int64_t s) const {
    return data + b * b_stride + h * h_stride + s * row_stride;
  }
};

MaskView view_mask(const float* data, const Dims& dims, std::int64_t total) {
  MaskView view;
  view.data = data;
  const auto dim = [&](int from_end) {
    return dims.rank >= from_end ? dims[dims.rank - from_end] : 1;
  };
  const std::int64_t rows = dim(2), heads = dim(3), batch = dim(4);
  view.row_stride = rows == 1 ? 0 : total;
  view.h_stride = heads == 1 ? 0 : rows * total;
  view.b_stride = batch == 1 ? 0 : heads * rows * total;
  return view;
}

// ---- Scratch ---------------------------------------------------------------------------------

constexpr int kChunk = 48;  // query rows that one call of the kernel gets: whole tiles, of 6 rows

// Whether a thread packs the keys and values of a head in memory of its own and multiplies all
// queries by them, while they are in its core's cache; else all heads are packed first and the
// threads share the queries. There must be enough heads for all threads.
bool head_by_head(const AttentionPlan& p, std::int64_t threads) {
  const std::int64_t heads = p.batch * p.kv_heads;
  return heads % threads == 0 || heads >= 4 * threads;
}

// The workspace of a run, carved into its parts. `packed`: heads whose keys and values are packed
// at a time, of all batch · kv_heads or one for each worker.
struct Workspace {
  float* k_blocks = nullptr;       // [packed · blocks, head_dim, kKvBlock]
  float* v_blocks = nullptr;       // [packed · blocks, kKvBlock, value_dim]
  const void** k_table = nullptr;  // [packed · blocks]
  const void** v_table = nullptr;
  float* mask = nullptr;    // [mask rows, total], where the mask has to be converted
  float* worker = nullptr;  // [workers, worker_floats]
  std::int64_t worker_floats = 0;
};

std::size_t round_up(std::size_t floats) {
  return (floats + 15) / 16 * 16;
}

Workspace carve(OpContext& context, const AttentionPlan& p, std::int64_t mask_floats) {
  using kernels::kKvBlock;
  const auto size = [](std::int64_t a, std::int64_t b) {
    return round_up(checked_product(static_cast<std::size_t>(a), static_cast<std::size_t>(b)));
  };
  const std::int64_t threads = context.pool().threads();
  const std::int64_t packed = head_by_head(p, threads) ? threads : p.batch * p.kv_heads;
  const std::int64_t blocks = packed * p.blocks;
  const std::size_t k = size(blocks, p.head_dim * kKvBlock);
  const std::size_t v = size(blocks, p.value_dim * kKvBlock);
  const std::size_t pointers =
      round_up(static_cast<std::size_t>(blocks) * sizeof(void*) / sizeof(float));
  const std::size_t mask = round_up(static_cast<std::size_t>(mask_floats));
  // One worker: converted queries and results of a chunk, and the kernel's scratch.
  const std::size_t worker = size(kChunk, p.head_dim + p.value_dim) +
                             round_up(context.kernels().attention_scratch(p.head_dim, p.value_dim));
  const std::size_t workers = checked_product(worker, static_cast<std::size_t>(threads));
  const std::size_t total = k + v + 2 * pointers + mask + workers;
  auto* at = static_cast<float*>(context.workspace(checked_product(total, sizeof(float))));
  Workspace w;
  const auto take = [&](std::size_t floats) { return std::exchange(at, at + floats); };
  w.k_blocks = take(k);
  w.v_blocks = take(v);
  w.k_table = reinterpret_cast<const void**>(take(pointers));
  w.v_table = reinterpret_cast<const void**>(take(pointers));
  w.mask = take(mask);
  w.worker = at;
  w.worker_floats = static_cast<std::int64_t>(worker);
  return w;
}

// Packs blocks [begin, end) of all heads, counted through, in the places from `place` on.
template <typename T>
void pack_blocks(const kernels::KernelTable& table, const AttentionPlan& p, const Workspace& w,
                 std::int64_t begin, std::int64_t end, std::int64_t place) {
  const std::int64_t k_size = std::int64_t{p.head_dim} * kernels::kKvBlock;
  const std::int64_t v_size = std::int64_t{p.value_dim} * kernels::kKvBlock;
  std::vector<float> row(static_cast<std::size_t>(p.head_dim + p.value_dim));
  for (std::int64_t i = begin; i < end; ++i, ++place) {
    const std::int64_t head = i / p.blocks;
    w.k_table[place] = w.k_blocks + place * k_size;
    w.v_table[place] = w.v_blocks + place * v_size;
    pack_block<T>(table, p, head / p.kv_heads, head % p.kv_heads, i % p.blocks,
                  w.k_blocks + place * k_size, w.v_blocks + place * v_size, row.data());
  }
}

// ---- The product -----------------------------------------------------------------------------

// Queries [first, first + rows) of head (b, h), whose keys and values are packed from `place` on.
template <typename T>
void attend_chunk(const kernels::KernelTable& table, const AttentionPlan& p, const Workspace& w,
                  std::int64_t place, const MaskView& mask, std::int64_t b, std::int64_t h,
                  std::int64_t first, int rows, T* y, float* scratch) {
  std::int64_t first_key[kChunk], last_key[kChunk];
  for (int r = 0; r < rows; ++r) p.visible(b, first + r, &first_key[r], &last_key[r]);
  float* q_rows = scratch;
  float* out_rows = scratch + std::int64_t{kChunk} * p.head_dim;
  kernels::AttentionArgs args{};
  args.rows = rows;
  args.head_dim = p.head_dim;
  args.value_dim = p.value_dim;
  args.cache = CacheType::kF32;
  args.k_blocks = w.k_table + place;
  args.v_blocks = w.v_table + place;
  args.first_key = first_key;
  args.last_key = last_key;
  args.scale = p.scale;
  args.softcap = p.softcap;
  if (mask.data != nullptr) {
    args.bias = mask.at(b, h, first);
    args.bias_stride = mask.row_stride;
  }
  args.scratch = scratch + round_up(static_cast<std::size_t>(kChunk) *
                                    static_cast<std::size_t>(p.head_dim + p.value_dim));
  T* out = y + p.out_offset(b, h, first);
  if constexpr (std::is_same_v<T, float>) {
    args.q = p.q.at<float>(b, h, first);
    args.q_stride = p.q.s_stride;
    args.out = out;
    args.out_stride = p.out_stride();
    table.attention_f32(args);
  } else {
    for (int r = 0; r < rows; ++r) {
      widen_row(p.q.at<T>(b, h, first + r), p.head_dim, q_rows + r * p.head_dim);
    }
    args.q = q_rows;
    args.q_stride = p.head_dim;
    args.out = out_rows;
    args.out_stride = p.value_dim;
    table.attention_f32(args);
    for (int r = 0; r < rows; ++r) {
      for (int d = 0; d < p.value_dim; ++d) {
        out[r * p.out_stride() + d] =
            narrow<T>(static_cast<Compute<T>>(out_rows[r * p.value_dim + d]));
      }
    }
  }
}

template <typename T>
void attend(OpContext& context, const AttentionPlan& p, const Workspace& w, const MaskView& mask,
            T* y) {
  const kernels::KernelTable& table = context.kernels();
  const std::int64_t chunks = (p.queries + kChunk - 1) / kChunk, group = p.heads / p.kv_heads;
  // Tasks [begin, end) of all: chunks of queries, of heads, of the batch.
  const auto attend_chunks = [&](std::int64_t begin, std::int64_t end, std::int64_t first_head,
                                 float* scratch) {
    for (std::int64_t i = begin; i < end; ++i) {
      const std::int64_t head = i / chunks, first = i % chunks * kChunk;
      const int rows = static_cast<int>(std::min<std::int64_t>(kChunk, p.queries - first));
      attend_chunk(table, p, w, (head / group - first_head) * p.blocks, mask, head / p.heads,
                   head % p.heads, first, rows, y, scratch);
    }
  };
  const std::int64_t tasks = p.batch * p.heads * chunks;
  const std::int64_t cost =
      std::min<std::int64_t>(kChunk, p.queries) * p.total * (p.head_dim + p.value_dim) / 8;
  const bool alone = tasks * std::max<std::int64_t>(cost, 1) < kMinParallelWork;
  ThreadPool& pool = context.pool();
  if (head_by_head(p, pool.threads())) {
    const auto body = [&](int worker, std::int64_t begin, std::int64_t end) {
      for (std::int64_t head = begin; head < end; ++head) {
        const std::int64_t place = worker * p.blocks;
        pack_blocks<T>(table, p, w, head * p.blocks, (head + 1) * p.blocks, place);
        attend_chunks(head * group * chunks, (head + 1) * group * chunks, head - worker,
                      w.worker + worker * w.worker_floats);
      }
    };
    const std::int64_t heads = p.batch * p.kv_heads;
    return alone ? body(0, 0, heads) : pool.share(heads, 1, body);
  }
  parallel_for(context, p.batch * p.kv_heads * p.blocks,
               std::int64_t{p.head_dim + p.value_dim} * kernels::kKvBlock,
               [&](std::int64_t begin, std::int64_t end) {
                 pack_blocks<T>(table, p, w, begin, end, begin);
               });
  if (alone || tasks < 2) return attend_chunks(0, tasks, 0, w.worker);
  pool.share(tasks, 1, [&](int worker, std::int64_t begin, std::int64_t end) {
    attend_chunks(begin, end, 0, w.worker + worker * w.worker_floats);
  });
}

// Output 3 (qk_matmul_output): scores by plain loops, after the step that `mode` names: 0 the
// scaled product and 1 the capped score, 2 with the mask added, 3 the probabilities.
template <typename T>
void store_scores(OpContext& context, const AttentionPlan& p, DType dtype, const MaskView& mask,
                  std::int64_t mode) {
  if (!context.wants_output(3)) return;
  T* out = context.output(3, dtype, Dims{p.batch, p.heads, p.queries, p.total}).template as<T>();
  parallel_for(context, p.batch * p.heads * p.queries, p.total * p.head_dim,
               [&](std::int64_t begin, std::int64_t end) {
                 std::vector<double> scores(static_cast<std::size_t>(p.total));
                 for (std::int64_t i = begin; i < end; ++i) {
                   const std::int64_t s = i % p.queries, head = i / p.queries;
                   const std::int64_t b = head / p.heads, h = head % p.heads;
                   const T* q = p.q.at<T>(b, h, s);
                   std::int64_t first = 0, last = 0;
                   p.visible(b, s, &first, &last);
                   double highest = -std::numeric_limits<double>::infinity(), sum = 0.0;
                   for (std::int64_t j = 0; j < p.total; ++j) {
                     const T* k = position<T>(p.past_k, p.k, b, h / (p.heads / p.kv_heads), j);
                     double score = 0.0;
                     for (int d = 0; d < p.head_dim; ++d) {
                       score += static_cast<double>(widen(q[d])) * static_cast<double>(widen(k[d]));
                     }
                     score *= static_cast<double>(p.scale);
                     if (p.softcap != 0.0f) {
                       const double cap = static_cast<double>(p.softcap);
                       score = cap * std::tanh(score / cap);
                     }
                     if (mode >= 2) {
                       if (mask.data) score += static_cast<double>(mask.at(b, h, s)[j]);
                       if (j < first || j > last) score = -std::numeric_limits<double>::infinity();
                     }
                     scores[static_cast<std::size_t>(j)] = score;
                     highest = std::max(highest, score);
                   }
                   if (mode == 3) {
                     const bool hidden = highest == -std::numeric_limits<double>::infinity();
                     for (double& score : scores)
                       sum += score = hidden ? 0.0 : std::exp(score - highest);
                     for (double& score : scores) score = sum == 0.0 ? 0.0 : score / sum;
                   }
                   for (std::int64_t j = 0; j < p.total; ++j) {
                     out[i * p.total + j] =
                         narrow<T>(static_cast<Compute<T>>(scores[static_cast<std::size_t>(j)]));
                   }
                 }
               });
}

std::unique_ptr<OpKernel> make_attention(const NodeInfo& info) {
  const AttentionAttributes attributes = parse_attention(info.node);
  return kernel_of([attributes](OpContext& context) {
    const AttentionPlan p = plan_attention(context, attributes);
    const DType dtype = context.input(0).dtype;
    Tensor& y = context.output(0, dtype, p.result);
    const Tensor* mask = context.has_input(3) ? &context.input(3) : nullptr;
    const bool direct =
        mask != nullptr && mask->dtype == DType::kF32 && mask->dims.back() == p.total;
    const std::int64_t mask_rows =
        mask == nullptr ? 0 : mask->dims.elements(0, mask->dims.rank - 1);
    visit_float(dtype, [&]<typename T>() {
      store_present<T>(context, p, 1, dtype, p.past_k, p.k, p.head_dim);
      store_present<T>(context, p, 2, dtype, p.past_v, p.v, p.value_dim);
      const Workspace w = carve(context, p, mask == nullptr || direct ? 0 : mask_rows * p.total);
      MaskView view;
      if (mask != nullptr) {
        if (!direct) widen_mask(*mask, p, w.mask);
        view = view_mask(direct ? mask->as<float>() : w.mask, mask->dims, p.total);
      }
      store_scores<T>(context, p, dtype, view, attributes.scores_mode);
      if (y.elements() == 0) return;
      attend<T>(context, p, w, view, y.as<T>());
    });
  });
}

}  // namespace

void register_attention(Registry& r) {
  r.add("Attention", make_attention);
}

}  // namespace kvik::ops
