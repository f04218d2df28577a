#include "ops/matmul_shape.h"

#include "ops/broadcast.h"
#include "ops/support.h"

namespace kvik::ops {

MatMulShape matmul_shape(const Dims& a, const Dims& b) {
  check(a.rank >= 1 && b.rank >= 1, [&] {
    return "shapes " + a.str() + " and " + b.str() + ": a scalar has no matrix product";
  });
  MatMulShape s;
  s.k = a.back();
  const std::int64_t b_rows = b.rank == 1 ? b[0] : b[b.rank - 2];
  check(s.k == b_rows, [&] {
    return "shapes " + a.str() + " and " + b.str() + " do not fit: " + std::to_string(s.k) +
           " columns meet " + std::to_string(b_rows) + " rows";
  });
  if (a.rank > 1) s.m = a[a.rank - 2];
  if (b.rank > 1) s.n = b.back();
  for (int i = 0; i < a.rank - 2; ++i) s.a_batch.push_back(a[i]);
  for (int i = 0; i < b.rank - 2; ++i) s.b_batch.push_back(b[i]);
  s.batch = broadcast_dims(s.a_batch, s.b_batch);
  s.result = s.batch;
  if (a.rank > 1) s.result.push_back(s.m);
  if (b.rank > 1) s.result.push_back(s.n);
  return s;
}

std::int64_t matrix_index(std::int64_t i, const Dims& batch, const Dims& own) {
  std::int64_t index = 0, step = 1;
  for (int axis = batch.rank - 1; axis >= 0; --axis) {
    const int mine = axis - (batch.rank - own.rank);
    if (mine >= 0) {
      if (own[mine] != 1) index += i % batch[axis] * step;
      step *= own[mine];
    }
    i /= batch[axis];
  }
  return index;
}

}  // namespace kvik::ops
