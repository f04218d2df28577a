// Which matrices of a model are kept in which precision, and the integers themselves.
#pragma once

#include <vector>

#include "graph/graph.h"
#include "kvik/weights.h"
#include "runtime/executor.h"

namespace kvik::runtime {

// Graphs that run, and may share matrices: one, or those of a source and of a target.
using Graphs = std::vector<const graph::Graph*>;

// In the order of the graphs' nodes.
std::vector<MatrixInfo> list_matrices(const Graphs& graphs, const ops::WeightCache& weights);

// Those of a matrix that list_matrices() gave. Throws kvik::Error(kInvalidArgument) for one
// without.
IntegerMatrix read_integers(const Graphs& graphs, const Engine& engine, const MatrixInfo& matrix);

}  // namespace kvik::runtime
