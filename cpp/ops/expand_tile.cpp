// Expand and Tile: the same elements, repeated.
#include <cstring>

#include "ops/broadcast.h"
#include "ops/families.h"

namespace kvik::ops {

namespace {

using Info = const NodeInfo&;

void run_expand(OpContext& context) {
  const Tensor& x = context.input(0);
  const IntList shape = int_list(context.input(1), "shape");
  const Dims requested{std::span<const std::int64_t>(shape)};
  result_elements(requested);
  const Dims dims = broadcast_dims(x.dims, requested);
  if (dims == x.dims) return context.alias(0, 0, dims);
  Tensor& y = context.output(0, x.dtype, dims);
  const std::array<const Tensor*, 2> operands{&y, &x};
  const BroadcastPlan plan = plan_broadcast(operands);
  const std::int64_t step = plan.strides[1].back();
  visit_size(x.dtype, [&]<typename T>() {
    parallel_elements(context, plan.total, [&](std::int64_t begin, std::int64_t end) {
      for_segments(plan, begin, end, [&](std::int64_t at, const auto& offset, std::int64_t n) {
        const T* from = x.as<T>() + offset[1];
        T* to = y.as<T>() + at;
        for (std::int64_t i = 0; i < n; ++i) to[i] = from[i * step];
      });
    });
  });
}

void run_tile(OpContext& context) {
  const Tensor& x = context.input(0);
  const IntList repeats = int_list(context.input(1), "repeats");
  check(static_cast<int>(repeats.size()) == x.dims.rank, [&] {
    return "repeats has " + std::to_string(repeats.size()) + " entries but the input has shape " +
           x.dims.str();
  });
  // [n0, n1] tiled r0, r1 times is [1, n0, 1, n1] broadcast to [r0, n0, r1, n1]: walked as rows
  // of the last axis, each repeated in place.
  Dims dims = x.dims;
  for (int axis = 0; axis < x.dims.rank; ++axis) {
    const std::int64_t repeat = repeats[static_cast<std::size_t>(axis)];
    check(repeat >= 0, [&] { return "a repeat of " + std::to_string(repeat); });
    if (!checked_mul(dims[axis], repeat, &dims[axis])) {
      fail(ErrorCode::kOutOfMemory, "a dimension of the tiled result overflows");
    }
  }
  Tensor& y = context.output(0, x.dtype, dims);
  if (y.elements() == 0) return;
  const Dims strides = strides_of(x.dims);
  const std::int64_t row = dims.rank == 0 ? 1 : dims.back();
  const std::int64_t from_row = dims.rank == 0 ? 1 : x.dims.back();
  visit_size(x.dtype, [&]<typename T>() {
    parallel_for(context, y.elements() / row, row, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t r = begin; r < end; ++r) {
        std::int64_t rest = r, offset = 0;
        for (int axis = dims.rank - 2; axis >= 0; --axis) {
          offset += rest % dims[axis] % x.dims[axis] * strides[axis];
          rest /= dims[axis];
        }
        T* to = y.as<T>() + r * row;
        for (std::int64_t i = 0; i < row; i += from_row) {
          std::memcpy(to + i, x.as<T>() + offset, static_cast<std::size_t>(from_row) * sizeof(T));
        }
      }
    });
  });
}

}  // namespace

void register_expand_tile(Registry& r) {
  r.add("Expand", [](Info) { return kernel_of(run_expand); });
  r.add("Tile", [](Info) { return kernel_of(run_tile); });
}

}  // namespace kvik::ops
