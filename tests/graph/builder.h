// Small graphs by hand, and what the passes make of them.
#pragma once

#include <cmath>
#include <string>
#include <vector>

#include "cpp/check.h"
#include "graph/evaluate.h"
#include "graph/passes/pipeline.h"

namespace kvik::test {

using graph::Attributes;
using graph::Expr;
using graph::ValueId;

// Dimensions in tests: numbers, or the symbols "b" (batch), "s" (sequence) and "t".
inline const std::map<std::string, std::int64_t>& test_dims() {
  static const std::map<std::string, std::int64_t> dims{{"b", 2}, {"s", 5}, {"t", 3}};
  return dims;
}

class Builder {
 public:
  graph::Graph graph;

  Builder() { graph.name = "test"; }

  ValueId input(const std::string& name, std::vector<Expr> shape, DType dtype = DType::kF32) {
    const ValueId id = graph.add_value(name, dtype);
    graph.value(id).shape = std::move(shape);
    graph.inputs.push_back(id);
    return id;
  }
  ValueId scalar(float value) {
    return graph.add_constant(next("c"), graph::ConstantTensor::from_floats({&value, 1}, Dims{}));
  }
  ValueId ints(std::vector<std::int64_t> values) {
    const Dims dims{static_cast<std::int64_t>(values.size())};
    return graph.add_constant(next("c"), graph::ConstantTensor::from_ints(values, dims));
  }
  // Random numbers in [-1, 1), the same for the same name.
  ValueId weight(const std::string& name, Dims dims) {
    Random random(std::hash<std::string>{}(name));
    std::vector<float> values;
    for (std::int64_t i = 0; i < dims.elements(); ++i)
      values.push_back(random.uniform(-1.0F, 1.0F));
    return graph.add_constant(name, graph::ConstantTensor::from_floats(values, dims));
  }
  ValueId node(const std::string& op, std::vector<ValueId> inputs, Attributes attributes = {}) {
    const ValueId out = graph.add_value(next("v"));
    graph::Node& added = graph.nodes.emplace_back();
    added.op = op;
    added.name = graph.value(out).name;
    added.inputs = std::move(inputs);
    added.outputs = {out};
    added.attributes = std::move(attributes);
    return out;
  }
  void output(ValueId id, const std::string& name = "y") {
    graph.value(id).name = name;
    graph.outputs.push_back(id);
  }

 private:
  std::string next(const char* prefix) { return prefix + std::to_string(count_++); }
  int count_ = 0;
};

inline Expr sym(const char* name) {
  return Expr::symbol(name);
}

// The operators in order: "MatMul Add Relu".
inline std::string operators(const graph::Graph& graph) {
  std::string out;
  for (const graph::Node& node : graph.nodes) {
    out += (out.empty() ? "" : " ") + (node.domain.empty() ? "" : node.domain + ".") + node.op;
  }
  return out;
}

// Optimises a copy and checks that it computes what the graph did. `tolerance` is relative to
// 1 + |value|: the default allows for some hundred roundings to float32.
inline graph::Graph optimized(const Builder& builder, const graph::PassOptions& options = {},
                              double tolerance = 2e-5) {
  graph::Graph graph = builder.graph;
  const auto inputs = random_inputs(graph, test_dims(), 7);
  const auto before = run_graph(graph, inputs);
  graph::optimize(graph, options, evaluator());
  const double error = difference(run_graph(graph, inputs), before);
  CHECK(error <= tolerance) << "the passes changed the result by " << error << "\n"
                            << graph::dump(builder.graph) << graph::dump(graph);
  return graph;
}

inline graph::Graph optimized_without(const Builder& builder, const std::string& pass) {
  graph::PassOptions options;
  options.disabled.insert(pass);
  return optimized(builder, options);
}

// The operators after all passes, and that switching `pass` off keeps `fused` away.
inline void check_fuses(const Builder& builder, const std::string& pass, const std::string& fused,
                        const char* what) {
  const std::string with = operators(optimized(builder));
  CHECK_EQ(with, fused) << what;
  const std::string without = operators(optimized_without(builder, pass));
  CHECK(without != fused) << what << ": the same with " << pass << " off";
}

inline void check_lacks(const Builder& builder, const std::string& op, const char* what) {
  const graph::Graph graph = optimized(builder);
  CHECK(operators(graph).find(op) == std::string::npos) << what << "\n" << graph::dump(graph);
}

}  // namespace kvik::test
