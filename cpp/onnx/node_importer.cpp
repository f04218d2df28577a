// Nodes, their attributes, and functions in place of their calls.
#include <algorithm>

#include "base/fail.h"
#include "base/text.h"
#include "graph/bodies.h"
#include "kvik/error.h"
#include "onnx/attribute_types.h"
#include "onnx/graph_importer.h"
#include "onnx/value_flags.h"

namespace kvik::onnx {

using graph::Attribute;
using graph::ConstantTensor;
using graph::kNoValue;
using graph::Node;
using graph::ValueId;

namespace {

// Estimates of what nodes and attributes take on the heap, besides their names.
constexpr std::int64_t kNodeCost = static_cast<std::int64_t>(sizeof(Node)) + 96;
constexpr std::int64_t kAttributeCost = static_cast<std::int64_t>(sizeof(Attribute)) + 128;

std::string qualified(std::string_view domain, std::string_view op) {
  return (domain.empty() ? "" : bare(domain) + ".") + bare(op);
}

void trim_omitted(std::vector<ValueId>& ids) {
  while (!ids.empty() && ids.back() == kNoValue) ids.pop_back();
}

std::string type_text(std::int64_t type) {
  const char* name = attribute_type_name(type);
  return name ? name : "type " + std::to_string(type);
}

template <typename T, typename Items>
std::vector<T> copy_list(const Items& items) {
  return std::vector<T>(items.begin(), items.end());
}

// The value of a Constant node in whichever attribute it is written.
ConstantTensor constant_of(const std::string& key, const Attribute& value,
                           const std::string& label) {
  if (const auto* tensor = std::get_if<ConstantTensor>(&value)) {
    if (key == "value" || key == "sparse_value") return *tensor;
  }
  if (const auto* i = std::get_if<std::int64_t>(&value); i && key == "value_int") {
    return ConstantTensor::from_ints(std::span(i, 1), {});
  }
  if (const auto* f = std::get_if<float>(&value); f && key == "value_float") {
    return ConstantTensor::from_floats(std::span(f, 1), {});
  }
  if (const auto* is = std::get_if<std::vector<std::int64_t>>(&value); is && key == "value_ints") {
    return ConstantTensor::from_ints(*is, {static_cast<std::int64_t>(is->size())});
  }
  if (const auto* fs = std::get_if<std::vector<float>>(&value); fs && key == "value_floats") {
    return ConstantTensor::from_floats(*fs, {static_cast<std::int64_t>(fs->size())});
  }
  if (key == "value_string" || key == "value_strings") {
    throw Error(ErrorCode::kUnsupported, label + ": string constants are not supported");
  }
  fail_model(label + ": attribute " + quote(key) + " is no constant's value");
}

}  // namespace

// What rewrites see of the importer.
class GraphImporter::NodeEmitter : public Emitter {
 public:
  NodeEmitter(GraphImporter& importer, GraphState& state) : importer_(importer), state_(state) {}

  const graph::Graph& graph() const override { return *state_.graph; }
  ValueId new_value(const std::string& name) override {
    return importer_.add_value(state_, importer_.unique_name(state_, name));
  }
  ValueId new_constant(const std::string& name, ConstantTensor tensor) override {
    importer_.source_.budget.take_memory(static_cast<std::int64_t>(tensor.data.size()),
                                         "constants");
    return view_constant(name, std::move(tensor));
  }
  ValueId view_constant(const std::string& name, ConstantTensor tensor) override {
    const ValueId id = new_value(name);
    importer_.source_.budget.take_memory(static_cast<std::int64_t>(sizeof tensor) + 96,
                                         "constants");
    graph::set_constant(state_.graph->value(id),
                        std::make_shared<const ConstantTensor>(std::move(tensor)));
    importer_.flags(state_, id) |= kDefined;
    return id;
  }
  void emit(Node node) override { importer_.emit(state_, std::move(node)); }
  void forward(ValueId output, ValueId input, const std::string& name) override {
    importer_.forward(state_, output, input, name);
  }

