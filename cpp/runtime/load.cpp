#include "runtime/load.h"

#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <set>
#include <string>
#include <utility>

#include "base/checked.h"
#include "graph/infer/infer.h"
#include "graph/passes/pipeline.h"
#include "kvik/error.h"
#include "onnx/importer.h"
#include "ops/op.h"
#include "runtime/threads.h"

namespace kvik::runtime {

using graph::ConstantTensor;
using graph::Graph;
using graph::Node;
using graph::ValueId;

namespace {

constexpr std::int64_t kFoldBudget = std::int64_t{32} << 20;

onnx::ImportOptions import_options(DeclaredWidths* declared) {
  onnx::ImportOptions options;
  options.declared_widths = declared;
  options.supported = [](std::string_view domain, std::string_view op) {
    return ops::registry().find(domain, op) != nullptr ||
           (domain.empty() && (op == "If" || op == "Loop"));
  };
  return options;
}

// Whether running the node at load gives what running it later would.
bool foldable(const Node& node) {
  if (ops::registry().find(node.domain, node.op) == nullptr) return false;  // If, Loop, Scan
  if (node.op.starts_with("Random") || node.is("Bernoulli") || node.is("Multinomial")) return false;
  return !node.is("DequantizeLinear");  // stored small on purpose
}

// The node alone, its inputs constants, as a graph without inputs.
Graph graph_of(const Graph& graph, const Node& node) {
  Graph single;
  Node copy = node;
  for (ValueId& id : copy.inputs) {
    if (id == graph::kNoValue) continue;
    single.values.push_back(graph.value(id));
    id = static_cast<ValueId>(single.values.size()) - 1;
  }
  for (ValueId& id : copy.outputs) {
    // Every output, used or not, so that the results correspond to the node's outputs.
    id = single.add_value(id == graph::kNoValue ? std::string() : graph.value(id).name);
    single.outputs.push_back(id);
  }
  single.nodes.push_back(std::move(copy));
  return single;
}

ConstantTensor to_constant(const OwnedTensor& result) {
  ConstantTensor constant;
  constant.dtype = result.tensor.dtype;
  constant.dims = result.tensor.dims;
  const auto bytes = checked_bytes(result.tensor.elements(), result.tensor.dtype);
  constant.data = {static_cast<const std::byte*>(result.tensor.data),
                   static_cast<std::size_t>(bytes.value_or(0))};
  constant.owner = result.storage;
  return constant;
}

// The outputs of a node whose inputs are constants, while they fit what is left of the budget.
std::optional<std::vector<ConstantTensor>> evaluate(const Graph& graph, const Node& node,
                                                    const Engine& engine, std::int64_t& budget) {
  if (!foldable(node)) return std::nullopt;
  const Graph single = graph_of(graph, node);
  // In the file's own precision: a product of two constants is no linear layer.
  ops::WeightCache weights;
  const Engine exact{engine.kernels, engine.pool, weights};
  const GraphExecutor executor(single, exact, {.max_bytes = budget});
  std::vector<ConstantTensor> out;
  for (const OwnedTensor& result : executor.run({})) {
    out.push_back(to_constant(result));
    budget -= static_cast<std::int64_t>(out.back().data.size());
  }
  return out;
}

// Whether `id` holds scales or zero points: part of the weights' bytes, and no weights themselves.
bool is_step(const Node& node, ValueId id) {
  if (node.is("DequantizeLinear")) return id != node.input(0);
  return node.is("Linear", "kvik") && (id == node.input(4) || id == node.input(5));
}

}  // namespace

Workshop::Workshop(int threads, WeightType type, ops::WeightCache::Release release)
    : pool(thread_count(threads)), weights(type, std::move(release)) {}

graph::Model import_model(const std::filesystem::path& path, DeclaredWidths* declared) {
  return onnx::import_file(path.string(), import_options(declared));
}

graph::Model import_model(std::span<const std::byte> bytes, DeclaredWidths* declared) {
  auto copy = std::make_shared<std::vector<std::byte>>(bytes.begin(), bytes.end());
  return onnx::import_bytes(*copy, import_options(declared), copy);
}

std::function<void()> file_check(const graph::Model& model) {
  if (model.check_files) return model.check_files;
  return [] {};
}

void prepare_graph(Graph& graph, const Engine& engine, Optimize how, graph::DimLimits* limits) {
  if (how == Optimize::kNothing) {
    graph::infer(graph);
  } else {
    graph::PassOptions options;
    options.assume_limits = limits != nullptr;
    for (const graph::Pass& pass : graph::all_passes()) {
      const bool fusion = pass.name.starts_with("fuse_") && pass.name != "fuse_attention";
      if (how == Optimize::kProof && fusion) options.disabled.emplace(pass.name);
    }
    // Rows have no transposes to save, and the proof sees heads that were repeated, and need not be
    // kept twice, on an axis of their own only.
    if (how != Optimize::kAll) options.disabled.emplace("pack_heads");
    std::int64_t budget = kFoldBudget;
    const graph::PipelineReport report = graph::optimize(
        graph, options,
        [&](const Graph& from, const Node& node) { return evaluate(from, node, engine, budget); });
    if (limits != nullptr) *limits = report.limits;
  }
  graph::verify(graph);
}

std::vector<TensorInfo> describe_values(const Graph& graph, std::span<const ValueId> values) {
  std::vector<TensorInfo> out;
  for (const ValueId id : values) {
    const graph::Value& value = graph.value(id);
    TensorInfo info{.name = value.name, .dtype = value.dtype, .has_shape = value.shape.has_value()};
    if (value.shape) {
      for (const graph::Expr& dim : *value.shape) {
        const auto size = dim.constant();
        info.shape.push_back(size ? Dimension{.size = *size} : Dimension{.symbol = dim.str()});
      }
    }
    out.push_back(std::move(info));
  }
  return out;
}

OpCounts count_ops(const Graph& graph) {
  std::map<std::string, std::int64_t> counts;
  for (const Node& node : graph.nodes) {
    ++counts[node.domain.empty() ? node.op : node.domain + "." + node.op];
  }
  OpCounts out(counts.begin(), counts.end());
  std::stable_sort(out.begin(), out.end(),
                   [](const auto& a, const auto& b) { return a.second > b.second; });
  return out;
}

std::vector<GraphNode> list_nodes(const Graph& graph) {
  const auto names = [&](const std::vector<ValueId>& ids) {
    std::vector<std::string> out;
    for (const ValueId id : ids) {
      out.push_back(id == graph::kNoValue ? std::string() : graph.value(id).name);
    }
    return out;
  };
  std::vector<GraphNode> out;
  for (const Node& node : graph.nodes) {
    out.push_back({.op = node.domain.empty() ? node.op : node.domain + "." + node.op,
                   .name = node.name,
                   .inputs = names(node.inputs),
                   .outputs = names(node.outputs)});
  }
  return out;
}

WeightSize weigh(const Graph& graph) {
  WeightSize size;
  std::set<ValueId> counted;
  for (const Node& node : graph.nodes) {
    for (const ValueId id : node.inputs) {
      const ConstantTensor* constant = graph.constant(id);
      if (constant == nullptr || !counted.insert(id).second) continue;
      if (!dtype_is_float(constant->dtype) && dtype_bits(constant->dtype) > 8) continue;  // indices
      if (!is_step(node, id)) size.elements += constant->dims.elements();
      size.bytes += static_cast<std::int64_t>(constant->data.size());
    }
  }
  return size;
}

HomeProcess::HomeProcess() : id_(getpid()) {}

void HomeProcess::check() const {
  if (getpid() == id_) return;
  throw Error(ErrorCode::kInvalidArgument,
              "the model was loaded before fork() and its threads stayed with the parent process; "
              "load it again in the child");
}

}  // namespace kvik::runtime
