#include "ops/packed_weights.h"

#include <cstring>

#include "ops/support.h"

namespace kvik::ops {

namespace {

// Packs one panel from elements that may be unaligned or of another float type, through a block
// of floats [k, columns].
template <typename T>
void pack_panel(const kernels::KernelTable& table, const std::byte* data, bool transposed,
                const PackedWeights& w, std::int64_t panel, float* block, float* packed) {
  const std::int64_t first = panel * table.panel;
  const std::int64_t columns = std::min<std::int64_t>(table.panel, w.n - first);
  for (std::int64_t i = 0; i < w.k; ++i) {
    for (std::int64_t c = 0; c < columns; ++c) {
      const std::int64_t at = transposed ? (first + c) * w.k + i : i * w.n + first + c;
      T element;
      std::memcpy(&element, data + static_cast<std::size_t>(at) * sizeof(T), sizeof(T));
      block[i * columns + c] = static_cast<float>(widen(element));
    }
  }
  table.pack_f32(block, columns, 1, w.k, columns, 0, 1, packed + panel * table.panel * w.k);
}

void pack(const kernels::KernelTable& table, ThreadPool& pool,
          const graph::ConstantTensor& constant, bool transposed, PackedWeights& w) {
  float* packed = w.panels.as<float>();
  const std::byte* data = constant.data.data();
  const std::int64_t panels = w.panel_count(table);
  const bool direct =
      constant.dtype == DType::kF32 && reinterpret_cast<std::uintptr_t>(data) % alignof(float) == 0;
  parallel_for(pool, panels, w.k * table.panel, 1, [&](std::int64_t begin, std::int64_t end) {
    if (direct) {
      table.pack_f32(reinterpret_cast<const float*>(data), transposed ? 1 : w.n,
                     transposed ? w.k : 1, w.k, w.n, begin, end, packed);
      return;
    }
    AlignedBuffer block(
        checked_product(static_cast<std::size_t>(w.k * table.panel), sizeof(float)));
    visit_float(constant.dtype, [&]<typename T>() {
      for (std::int64_t panel = begin; panel < end; ++panel) {
        pack_panel<T>(table, data, transposed, w, panel, block.as<float>(), packed);
      }
    });
  });
}

}  // namespace

std::size_t packed_floats(const kernels::KernelTable& table, std::int64_t k, std::int64_t n) {
  const auto panel = static_cast<std::size_t>(table.panel);
  const std::size_t columns = (static_cast<std::size_t>(n) + panel - 1) / panel * panel;
  return checked_product(columns, static_cast<std::size_t>(k));
}

std::shared_ptr<const PackedWeights> WeightCache::get(const graph::ConstantTensor& constant,
                                                      std::int64_t k, std::int64_t n,
                                                      bool transposed,
                                                      const kernels::KernelTable& table,
                                                      ThreadPool& pool) {
  if (!dtype_is_float(constant.dtype)) fail_dtype(constant.dtype);
  const auto elements = checked_elements(constant.dims.span());
  std::int64_t expected = 0;
  if (k < 0 || n < 0 || !checked_mul(k, n, &expected) || elements != expected) {
    fail(ErrorCode::kInvalidModel, "the weights have shape " + constant.dims.str() + "; expected " +
                                       std::to_string(k) + " by " + std::to_string(n) +
                                       " elements");
  }
  const std::lock_guard lock(mutex_);
  auto& entry = entries_[{constant.data.data(), k, n, transposed, &table}];
  if (auto known = entry.lock()) return known;
  auto packed = std::make_shared<PackedWeights>();
  packed->k = k;
  packed->n = n;
  packed->panels = AlignedBuffer(checked_product(packed_floats(table, k, n), sizeof(float)));
  pack(table, pool, constant, transposed, *packed);
  entry = packed;
  return packed;
}

std::int64_t WeightCache::bytes() const {
  const std::lock_guard lock(mutex_);
  std::int64_t sum = 0;
  for (const auto& [key, entry] : entries_) {
    if (const auto packed = entry.lock()) sum += static_cast<std::int64_t>(packed->panels.size());
  }
  return sum;
}

void multiply(const kernels::KernelTable& table, ThreadPool& pool, const float* x,
              std::ptrdiff_t x_stride, std::int64_t rows, const float* panels, std::int64_t k,
              std::int64_t n, const kernels::MatmulEpilogue& epilogue, float* y,
              std::ptrdiff_t y_stride) {
  if (rows == 0 || n == 0) return;
  const std::int64_t count = (n + table.panel - 1) / table.panel;
  // About 8 multiply-adds take the time of one simple element operation.
  const std::int64_t threads = pool.threads();
  if (count >= 2 * threads || rows < 2 * threads) {
    const std::int64_t cost = rows * k * table.panel / 8;
    parallel_for(pool, count, cost, 1, [&](std::int64_t begin, std::int64_t end) {
      table.matmul_f32(x, x_stride, rows, k, panels, n, begin, end, epilogue, y, y_stride);
    });
    return;
  }
  parallel_for(pool, rows, k * n / 8, 1, [&](std::int64_t begin, std::int64_t end) {
    kernels::MatmulEpilogue part = epilogue;
    if (part.residual) part.residual += begin * part.residual_stride;
    table.matmul_f32(x + begin * x_stride, x_stride, end - begin, k, panels, n, 0, count, part,
                     y + begin * y_stride, y_stride);
  });
}

}  // namespace kvik::ops
