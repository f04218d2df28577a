// fuse_linear: a product with a constant weight and what follows it become
//   kvik.Linear(x, w, bias?, residual?, scale?, zero?) = activation(x W + bias) + residual
// with the attributes trans_w (W is [n, k] as stored) and activation ("none", "gelu", "gelu_tanh",
// "silu", "relu", "tanh", "sigmoid"). Weights stay where they are, transposed or not; those that a
// DequantizeLinear makes of integers stay integers, with its scale, zero point, axis and block.
#include "graph/passes/match.h"
#include "graph/passes/passes.h"

namespace kvik::graph {

namespace {

constexpr std::size_t kBias = 2;
constexpr std::size_t kResidual = 3;
constexpr std::size_t kScale = 4;
constexpr std::size_t kZero = 5;

struct Weight {
  ValueId value = kNoValue;
  bool transposed = false;
  ValueId scale = kNoValue;
  ValueId zero = kNoValue;
  Attributes quantization;  // "axis" and "block" where there is a scale
};

// A float32 matrix of the file, one that is stored as integers, or the Transpose of either.
std::optional<Weight> match_weight(const Rewriter& r, ValueId v) {
  Weight weight{v, false};
  if (const Node* node = r.producer(v, "Transpose")) {
    const auto perm = node->ints_attr("perm");
    if (perm && *perm != std::vector<std::int64_t>{1, 0}) return std::nullopt;
    weight = {node->input(0), true};
  }
  if (auto integers = as_dequantized(r, weight.value)) {
    return Weight{integers->values, weight.transposed, integers->scale, integers->zero,
                  std::move(integers->attributes)};
  }
  const ConstantTensor* tensor = r.constant(weight.value);
  if (tensor == nullptr || tensor->dtype != DType::kF32 || tensor->dims.rank != 2) {
    return std::nullopt;
  }
  return weight;
}

// The inputs of a Linear, without the trailing ones that are left out.
std::vector<ValueId> linear_inputs(ValueId x, ValueId w, ValueId bias, ValueId residual,
                                   ValueId scale, ValueId zero) {
  std::vector<ValueId> inputs{x, w, bias, residual, scale, zero};
  while (inputs.back() == kNoValue) inputs.pop_back();
  return inputs;
}

void make_linear(Rewriter& r, NodeId n, ValueId x, const Weight& weight, bool trans_w,
                 ValueId bias) {
  Attributes attributes = weight.quantization;
  attributes.emplace("trans_w", std::int64_t{trans_w});
  attributes.emplace("activation", std::string("none"));
  r.rewrite(n, "kvik", "Linear",
            linear_inputs(x, weight.value, bias, kNoValue, weight.scale, weight.zero),
            std::move(attributes));
}

bool fuse_matmul(Rewriter& r, NodeId n) {
  const Node& node = r.node(n);
  if (!node.is("MatMul") || r.dtype(node.input(0)) != DType::kF32) return false;
  const auto weight = match_weight(r, node.input(1));
  const auto shape = r.shape(node.input(0));
  if (!weight || (shape && shape->size() < 2)) return false;
  make_linear(r, n, node.input(0), *weight, weight->transposed, kNoValue);
  return true;
}

bool fuse_gemm(Rewriter& r, NodeId n) {
  const Node& node = r.node(n);
  if (!node.is("Gemm") || node.int_attr("transA", 0) != 0 ||
      node.float_attr("alpha", 1.0F) != 1.0F || r.dtype(node.input(0)) != DType::kF32) {
    return false;
  }
  const auto weight = match_weight(r, node.input(1));
  const auto shape = r.shape(node.output(0));
  if (!weight || !shape || shape->size() != 2) return false;
  ValueId bias = kNoValue;
  if (node.input(2) != kNoValue && node.float_attr("beta", 1.0F) != 0.0F) {
    if (node.float_attr("beta", 1.0F) != 1.0F) return false;
    bias = as_vector(r, node.input(2), shape->back());
    if (bias == kNoValue) return false;
  }
  const bool trans_b = node.int_attr("transB", 0) != 0;
  make_linear(r, n, node.input(0), *weight, weight->transposed != trans_b, bias);
  return true;
}

// The Linear that makes v, if v goes nowhere else and nothing has followed the product so far
// beyond what the caller allows.
const Node* open_linear(const Rewriter& r, ValueId v, bool bias_allowed, bool activation_allowed) {
  const Node* linear = r.producer(v, "Linear", "kvik");
  if (linear == nullptr || !r.used_once(v) || linear->input(kResidual) != kNoValue) return nullptr;
  if (!bias_allowed && linear->input(kBias) != kNoValue) return nullptr;
  if (!activation_allowed && linear->string_attr("activation", "none") != "none") return nullptr;
  return linear;
}

bool absorb_bias(Rewriter& r, NodeId n) {
  const Node& node = r.node(n);
  for (const std::size_t i : {0U, 1U}) {
    const Node* linear = open_linear(r, node.input(i), false, false);
    if (linear == nullptr || !keeps_shape(r, node.input(i), node.input(1 - i))) continue;
    const ValueId bias = as_vector(r, node.input(1 - i), r.shape(node.input(i))->back());
    if (bias == kNoValue) continue;
    r.rewrite(n, "kvik", "Linear",
              linear_inputs(linear->input(0), linear->input(1), bias, kNoValue,
                            linear->input(kScale), linear->input(kZero)),
              linear->attributes);
    return true;
  }
  return false;
}

bool absorb_residual(Rewriter& r, NodeId n) {
  const Node& node = r.node(n);
  for (const std::size_t i : {0U, 1U}) {
    const ValueId residual = node.input(1 - i);
    const Node* linear = open_linear(r, node.input(i), true, true);
    if (linear == nullptr || r.constant(residual) != nullptr || residual == node.input(i) ||
        r.dtype(residual) != DType::kF32 || !same_shape(r, node.input(i), residual) ||
        has_unknown(*r.shape(residual))) {
      continue;
    }
    r.rewrite(n, "kvik", "Linear",
              linear_inputs(linear->input(0), linear->input(1), linear->input(kBias), residual,
                            linear->input(kScale), linear->input(kZero)),
              linear->attributes);
    return true;
  }
  return false;
}

// The name of the activation that the node is; empty if none.
std::string activation_of(const Node& node) {
  if (!node.domain.empty()) return {};
  if (node.op == "Relu") return "relu";
  if (node.op == "Tanh") return "tanh";
  if (node.op == "Sigmoid") return "sigmoid";
  if (node.op == "Swish" && node.float_attr("alpha", 1.0F) == 1.0F) return "silu";
  if (node.op == "Gelu") {
    const std::string approximate = node.string_attr("approximate", "none");
    if (approximate == "none") return "gelu";
    if (approximate == "tanh") return "gelu_tanh";
  }
  return {};
}

bool absorb_activation(Rewriter& r, NodeId n) {
  const Node& node = r.node(n);
  const std::string activation = activation_of(node);
  if (activation.empty()) return false;
  const Node* linear = open_linear(r, node.input(0), true, false);
  if (linear == nullptr) return false;
  Attributes attributes = linear->attributes;
  attributes["activation"] = activation;
  r.rewrite(n, "kvik", "Linear", linear->inputs, std::move(attributes));
  return true;
}

}  // namespace

void fuse_linear(Rewriter& r, PassState& /*state*/) {
  for (NodeId n = 0; n < r.count(); ++n) {
    if (!r.alive(n)) continue;
    if (fuse_matmul(r, n) || fuse_gemm(r, n) || absorb_activation(r, n)) continue;
    if (r.node(n).is("Add") && r.node(n).inputs.size() == 2 && !absorb_bias(r, n)) {
      absorb_residual(r, n);
    }
  }
}

}  // namespace kvik::graph
