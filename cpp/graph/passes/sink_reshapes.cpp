// sink_reshapes: Reshapes of the leading axes move below the nodes that do not care for them.
//
// Exporters flatten [batch, sequence, features] for a Gemm and [batch, heads, ...] for a batched
// product, and unflatten afterwards. Moved down, the two reshapes meet and merge_views drops them.
// Where the first one joins heads to features too it can't move, and the second one moves up.
#include <algorithm>

#include "graph/passes/match.h"
#include "graph/passes/passes.h"

namespace kvik::graph {

namespace {

// A Reshape of `source` that leaves its last `kept` axes alone.
struct Regrouped {
  ValueId source = kNoValue;
  Shape from;
  Shape to;
};

bool keeps_last(const Shape& from, const Shape& to, std::size_t kept) {
  return from.size() > kept && to.size() > kept &&
         std::equal(from.end() - static_cast<std::ptrdiff_t>(kept), from.end(),
                    to.end() - static_cast<std::ptrdiff_t>(kept));
}

std::optional<Regrouped> regrouped(const Rewriter& r, ValueId v, std::size_t kept) {
  const Node* node = r.producer(v, "Reshape");
  if (node == nullptr || !r.used_once(v)) return std::nullopt;
  const auto from = r.shape(node->input(0));
  const auto to = r.shape(v);
  if (!from || !to || has_unknown(*from) || has_unknown(*to) || !keeps_last(*from, *to, kept)) {
    return std::nullopt;
  }
  return Regrouped{node->input(0), *from, *to};
}

// Makes node n a Reshape of `inner` to the shape that it had. The target is made of the dimensions
// of the values that `inner` was made of, since they are all available.
bool reshape_result(Rewriter& r, NodeId n, ValueId inner, const Shape& shape) {
  const auto target = shape_value(r, n, shape, {inner});
  if (!target) return false;
  r.rewrite(n, "", "Reshape", {inner, *target}, {{"allowzero", std::int64_t{0}}});
  return true;
}

bool is_unary(const Node& node) {
  static constexpr std::string_view kUnary[] = {
      "Relu", "Sigmoid", "Tanh",       "Erf", "Gelu", "Swish", "Exp",  "Sqrt",
      "Neg",  "Abs",     "Reciprocal", "Log", "Cast", "IsNaN", "Silu", "HardSwish"};
  return node.domain.empty() && node.outputs.size() == 1 &&
         std::find(std::begin(kUnary), std::end(kUnary), node.op) != std::end(kUnary);
}

// f(Reshape(x)) = Reshape(f(x)) for f of one tensor, at whose inputs 1.. it has no axes.
bool sink_below_one(Rewriter& r, NodeId n, std::size_t operand, std::size_t kept) {
  const Node node = r.node(n);
  const auto x = regrouped(r, node.input(operand), kept);
  const auto shape = r.shape(node.output(0));
  if (!x || !shape || has_unknown(*shape)) return false;
  Attributes attributes = node.attributes;
  if (node.is("Softmax")) attributes["axis"] = std::int64_t{-1};
  std::vector<ValueId> inputs = node.inputs;
  inputs[operand] = x->source;
  const ValueId inner = r.insert(n, node.op, inputs, attributes, node.domain);
  return reshape_result(r, n, inner, *shape);
}

// A product of rows with a constant matrix, without a residual.
bool is_rowwise_product(const Rewriter& r, const Node& node) {
  if (!node.is("Linear", "kvik") && !node.is("MatMul")) return false;
  const auto weight = r.shape(node.input(1));
  return weight && weight->size() == 2 && node.input(3) == kNoValue;
}

// Reshape(Linear(Reshape(x))) = Linear(Reshape(Reshape(x))) where the inner Reshape can't sink.
bool hoist_above_product(Rewriter& r, NodeId n) {
  const Node reshape = r.node(n);
  if (!reshape.is("Reshape") || !r.used_once(reshape.input(0))) return false;
  const Node* found = r.producer(reshape.input(0));
  if (found == nullptr || !is_rowwise_product(r, *found)) return false;
  const Node product = *found;
  const Node* inner = r.producer(product.input(0), "Reshape");
  if (inner == nullptr || !r.used_once(product.input(0))) return false;
  const auto source = r.shape(inner->input(0)), x = r.shape(product.input(0));
  const auto from = r.shape(reshape.input(0)), to = r.shape(reshape.output(0));
  if (!source || !x || !from || !to || has_unknown(*source) || has_unknown(*x) ||
      has_unknown(*to) || !keeps_last(*from, *to, 1) || keeps_last(*source, *x, 1)) {
    return false;
  }
  Shape wanted(to->begin(), to->end() - 1);
  wanted.push_back(x->back());
  const auto target = shape_value(r, n, wanted, {inner->input(0)});
  if (!target) return false;
  std::vector<ValueId> inputs = product.inputs;
  inputs[0] = r.insert(n, "Reshape", {product.input(0), *target}, {{"allowzero", std::int64_t{0}}});
  r.rewrite(n, product.domain, product.op, inputs, product.attributes);
  return true;
}

// MatMul([..., m, k], [..., k, n]) of two operands whose leading axes were regrouped in one way.
bool sink_below_product(Rewriter& r, NodeId n) {
  const Node node = r.node(n);
  if (node.input(0) == node.input(1)) return false;
  const auto a = regrouped(r, node.input(0), 2);
  const auto b = regrouped(r, node.input(1), 2);
  const auto shape = r.shape(node.output(0));
  if (!a || !b || !shape || has_unknown(*shape)) return false;
  const auto leading_equal = [](const Shape& x, const Shape& y) {
    return x.size() == y.size() && std::equal(x.begin(), x.end() - 2, y.begin());
  };
  if (!leading_equal(a->from, b->from) || !leading_equal(a->to, b->to)) return false;
  const ValueId inner = r.insert(n, "MatMul", {a->source, b->source});
  return reshape_result(r, n, inner, *shape);
}

// x + m for regrouped scores x and an m over the same regrouped axes (a bias of [batch * heads]):
// m is ungrouped instead, once, outside of the layers that share it.
bool sink_below_sum(Rewriter& r, NodeId n) {
  const Node node = r.node(n);
  if (!node.is("Add") || node.inputs.size() != 2) return false;
  for (const std::size_t i : {0U, 1U}) {
    const ValueId other = node.input(1 - i);
    const auto x = regrouped(r, node.input(i), 2);
    const auto m = r.shape(other);
    if (!x || x->from.size() <= x->to.size() || !m || m->size() != x->to.size() ||
        has_unknown(*m) || !std::equal(m->begin(), m->end() - 2, x->to.begin()) ||
        !same_shape(r, node.input(i), node.output(0))) {
      continue;
    }
    Shape ungrouped(x->from.begin(), x->from.end() - 2);
    ungrouped.insert(ungrouped.end(), m->end() - 2, m->end());
    const auto target = shape_value(r, n, ungrouped, {x->source});
    if (!target) continue;
    const ValueId reshaped =
        r.insert(n, "Reshape", {other, *target}, {{"allowzero", std::int64_t{0}}});
    std::vector<ValueId> inputs(2);
    inputs[i] = x->source;
    inputs[1 - i] = reshaped;
    const ValueId inner = r.insert(n, "Add", inputs);
    return reshape_result(r, n, inner, x->to);
  }
  return false;
}

// The operand of an element-wise node beside a scalar; nothing where there is none.
std::optional<std::size_t> beside_scalar(const Rewriter& r, const Node& node) {
  const bool binary = node.is("Mul") || node.is("Div") || node.is("Add") || node.is("Sub");
  if (!binary || node.inputs.size() != 2) return std::nullopt;
  for (const std::size_t i : {0U, 1U}) {
    const auto shape = r.shape(node.input(1 - i));
    if (shape && shape->empty() && r.constant(node.input(1 - i)) != nullptr) return i;
  }
  return std::nullopt;
}

bool sink(Rewriter& r, NodeId n) {
  const Node& node = r.node(n);
  if (node.is("MatMul") && sink_below_product(r, n)) return true;
  if (node.is("Linear", "kvik") || node.is("MatMul")) {
    return is_rowwise_product(r, node) && sink_below_one(r, n, 0, 1);
  }
  if (node.is("Reshape")) return hoist_above_product(r, n);
  if (node.is("Softmax")) return on_last_axis(r, node, -1) && sink_below_one(r, n, 0, 1);
  if (is_unary(node)) return sink_below_one(r, n, 0, 0);
  if (sink_below_sum(r, n)) return true;
  if (const auto operand = beside_scalar(r, node)) return sink_below_one(r, n, *operand, 0);
  return false;
}

}  // namespace

void sink_reshapes(Rewriter& r, PassState& /*state*/) {
  for (NodeId n = 0; n < r.count(); ++n) {
    if (r.alive(n)) sink(r, n);
  }
}

}  // namespace kvik::graph
