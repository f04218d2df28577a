// Runs graphs in tests: the evaluator that folding uses, and whole graphs on random inputs.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "graph/passes/passes.h"
#include "runtime/executor.h"

namespace kvik::test {

// Kernels, threads and weights that outlive every executor of the test.
const runtime::Engine& engine();

// The evaluator for graph::optimize().
graph::Evaluate evaluator();

// Elements of a tensor as doubles, whatever its numeric type.
std::vector<double> elements(const Tensor& tensor);

// Random tensors for the graph's inputs, with each symbol of its shapes replaced by `dims`. Floats
// lie in [-2, 2), integers in [0, int_limit), booleans are true three times in four.
std::vector<runtime::OwnedTensor> random_inputs(const graph::Graph& graph,
                                                const std::map<std::string, std::int64_t>& dims,
                                                std::uint64_t stream, std::int64_t int_limit = 8);

std::vector<runtime::OwnedTensor> run_graph(const graph::Graph& graph,
                                            const std::vector<runtime::OwnedTensor>& inputs);

// Largest |a - b| / (1 + |b|) over all elements of all outputs; infinity where shapes, types or
// special values differ.
double difference(const std::vector<runtime::OwnedTensor>& a,
                  const std::vector<runtime::OwnedTensor>& b);

// A dimension's value for given sizes of the symbols.
std::int64_t evaluate_dim(const graph::Expr& dim, const std::map<std::string, std::int64_t>& dims);

}  // namespace kvik::test
