// fuse_recurrent: an LSTM, GRU or RNN whose W or R a DequantizeLinear makes of integers becomes
//   kvik.LSTM(X, W, R, B?, sequence_lens?, initial_h?, initial_c?, P?, W_scale?, W_zero?, R_scale?,
//             R_zero?)
// (kvik.GRU, kvik.RNN): the standard operator, but weights with a scale are integers, of the same
// shape [directions, gates · hidden, inputs]. The attributes w_axis, w_block, r_axis and r_block
// are those of the matrix [directions · gates · hidden, inputs], which is how such weights are in
// the file: one scale for each of its rows, with two directions, is nothing that a DequantizeLinear
// of rank 3 could say.
#include <array>
#include <string>

#include "base/checked.h"
#include "graph/passes/match.h"
#include "graph/passes/passes.h"

namespace kvik::graph {

namespace {

constexpr std::size_t kW = 1, kR = 2, kScales = 8;  // inputs; from kScales on two for each of W, R
constexpr std::size_t kInputs = 12;

bool is_recurrent(const Node& node) {
  return node.is("LSTM") || node.is("GRU") || node.is("RNN");
}

// A reshape of v to rank 3 that leaves the last axis of its matrix as it is.
struct Stored {
  Dequantized integers;
  Dims dims;  // [directions, gates · hidden, inputs]
};

std::optional<Stored> match_stored(const Rewriter& r, ValueId v) {
  const Node* view = r.producer(v, "Reshape");
  if (view == nullptr) view = r.producer(v, "Unsqueeze");
  const auto shape = r.shape(v);
  if (view == nullptr || !shape || shape->size() != 3) return std::nullopt;
  auto integers = as_dequantized(r, view->input(0));
  if (!integers) return std::nullopt;
  Dims dims;
  for (const Expr& dim : *shape) {
    if (!dim.constant() || *dim.constant() < 0) return std::nullopt;
    dims.push_back(*dim.constant());
  }
  const Dims& matrix = r.constant(integers->values)->dims;
  std::int64_t rows = 0;
  if (!checked_mul(dims[0], dims[1], &rows) || !(matrix == Dims{rows, dims[2]})) {
    return std::nullopt;
  }
  return Stored{std::move(*integers), dims};
}

bool is_float_constant(const Rewriter& r, ValueId v) {
  const ConstantTensor* tensor = r.constant(v);
  return tensor != nullptr && tensor->dtype == DType::kF32;
}

void fuse_layer(Rewriter& r, NodeId n) {
  const Node& node = r.node(n);
  if (!is_recurrent(node) || node.inputs.size() > kScales ||
      r.dtype(node.input(0)) != DType::kF32) {
    return;
  }
  const std::array<std::optional<Stored>, 2> stored = {match_stored(r, node.input(kW)),
                                                       match_stored(r, node.input(kR))};
  if (!stored[0] && !stored[1]) return;
  // The layer packs both or none: what else is computed stays computed.
  for (const std::size_t i : {0U, 1U}) {
    if (!stored[i] && !is_float_constant(r, node.input(kW + i))) return;
  }
  std::vector<ValueId> inputs = node.inputs;
  inputs.resize(kInputs, kNoValue);
  Attributes attributes = node.attributes;
  for (const std::size_t i : {0U, 1U}) {
    if (!stored[i]) continue;
    const Dequantized& integers = stored[i]->integers;
    ConstantTensor view = *r.constant(integers.values);
    view.dims = stored[i]->dims;
    inputs[kW + i] = r.add_constant(std::move(view), r.graph().value(integers.values).name);
    inputs[kScales + 2 * i] = integers.scale;
    inputs[kScales + 2 * i + 1] = integers.zero;
    for (const auto& [key, value] : integers.attributes) {
      attributes.emplace((i == 0 ? "w_" : "r_") + key, value);
    }
  }
  while (inputs.back() == kNoValue) inputs.pop_back();
  const std::string op = node.op;
  const std::size_t outputs = node.outputs.size();
  r.rewrite(n, "kvik", op, std::move(inputs), std::move(attributes), outputs);
}

}  // namespace

void fuse_recurrent(Rewriter& r, PassState& /*state*/) {
  for (NodeId n = 0; n < r.count(); ++n) {
    if (r.alive(n)) fuse_layer(r, n);
  }
}

}  // namespace kvik::graph
