// NumPy-style broadcasting of up to three operands.
#pragma once

#include <array>
#include <span>

#include "ops/support.h"

namespace kvik::ops {

// How the elements of a result and of its operands correspond. Dimensions of size 1 are dropped
// and neighbours that every operand walks alike are merged, so most cases end with rank 1 or 2.
// Along the last dimension every operand's stride is 0 or 1.
struct BroadcastPlan {
  static constexpr int kMaxOperands = 3;
  Dims result;                             // dimensions of the result, as ONNX defines them
  Dims loop;                               // the merged dimensions; rank >= 1
  std::array<Dims, kMaxOperands> strides;  // by operand, one stride per loop dimension
  std::int64_t inner = 1;                  // size of the last loop dimension
  std::int64_t total = 0;                  // elements of the result
};

// The shape that the operands broadcast to. Throws kInvalidArgument naming both shapes.
Dims broadcast_dims(const Dims& a, const Dims& b);

// Operands may have a row_stride.
BroadcastPlan plan_broadcast(std::span<const Tensor* const> operands);

// Calls body(out, offsets, n) for the segments of the result range [begin, end): n elements from
// index `out` on; operand i starts at offsets[i] and moves by its last stride (0 or 1).
using SegmentBody =
    FunctionRef<void(std::int64_t out, const std::array<std::int64_t, BroadcastPlan::kMaxOperands>&,
                     std::int64_t n)>;
void for_segments(const BroadcastPlan& plan, std::int64_t begin, std::int64_t end,
                  SegmentBody body);

}  // namespace kvik::ops
