// Small graphs for tests: values are given as tensors, nodes are added one after another.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "graph/graph.h"
#include "runtime/executor.h"

namespace kvik::test {

// A tensor with memory of its own, made from a list.
struct Given {
  Tensor tensor;
  AlignedBuffer storage;

  template <typename T>
  static Given of(DType dtype, const Dims& dims, const std::vector<T>& values) {
    Given g;
    g.storage = AlignedBuffer(values.size() * sizeof(T));
    std::copy(values.begin(), values.end(), g.storage.as<T>());
    g.tensor = {dtype, dims, g.storage.data(), 0};
    return g;
  }
};

inline Given floats(const Dims& dims, const std::vector<float>& values) {
  return Given::of(DType::kF32, dims, values);
}
inline Given ints(const Dims& dims, const std::vector<std::int64_t>& values) {
  return Given::of(DType::kI64, dims, values);
}
inline Given bools(const Dims& dims, const std::vector<std::uint8_t>& values) {
  return Given::of(DType::kBool, dims, values);
}

using Attributes = std::map<std::string, graph::Attribute, std::less<>>;

// Adds a node with `outputs` new values and returns their ids.
inline std::vector<graph::ValueId> add_node(graph::Graph& graph, std::string op,
                                            std::vector<graph::ValueId> inputs,
                                            Attributes attributes = {}, int outputs = 1,
                                            std::string domain = "") {
  graph::Node node;
  node.domain = std::move(domain);
  node.name = "/node" + std::to_string(graph.nodes.size());
  node.op = std::move(op);
  node.inputs = std::move(inputs);
  node.attributes = std::move(attributes);
  for (int i = 0; i < outputs; ++i) {
    node.outputs.push_back(graph.add_value(node.name + "/" + std::to_string(i)));
  }
  graph.nodes.push_back(node);
  return node.outputs;
}

inline graph::ValueId add_input(graph::Graph& graph, const std::string& name) {
  const graph::ValueId id = graph.add_value(name);
  graph.inputs.push_back(id);
  return id;
}

// A graph of one node, run on tensors. Inputs in `constants` become constants of the graph.
struct OneNode {
  std::string op;
  Attributes attributes = {};
  int outputs = 1;
  std::string domain = "";
  std::vector<std::size_t> constants = {};
  std::int64_t max_bytes = std::int64_t{1} << 30;
  int threads = 2;
  const kernels::KernelTable* table = &kernels::active_table();
  WeightType weights = WeightType::kF32;

  std::vector<runtime::OwnedTensor> run(const std::vector<Given>& given) const {
    graph::Graph graph;
    std::vector<graph::ValueId> ids;
    std::vector<Tensor> tensors;
    for (std::size_t i = 0; i < given.size(); ++i) {
      const std::string name = "input" + std::to_string(i);
      const Tensor& t = given[i].tensor;
      if (std::find(constants.begin(), constants.end(), i) != constants.end()) {
        graph::ConstantTensor constant = graph::ConstantTensor::allocate(t.dtype, t.dims);
        std::copy_n(static_cast<const std::byte*>(t.data), constant.data.size(),
                    constant.mutable_data());
        ids.push_back(graph.add_constant(name, constant));
      } else if (t.dtype == DType::kUndefined) {
        ids.push_back(graph::kNoValue);
      } else {
        ids.push_back(add_input(graph, name));
        tensors.push_back(t);
      }
    }
    graph.outputs = add_node(graph, op, ids, attributes, outputs, domain);
    ThreadPool pool(threads);
    ops::WeightCache cache(weights);
    runtime::ExecutorOptions options;
    options.max_bytes = max_bytes;
    const runtime::Engine engine{*table, pool, cache};
    return runtime::GraphExecutor(graph, engine, options).run(tensors);
  }
};

template <typename T>
std::vector<T> values_of(const runtime::OwnedTensor& result) {
  const T* p = result.tensor.as<T>();
  return {p, p + result.tensor.elements()};
}

}  // namespace kvik::test
