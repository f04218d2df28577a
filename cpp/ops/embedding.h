// How rows of an embedding table are looked up in the precision that a model was loaded with.
#pragma once

#include <cstdint>

#include "ops/op.h"
#include "ops/packed_weights.h"

namespace kvik::ops {

// What the rows of a kvik.Embedding are made of.
struct EmbeddingRows {
  // kF32: as the file has them, dequantised where it has integers. kI8, kI4: fp32 rows that are
  // rounded to integers and back, so that they are the rows of a file that stores those.
  WeightType type = WeightType::kF32;
  bool shared = false;  // the integers are those of a linear layer with the same table
};
EmbeddingRows embedding_rows(const graph::Graph& graph, const graph::Node& node,
                             const WeightCache& weights);

}  // namespace kvik::ops
