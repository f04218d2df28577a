#include "onnx/rewrite.h"

#include <algorithm>
#include <array>
#include <limits>
#include <utility>

#include "base/text.h"
#include "kvik/error.h"
#include "onnx/matmul_nbits.h"

namespace kvik::onnx {

namespace {

using graph::ConstantTensor;
using graph::kNoValue;
using graph::Node;
using graph::ValueId;

[[noreturn]] void unsupported(const Node& node, const std::string& what) {
  throw Error(ErrorCode::kUnsupported, node.label() + ": " + what);
}

ConstantTensor int_list(const std::vector<std::int64_t>& values) {
  return ConstantTensor::from_ints(values, {static_cast<std::int64_t>(values.size())});
}

void set_input(Node& node, std::size_t index, ValueId id) {
  if (node.inputs.size() <= index) node.inputs.resize(index + 1, kNoValue);
  node.inputs[index] = id;
}

// Moves an attribute of integers to an input.
void ints_to_input(Node& node, const char* key, std::size_t index, Emitter& emitter) {
  const auto values = node.ints_attr(key);
  if (!values) return;
  set_input(node, index, emitter.new_constant(node.name + "/" + key, int_list(*values)));
  node.attributes.erase(key);
}

Node make_node(const char* op, const std::string& name, std::vector<ValueId> inputs,
               std::vector<ValueId> outputs) {
  Node node;
  node.op = op;
  node.name = name;
  node.inputs = std::move(inputs);
  node.outputs = std::move(outputs);
  return node;
}

// Squeeze, Unsqueeze: axes became an input in 13.
void rewrite_squeeze(Node node, std::int64_t opset, Emitter& emitter) {
  if (opset < 13) ints_to_input(node, "axes", 1, emitter);
  emitter.emit(std::move(node));
}

// Reductions: axes became an input in 13 (ReduceSum) and 18 (the others).
void rewrite_reduce(Node node, std::int64_t opset, Emitter& emitter) {
  if (opset < (node.op == "ReduceSum" ? 13 : 18)) ints_to_input(node, "axes", 1, emitter);
  emitter.emit(std::move(node));
}

// Split: the sizes became an input in 13; num_outputs is required without them since 18.
void rewrite_split(Node node, std::int64_t opset, Emitter& emitter) {
  if (opset < 13) ints_to_input(node, "split", 1, emitter);
  if (opset < 18 && node.input(1) == kNoValue) {
    node.attributes.insert_or_assign("num_outputs", static_cast<std::int64_t>(node.outputs.size()));
  }
  emitter.emit(std::move(node));
}

// Clip: min and max became inputs in 11. Left out, they are the limits of the type.
void rewrite_clip(Node node, std::int64_t opset, Emitter& emitter) {
  if (opset < 11) {
    std::size_t index = 1;
    for (const char* key : {"min", "max"}) {
      if (node.has_attr(key)) {
        const float bound = node.float_attr(key, 0);
        const auto tensor = ConstantTensor::from_floats(std::span(&bound, 1), {});
        set_input(node, index, emitter.new_constant(node.name + "/" + key, tensor));
        node.attributes.erase(key);
      }
      ++index;
    }
  }
  emitter.emit(std::move(node));
}

// Slice: everything became inputs in 10.
void rewrite_slice(Node node, std::int64_t opset, Emitter& emitter) {
  if (opset < 10) {
    ints_to_input(node, "starts", 1, emitter);
    ints_to_input(node, "ends", 2, emitter);
    ints_to_input(node, "axes", 3, emitter);
  }
  emitter.emit(std::move(node));
}

// Pad: pads and value became inputs in 11.
void rewrite_pad(Node node, std::int64_t opset, Emitter& emitter) {
  if (opset < 11) {
    ints_to_input(node, "pads", 1, emitter);
    if (node.has_attr("value")) {
      const float value = node.float_attr("value", 0);
      const auto tensor = ConstantTensor::from_floats(std::span(&value, 1), {});
      set_input(node, 2, emitter.new_constant(node.name + "/value", tensor));
      node.attributes.erase("value");
    }
  }
  emitter.emit(std::move(node));
}

// TopK: k became an input in 10.
void rewrite_topk(Node node, std::int64_t opset, Emitter& emitter) {
  if (opset < 10 && node.has_attr("k")) {
    const std::int64_t k = node.int_attr("k", 0);
    set_input(node, 1, emitter.new_constant(node.name + "/k", int_list({k})));
    node.attributes.erase("k");
  }
  emitter.emit(std::move(node));
}

// Softmax, LogSoftmax and Hardmax before 13 work on the input flattened to two axes at `axis`
// (default 1): Y = reshape(softmax(flatten(X, axis)), shape(X)).
void rewrite_softmax(Node node, std::int64_t opset, Emitter& emitter) {
  if (opset >= 13) return emitter.emit(std::move(node));
  const std::int64_t axis = node.int_attr("axis", 1);
  if (axis == -1) return emitter.emit(std::move(node));  // the last axis: the same in both forms
  const std::string name = node.name;
  const ValueId shape = emitter.new_value(name + "/shape");
  const ValueId flat = emitter.new_value(name + "/flat");
  const ValueId result = emitter.new_value(name + "/result");
  emitter.emit(make_node("Shape", name + "/shape", {node.input(0)}, {shape}));
  Node flatten = make_node("Flatten", name + "/flatten", {node.input(0)}, {flat});
  flatten.attributes.emplace("axis", axis);
  emitter.emit(std::move(flatten));
  const ValueId output = node.output(0);
  node.inputs = {flat};
  node.outputs = {result};
  node.attributes.insert_or_assign("axis", std::int64_t{-1});
  emitter.emit(std::move(node));
  emitter.emit(make_node("Reshape", name + "/reshape", {result, shape}, {output}));
}

// Whether Dropout computes with training_mode, or may do so.
bool may_train(const Node& node, std::int64_t opset, const graph::Graph& graph) {
  if (opset < 12 || node.input(2) == kNoValue) return false;
  const auto mode = graph.constant_scalar(node.input(2));
  return !mode || *mode != 0;
}

// Dropout does nothing at inference; its mask is all true.
void rewrite_dropout(Node node, std::int64_t opset, Emitter& emitter) {
  const ValueId mask = node.output(1);
  if (may_train(node, opset, emitter.graph()) || (mask != kNoValue && opset < 10)) {
    return emitter.emit(std::move(node));
  }
  if (node.output(0) != kNoValue) emitter.forward(node.output(0), node.input(0), node.name);
  if (mask == kNoValue) return;
  const ValueId shape = emitter.new_value(node.name + "/shape");
  emitter.emit(make_node("Shape", node.name + "/shape", {node.input(0)}, {shape}));
  Node ones = make_node("ConstantOfShape", node.name + "/mask", {shape}, {mask});
  ConstantTensor value = ConstantTensor::allocate(DType::kBool, {1});
  *value.mutable_data() = std::byte{1};
  ones.attributes.emplace("value", std::move(value));
  emitter.emit(std::move(ones));
}

// BatchNormalization: before 14, more than one output meant training; before 9, spatial = 0 meant
// one mean per element.
void rewrite_batch_normalization(Node node, std::int64_t opset, Emitter& emitter) {
  if (opset < 9) {
    if (node.int_attr("spatial", 1) == 0) unsupported(node, "spatial = 0 is not supported");
    node.attributes.erase("spatial");
  }
  if (opset < 14 && node.outputs.size() > 1) {
    node.attributes.insert_or_assign("training_mode", std::int64_t{1});
  }
  emitter.emit(std::move(node));
}

// GroupNormalization before 21 has one scale and bias per group: normalise [N, G, rest] as
// instances, then restore the shape.
void rewrite_group_normalization(Node node, std::int64_t opset, Emitter& emitter) {
  if (opset >= 21) return emitter.emit(std::move(node));
  const std::string name = node.name;
  const std::int64_t groups = node.int_attr("num_groups", 0);
  const ValueId shape = emitter.new_value(name + "/shape");
  const ValueId grouped = emitter.new_value(name + "/grouped");
  const ValueId result = emitter.new_value(name + "/result");
  const ValueId target = emitter.new_constant(name + "/groups", int_list({0, groups, -1}));
  emitter.emit(make_node("Shape", name + "/shape", {node.input(0)}, {shape}));
  emitter.emit(make_node("Reshape", name + "/group", {node.input(0), target}, {grouped}));
  Node norm =
      make_node("InstanceNormalization", name, {grouped, node.input(1), node.input(2)}, {result});
  norm.attributes.emplace("epsilon", node.float_attr("epsilon", 1e-5F));
  emitter.emit(std::move(norm));
  emitter.emit(make_node("Reshape", name + "/ungroup", {result, shape}, {node.output(0)}));
}

// Upsample (until 9) and Resize of 10 are today's Resize with asymmetric coordinates.
void rewrite_resize(Node node, std::int64_t opset, Emitter& emitter) {
  if (node.op == "Resize" && opset >= 11) return emitter.emit(std::move(node));
  ValueId scales = node.input(1);
  if (node.op == "Upsample" && opset < 9) {
    const auto it = node.attributes.find("scales");
    const auto* values =
        it == node.attributes.end() ? nullptr : std::get_if<std::vector<float>>(&it->second);
    if (!values) throw Error(ErrorCode::kInvalidModel, node.label() + ": no attribute 'scales'");
    scales = emitter.new_constant(
        node.name + "/scales",
        ConstantTensor::from_floats(*values, {static_cast<std::int64_t>(values->size())}));
    node.attributes.erase("scales");
  }
  node.op = "Resize";
  node.inputs = {node.input(0), kNoValue, scales};
  node.attributes.insert_or_assign("coordinate_transformation_mode", std::string("asymmetric"));
  node.attributes.insert_or_assign("nearest_mode", std::string("floor"));
  emitter.emit(std::move(node));
}

// Scatter became ScatterElements in 11.
void rewrite_scatter(Node node, std::int64_t, Emitter& emitter) {
  node.op = "ScatterElements";
  emitter.emit(std::move(node));
}

// Scan before 9 had a batch axis.
void rewrite_scan(Node node, std::int64_t opset, Emitter& emitter) {
  if (opset < 9) unsupported(node, "Scan of opset 8 is not supported");
  emitter.emit(std::move(node));
}

void rewrite_identity(Node node, std::int64_t, Emitter& emitter) {
  if (node.inputs.size() != 1 || node.outputs.size() != 1) return emitter.emit(std::move(node));
  emitter.forward(node.output(0), node.input(0), node.name);
}

constexpr std::pair<std::string_view, Rewrite> kRewrites[] = {
    {"BatchNormalization", rewrite_batch_normalization},
    {"Clip", rewrite_clip},
    {"Dropout", rewrite_dropout},
    {"GroupNormalization", rewrite_group_normalization},
    {"Hardmax", rewrite_softmax},
    {"Identity", rewrite_identity},
    {"LogSoftmax", rewrite_softmax},
    {"Pad", rewrite_pad},
    {"ReduceL1", rewrite_reduce},
    {"ReduceL2", rewrite_reduce},
    {"ReduceLogSum", rewrite_reduce},
    {"ReduceLogSumExp", rewrite_reduce},
    {"ReduceMax", rewrite_reduce},
    {"ReduceMean", rewrite_reduce},
    {"ReduceMin", rewrite_reduce},
    {"ReduceProd", rewrite_reduce},
    {"ReduceSum", rewrite_reduce},
    {"ReduceSumSquare", rewrite_reduce},
    {"Resize", rewrite_resize},
    {"Scan", rewrite_scan},
    {"Scatter", rewrite_scatter},
    {"Slice", rewrite_slice},
    {"Softmax", rewrite_softmax},
    {"Split", rewrite_split},
    {"Squeeze", rewrite_squeeze},
    {"TopK", rewrite_topk},
    {"Unsqueeze", rewrite_squeeze},
    {"Upsample", rewrite_resize},
};

}  // namespace

Rewrite find_rewrite(std::string_view domain, std::string_view op) {
  if (domain == "com.microsoft" && op == "MatMulNBits") return rewrite_matmul_nbits;
  if (!domain.empty()) return nullptr;
  const auto* it = std::lower_bound(std::begin(kRewrites), std::end(kRewrites), op,
                                    [](const auto& entry, auto key) { return entry.first < key; });
  return it != std::end(kRewrites) && it->first == op ? it->second : nullptr;
}

}  // namespace kvik::onnx
