// What a row program does with the kernels of kvik.Linear besides running them.
#pragma once

#include <memory>
#include <vector>

#include "ops/op.h"

namespace kvik::ops {

inline constexpr std::size_t kMostJoinedLinears = 8;

bool is_linear(const OpKernel& kernel);

// One kernel for several kvik.Linear of one precision, without a residual, that read the same x:
// the rows are rounded once, and the threads meet once. Inputs: x, then the bias of each (or none);
// outputs: those of each. parts: 1 to kMostJoinedLinears kernels for which is_linear() holds.
std::unique_ptr<OpKernel> join_linears(std::vector<std::unique_ptr<OpKernel>> parts);

}  // namespace kvik::ops
