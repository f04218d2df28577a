// remove_noops: nodes whose result is one of their inputs are bypassed.
#include <algorithm>

#include "graph/passes/match.h"
#include "graph/passes/passes.h"

namespace kvik::graph {

namespace {

using Same = ValueId (*)(const Rewriter&, const Node&);  // the input that it equals, or kNoValue

ValueId first(const Rewriter& /*r*/, const Node& node) {
  return node.input(0);
}

ValueId same_type(const Rewriter& r, const Node& node) {
  const DType from = r.dtype(node.input(0));
  const bool same = from != DType::kUndefined && from == r.dtype(node.output(0));
  return same ? node.input(0) : kNoValue;
}

// Operators that keep the order of elements, or add some: the same shape means the same elements.
ValueId same_dims(const Rewriter& r, const Node& node) {
  return same_shape(r, node.input(0), node.output(0)) ? node.input(0) : kNoValue;
}

ValueId dropout(const Rewriter& r, const Node& node) {
  const auto training = r.content(node.input(2));
  const bool inference = node.input(2) == kNoValue || (training && training->truth() == false);
  const bool mask = node.output(1) != kNoValue &&
                    (!r.consumers(node.output(1)).empty() || r.is_output(node.output(1)));
  return inference && !mask ? node.input(0) : kNoValue;
}

ValueId transpose(const Rewriter& /*r*/, const Node& node) {
  const auto perm = node.ints_attr("perm");
  if (!perm) return kNoValue;
  for (std::size_t i = 0; i < perm->size(); ++i) {
    if ((*perm)[i] != static_cast<std::int64_t>(i)) return kNoValue;
  }
  return node.input(0);
}

// The whole of every axis, front to back: a step of -1 keeps the shape, not the order.
ValueId slice(const Rewriter& r, const Node& node) {
  if (node.input(4) != kNoValue) {
    const auto steps = r.graph().constant_ints(node.input(4));
    if (!steps || !std::all_of(steps->begin(), steps->end(), [](auto s) { return s == 1; })) {
      return kNoValue;
    }
  }
  return same_dims(r, node);
}

// Concat, Sum, Max, Min, Mean of one.
ValueId only_input(const Rewriter& /*r*/, const Node& node) {
  return node.inputs.size() == 1 ? node.input(0) : kNoValue;
}

ValueId split(const Rewriter& r, const Node& node) {
  return node.outputs.size() == 1 ? same_dims(r, node) : kNoValue;
}

// x op c for a c that leaves x as it is, in any type that contents cover.
bool all_are(const Rewriter& r, ValueId v, std::int64_t number) {
  const auto content = r.content(v);
  if (!content) return false;
  switch (content->type()) {
    case ExprType::kInt: return content->is(number);
    case ExprType::kFloat: return content->real_constant() == static_cast<float>(number);
    case ExprType::kBool: return content->truth() == (number != 0);
  }
  return false;
}

template <std::int64_t neutral, bool commutative>
ValueId neutral_operand(const Rewriter& r, const Node& node) {
  if (node.inputs.size() != 2) return kNoValue;
  for (const std::size_t i : {0U, 1U}) {
    if (i == 1 && !commutative) break;
    if (all_are(r, node.input(1 - i), neutral) && same_shape(r, node.input(i), node.output(0))) {
      return node.input(i);
    }
  }
  return kNoValue;
}

ValueId where(const Rewriter& r, const Node& node) {
  const auto condition = r.content(node.input(0));
  if (!condition || !condition->truth()) return kNoValue;
  const ValueId chosen = node.input(*condition->truth() ? 1 : 2);
  return same_shape(r, chosen, node.output(0)) ? chosen : kNoValue;
}

struct Entry {
  std::string_view op;
  Same same;
};

constexpr Entry kEntries[] = {
    {"Identity", first},
    {"Cast", same_type},
    {"CastLike", same_type},
    {"Dropout", dropout},
    {"Reshape", same_dims},
    {"Flatten", same_dims},
    {"Squeeze", same_dims},
    {"Unsqueeze", same_dims},
    {"Expand", same_dims},
    {"Tile", same_dims},
    {"Transpose", transpose},
    {"Slice", slice},
    {"Split", split},
    {"Concat", only_input},
    {"Sum", only_input},
    {"Max", only_input},
    {"Min", only_input},
    {"Mean", only_input},
    {"Add", neutral_operand<0, true>},
    {"Sub", neutral_operand<0, false>},
    {"Mul", neutral_operand<1, true>},
    {"Div", neutral_operand<1, false>},
    {"Pow", neutral_operand<1, false>},
    {"And", neutral_operand<1, true>},
    {"Or", neutral_operand<0, true>},
    {"Where", where},
};

}  // namespace

void remove_noops(Rewriter& r, PassState& /*state*/) {
  for (NodeId n = 0; n < r.count(); ++n) {
    if (!r.alive(n) || !r.node(n).domain.empty()) continue;
    const Node& node = r.node(n);
    for (const Entry& entry : kEntries) {
      if (node.op != entry.op) continue;
      const ValueId same = entry.same(r, node);
      if (same != kNoValue) r.bypass(node.output(0), same);
      break;
    }
  }
}

}  // namespace kvik::graph
