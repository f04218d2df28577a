// Nodes, values and who uses them.
#include "graph/graph.h"

#include "base/text.h"
#include "graph/bodies.h"
#include "kvik/error.h"

namespace kvik::graph {

namespace {

const char* attribute_kind(const Attribute& attribute) {
  constexpr const char* kKinds[] = {"an integer", "a float",  "a string", "integers",     "floats",
                                    "strings",    "a tensor", "a graph",  "an expression"};
  static_assert(std::size(kKinds) == std::variant_size_v<Attribute>);
  return kKinds[attribute.index()];
}

// The attribute as T, null where absent; another type in its place is the model's error.
template <typename T>
const T* find_attr(const Node& node, std::string_view key, const char* wanted) {
  const auto it = node.attributes.find(key);
  if (it == node.attributes.end()) return nullptr;
  if (const T* value = std::get_if<T>(&it->second)) return value;
  throw Error(ErrorCode::kInvalidModel, node.label() + ": attribute " + quote(key) + " is " +
                                            attribute_kind(it->second) + ", expected " + wanted);
}

}  // namespace

std::int64_t Node::int_attr(std::string_view key, std::int64_t fallback) const {
  const auto* value = find_attr<std::int64_t>(*this, key, "an integer");
  return value ? *value : fallback;
}

float Node::float_attr(std::string_view key, float fallback) const {
  const auto* value = find_attr<float>(*this, key, "a float");
  return value ? *value : fallback;
}

std::string Node::string_attr(std::string_view key, std::string_view fallback) const {
  const auto* value = find_attr<std::string>(*this, key, "a string");
  return value ? *value : std::string(fallback);
}

std::optional<std::vector<std::int64_t>> Node::ints_attr(std::string_view key) const {
  const auto* value = find_attr<std::vector<std::int64_t>>(*this, key, "integers");
  return value ? std::optional(*value) : std::nullopt;
}

std::string Node::label() const {
  return (domain.empty() ? "" : bare(domain) + ".") + bare(op) + " node " + quote(name);
}

ValueId Graph::add_value(std::string value_name, DType dtype) {
  Value& added = values.emplace_back();
  added.name = std::move(value_name);
  added.dtype = dtype;
  return static_cast<ValueId>(values.size() - 1);
}

ValueId Graph::add_constant(std::string value_name, ConstantTensor tensor) {
  const ValueId id = add_value(std::move(value_name), tensor.dtype);
  set_constant(value(id), std::make_shared<const ConstantTensor>(std::move(tensor)));
  return id;
}

void set_constant(Value& value, std::shared_ptr<const ConstantTensor> tensor) {
  value.dtype = tensor->dtype;
  value.shape.emplace(tensor->dims.begin(), tensor->dims.end());
  value.constant = std::move(tensor);
}

std::optional<std::vector<std::int64_t>> Graph::constant_ints(ValueId id) const {
  const ConstantTensor* tensor = constant(id);
  if (!tensor || (!dtype_is_integer(tensor->dtype) && tensor->dtype != DType::kBool)) {
    return std::nullopt;
  }
  return tensor->ints();
}

std::optional<double> Graph::constant_scalar(ValueId id) const {
  const ConstantTensor* tensor = constant(id);
  if (!tensor || tensor->dims.elements() != 1 || dtype_bits(tensor->dtype) == 0) {
    return std::nullopt;
  }
  return tensor->float_at(0);
}

Uses::Uses(const Graph& graph)
    : producer(graph.values.size(), kNoNode),
      consumers(graph.values.size()),
      is_output(graph.values.size(), false) {
  const BodyIndex bodies(graph);
  for (std::size_t n = 0; n < graph.nodes.size(); ++n) {
    const auto id = static_cast<NodeId>(n);
    for (ValueId input : graph.nodes[n].inputs) {
      if (input != kNoValue) consumers[static_cast<std::size_t>(input)].push_back(id);
    }
    for (ValueId captured : bodies.captured(graph.nodes[n])) {
      consumers[static_cast<std::size_t>(captured)].push_back(id);
    }
    for (ValueId output : graph.nodes[n].outputs) {
      if (output != kNoValue) producer[static_cast<std::size_t>(output)] = id;
    }
  }
  for (ValueId output : graph.outputs) is_output[static_cast<std::size_t>(output)] = true;
}

}  // namespace kvik::graph
