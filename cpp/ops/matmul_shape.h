// The shapes of a matrix product with broadcasting.
#pragma once

#include <cstdint>

#include "base/dims.h"

namespace kvik::ops {

// The sizes of a product A [..., m, k] · B [..., k, n]. A vector counts as one row (A) or one
// column (B), and its dimension is missing in the result.
struct MatMulShape {
  std::int64_t m = 1, k = 0, n = 1;
  Dims a_batch, b_batch, batch;  // leading dimensions, and what they broadcast to
  Dims result;
};

// Throws kInvalidArgument where the shapes do not fit.
MatMulShape matmul_shape(const Dims& a, const Dims& b);

// Which matrix of `own` belongs to matrix i of `batch`.
std::int64_t matrix_index(std::int64_t i, const Dims& batch, const Dims& own);

}  // namespace kvik::ops
