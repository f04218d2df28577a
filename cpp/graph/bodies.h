// The bodies of control-flow nodes (If, Loop, Scan) as seen from the graph that holds the node.
#pragma once

#include <map>
#include <string_view>
#include <vector>

#include "graph/graph.h"

namespace kvik::graph {

// Calls visit(body) for every graph attribute of the node.
template <typename Visit>
void for_each_body(const Node& node, Visit visit) {
  for (const auto& [key, attribute] : node.attributes) {
    if (const auto* body = std::get_if<std::shared_ptr<Graph>>(&attribute)) visit(**body);
  }
}

// Finds the values that bodies capture. Captures are bound by name; the index of names is made only
// for a graph that has bodies.
class BodyIndex {
 public:
  explicit BodyIndex(const Graph& graph);

  // The values of the graph that the node's bodies use, one entry per capture. Throws
  // kInternal when a body captures a name that the graph does not have.
  std::vector<ValueId> captured(const Node& node) const;

 private:
  std::map<std::string_view, ValueId> ids_;
};

// Makes the value a constant: dtype, shape and elements.
void set_constant(Value& value, std::shared_ptr<const ConstantTensor> tensor);

}  // namespace kvik::graph
