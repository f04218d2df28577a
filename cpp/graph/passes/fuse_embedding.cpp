// fuse_embedding: rows of a table that are looked up become
//   kvik.Embedding(table [V, K], ids, scale?, zero?)
// when the table is stored as integers, so that only the rows at hand are dequantised, or when the
// token ids index it: then its rows have the precision that a model is loaded with. Tables of
// positions stay plain Gathers.
#include <algorithm>
#include <array>

#include "graph/passes/match.h"
#include "graph/passes/passes.h"
#include "graph/passes/prove_rowwise.h"

namespace kvik::graph {

namespace {

bool contains(const std::vector<ValueId>& inputs, ValueId v) {
  return std::find(inputs.begin(), inputs.end(), v) != inputs.end();
}

// Whether v holds the elements of one of `tokens`, under whatever shape.
bool holds_tokens(const Rewriter& r, ValueId v, const std::vector<ValueId>& tokens) {
  constexpr std::array<std::string_view, 6> kSame = {"Reshape", "Squeeze",  "Unsqueeze",
                                                     "Flatten", "Identity", "Cast"};
  while (!contains(tokens, v)) {
    const Node* node = r.producer(v);
    if (node == nullptr || !node->domain.empty() ||
        std::find(kSame.begin(), kSame.end(), node->op) == kSame.end()) {
      return false;
    }
    v = node->input(0);
  }
  return true;
}

bool fuse(Rewriter& r, NodeId n, const std::vector<ValueId>& tokens) {
  const Node& node = r.node(n);
  if (!node.is("Gather") || r.constant(node.input(1)) != nullptr) return false;
  const std::int64_t axis = node.int_attr("axis", 0);
  if (axis != 0 && axis != -2) return false;
  if (auto integers = as_dequantized(r, node.input(0))) {
    std::vector<ValueId> inputs{integers->values, node.input(1), integers->scale};
    if (integers->zero != kNoValue) inputs.push_back(integers->zero);
    r.rewrite(n, "kvik", "Embedding", std::move(inputs), std::move(integers->attributes));
    return true;
  }
  const ConstantTensor* table = r.constant(node.input(0));
  if (table == nullptr || table->dtype != DType::kF32 || table->dims.rank != 2 ||
      !holds_tokens(r, node.input(1), tokens)) {
    return false;
  }
  r.rewrite(n, "kvik", "Embedding", {node.input(0), node.input(1)});
  return true;
}

}  // namespace

void fuse_embedding(Rewriter& r, PassState& /*state*/) {
  const std::vector<ValueId> tokens = token_inputs(r.graph());
  for (NodeId n = 0; n < r.count(); ++n) {
    if (r.alive(n)) fuse(r, n, tokens);
  }
}

}  // namespace kvik::graph
