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

// Bytes of the memory that `rows` rows of x are rounded in for these products; 0 where the products
// read them as they are. Throws kOutOfMemory when that overflows.
std::size_t rounded_bytes(const kernels::KernelTable& table, std::int64_t rows,
                          std::span<const RowProduct> products);

// The same in memory [rounded_bytes], kAlignment-aligned, of the caller's.
void multiply(const kernels::KernelTable& table, ThreadPool& pool, const float* x,
              std::ptrdiff_t x_stride, std::int64_t rows, std::span<const RowProduct> products,
              void* memory);

// Columns of the panels [panel_begin, panel_end) of each product, on the calling thread alone.
// Rounds the rows itself, into memory [rounded_bytes], kAlignment-aligned.
void multiply_panels(const kernels::KernelTable& table, const float* x, std::ptrdiff_t x_stride,
                     std::int64_t rows, std::span<const RowProduct> products,
                     std::int64_t panel_begin, std::int64_t panel_end, void* memory);

// y = x · W for fp32 panels alone.
void multiply(const kernels::KernelTable& table, ThreadPool& pool, const float* x,
              std::ptrdiff_t x_stride, std::int64_t rows, const float* panels, std::int64_t k,
              std::int64_t n, float* y, std::ptrdiff_t y_stride);

}  // namespace kvik::ops
