// pack_heads: an Attention between Transposes reads heads where the products before it left them,
// and writes them where the product after it wants them.
//
// Attention takes [batch, heads, sequence, dim] or [batch, sequence, heads · dim] alike; exporters
// write the former, with four Transposes around it that move every element.
#include "graph/passes/match.h"
#include "graph/passes/passes.h"

namespace kvik::graph {

namespace {

const std::vector<std::int64_t> kSwapsHeads{0, 2, 1, 3};

// Heads [batch, heads, sequence, dim] as their elements lie in `source`.
struct PackedHeads {
  ValueId source = kNoValue;
  Shape packed;  // [batch, sequence, heads · dim]
  std::int64_t heads = 0;
};

std::optional<PackedHeads> find_packed(const Rewriter& r, ValueId v) {
  const auto shape = r.shape(v);
  if (!shape || shape->size() != 4 || has_unknown(*shape)) return std::nullopt;
  const auto heads = (*shape)[1].constant();
  if (!heads || !(*shape)[3].constant()) return std::nullopt;
  const PackedHeads found{v, {(*shape)[0], (*shape)[2], (*shape)[1] * (*shape)[3]}, *heads};
  if (*heads == 1) return found;  // with nothing to swap
  const Node* swap = r.producer(v, "Transpose");
  if (swap == nullptr || swap->ints_attr("perm") != kSwapsHeads) return std::nullopt;
  return PackedHeads{swap->input(0), found.packed, *heads};
}

// Whether nothing but the result is read, and no cache comes in: those keep four axes.
bool is_plain(const Rewriter& r, const Node& node) {
  for (std::size_t i = 1; i < node.outputs.size(); ++i) {
    const ValueId other = node.outputs[i];
    if (other != kNoValue && (r.is_output(other) || !r.consumers(other).empty())) return false;
  }
  return node.input(4) == kNoValue && node.input(5) == kNoValue;
}

void pack(Rewriter& r, NodeId n) {
  const Node node = r.node(n);
  if (!node.is("Attention") || !is_plain(r, node) || !r.used_once(node.output(0))) return;
  const NodeId after = r.consumers(node.output(0)).front();
  const Node swap = r.node(after);
  if (!swap.is("Transpose") || swap.ints_attr("perm") != kSwapsHeads) return;
  const auto result = r.shape(swap.output(0));
  if (!result || has_unknown(*result)) return;
  std::vector<ValueId> inputs = node.inputs;
  Attributes attributes = node.attributes;
  for (std::size_t i = 0; i < 3; ++i) {
    const auto heads = find_packed(r, inputs[i]);
    if (!heads) return;
    const auto target = shape_value(r, n, heads->packed, {heads->source});
    if (!target) return;
    inputs[i] = r.insert(n, "Reshape", {heads->source, *target}, {{"allowzero", std::int64_t{0}}});
    if (i < 2) attributes[i == 0 ? "q_num_heads" : "kv_num_heads"] = heads->heads;
  }
  const ValueId y = r.insert(after, "Attention", inputs, attributes);
  const auto target = shape_value(r, after, *result, {y});
  if (!target) return;
  r.rewrite(after, "", "Reshape", {y, *target}, {{"allowzero", std::int64_t{0}}});
}

}  // namespace

void pack_heads(Rewriter& r, PassState& /*state*/) {
  for (NodeId n = 0; n < r.count(); ++n) {
    if (r.alive(n)) pack(r, n);
  }
}

}  // namespace kvik::graph
