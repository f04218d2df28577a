// Products of rows with packed weights, on the thread pool. Work is split by panels or, where there
// are few panels, by rows; never along k.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "ops/packed_weights.h"

namespace kvik::ops {

// One of several products with the same rows: y = epilogue(x · W).
struct RowProduct {
  const PackedWeights* weights;
  kernels::MatmulEpilogue epilogue;
  float* y;  // [rows, n]
  std::ptrdiff_t y_stride;
};

// All products of x [rows, k], whose weights have the same k; each in its weights' precision. The
// rows are rounded once for all of them, in the context's workspace, and the threads meet once.
void multiply(OpContext& context, const float* x, std::ptrdiff_t x_stride, std::int64_t rows,
              std::span<const RowProduct> products);

inline void multiply(OpContext& context, const float* x, std::ptrdiff_t x_stride, std::int64_t rows,
                     const RowProduct& product) {
  multiply(context, x, x_stride, rows, std::span(&product, 1));
}

// y = x · W for fp32 panels alone.
void multiply(const kernels::KernelTable& table, ThreadPool& pool, const float* x,
              std::ptrdiff_t x_stride, std::int64_t rows, const float* panels, std::int64_t k,
              std::int64_t n, float* y, std::ptrdiff_t y_stride);

}  // namespace kvik::ops
