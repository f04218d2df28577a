// Finds the Splits of features that need no copying: their outputs become views of columns.
#pragma once

#include <memory>
#include <span>

#include "graph/graph.h"
#include "ops/op.h"
#include "runtime/row_plan.h"

namespace kvik::runtime {

// Makes the outputs of a Split views (Storage::kAlias with a row_stride) where everything that
// reads them, through further views too, accepts rows that lie apart. Call it when the plan's other
// views are known. kernels: by node.
void view_columns(RowPlan& plan, const graph::Graph& graph,
                  std::span<const std::unique_ptr<ops::OpKernel>> kernels);

}  // namespace kvik::runtime
