// The reference's attention and cache: scores, weights and sums in double.
#include <algorithm>
#include <cmath>
#include <limits>

#include "base/float16.h"
#include "kernels/reference.h"

namespace kvik::kernels::reference {

namespace {

// Element `at` of a block, at `position`.
double cached(CacheType type, const void* block, std::int64_t position, std::int64_t at) {
  const auto* data = static_cast<const std::uint8_t*>(block) + cache_scale_bytes(type);
  switch (type) {
    case CacheType::kF32: return reinterpret_cast<const float*>(data)[at];
    case CacheType::kBF16:
      return BFloat16::to_float(reinterpret_cast<const std::uint16_t*>(data)[at]);
    case CacheType::kI8: break;
  }
  return static_cast<double>(static_cast<const float*>(block)[position]) *
         reinterpret_cast<const std::int8_t*>(data)[at];
}

// The score of query r and key j, after scale, cap and bias.
double score(const AttentionArgs& args, int r, std::int64_t j) {
  const float* q = args.q + r * args.q_stride;
  const void* block = args.k_blocks[j / kKvBlock];
  const std::int64_t position = j % kKvBlock;
  double s = 0.0;
  for (int d = 0; d < args.head_dim; ++d) {
    s += static_cast<double>(q[d]) * cached(args.cache, block, position, d * kKvBlock + position);
  }
  s *= args.scale;
  if (args.softcap != 0.0f) s = args.softcap * std::tanh(s / args.softcap);
  if (args.bias) s += args.bias[r * args.bias_stride + j];
  return s;
}

// One row of a segment.
void attend(const AttentionArgs& args, int r, std::int64_t segment, float* out, float* top,
            float* total) {
  const double kHidden = -std::numeric_limits<double>::infinity();
  const std::int64_t first = std::max(args.first_key ? args.first_key[r] : 0, segment * kKvSegment);
  const std::int64_t last = std::min(args.last_key[r], (segment + 1) * kKvSegment - 1);
  double largest = kHidden;
  for (std::int64_t j = first; j <= last; ++j) largest = std::max(largest, score(args, r, j));
  *top = static_cast<float>(largest);
  // Every key hidden: all weights 0 (or NaN), below. Not `top`, which is rounded: the weight of a
  // large score would not be 1.
  const double shift = largest == kHidden ? 0.0 : largest;
  double sum = 0.0;
  double* sums = reinterpret_cast<double*>(args.scratch);  // [value_dim]
  std::fill(sums, sums + args.value_dim, 0.0);
  for (std::int64_t j = first; j <= last; ++j) {
    const double weight = std::exp(score(args, r, j) - shift);
    const std::int64_t position = j % kKvBlock;
    sum += weight;
    for (int d = 0; d < args.value_dim; ++d) {
      sums[d] += weight * cached(args.cache, args.v_blocks[j / kKvBlock], position,
                                 position * args.value_dim + d);
    }
  }
  *total = static_cast<float>(sum);
  for (int d = 0; d < args.value_dim; ++d) out[d] = static_cast<float>(sums[d]);
}

// x [dim] to the elements at, at + step, ... of a block.
void store_row(CacheType type, const float* x, int dim, int slot, std::int64_t at,
               std::int64_t step, void* block) {
  auto* data = static_cast<std::uint8_t*>(block) + cache_scale_bytes(type);
  const RowScale row = row_scale(x, dim, {});
  if (type == CacheType::kI8) static_cast<float*>(block)[slot] = row.scale;
  for (int d = 0; d < dim; ++d, at += step) {
    switch (type) {
      case CacheType::kF32: reinterpret_cast<float*>(data)[at] = x[d]; break;
      case CacheType::kBF16:
        reinterpret_cast<std::uint16_t*>(data)[at] = BFloat16::from_float(x[d]);
        break;
      case CacheType::kI8: reinterpret_cast<std::int8_t*>(data)[at] = row.byte(x[d]); break;
    }
  }
}

}  // namespace

void attention_part_f32(const AttentionArgs& args, std::int64_t segment,
                        const AttentionPart& part) {
  for (int r = 0; r < args.rows; ++r) {
    attend(args, r, segment, part.out + r * part.out_stride, part.top + r, part.total + r);
  }
}

void attention_join_f32(const AttentionPart& sums, const AttentionPart& more, int rows,
                        int value_dim) {
  for (int r = 0; r < rows; ++r) {
    if (more.total[r] == 0.0f) continue;
    float* out = sums.out + r * sums.out_stride;
    const float* other = more.out + r * more.out_stride;
    const bool first = sums.total[r] == 0.0f;
    const float top = first ? more.top[r] : std::max(sums.top[r], more.top[r]);
    const double shift = std::isinf(top) ? 0.0 : top;
    const double shrink = first ? 0.0 : std::exp(sums.top[r] - shift);
    const double factor = first ? 1.0 : std::exp(more.top[r] - shift);
    for (int d = 0; d < value_dim; ++d) {
      out[d] = static_cast<float>(out[d] * shrink + other[d] * factor);
    }
    sums.total[r] = static_cast<float>(sums.total[r] * shrink + more.total[r] * factor);
    sums.top[r] = top;
  }
}

void attention_divide_f32(const AttentionPart& sums, int rows, int value_dim, float* out,
                          std::ptrdiff_t out_stride) {
  for (int r = 0; r < rows; ++r) {
    const float total = sums.total[r] == 0.0f ? 1.0f : sums.total[r];
    for (int d = 0; d < value_dim; ++d) {
      out[r * out_stride + d] = sums.out[r * sums.out_stride + d] / total;
    }
  }
}

void attention_f32(const AttentionArgs& args) {
  float* other = args.scratch + 2 * args.value_dim;  // [value_dim], behind the sums of attend()
  for (int r = 0; r < args.rows; ++r) {
    float top = 0.0f, total = 0.0f, more_top = 0.0f, more_total = 0.0f;
    float* out = args.out + r * args.out_stride;
    const AttentionPart sums{out, 0, &top, &total}, more{other, 0, &more_top, &more_total};
    std::int64_t segment = args.first_key ? args.first_key[r] / kKvSegment : 0;
    attend(args, r, segment, out, &top, &total);
    while (++segment <= args.last_key[r] / kKvSegment) {
      attend(args, r, segment, other, &more_top, &more_total);
      attention_join_f32(sums, more, 1, args.value_dim);
    }
    attention_divide_f32(sums, 1, args.value_dim, out, 0);
  }
}

std::size_t attention_scratch(int /*head_dim*/, int value_dim) {
  return 3 * static_cast<std::size_t>(value_dim);  // value_dim doubles and floats
}

void store_kv(CacheType type, const CacheRows& rows, void* k_block, void* v_block) {
  for (int p = 0; p < rows.count; ++p) {
    const int slot = rows.slot + p;
    store_row(type, rows.k + p * rows.k_stride, rows.head_dim, slot, slot, kKvBlock, k_block);
    store_row(type, rows.v + p * rows.v_stride, rows.value_dim, slot,
              std::int64_t{slot} * rows.value_dim, 1, v_block);
  }
}

}  // namespace kvik::kernels::reference
