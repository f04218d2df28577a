// fuse_layer_norm: (x - mean(x)) / sqrt(mean((x - mean(x))^2) + epsilon) * scale + bias over the
// last axis becomes LayerNormalization. The quotient first, with a scale of ones; then scale and
// bias are absorbed where they follow.
#include "graph/passes/norms.h"
#include "graph/passes/passes.h"

namespace kvik::graph {

namespace {

// The x of x - mean(x).
ValueId match_centred(const Rewriter& r, ValueId v) {
  const Node* difference = r.producer(v, "Sub");
  if (difference == nullptr) return kNoValue;
  const Node* mean = r.producer(difference->input(1), "ReduceMean");
  if (mean == nullptr || mean->input(0) != difference->input(0) || !reduces_last_axis(r, *mean)) {
    return kNoValue;
  }
  return mean->input(0);
}

bool fuse_quotient(Rewriter& r, NodeId n) {
  const auto found = match_normalised(r, r.node(n));
  if (!found) return false;
  const ValueId x = match_centred(r, found->value);
  const auto features = feature_count(r, x);
  if (x == kNoValue || !features) return false;
  r.rewrite(n, "", "LayerNormalization", {x, ones(r, *features)},
            {{"axis", std::int64_t{-1}}, {"epsilon", found->epsilon}});
  return true;
}

// Add(LayerNormalization(x, scale), bias)
bool absorb_norm_bias(Rewriter& r, NodeId n) {
  const Node& node = r.node(n);
  if (!node.is("Add") || node.inputs.size() != 2) return false;
  for (const std::size_t i : {0U, 1U}) {
    const ValueId normed = node.input(i);
    const Node* norm = r.producer(normed, "LayerNormalization");
    const auto features = feature_count(r, normed);
    if (norm == nullptr || !features || !r.used_once(normed) || norm->outputs.size() != 1 ||
        norm->input(2) != kNoValue || norm->int_attr("axis", -1) != -1 ||
        !keeps_shape(r, normed, node.input(1 - i))) {
      continue;
    }
    const ValueId bias = as_vector(r, node.input(1 - i), Expr(*features));
    if (bias == kNoValue) continue;
    r.rewrite(n, "", "LayerNormalization", {norm->input(0), norm->input(1), bias},
              norm->attributes);
    return true;
  }
  return false;
}

}  // namespace

void fuse_layer_norm(Rewriter& r, PassState& /*state*/) {
  for (NodeId n = 0; n < r.count(); ++n) {
    if (!r.alive(n)) continue;
    if (!fuse_quotient(r, n) && !absorb_scale(r, n, "LayerNormalization")) absorb_norm_bias(r, n);
  }
}

}  // namespace kvik::graph
