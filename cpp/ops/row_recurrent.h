// LSTM, GRU and RNN on rows of tokens, with the state of each sequence (see runtime/row_program.h).
#pragma once

#include <memory>

#include "graph/passes/prove_rowwise.h"
#include "ops/op.h"

namespace kvik::ops {

// kvik.RowRecurrent, as graph::RowRecurrent has it; `table`: the index of its table in
// RowBatch::layer_tables, where it keeps states. Needs OpContext::row_batch().
std::unique_ptr<OpKernel> make_row_recurrent(const graph::RowRecurrent& layer, std::size_t table,
                                             const NodeInfo& info);

}  // namespace kvik::ops
