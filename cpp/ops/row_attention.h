// Operators that exist only in row programs (see runtime/row_program.h).
#pragma once

#include <memory>

#include "graph/passes/prove_rowwise.h"
#include "ops/op.h"
#include "ops/row_batch.h"

namespace kvik::ops {

// Keys and values of one head as rows, and where they go.
struct KvRows {
  const float* k = nullptr;  // [rows, head_dim]
  std::ptrdiff_t k_stride = 0;
  const float* v = nullptr;  // [rows, value_dim]
  std::ptrdiff_t v_stride = 0;
  int head_dim = 0;
  int value_dim = 0;
  std::int64_t rows = 0;
  std::int64_t first_position = 0;
};
// Stores them in a table's blocks.
void store_rows(const kernels::KernelTable& kernels, const KvTables& tables, std::int64_t table,
                const KvRows& rows);

// kvik.RowAttention: stores the rows' keys and values into their sequences' caches, then attends;
// or attends to the sequences' sources, without inputs k and v. Inputs q, k, v; output [rows, ...,
// heads·value_dim] with the dimensions `output_shape` of the node's output in the graph. Needs
// OpContext::row_batch().
std::unique_ptr<OpKernel> make_row_attention(const graph::RowAttention& attention,
                                             const NodeInfo& info);

// kvik.EvalIndex(positions): the attribute "expr", computed for the rows at hand. Attribute "dims":
// the dimensions after the rows; output [rows, dims...] of the dtype that the graph gives it. In
// the expression Expr::index(0) is the row's position, Expr::index(j) the index along the j-th of
// the dimensions that are not 1.
std::unique_ptr<OpKernel> make_eval_index(const NodeInfo& info);

}  // namespace kvik::ops
