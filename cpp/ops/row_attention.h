// Operators that exist only in row programs (see runtime/row_program.h).
#pragma once

#include <memory>

#include "graph/passes/prove_rowwise.h"
#include "ops/op.h"

namespace kvik::ops {

// kvik.RowAttention: stores the rows' keys and values into their sequences' caches, then attends.
// Inputs q, k, v; output [rows, ..., heads·value_dim] with the dimensions `output_shape` of the
// node's output in the graph. Needs OpContext::row_batch().
std::unique_ptr<OpKernel> make_row_attention(const graph::RowAttention& attention,
                                             const NodeInfo& info);

// kvik.EvalIndex(positions): the attribute "expr", computed for the rows at hand. Attribute "dims":
// the dimensions after the rows; output [rows, dims...] of the dtype that the graph gives it. In
// the expression Expr::index(0) is the row's position, Expr::index(j) the index along the j-th of
// the dimensions that are not 1.
std::unique_ptr<OpKernel> make_eval_index(const NodeInfo& info);

}  // namespace kvik::ops
