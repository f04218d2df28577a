// Compares what infer() says about the values of a graph with what they are when it runs.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "graph/graph.h"

namespace kvik::test {

struct InferCheck {
  int shapes = 0;    // values whose inferred shape was compared
  int contents = 0;  // values whose inferred contents were compared, element by element
  std::vector<std::string> wrong;
};

// Runs the graph on random inputs with the symbols of its shapes set to `dims`.
InferCheck check_inference(graph::Graph graph, const std::map<std::string, std::int64_t>& dims,
                           std::uint64_t stream);

}  // namespace kvik::test
