// eliminate_common: equal nodes on equal inputs are computed once; equal small constants are one.
#include <cstdio>
#include <cstring>
#include <string>
#include <unordered_map>

#include "graph/passes/match.h"
#include "graph/passes/passes.h"

namespace kvik::graph {

namespace {

// Larger constants are equal only if they are the same memory.
constexpr std::size_t kComparedBytes = 512;

void append(std::string& key, const void* data, std::size_t bytes) {
  key.append(static_cast<const char*>(data), bytes);
}

template <typename T>
void append_number(std::string& key, T value) {
  append(key, &value, sizeof value);
}

void append_tensor(std::string& key, const ConstantTensor& tensor) {
  key += dtype_name(tensor.dtype);
  key += tensor.dims.str();
  if (tensor.data.size() <= kComparedBytes) {
    append(key, tensor.data.data(), tensor.data.size());
  } else {
    append_number(key, tensor.data.data());
  }
}

// Appends a text that is equal for equal attributes alone; false for those that aren't compared.
struct AppendAttribute {
  std::string& key;
  bool operator()(std::int64_t v) const { return append_number(key, v), true; }
  bool operator()(float v) const { return append_number(key, v), true; }
  bool operator()(const std::string& v) const {
    append_number(key, v.size());
    key += v;
    return true;
  }
  template <typename T>
  bool operator()(const std::vector<T>& v) const {
    append_number(key, v.size());
    for (const T& item : v) (*this)(item);
    return true;
  }
  bool operator()(const ConstantTensor& v) const { return append_tensor(key, v), true; }
  bool operator()(const std::shared_ptr<Graph>&) const { return false; }
  bool operator()(const Expr& v) const { return (*this)(v.str()); }
};

bool is_random(const Node& node) {
  return node.op.rfind("Random", 0) == 0 || node.op == "Multinomial" || node.op == "Bernoulli" ||
         node.op == "Dropout";
}

// What the node computes, as a text; empty for nodes that can't be shared.
std::string key_of(const Node& node) {
  if (is_random(node)) return {};
  std::string key = node.domain + ":" + node.op + ":";
  append_number(key, node.outputs.size());
  for (const ValueId input : node.inputs) append_number(key, input);
  for (const auto& [name, attribute] : node.attributes) {
    key += "{" + name + "=";
    append_number(key, attribute.index());
    if (!std::visit(AppendAttribute{key}, attribute)) return {};
  }
  return key;
}

void share_constants(Rewriter& r) {
  std::unordered_map<std::string, ValueId> first;
  const auto values = static_cast<ValueId>(r.graph().values.size());
  for (ValueId v = 0; v < values; ++v) {
    const ConstantTensor* tensor = r.constant(v);
    if (tensor == nullptr || r.consumers(v).empty()) continue;
    std::string key;
    append_tensor(key, *tensor);
    const auto [it, added] = first.emplace(std::move(key), v);
    if (!added && !r.is_output(v)) r.bypass(v, it->second);
  }
}

}  // namespace

void eliminate_common(Rewriter& r, PassState& /*state*/) {
  share_constants(r);
  std::unordered_map<std::string, NodeId> first;
  for (NodeId n = 0; n < r.count(); ++n) {
    if (!r.alive(n)) continue;
    std::string key = key_of(r.node(n));
    if (key.empty()) continue;
    const auto [it, added] = first.emplace(std::move(key), n);
    if (added) continue;
    const std::vector<ValueId> outputs = r.node(n).outputs;
    for (std::size_t i = 0; i < outputs.size(); ++i) {
      const ValueId shared = r.node(it->second).output(i);
      if (outputs[i] != kNoValue && shared != kNoValue && !r.is_output(outputs[i])) {
        r.bypass(outputs[i], shared);
      }
    }
  }
}

}  // namespace kvik::graph
