// Finds products of the same rows and makes them one step: queries, keys and values; gate and up.
#pragma once

#include <memory>
#include <span>

#include "ops/op.h"
#include "runtime/row_plan.h"

namespace kvik::runtime {

// Joins kvik.Linear nodes of the body, and of the tail, that read the same slot in one precision,
// at the place of the first. Its kernel becomes that of all of them; the others' are moved into it.
// kernels: by node.
void join_products(RowPlan& plan, std::span<std::unique_ptr<ops::OpKernel>> kernels);

}  // namespace kvik::runtime
