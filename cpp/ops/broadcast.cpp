#include "ops/broadcast.h"

namespace kvik::ops {

namespace {
// Dimension `axis` of `dims` as seen from a result of rank `rank`: missing ones are 1.
std::int64_t aligned_dim(const Dims& dims, int rank, int axis) {
  const int own = axis - (rank - dims.rank);
  return own < 0 ? 1 : dims[own];
}

// The operand's stride along each dimension of the result, 0 where it is broadcast.
Dims broadcast_strides(const Tensor& tensor, const Dims& result) {
  Dims own = strides_of(tensor.dims);
  if (!tensor.contiguous() && own.rank > 0) own[0] = tensor.row_stride;
  Dims out;
  out.rank = result.rank;
  for (int axis = 0; axis < result.rank; ++axis) {
    const int i = axis - (result.rank - tensor.dims.rank);
    out[axis] = i < 0 || tensor.dims[i] == 1 ? 0 : own[i];
  }
  return out;
}
}  // namespace

Dims broadcast_dims(const Dims& a, const Dims& b) {
  Dims out;
  out.rank = std::max(a.rank, b.rank);
  for (int axis = 0; axis < out.rank; ++axis) {
    const std::int64_t da = aligned_dim(a, out.rank, axis);
    const std::int64_t db = aligned_dim(b, out.rank, axis);
    if (da != db && da != 1 && db != 1) {
      fail(ErrorCode::kInvalidArgument,
           "shapes " + a.str() + " and " + b.str() + " cannot be broadcast together");
    }
    out[axis] = da == 1 ? db : da;
  }
  return out;
}

BroadcastPlan plan_broadcast(std::span<const Tensor* const> operands) {
  BroadcastPlan plan;
  for (const Tensor* operand : operands) plan.result = broadcast_dims(plan.result, operand->dims);
  plan.total = result_elements(plan.result);

  std::array<Dims, BroadcastPlan::kMaxOperands> strides;
  for (std::size_t i = 0; i < operands.size(); ++i) {
    strides[i] = broadcast_strides(*operands[i], plan.result);
  }
  const std::size_t count = operands.size();
  for (int axis = 0; axis < plan.result.rank; ++axis) {
    const std::int64_t dim = plan.result[axis];
    if (dim == 1) continue;
    const int last = plan.loop.rank - 1;
    bool merge = last >= 0;
    for (std::size_t i = 0; i < count && merge; ++i) {
      merge = plan.strides[i][last] == strides[i][axis] * dim;
    }
    if (merge) {
      plan.loop[last] *= dim;
      for (std::size_t i = 0; i < count; ++i) plan.strides[i][last] = strides[i][axis];
    } else {
      plan.loop.push_back(dim);
      for (std::size_t i = 0; i < count; ++i) plan.strides[i].push_back(strides[i][axis]);
    }
  }
  // A strided column vector walks its last dimension by more than 1: give it one more of size 1.
  bool unit = plan.loop.rank > 0;
  for (std::size_t i = 0; i < count && unit; ++i) unit = plan.strides[i].back() <= 1;
  if (!unit) {
    plan.loop.push_back(1);
    for (std::size_t i = 0; i < count; ++i) plan.strides[i].push_back(0);
  }
  for (Dims& s : plan.strides) s.rank = plan.loop.rank;
  plan.inner = plan.loop.back();
  return plan;
}

void for_segments(const BroadcastPlan& plan, std::int64_t begin, std::int64_t end,
                  SegmentBody body) {
  if (begin >= end) return;
  const int outer = plan.loop.rank - 1;
  Dims index;
  index.rank = plan.loop.rank;
  std::array<std::int64_t, BroadcastPlan::kMaxOperands> base{};
  std::int64_t rest = begin / plan.inner;
  for (int axis = outer - 1; axis >= 0; --axis) {
    index[axis] = rest % plan.loop[axis];
    rest /= plan.loop[axis];
    for (std::size_t i = 0; i < base.size(); ++i) base[i] += index[axis] * plan.strides[i][axis];
  }
  std::int64_t first = begin % plan.inner;
  for (std::int64_t at = begin; at < end;) {
    const std::int64_t n = std::min(plan.inner - first, end - at);
    std::array<std::int64_t, BroadcastPlan::kMaxOperands> offsets = base;
    for (std::size_t i = 0; i < base.size(); ++i) offsets[i] += first * plan.strides[i][outer];
    body(at, offsets, n);
    at += n;
    first = 0;
    for (int axis = outer - 1; axis >= 0; --axis) {
      for (std::size_t i = 0; i < base.size(); ++i) base[i] += plan.strides[i][axis];
      if (++index[axis] < plan.loop[axis]) break;
      for (std::size_t i = 0; i < base.size(); ++i) {
        base[i] -= plan.strides[i][axis] * plan.loop[axis];
      }
      index[axis] = 0;
    }
  }
}

}  // namespace kvik::ops
