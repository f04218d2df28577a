// fuse_silu: x * sigmoid(x), or x / (1 + exp(-x)), becomes Swish.
// fuse_silu_mul: Swish(gate) * up becomes kvik.SiluMul(gate, up).
#include "graph/passes/match.h"
#include "graph/passes/passes.h"

namespace kvik::graph {

namespace {

// 1 + exp(-x)
bool is_logistic_denominator(const Rewriter& r, ValueId v, ValueId x) {
  const auto sum = with_scalar(r, r.producer(v), "Add");
  if (!sum || sum->scalar != 1.0F || !r.used_once(v) || !r.used_once(sum->value)) return false;
  const Node* exp = r.producer(sum->value, "Exp");
  if (exp == nullptr || !r.used_once(exp->input(0))) return false;
  const Node* negated = r.producer(exp->input(0), "Neg");
  if (negated != nullptr) return negated->input(0) == x;
  const auto scaled = with_scalar(r, r.producer(exp->input(0)), "Mul");
  return scaled && scaled->scalar == -1.0F && scaled->value == x;
}

// The x of x * sigmoid(x) or x / (1 + exp(-x)).
ValueId match_silu(const Rewriter& r, const Node& node) {
  if (node.inputs.size() != 2) return kNoValue;
  if (node.is("Div")) {
    const ValueId x = node.input(0);
    return is_logistic_denominator(r, node.input(1), x) ? x : kNoValue;
  }
  if (!node.is("Mul")) return kNoValue;
  for (const std::size_t i : {0U, 1U}) {
    const Node* sigmoid = r.producer(node.input(i), "Sigmoid");
    if (sigmoid != nullptr && sigmoid->input(0) == node.input(1 - i) &&
        r.used_once(node.input(i))) {
      return node.input(1 - i);
    }
  }
  return kNoValue;
}

}  // namespace

void fuse_silu(Rewriter& r, PassState& /*state*/) {
  for (NodeId n = 0; n < r.count(); ++n) {
    if (!r.alive(n)) continue;
    const ValueId x = match_silu(r, r.node(n));
    if (x != kNoValue && r.dtype(x) == DType::kF32) {
      r.rewrite(n, "", "Swish", {x}, {{"alpha", 1.0F}});
    }
  }
}

void fuse_silu_mul(Rewriter& r, PassState& /*state*/) {
  for (NodeId n = 0; n < r.count(); ++n) {
    if (!r.alive(n) || !r.node(n).is("Mul") || r.node(n).inputs.size() != 2) continue;
    const Node& node = r.node(n);
    for (const std::size_t i : {0U, 1U}) {
      const ValueId activated = node.input(i);
      const ValueId up = node.input(1 - i);
      const Node* swish = r.producer(activated, "Swish");
      if (swish == nullptr || swish->float_attr("alpha", 1.0F) != 1.0F || !r.used_once(activated) ||
          r.dtype(up) != DType::kF32 || !same_shape(r, activated, up)) {
        continue;
      }
      r.rewrite(n, "kvik", "SiluMul", {swish->input(0), up});
      break;
    }
  }
}

}  // namespace kvik::graph
