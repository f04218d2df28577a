// Weights in the layout of the matrix product, packed once per model and shared.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <span>
#include <tuple>
#include <vector>

#include "base/aligned_buffer.h"
#include "base/thread_pool.h"
#include "graph/graph.h"
#include "kernels/kernels.h"
#include "kvik/weights.h"
#include "ops/op.h"
#include "ops/weight_source.h"

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

// The precision that a [k, n] is kept in when `wanted` is asked for: small matrices stay in fp32
// (see kvik/weights.h).
WeightType packed_type(WeightType wanted, std::int64_t k, std::int64_t n);

// Bytes of one panel of k rows; see kernels.h for the layouts.
std::size_t panel_bytes(WeightType type, std::int64_t k, int width);

// One column of a panel of integers: W[i] = q[i] · scale[0] for kI8, q[i] · scale[i / kGroup] for
// kI4.
struct PanelColumn {
  WeightType type = WeightType::kI8;
  const std::uint8_t* panel = nullptr;
  int width = 0;  // the table's panel
  std::int64_t column = 0;
  float column_scale = 0.0F;
  std::int64_t k = 0;

  // q: [k]; scale: [1] for kI8, [groups of k] for kI4.
  void read(std::int8_t* q, float* scale) const;
  void widen(float* w) const;  // [k]
};
// Column c of weights that a table of that panel width has packed as kI8 or kI4.
PanelColumn panel_column(const PackedWeights& weights, int width, std::int64_t c);

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

  // W, packed in this precision. Throws as WeightSource does.
  std::shared_ptr<const PackedWeights> get(const WeightSource& source, WeightType type,
                                           const kernels::KernelTable& table, ThreadPool& pool) {
    return get(source, type, table, pool, source.values(), {});
  }
  // The same for a matrix that was made from `origin` for the call, in the order that `arrangement`
  // describes: entries are known by these, not by the address of the matrix.
  std::shared_ptr<const PackedWeights> get(const WeightSource& source, WeightType type,
                                           const kernels::KernelTable& table, ThreadPool& pool,
                                           const graph::ConstantTensor& origin,
                                           std::span<const std::int64_t> arrangement);
  // The precision that a linear layer's W is packed in. For integers in the file their own where
  // panels hold them (see WeightSource::panel_type), for anything else the cache's; fp32 for small
  // matrices. Of a table whose rows are looked up: the same, but kI8 in place of kI4.
  WeightType type_of(const WeightSource& source, bool looked_up) const;
  // The precision that matrices of floats are packed in.
  WeightType type() const { return type_; }
  // Memory of the packed weights that are in use.
  std::int64_t bytes() const;

 private:
  const WeightType type_;
  const Release release_;
  // Values, scales, zero points; k, n, the first column, zero_point, axis, block; transposed; type;
  // the table; the arrangement.
  using Key = std::tuple<const void*, const void*, const void*, std::array<std::int64_t, 6>, bool,
                         WeightType, const kernels::KernelTable*, std::vector<std::int64_t>>;
  mutable std::mutex mutex_;
  std::map<Key, std::weak_ptr<const PackedWeights>> entries_;
};

}  // namespace kvik::ops
