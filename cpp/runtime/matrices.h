// Which matrices of a model are kept in which precision, and the integers themselves.
#pragma once

#include <vector>

#include "graph/graph.h"
#include "kvik/weights.h"
#include "runtime/executor.h"

namespace kvik::runtime {

// Of the graph that runs, in the order of its nodes.
std::vector<MatrixInfo> list_matrices(const graph::Graph& graph, const ops::WeightCache& weights);

// Those of a matrix that list_matrices() gave. Throws kvik::Error(kInvalidArgument) for one
// without.
IntegerMatrix read_integers(const graph::Graph& graph, const Engine& engine,
                            const MatrixInfo& matrix);

}  // namespace kvik::runtime
