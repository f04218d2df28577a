// In which precision linear layers and embeddings keep their matrices. A table that both have, the
// rows of one being the columns of the other, is kept once where both keep it alike.
#pragma once

#include "ops/op.h"
#include "ops/packed_weights.h"

namespace kvik::ops {

// Of the weights of a kvik.Linear.
WeightType linear_type(const graph::Graph& graph, const graph::Node& node,
                       const WeightCache& weights);

// Of the rows of a kvik.Embedding.
struct EmbeddingRows {
  // kF32: as the file has them, dequantised where it has integers. kI8: fp32 rows that are rounded
  // to integers and back, so that they are the rows of a file that stores those.
  WeightType type = WeightType::kF32;
  bool shared = false;  // the integers are those of a linear layer with the same table
};
EmbeddingRows embedding_rows(const graph::Graph& graph, const graph::Node& node,
                             const WeightCache& weights);

}  // namespace kvik::ops
