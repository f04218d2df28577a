#include "runtime/attention_taps.h"

#include <algorithm>
#include <cstring>
#include <string>
#include <utility>

#include "base/fail.h"

namespace kvik::runtime {

namespace {

using graph::kNoValue;
using graph::Node;
using graph::ValueId;

constexpr std::int64_t kAfterSoftmax = 3;  // qk_matmul_output_mode
constexpr std::size_t kScoresOutput = 3;
constexpr int kMostViews = 16;  // between a softmax and its product

struct Tap {
  ValueId weights = kNoValue;
  std::string name;
};

// Operators that hand on what they get, or their elements in another shape.
bool hands_on(const Node& node) {
  static constexpr const char* kOps[] = {"Cast",    "Identity",  "Dropout", "Reshape",
                                         "Squeeze", "Unsqueeze", "Expand",  "Transpose"};
  return std::any_of(std::begin(kOps), std::end(kOps), [&](const char* op) { return node.is(op); });
}

// Whether a product takes the value as its first operand and no weight of the model as its second.
bool weighs_values(const graph::Graph& graph, const graph::Uses& uses, ValueId value, int views) {
  for (const graph::NodeId id : uses.consumers[static_cast<std::size_t>(value)]) {
    const Node& node = graph.nodes[static_cast<std::size_t>(id)];
    if (node.is("MatMul") && node.input(0) == value && graph.constant(node.input(1)) == nullptr) {
      return true;
    }
    // Where(IsNaN(w), 0, w): what exporters write for rows that see nothing.
    const bool mended = node.is("Where") && node.input(2) == value;
    if (views < kMostViews && (mended || (hands_on(node) && node.input(0) == value)) &&
        weighs_values(graph, uses, node.outputs[0], views + 1)) {
      return true;
    }
  }
  return false;
}

bool over_last_axis(const graph::Graph& graph, const Node& node) {
  const std::int64_t axis = node.int_attr("axis", -1);
  const auto& shape = graph.value(node.input(0)).shape;
  return axis == -1 || (shape && axis + 1 == static_cast<std::int64_t>(shape->size()));
}

// Makes an Attention give its weights too; one that gives its scores at another stage gets a twin.
Tap tap_attention(graph::Graph& graph, std::vector<Node>& twins, Node& node) {
  const bool gives = node.output(kScoresOutput) != kNoValue;
  if (gives && node.int_attr("qk_matmul_output_mode", 0) == kAfterSoftmax) {
    return {node.output(kScoresOutput), node.name};
  }
  const ValueId weights = graph.add_value(node.name + ".weights", DType::kF32);
  Node* giver = &node;
  if (gives) {
    Node& twin = twins.emplace_back(node);
    twin.name += ".twin";
    for (ValueId& id : twin.outputs) {
      if (id != kNoValue) id = graph.add_value(graph.value(id).name + ".twin", DType::kUndefined);
    }
    giver = &twin;
  }
  giver->outputs.resize(std::max(giver->outputs.size(), kScoresOutput + 1), kNoValue);
  giver->outputs[kScoresOutput] = weights;
  giver->attributes["qk_matmul_output_mode"] = kAfterSoftmax;
  return {weights, node.name};
}

std::vector<Tap> find_taps(graph::Graph& graph) {
  const graph::Uses uses(graph);
  std::vector<Tap> taps;
  std::vector<Node> nodes, twins;
  for (Node& node : graph.nodes) {
    if (node.is("Attention")) {
      taps.push_back(tap_attention(graph, twins, node));
    } else if (node.is("Softmax") && over_last_axis(graph, node) &&
               weighs_values(graph, uses, node.output(0), 0)) {
      taps.push_back({node.output(0), node.name});
    }
    nodes.push_back(std::move(node));
    for (Node& twin : twins) nodes.push_back(std::move(twin));
    twins.clear();
  }
  graph.nodes = std::move(nodes);
  return taps;
}

Dimension as_dimension(const graph::Expr& expr) {
  const auto size = expr.constant();
  return size ? Dimension{.size = *size} : Dimension{.symbol = expr.str()};
}

bool counted_alike(const Dimension& a, const Dimension& b) {
  return a.size == b.size && a.symbol == b.symbol;
}

// Keys may be those of a past and the queries' own.
bool counts_too(const Dimension& keys, const Dimension& queries) {
  if (counted_alike(keys, queries) || (keys.symbol.empty() && keys.size < 0)) return true;
  if (queries.symbol.empty()) return false;
  const std::string& text = keys.symbol;
  const auto inside = [](char c) {
    return std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '_';
  };
  for (std::size_t at = text.find(queries.symbol); at != std::string::npos;
       at = text.find(queries.symbol, at + 1)) {
    const std::size_t end = at + queries.symbol.size();
    if ((at == 0 || !inside(text[at - 1])) && (end == text.size() || !inside(text[end])))
      return true;
  }
  return false;
}

// After inference.
AttentionSite describe_tap(const graph::Graph& graph, const Tap& tap) {
  AttentionSite site;
  site.name = tap.name;
  const auto& shape = graph.value(tap.weights).shape;
  if (shape && shape->size() >= 2) {
    site.queries = as_dimension((*shape)[shape->size() - 2]);
    site.keys = as_dimension(shape->back());
  }
  site.kind = counts_too(site.keys, site.queries) ? AttentionKind::kSelf : AttentionKind::kCross;
  return site;
}

void find_source_sites(std::vector<AttentionSite>& sites) {
  for (AttentionSite& site : sites) {
    if (site.kind != AttentionKind::kSelf) continue;
    const bool source = std::any_of(sites.begin(), sites.end(), [&](const AttentionSite& other) {
      return other.kind == AttentionKind::kCross && counted_alike(other.keys, site.keys);
    });
    const bool target = std::any_of(sites.begin(), sites.end(), [&](const AttentionSite& other) {
      return other.kind == AttentionKind::kCross && counted_alike(other.queries, site.queries);
    });
    if (source && !target) site.kind = AttentionKind::kSource;
  }
}

// [batch, heads, queries, keys] of what may have fewer axes, or batch and heads in one.
std::vector<std::int64_t> four_dims(const Tensor& weights, std::int64_t batch,
                                    const std::string& name) {
  const Dims& dims = weights.dims;
  const std::int64_t matrices = dims.rank < 2 ? 0 : dims.elements(0, dims.rank - 2);
  if (dims.rank < 2 || batch < 1 || (dims.rank > 2 && matrices % batch != 0)) {
    fail(ErrorCode::kUnsupported, "the attention '" + name + "' has weights of shape " +
                                      dims.str() + " for " + std::to_string(batch) + " sequences");
  }
  if (dims.rank == 2) return {1, 1, dims[0], dims[1]};
  return {batch, matrices / batch, dims[dims.rank - 2], dims[dims.rank - 1]};
}

}  // namespace

AttentionTaps::AttentionTaps(const graph::Graph& graph, const Engine& engine,
                             const AttentionChoice& choice)
    : graph_(graph) {
  const std::vector<Tap> taps = find_taps(graph_);
  graph::infer(graph_);
  for (const Tap& tap : taps) sites_.push_back(describe_tap(graph_, tap));
  find_source_sites(sites_);
  choose_attention(sites_, choice);
  for (std::size_t i = 0; i < taps.size(); ++i) {
    if (sites_[i].wanted) wanted_.push_back(taps[i].weights);
  }
  if (!wanted_.empty()) {
    executor_ = std::make_unique<GraphExecutor>(graph_, engine, ExecutorOptions{}, wanted_);
  }
}

std::vector<AttentionWeights> AttentionTaps::run(std::span<const Tensor> inputs, std::int64_t batch,
                                                 const CancelCheck& cancelled) const {
  std::vector<OwnedTensor> results;
  if (executor_) results = executor_->run(inputs, cancelled);
  std::vector<AttentionSite> sites = sites_;
  std::size_t next = 0;
  for (AttentionSite& site : sites) {
    if (!site.wanted) continue;
    const Tensor& found = results[next++].tensor;
    if (found.dtype != DType::kF32) {
      fail(ErrorCode::kUnsupported, "the attention '" + site.name + "' has weights of type " +
                                        dtype_name(found.dtype) + "; expected float32");
    }
    site.dims = four_dims(found, batch, site.name);
  }
  std::vector<AttentionWeights> groups = make_room(sites);
  next = 0;
  for (const AttentionSite& site : sites) {
    if (!site.wanted) continue;
    OwnedTensor& result = results[next++];
    const std::int64_t elements = result.tensor.elements();
    if (elements > 0) {
      std::memcpy(site.weights, result.tensor.data,
                  static_cast<std::size_t>(elements) * sizeof(float));
    }
    result = {};  // the memory of one, not of all, is there twice
  }
  return groups;
}

}  // namespace kvik::runtime