 private:
  GraphImporter& importer_;
  GraphState& state_;
};

void GraphImporter::import_nodes(Scope& scope, const std::vector<Bytes>& nodes) {
  NodeView view;
  for (Bytes bytes : nodes) {
    parse_node(source_, bytes, view);
    declare_outputs(scope, view);
    if (view.op == "Constant" && view.domain.empty()) import_constant(scope, view);
  }
  for (Bytes bytes : nodes) {
    parse_node(source_, bytes, view);
    if (view.op != "Constant" || !view.domain.empty()) import_node(scope, view);
  }
}

// All outputs are declared before any input is looked up, so that nodes out of order are found.
void GraphImporter::declare_outputs(Scope& scope, const NodeView& view) {
  for (std::string_view output : view.outputs) {
    if (output.empty()) continue;
    const auto bound = scope.outputs.find(output);
    if (bound == scope.outputs.end() || bound->second == kNoValue) {
      declare(scope, output);
    } else if (!scope.names.emplace(output, bound->second).second) {
      fail_model("value " + quote(output) + " is defined twice");
    }
  }
}

// Unnamed nodes are called by their first output.
std::string GraphImporter::node_name(const Scope& scope, const NodeView& view) {
  std::string_view name = view.name;
  for (std::string_view output : view.outputs) {
    if (name.empty()) name = output;
  }
  if (name.empty()) name = view.op;
  source_.budget.take_memory(2 * static_cast<std::int64_t>(scope.prefix.size() + name.size()),
                             "names of nodes");
  return scope.prefix + std::string(name);
}

void GraphImporter::import_constant(Scope& scope, const NodeView& view) {
  Node node;
  node.op = view.op;
  node.name = node_name(scope, view);
  if (view.outputs.size() != 1 || view.outputs[0].empty()) {
    fail_model(node.label() + " has " + std::to_string(view.outputs.size()) +
               " outputs, expected one");
  }
  import_attributes(scope, view, node);
  if (node.attributes.size() != 1) {
    fail_model(node.label() + " has " + std::to_string(node.attributes.size()) +
               " attributes, expected exactly one value");
  }
  const auto& [key, value] = *node.attributes.begin();
  const ValueId id = scope.names.find(view.outputs[0])->second;
  graph::set_constant(scope.state->graph->value(id), std::make_shared<const ConstantTensor>(
                                                         constant_of(key, value, node.label())));
  flags(*scope.state, id) |= kDefined;
}

void GraphImporter::import_node(Scope& scope, const NodeView& view) {
  Node node;
  node.domain = view.domain;
  node.op = view.op;
  node.name = node_name(scope, view);
  if (node.op.empty()) fail_model("node " + quote(node.name) + " has no op_type");
  const auto function = functions_.find(std::tuple(view.domain, view.op, view.overload));
  if (function != functions_.end()) {
    return inline_call(scope, view, function->second, node.name);
  }

  GraphState& state = *scope.state;
  source_.budget.take_memory(
      kNodeCost + static_cast<std::int64_t>(node.op.size() + node.domain.size() +
                                            sizeof(ValueId) * 2 *
                                                (view.inputs.size() + view.outputs.size())),
      "nodes");
  for (std::string_view input : view.inputs) {
    const auto id = input.empty() ? kNoValue : find(scope, input);
    if (!id) fail_model(node.label() + ": input " + quote(input) + " is not defined");
    node.inputs.push_back(*id);
    if (*id != kNoValue) flags(state, *id) |= kUsed;
  }
  for (std::string_view output : view.outputs) {
    node.outputs.push_back(output.empty() ? kNoValue : scope.names.find(output)->second);
  }
  trim_omitted(node.inputs);
  trim_omitted(node.outputs);

  const Rewrite rewrite = find_rewrite(node.domain, node.op);
  if (!rewrite && options_.supported && !options_.supported(node.domain, node.op)) {
    return emit(state, std::move(node));  // reported there; its attributes may be anything
  }
  const std::int64_t opset = opset_of(scope, view, node.label());
  import_attributes(scope, view, node);
  if (!rewrite) return emit(state, std::move(node));
  NodeEmitter emitter(*this, state);
  rewrite(std::move(node), opset, emitter);
}

std::int64_t GraphImporter::opset_of(const Scope& scope, const NodeView& view,
                                     const std::string& label) const {
  const auto it = scope.opsets->find(view.domain);
  if (it != scope.opsets->end()) return it->second;
  fail_model(label + ": its domain " + quote(view.domain) + " is not in opset_import");
}

void GraphImporter::emit(GraphState& state, Node node) {
  for (ValueId input : node.inputs) {
    if (input == kNoValue) continue;
    if (!(flags(state, input) & kDefined)) state.sorted = false;
    flags(state, input) |= kUsed;
  }
  for (ValueId output : node.outputs) {
    if (output != kNoValue) flags(state, output) |= kDefined;
  }
  if (options_.supported && !options_.supported(node.domain, node.op)) return report_missing(node);
  state.graph->nodes.push_back(std::move(node));
}

void GraphImporter::report_missing(const Node& node) {
  source_.budget.take_memory(256, "unsupported operators");
  Missing& missing = missing_[qualified(node.domain, node.op)];
  if (missing.nodes++ == 0) missing.first = quote(node.name);
}

void GraphImporter::forward(GraphState& state, ValueId output, ValueId input,
                            const std::string& name) {
  if (input != kNoValue && !(flags(state, output) & (kUsed | kPinned))) {
    source_.budget.take_memory(64, "values");
    state.aliases.emplace(output, input);
    return;
  }
  Node identity;
  identity.op = "Identity";
  identity.name = name;
  identity.inputs = {input};
  identity.outputs = {output};
  emit(state, std::move(identity));
}

void GraphImporter::import_attributes(Scope& scope, const NodeView& view, Node& node) {
  for (Bytes bytes : view.attributes) {
    const AttributeView attribute = parse_attribute(source_, bytes);
    const std::string label = node.label();
    if (attribute.name.empty()) fail_model(label + ": an attribute without a name");
    if (node.has_attr(attribute.name)) {
      fail_model(label + ": attribute " + quote(attribute.name) + " is there twice");
    }
    const AttributeType expected =
        node.domain.empty() ? expected_attribute_type(attribute.name) : AttributeType::kUndefined;
    if (expected != AttributeType::kUndefined &&
        attribute.type != static_cast<std::int64_t>(expected)) {
      fail_model(label + ": attribute " + quote(attribute.name) + " has the type " +
                 type_text(attribute.type) + ", expected " +
                 type_text(static_cast<std::int64_t>(expected)));
    }
    auto value = import_attribute(scope, attribute, label);
    if (value) node.attributes.emplace(attribute.name, std::move(*value));
  }
}

std::optional<Attribute> GraphImporter::import_attribute(Scope& scope, const AttributeView& view,
                                                         const std::string& label) {
  const std::string what = label + ": attribute " + quote(view.name);
  source_.budget.take_memory(
      kAttributeCost + static_cast<std::int64_t>(view.name.size() + view.s.size()), what);
  if (!view.ref.empty()) {
    if (!scope.call) fail_model(what + " refers to an attribute of a function, outside of any");
    const auto it = scope.call->attributes.find(view.ref);
    if (it == scope.call->attributes.end()) return std::nullopt;  // the call leaves it out
    return it->second;
  }
  const auto type = static_cast<AttributeType>(view.type);
  if (!attribute_type_name(view.type) || type == AttributeType::kUndefined) {
    fail_model(what + (view.type == 0 ? " has no type"
                                      : " has " + type_text(view.type) + ", which does not exist"));
  }
  if (view.holds != AttributeType::kUndefined && view.holds != type) {
    fail_model(what + " is declared " + type_text(view.type) + " and holds " +
               type_text(static_cast<std::int64_t>(view.holds)));
  }
  const bool is_message = type == AttributeType::kTensor || type == AttributeType::kGraph ||
                          type == AttributeType::kSparseTensor;
  if (is_message && view.holds == AttributeType::kUndefined) {
    fail_model(what + " is declared " + type_text(view.type) + " and holds nothing");
  }
  switch (type) {
    case AttributeType::kFloat: return view.f;
    case AttributeType::kInt: return view.i;
    case AttributeType::kString: return std::string(view.s);
    case AttributeType::kFloats: return view.floats;
    case AttributeType::kInts: return view.ints;
    case AttributeType::kStrings: {
      for (std::string_view s : view.strings) {
        source_.budget.take_memory(32 + static_cast<std::int64_t>(s.size()), what);
      }
      return copy_list<std::string>(view.strings);
    }
    case AttributeType::kTensor: return tensors_.read(parse_tensor(source_, view.message), what);
    case AttributeType::kSparseTensor:
      return tensors_.read_sparse(parse_sparse_tensor(source_, view.message), what);
    case AttributeType::kGraph: return import_body(scope, view.message, label);
    default:
      throw Error(ErrorCode::kUnsupported,
                  what + " of type " + type_text(view.type) + " is not supported");
  }
}

void GraphImporter::inline_call(Scope& scope, const NodeView& view, const Function& function,
                                const std::string& name) {
  const std::string label = qualified(view.domain, view.op) + " node " + quote(name);
  for (const Call* call = scope.call; call; call = call->caller) {
    if (call->function == &function) {
      fail_model(label + ": function " + qualified(view.domain, view.op) + " calls itself");
    }
  }
  Call call;
  call.function = &function;
  call.caller = scope.call;
  call.depth = scope.call ? scope.call->depth + 1 : 1;
  const int limit = source_.budget.limits().function_depth;
  if (call.depth > limit) {
    fail_model(label + ": more than " + std::to_string(limit) +
               " calls of functions within one another");
  }
  source_.budget.take_memory(256, "calls of functions");

  Scope inner;
  inner.state = scope.state;
  inner.opsets = &function.opsets;
  inner.call = &call;
  inner.prefix = name + "/";
  inner.depth = scope.depth;
  bind_call(scope, view, inner, call, label);
  for (std::size_t i = 0; i < function.view.nodes.size(); ++i) source_.budget.take_node();
  import_nodes(inner, function.view.nodes);

  // Outputs that no node of the body made are its inputs, passed through.
  for (const auto& [formal, actual] : inner.outputs) {
    const auto id = find(inner, formal);
    if (!id) fail_model(label + ": the function's output " + quote(formal) + " is never produced");
    if (actual == kNoValue || (flags(*scope.state, actual) & kDefined)) continue;
    if (*id != actual) forward(*scope.state, actual, *id, name);
  }
}

// The values and attributes of a call, by the names that the function's body has for them.
void GraphImporter::bind_call(Scope& scope, const NodeView& view, Scope& inner, Call& call,
                              const std::string& label) {
  const FunctionView& function = call.function->view;
  const auto check_count = [&](std::size_t found, std::size_t most, const char* what) {
    if (found > most) {
      fail_model(label + " has " + std::to_string(found) + " " + what + ", its function has " +
                 std::to_string(most));
    }
  };
  check_count(view.inputs.size(), function.inputs.size(), "inputs");
  check_count(view.outputs.size(), function.outputs.size(), "outputs");
  source_.budget.take_memory(
      64 * static_cast<std::int64_t>(function.inputs.size() + function.outputs.size()),
      "calls of functions");
  for (std::size_t i = 0; i < function.inputs.size(); ++i) {
    const std::string_view actual = i < view.inputs.size() ? view.inputs[i] : std::string_view();
    const auto id = actual.empty() ? kNoValue : find(scope, actual);
    if (!id) fail_model(label + ": input " + quote(actual) + " is not defined");
    if (*id != kNoValue) flags(*scope.state, *id) |= kUsed;
    if (!inner.names.emplace(function.inputs[i], *id).second) {
      fail_model(label + ": its function has the input " + quote(function.inputs[i]) + " twice");
    }
  }
  for (std::size_t i = 0; i < function.outputs.size(); ++i) {
    const std::string_view actual = i < view.outputs.size() ? view.outputs[i] : std::string_view();
    const ValueId id = actual.empty() ? kNoValue : scope.names.find(actual)->second;
    if (!inner.outputs.emplace(function.outputs[i], id).second) {
      fail_model(label + ": its function has the output " + quote(function.outputs[i]) + " twice");
    }
  }
  const auto add_attribute = [&](Scope& from, Bytes bytes, bool is_default) {
    const AttributeView attribute = parse_attribute(source_, bytes);
    if (call.attributes.count(attribute.name)) {
      if (is_default) return;
      fail_model(label + ": attribute " + quote(attribute.name) + " is there twice");
    }
    if (attribute.type == static_cast<std::int64_t>(AttributeType::kGraph)) {
      throw Error(ErrorCode::kUnsupported, label + ": attribute " + quote(attribute.name) +
                                               ": graphs as arguments of functions are not "
                                               "supported");
    }
    auto value = import_attribute(from, attribute, label);
    if (value) call.attributes.emplace(attribute.name, std::move(*value));
  };
  for (Bytes bytes : view.attributes) add_attribute(scope, bytes, false);
  for (Bytes bytes : function.attribute_defaults) add_attribute(scope, bytes, true);
}

}  // namespace kvik::onnx
