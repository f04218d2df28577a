// fuse_rms_norm: x / sqrt(mean(x^2) + epsilon) * scale over the last axis becomes RMSNormalization;
// onnxruntime's SimplifiedLayerNormalization, which is the same, does too.
#include "graph/passes/norms.h"
#include "graph/passes/passes.h"

namespace kvik::graph {

namespace {

bool fuse_root_quotient(Rewriter& r, NodeId n) {
  const auto found = match_normalised(r, r.node(n));
  if (!found) return false;
  const auto features = feature_count(r, found->value);
  if (!features) return false;
  r.rewrite(n, "", "RMSNormalization", {found->value, ones(r, *features)},
            {{"axis", std::int64_t{-1}}, {"epsilon", found->epsilon}});
  return true;
}

bool rename_simplified(Rewriter& r, NodeId n) {
  const Node& node = r.node(n);
  if (node.op != "SimplifiedLayerNormalization" ||
      (!node.domain.empty() && node.domain != "com.microsoft")) {
    return false;
  }
  for (std::size_t i = 1; i < node.outputs.size(); ++i) {
    if (!r.consumers(node.output(i)).empty() || r.is_output(node.output(i))) return false;
  }
  const Attributes attributes{{"axis", node.int_attr("axis", -1)},
                              {"epsilon", node.float_attr("epsilon", 1.0e-5F)}};
  r.rewrite(n, "", "RMSNormalization", {node.input(0), node.input(1)}, attributes);
  return true;
}

}  // namespace

void fuse_rms_norm(Rewriter& r, PassState& /*state*/) {
  for (NodeId n = 0; n < r.count(); ++n) {
    if (!r.alive(n)) continue;
    if (!fuse_root_quotient(r, n) && !rename_simplified(r, n))
      absorb_scale(r, n, "RMSNormalization");
  }
}

}  // namespace kvik::graph
