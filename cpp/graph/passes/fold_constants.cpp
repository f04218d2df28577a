// fold_constants: what depends on constants alone is computed once, here.
//
// Two sources of values: contents that infer() knows (shape arithmetic that turns out constant),
// and the evaluator, for nodes whose inputs are all constants. Weights stay where they are in the
// file: views of them share their memory, and what would copy them for nothing is left alone.
#include <algorithm>
#include <array>
#include <cstring>
#include <string_view>

#include "base/checked.h"
#include "graph/passes/match.h"
#include "graph/passes/passes.h"
#include "kvik/error.h"

namespace kvik::graph {

namespace {

// A result may be larger than the node's inputs by at most this much: Range, Expand, Tile,
// ConstantOfShape and Pad make anything out of nothing.
constexpr std::int64_t kMaxGrowth = std::int64_t{16} << 20;
constexpr std::int64_t kMaxFolded = std::int64_t{4} << 30;  // all results together
// Elements of a value whose contents are spelled out; each costs a substitution.
constexpr std::int64_t kMaxSpelledOut = 256;

constexpr std::array<std::string_view, 12> kNeverFolded = {
    "RandomNormal",
    "RandomNormalLike",
    "RandomUniform",
    "RandomUniformLike",
    "Multinomial",
    "Bernoulli",
    "Dropout",
    "If",
    "Loop",
    "Scan",
    "DequantizeLinear",  // a quantised weight stays quantised
    "QuantizeLinear"};

std::optional<Dims> constant_dims(const std::optional<Shape>& shape) {
  if (!shape || shape->size() > static_cast<std::size_t>(kMaxRank)) return std::nullopt;
  Dims dims;
  for (const Expr& dim : *shape) {
    if (!dim.constant() || *dim.constant() < 0) return std::nullopt;
    dims.push_back(*dim.constant());
  }
  return dims;
}

template <typename T>
void store(const ConstantTensor& tensor, std::int64_t i, T value) {
  std::memcpy(tensor.mutable_data() + static_cast<std::size_t>(i) * sizeof(T), &value, sizeof(T));
}

// One element of a content as a constant of `dtype`; false where it is not a number.
bool store_element(const ConstantTensor& tensor, std::int64_t i, const Expr& element) {
  switch (tensor.dtype) {
    case DType::kI64:
    case DType::kI32: {
      const auto value = element.constant();
      if (!value) return false;
      if (tensor.dtype == DType::kI64) {
        store(tensor, i, *value);
      } else {
        if (*value != static_cast<std::int32_t>(*value)) return false;  // int32 would wrap
        store(tensor, i, static_cast<std::int32_t>(*value));
      }
      return true;
    }
    case DType::kBool:
      if (!element.truth()) return false;
      store(tensor, i, static_cast<std::uint8_t>(*element.truth()));
      return true;
    case DType::kF32:
      if (!element.real_constant()) return false;
      store(tensor, i, *element.real_constant());
      return true;
    default: return false;
  }
}

// The content as a tensor, if all of its elements are known numbers.
std::optional<ConstantTensor> spelled_out(const Expr& content, DType dtype, const Dims& dims) {
  const auto elements = checked_elements(dims.span());
  if (!content_type(dtype) || !elements || *elements > kMaxSpelledOut) return std::nullopt;
  ConstantTensor tensor = ConstantTensor::allocate(dtype, dims);
  for (std::int64_t i = 0; i < *elements; ++i) {
    std::map<int, Expr> indices;
    std::int64_t rest = i;
    for (int axis = dims.rank; axis-- > 0;) {
      indices.emplace(axis, Expr(rest % dims[axis]));
      rest /= dims[axis];
    }
    if (!store_element(tensor, i, content.substitute(indices))) return std::nullopt;
  }
  return tensor;
}

bool fold_contents(Rewriter& r, const Node& node) {
  bool folded = false;
  for (const ValueId out : std::vector<ValueId>(node.outputs)) {
    const auto content = r.content(out);
    const auto dims = constant_dims(r.shape(out));
    if (!content || !dims) continue;
    if (auto tensor = spelled_out(*content, r.dtype(out), *dims)) {
      r.make_constant(out, std::move(*tensor));
      folded = true;
    }
  }
  return folded;
}

bool all_inputs_constant(const Rewriter& r, const Node& node) {
  bool any = false;
  for (const ValueId input : node.inputs) {
    if (input == kNoValue) continue;
    if (r.constant(input) == nullptr) return false;
    any = true;
  }
  return any;
}

// Reshape and its kin: the same elements under other dims.
bool fold_view(Rewriter& r, const Node& node, const Dims& dims) {
  constexpr std::array<std::string_view, 5> kViews = {"Reshape", "Squeeze", "Unsqueeze", "Flatten",
                                                      "Identity"};
  const bool view =
      node.domain.empty() && std::find(kViews.begin(), kViews.end(), node.op) != kViews.end();
  const ConstantTensor* from = r.constant(node.input(0));
  if (!view || from->dims.elements() != dims.elements()) return false;
  ConstantTensor tensor = *from;
  tensor.dims = dims;
  r.make_constant(node.output(0), std::move(tensor));
  return true;
}

// A transposed weight of a matrix product: fuse_linear reads it as it lies.
bool is_weight_transpose(const Rewriter& r, const Node& node) {
  if (!node.is("Transpose") || r.constant(node.input(0))->dims.rank != 2) return false;
  const auto& users = r.consumers(node.output(0));
  return std::all_of(users.begin(), users.end(), [&](NodeId n) {
    const Node& user = r.node(n);
    return (user.is("MatMul") || user.is("Gemm")) && user.input(1) == node.output(0);
  });
}

// The size of the results, if it is known and within the budgets.
std::optional<std::int64_t> affordable(const Rewriter& r, const Node& node,
                                       const PassState& state) {
  std::int64_t given = 0;
  for (const ValueId input : node.inputs) {
    if (const auto* tensor = r.constant(input))
      given += static_cast<std::int64_t>(tensor->data.size());
  }
  std::int64_t made = 0;
  for (const ValueId out : node.outputs) {
    if (out == kNoValue) continue;
    const auto dims = constant_dims(r.shape(out));
    const auto elements = dims ? checked_elements(dims->span()) : std::nullopt;
    const auto bytes = elements ? checked_bytes(*elements, r.dtype(out)) : std::nullopt;
    if (!bytes || dtype_bits(r.dtype(out)) == 0 || !checked_add(made, *bytes, &made)) {
      return std::nullopt;
    }
  }
  if (made - given > kMaxGrowth || state.folded_bytes + made > kMaxFolded) return std::nullopt;
  return made;
}

// An operator that fails on its constants fails when the model runs, where its inputs are known.
std::optional<std::vector<ConstantTensor>> evaluate(const Rewriter& r, const PassState& state,
                                                    const Node& node) {
  try {
    auto results = state.evaluate(r.graph(), node);
    if (results && results->size() == node.outputs.size()) return results;
  } catch (const Error&) {
  }
  return std::nullopt;
}

void fold_node(Rewriter& r, PassState& state, const Node& node) {
  const bool excluded =
      std::find(kNeverFolded.begin(), kNeverFolded.end(), node.op) != kNeverFolded.end();
  if (excluded || !all_inputs_constant(r, node)) return;
  const auto bytes = affordable(r, node, state);
  if (!bytes || is_weight_transpose(r, node)) return;
  if (fold_view(r, node, *constant_dims(r.shape(node.output(0))))) return;
  if (!state.evaluate) return;
  auto results = evaluate(r, state, node);
  if (!results) return;
  state.folded_bytes += *bytes;
  const std::vector<ValueId> outputs = node.outputs;
  for (std::size_t i = 0; i < outputs.size(); ++i) {
    if (outputs[i] != kNoValue) r.make_constant(outputs[i], std::move((*results)[i]));
  }
}

}  // namespace

void fold_constants(Rewriter& r, PassState& state) {
  for (NodeId n = 0; n < r.count(); ++n) {
    if (!r.alive(n)) continue;
    const Node& node = r.node(n);
    if (!fold_contents(r, node)) fold_node(r, state, node);
  }
}

}  // namespace kvik::graph
