// Older forms of operators, rewritten to the newest.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "graph/graph.h"

namespace kvik::onnx {

// What a rewrite may do to the graph being imported.
class Emitter {
 public:
  virtual ~Emitter() = default;
  virtual const graph::Graph& graph() const = 0;
  // A new value; `name` is made unique.
  virtual graph::ValueId new_value(const std::string& name) = 0;
  virtual graph::ValueId new_constant(const std::string& name, graph::ConstantTensor tensor) = 0;
  // The same for elements that another constant holds already.
  virtual graph::ValueId view_constant(const std::string& name, graph::ConstantTensor tensor) = 0;
  // Adds a node in its canonical form.
  virtual void emit(graph::Node node) = 0;
  // Makes `output` another name of `input`, or emits an Identity node where names must stay apart.
  virtual void forward(graph::ValueId output, graph::ValueId input, const std::string& name) = 0;
};

using Rewrite = void (*)(graph::Node node, std::int64_t opset, Emitter& emitter);

// The rewrite of an operator, or null when it has had one form since opset 7 ("" is the domain of
// ONNX). A rewrite emits what computes the node's outputs, the node itself when it is canonical
// already.
Rewrite find_rewrite(std::string_view domain, std::string_view op);

}  // namespace kvik::onnx
