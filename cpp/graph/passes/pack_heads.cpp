// pack_heads: an Attention between Transposes reads heads where the products before it left them,
// and writes them where the product after it wants them.
//
// Attention takes [batch, heads, sequence, dim] or [batch, sequence, heads · dim] alike; exporters
// write the former, with four Transposes around it that move every element.
#include <array>

#include "base/checked.h"
#include "graph/passes/match.h"
#include "graph/passes/passes.h"

namespace kvik::graph {

namespace {

bool swaps_heads(const Node* node) {
  constexpr std::array<std::int64_t, 4> kSwap{0, 2, 1, 3};
  if (node == nullptr || !node->is("Transpose")) return false;
  const auto perm = node->ints_attr("perm");
  return perm && std::equal(perm->begin(), perm->end(), kSwap.begin(), kSwap.end());
}

// Heads [batch, heads, sequence, dim], and where their elements lie head by head.
struct PackedHeads {
  ValueId source = kNoValue;  // [batch, sequence, heads, dim]; of one head the heads themselves
  std::int64_t heads = 0, dim = 0;

  std::int64_t width() const { return heads * dim; }
};

std::optional<PackedHeads> find_packed(const Rewriter& r, ValueId v) {
  const auto shape = r.shape(v);
  if (!shape || shape->size() != 4) return std::nullopt;
  const auto heads = (*shape)[1].constant(), dim = (*shape)[3].constant();
  std::int64_t width = 0;
  if (!heads || !dim || !checked_mul(*heads, *dim, &width) || width < 1) return std::nullopt;
  if (*heads == 1) return PackedHeads{v, *heads, *dim};  // with nothing to swap
  const Node* swap = r.producer(v);
  if (!swaps_heads(swap)) return std::nullopt;
  return PackedHeads{swap->input(0), *heads, *dim};
}

ValueId reshaped(Rewriter& r, NodeId before, ValueId x, const std::vector<std::int64_t>& to) {
  return r.insert(before, "Reshape", {x, r.add_ints(to)}, {{"allowzero", std::int64_t{0}}});
}

// [batch, sequence, heads · dim].
ValueId joined(Rewriter& r, NodeId before, const PackedHeads& heads) {
  if (heads.heads == 1) return r.insert(before, "Squeeze", {heads.source, r.add_ints({1})});
  return reshaped(r, before, heads.source, {0, 0, heads.width()});
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
  if (!swaps_heads(&r.node(after))) return;
  const auto q = find_packed(r, node.input(0));
  const auto k = find_packed(r, node.input(1));
  const auto v = find_packed(r, node.input(2));
  // Heads that do not fit together are an error, which packing would hide.
  if (!q || !k || !v || k->heads != v->heads || q->dim != k->dim) return;
  if (k->heads == 0 || q->heads % k->heads != 0) return;
  std::vector<ValueId> inputs = node.inputs;
  inputs[0] = joined(r, n, *q);
  inputs[1] = joined(r, n, *k);
  inputs[2] = joined(r, n, *v);
  Attributes attributes = node.attributes;
  attributes["q_num_heads"] = q->heads;
  attributes["kv_num_heads"] = k->heads;
  const ValueId y = r.insert(after, "Attention", inputs, attributes, "", node.name);
  r.rewrite(after, "", "Reshape", {y, r.add_ints({0, 0, q->heads, v->dim})},
            {{"allowzero", std::int64_t{0}}});
}

}  // namespace

void pack_heads(Rewriter& r, PassState& /*state*/) {
  for (NodeId n = 0; n < r.count(); ++n) {
    if (r.alive(n)) pack(r, n);
  }
}

}  // namespace kvik::graph
