#include "graph/evaluate.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "base/float16.h"
#include "cpp/check.h"
#include "graph/expr_eval.h"
#include "kvik/error.h"
#include "ops/op.h"

namespace kvik::test {

namespace {

using graph::ConstantTensor;
using graph::Expr;
using graph::Graph;
using graph::Node;
using runtime::OwnedTensor;

OwnedTensor allocate(DType dtype, const Dims& dims) {
  OwnedTensor out;
  out.tensor.dtype = dtype;
  out.tensor.dims = dims;
  const std::size_t bytes = static_cast<std::size_t>(dims.elements()) * dtype_bits(dtype) / 8;
  if (bytes == 0) return out;
  auto memory = std::make_shared<AlignedBuffer>(bytes);
  out.tensor.data = memory->data();
  out.storage = std::move(memory);
  return out;
}

void fill(const Tensor& tensor, Random& random, std::int64_t int_limit) {
  for (std::int64_t i = 0; i < tensor.elements(); ++i) {
    switch (tensor.dtype) {
      case DType::kF32: tensor.as<float>()[i] = random.uniform(-2.0F, 2.0F); break;
      case DType::kI64: tensor.as<std::int64_t>()[i] = random.integer(0, int_limit - 1); break;
      case DType::kI32:
        tensor.as<std::int32_t>()[i] = static_cast<std::int32_t>(random.integer(0, int_limit - 1));
        break;
      case DType::kBool: tensor.as<std::uint8_t>()[i] = random.integer(0, 3) != 0; break;
      default: throw Error(ErrorCode::kUnsupported, "no random tensors of this type");
    }
  }
}

// A graph of the one node, its constants in place.
Graph single_node_graph(const Graph& graph, const Node& node) {
  Graph single;
  single.name = "folded";
  Node copy = node;
  for (graph::ValueId& input : copy.inputs) {
    if (input != graph::kNoValue) {
      input = single.add_constant(graph.value(input).name, *graph.constant(input));
    }
  }
  for (graph::ValueId& output : copy.outputs) {
    if (output == graph::kNoValue) continue;
    output = single.add_value(graph.value(output).name, graph.value(output).dtype);
    single.outputs.push_back(output);
  }
  single.nodes.push_back(std::move(copy));
  return single;
}

}  // namespace

const runtime::Engine& engine() {
  static ThreadPool pool(1);
  static ops::WeightCache weights;
  static const runtime::Engine engine{kernels::active_table(), pool, weights};
  return engine;
}

graph::Evaluate evaluator() {
  return [](const Graph& graph, const Node& node) -> std::optional<std::vector<ConstantTensor>> {
    if (ops::registry().find(node.domain, node.op) == nullptr) return std::nullopt;
    const Graph single = single_node_graph(graph, node);
    const runtime::GraphExecutor executor(single, engine());
    const auto results = executor.run({});
    std::vector<ConstantTensor> tensors;
    std::size_t next = 0;
    for (const graph::ValueId output : node.outputs) {
      ConstantTensor& tensor = tensors.emplace_back();
      if (output == graph::kNoValue) continue;
      const Tensor& result = results[next++].tensor;
      tensor = ConstantTensor::allocate(result.dtype, result.dims);
      if (!tensor.data.empty()) std::memcpy(tensor.mutable_data(), result.data, tensor.data.size());
    }
    return tensors;
  };
}

std::vector<double> elements(const Tensor& tensor) {
  ConstantTensor view;
  view.dtype = tensor.dtype;
  view.dims = tensor.dims;
  view.data = {static_cast<const std::byte*>(tensor.data),
               static_cast<std::size_t>(tensor.elements()) * dtype_bits(tensor.dtype) / 8};
  std::vector<double> out;
  for (std::int64_t i = 0; i < tensor.elements(); ++i) out.push_back(view.float_at(i));
  return out;
}

std::int64_t evaluate_dim(const Expr& dim, const std::map<std::string, std::int64_t>& dims) {
  if (const auto value = dim.constant()) return *value;
  if (dim.kind() == graph::ExprKind::kSymbol) return dims.at(dim.str());
  throw Error(ErrorCode::kInvalidArgument, "a test input has the dimension " + dim.str());
}

std::vector<OwnedTensor> random_inputs(const Graph& graph,
                                       const std::map<std::string, std::int64_t>& dims,
                                       std::uint64_t stream, std::int64_t int_limit) {
  Random random(stream);
  std::vector<OwnedTensor> out;
  for (const graph::ValueId id : graph.inputs) {
    Dims actual;
    for (const Expr& dim : *graph.value(id).shape) actual.push_back(evaluate_dim(dim, dims));
    out.push_back(allocate(graph.value(id).dtype, actual));
    fill(out.back().tensor, random, int_limit);
  }
  return out;
}

std::vector<OwnedTensor> run_graph(const Graph& graph, const std::vector<OwnedTensor>& inputs) {
  const runtime::GraphExecutor executor(graph, engine());
  std::vector<Tensor> views;
  for (const OwnedTensor& input : inputs) views.push_back(input.tensor);
  return executor.run(views);
}

double difference(const std::vector<OwnedTensor>& a, const std::vector<OwnedTensor>& b) {
  constexpr double kDifferent = std::numeric_limits<double>::infinity();
  if (a.size() != b.size()) return kDifferent;
  double largest = 0.0;
  for (std::size_t t = 0; t < a.size(); ++t) {
    if (!(a[t].tensor.dims == b[t].tensor.dims) || a[t].tensor.dtype != b[t].tensor.dtype) {
      return kDifferent;
    }
    const auto x = elements(a[t].tensor);
    const auto y = elements(b[t].tensor);
    for (std::size_t i = 0; i < x.size(); ++i) {
      if (x[i] == y[i] || (std::isnan(x[i]) && std::isnan(y[i]))) continue;
      if (!std::isfinite(x[i]) || !std::isfinite(y[i])) return kDifferent;
      largest = std::max(largest, std::fabs(x[i] - y[i]) / (1.0 + std::fabs(y[i])));
    }
  }
  return largest;
}

}  // namespace kvik::test
