// Weights in the layout of the matrix product, packed once per model and shared.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <span>
#include <tuple>

#include "base/aligned_buffer.h"
#include "base/thread_pool.h"
#include "graph/graph.h"
#include "kernels/kernels.h"
#include "kvik/weights.h"
#include "ops/op.h"

namespace kvik::ops {

// The product's right side W [k, n] in panels of the kernel table, in one of the precisions that
// the table multiplies (see kernels.h for the layouts).
struct PackedWeights {
  WeightType type = WeightType::kF32;
  AlignedBuffer panels;
  AlignedBuffer column_scale;  // float [round_up(n, panel)]; integer types alone
  std::int64_t k = 0;
  std::int64_t n = 0;

  std::size_t bytes() const { return panels.size() + column_scale.size(); }

  // Of a product with `rows` rows.
  OpCost cost(std::int64_t rows) const;
  OpDescription describe() const;
};

// Floats that a packed [k, n] takes. Throws kOutOfMemory when that overflows.
std::size_t packed_floats(const kernels::KernelTable& table, std::int64_t k, std::int64_t n);

// The packed weights of a model by their constant. A constant that two nodes use in the same
// orientation is packed once. Entries live as long as a kernel uses them. The constants must
// outlive the cache: their addresses are the keys. Safe to use from several threads.
class WeightCache {
 public:
  // Called with the bytes of a constant that has been packed and is no longer read.
  using Release = std::function<void(std::span<const std::byte>)>;

  explicit WeightCache(WeightType type = WeightType::kF32, Release release = {})
      : type_(type), release_(std::move(release)) {}

  // W from a constant of any float dtype, in the cache's precision. transposed: the constant is
  // [n, k], else [k, n]. Throws kUnsupported for other dtypes, kInvalidModel unless it has k·n
  // elements.
  std::shared_ptr<const PackedWeights> get(const graph::ConstantTensor& constant, std::int64_t k,
                                           std::int64_t n, bool transposed,
                                           const kernels::KernelTable& table, ThreadPool& pool);
  // Memory of the packed weights that are in use.
  std::int64_t bytes() const;

 private:
  const WeightType type_;
  const Release release_;
  using Key =
      std::tuple<const void*, std::int64_t, std::int64_t, bool, const kernels::KernelTable*>;
  mutable std::mutex mutex_;
  std::map<Key, std::weak_ptr<const PackedWeights>> entries_;
};

// y = epilogue(x · W) for `rows` rows, in the weights' precision. Takes the context's workspace for
// integer weights.
void multiply(OpContext& context, const float* x, std::ptrdiff_t x_stride, std::int64_t rows,
              const PackedWeights& weights, const kernels::MatmulEpilogue& epilogue, float* y,
              std::ptrdiff_t y_stride);

// The same for fp32 panels alone. Split over the pool by panels or, where there are few panels, by
// rows; never along k.
void multiply(const kernels::KernelTable& table, ThreadPool& pool, const float* x,
              std::ptrdiff_t x_stride, std::int64_t rows, const float* panels, std::int64_t k,
              std::int64_t n, const kernels::MatmulEpilogue& epilogue, float* y,
              std::ptrdiff_t y_stride);

}  // namespace kvik::ops
