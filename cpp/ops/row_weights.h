// The weights of a row attention, written down while somebody asks for them.
#pragma once

#include <cstdint>

#include "graph/passes/prove_rowwise.h"
#include "ops/op.h"
#include "ops/row_batch.h"
#include "ops/row_keys.h"

namespace kvik::ops {

// Where they come from: the attention that has just been computed.
struct RowWeights {
  const graph::RowAttention& attention;
  const RowKeys& keys;
  const float* q;  // [rows of the run, heads · head_dim]
  std::int64_t q_stride;
  std::int64_t first_table;  // of the layer
};

// record.weights[h, p, j] = softmax_j(score(h, p, j)) for the run's queries p and what they see;
// the rest of the record stays as it is. The scores are those of the kernels that attend, from the
// same blocks, so that they have the same bits; the weights agree with what was used up to
// rounding.
void record_weights(OpContext& context, const RowWeights& of, const RowRun& run,
                    const AttentionRecord& record);

}  // namespace kvik::ops
