// Row rules of attention and rotary embedding: where a token may read other tokens' rows, and how
// the proof makes sure that it reads earlier ones alone.
#include <algorithm>
#include <cmath>

#include "graph/rows/mask.h"
#include "graph/rows/prover.h"

namespace kvik::graph {

namespace {

// Heads of a [batch, heads, token, head_dim] operand: stored heads first, repeats last.
struct Heads {
  RowValue value;
  int stored = 1;
  int dim = 1;
};

int constant_size(const Axis& axis, bool stored_only) {
  std::int64_t size = 1;
  for (const Atom& atom : axis) {
    if (!stored_only || !atom.broadcast) size *= *atom.size.constant();
  }
  return static_cast<int>(size);
}

Heads four_dimensional(Prover& p, const Node& node, std::size_t input, bool may_repeat) {
  Heads out{p.get(node.input(input))};
  const auto check = [&](const Layout& layout) {
    if (has_role(layout[0], kTokenRole) ||
        (!layout[0].empty() && !has_role(layout[0], kBatchRole)) || layout[0].size() > 1 ||
        !features_only(layout[1]) || !exactly_tokens(layout[2]) || !features_only(layout[3])) {
      stop(node.label() + " has an operand whose axes are not [batch, heads, tokens, features]");
    }
  };
  check(out.value.layout);
  const Axis& heads = out.value.layout[1];
  // [stored, repeats]: head h reads stored head h / repeats. Anything else is written out.
  const bool interleaved =
      std::is_partitioned(heads.begin(), heads.end(), [](const Atom& a) { return !a.broadcast; });
  const bool plain_features = std::none_of(out.value.layout[3].begin(), out.value.layout[3].end(),
                                           [](const Atom& a) { return a.broadcast; });
  if (!may_repeat || !interleaved || !plain_features) out.value = p.dense(out.value);
  out.stored = constant_size(out.value.layout[1], true);
  out.dim = constant_size(out.value.layout[3], false);
  return out;
}

Heads three_dimensional(Prover& p, const Node& node, std::size_t input, std::int64_t heads) {
  Heads out{p.dense(p.get(node.input(input)))};
  const Layout& layout = out.value.layout;
  if (has_role(layout[0], kTokenRole) || !exactly_tokens(layout[1]) || !features_only(layout[2])) {
    stop(node.label() + " has an operand whose axes are not [batch, tokens, features]");
  }
  const int width = constant_size(layout[2], false);
  if (heads < 1 || width % heads != 0) stop(node.label() + " has no valid number of heads");
  out.stored = static_cast<int>(heads);
  out.dim = width / out.stored;
  return out;
}

Heads queries(Prover& p, const Node& node) {
  if (p.shape(node.input(0)).size() == 4) return four_dimensional(p, node, 0, false);
  return three_dimensional(p, node, 0, node.int_attr("q_num_heads", 0));
}

// Of as many stored heads.
std::pair<Heads, Heads> keys_and_values(Prover& p, const Node& node) {
  const bool flat = p.shape(node.input(1)).size() == 3;
  const std::int64_t kv_heads = node.int_attr("kv_num_heads", 0);
  Heads k = flat ? three_dimensional(p, node, 1, kv_heads) : four_dimensional(p, node, 1, true);
  Heads v = flat ? three_dimensional(p, node, 2, kv_heads) : four_dimensional(p, node, 2, true);
  if (k.stored != v.stored) {  // repeated on one side only
    k.value = p.dense(k.value);
    v.value = p.dense(v.value);
    if (!flat) {
      k.stored = constant_size(k.value.layout[1], true);
      v.stored = constant_size(v.value.layout[1], true);
    }
  }
  if (!k.value.rows || !v.value.rows) stop(node.label() + " attends to weights, not to tokens");
  if (k.stored != v.stored) stop(node.label() + " has heads that do not fit together");
  return {std::move(k), std::move(v)};
}

// Adds the attention of these queries to the row graph, and to its entries.
void emit_attention(Prover& p, const Node& node, const Heads& q, std::vector<ValueId> inputs,
                    RowAttention entry, const std::string& how) {
  const Value& result = p.source().value(node.outputs[0]);
  RowValue out = q.value;
  const bool flat = out.layout.size() == 3;
  const std::int64_t width = flat ? std::int64_t{entry.heads} * entry.value_dim : entry.value_dim;
  out.layout.back() = width == 1 ? Axis{} : Axis{{kFeatureRole, Expr(width), false}};
  const auto layer = static_cast<std::int64_t>(p.result().attention.size());
  out.id = p.emit("RowAttention", "kvik", std::move(inputs), {{"layer", layer}}, result.dtype,
                  stored_dims(out.layout), true, result.name);
  p.notes.push_back("attention '" + node.name + "': " + how);
  p.result().attention.push_back(std::move(entry));
  p.set(node.outputs[0], std::move(out));
}

RowAttention entry_of(const Node& node, const Heads& q) {
  RowAttention entry;
  entry.heads = q.stored;
  entry.head_dim = q.dim;
  entry.scale = node.float_attr("scale", 1.0F / std::sqrt(static_cast<float>(q.dim)));
  entry.softcap = node.float_attr("softcap", 0.0F);
  return entry;
}

// The target attends to the source: to all of it, since the engine gives it no padding. Its keys
// and values become rows when the source is proved, and the entry gets their sizes then.
void cross_attention(Prover& p, const Node& node) {
  const Heads q = queries(p, node);
  if (!q.value.rows) stop(node.label() + " attends with weights, not with tokens");
  if (node.int_attr("is_causal", 0) != 0) stop(node.label() + " is causal between two sequences");
  if (node.input(3) != kNoValue && !shows_everything(p, node)) {
    stop(node.label() + " hides some of the source");
  }
  const auto width = p.shape(node.input(2)).back().constant();
  const std::int64_t heads =
      p.shape(node.input(2)).size() == 3 ? node.int_attr("kv_num_heads", 0) : 1;
  if (!width || heads < 1 || *width % heads != 0 || *width / heads > INT32_MAX) {
    stop(node.label() + " has values of unknown size");
  }
  RowAttention entry = entry_of(node, q);
  entry.mixing = Mixing::kSource;
  entry.value_dim = static_cast<int>(*width / heads);
  emit_attention(p, node, q, {q.value.id}, std::move(entry), "reads the whole source");
  p.crosses.push_back({&node, p.result().attention.size() - 1});
}

void attention(Prover& p, const Node& node) {
  for (std::size_t i = 4; i < node.inputs.size(); ++i) {
    if (node.inputs[i] != kNoValue) stop(node.label() + " has a past of its own");
  }
  if (p.is_other(node.input(1)) && p.is_other(node.input(2))) return cross_attention(p, node);
  const Heads q = queries(p, node);
  const auto [k, v] = keys_and_values(p, node);
  if (!q.value.rows) stop(node.label() + " attends with weights, not with tokens");
  if (q.stored % k.stored != 0 || q.dim != k.dim) {
    stop(node.label() + " has heads that do not fit together");
  }
  RowAttention entry = entry_of(node, q);
  entry.kv_heads = k.stored;
  entry.value_dim = v.dim;
  MaskProof mask = prove_mask(p, node, entry.heads, node.int_attr("is_causal", 0) != 0);
  entry.bias = mask.bias;
  entry.mixing = mask.mixing;
  if (mask.mixing == Mixing::kWhole) p.result().mixing = Mixing::kWhole;
  emit_attention(p, node, q, {q.value.id, k.value.id, v.value.id}, std::move(entry), mask.how);
}

void rotary(Prover& p, const Node& node) {
  RowValue x = p.dense(p.get(node.input(0)));
  const bool flat = x.layout.size() == 3;
  if (!x.rows || (x.layout.size() != 4 && !flat))
    stop(node.label() + " does not rotate token rows");
  const Axis& token_axis = x.layout[flat ? 1 : 2];
  if (!exactly_tokens(token_axis) || has_role(x.layout[0], kTokenRole) ||
      !features_only(x.layout.back()) ||
      !features_only(x.layout[x.layout.size() - (flat ? 1 : 3)])) {
    stop(node.label() + " has an operand whose axes are not [batch, heads, tokens, features]");
  }
  const bool by_position = node.input(3) != kNoValue;
  std::vector<ValueId> inputs;
  const DType dtype = p.source().value(node.outputs[0]).dtype;
  const std::vector<std::int64_t> dims = stored_dims(x.layout);
  // The operator sees a batch of rows, each a sequence of length 1.
  const std::vector<std::int64_t> inner(dims.begin() + 1, dims.end());
  inputs.push_back(p.reshaped(x.id, inner));
  for (std::size_t i = 1; i <= 2; ++i) {
    const RowValue table = p.dense(p.get(node.input(i)));
    if (by_position) {
      if (table.rows) stop(node.label() + " has a table per token");
      inputs.push_back(table.id);
      continue;
    }
    if (!table.rows || table.layout.size() != 3 || !exactly_tokens(table.layout[1])) {
      stop(node.label() + " has angles whose axes are not [batch, tokens, features]");
    }
    inputs.push_back(p.reshaped(table.id, {1, stored_dims(table.layout)[2]}));
  }
  if (by_position) {
    const RowValue at = p.dense(p.get(node.input(3)));
    if (!at.rows || at.layout.size() != 2 || !exactly_tokens(at.layout[1])) {
      stop(node.label() + " has positions whose axes are not [batch, tokens]");
    }
    inputs.push_back(p.reshaped(at.id, {1}));
    const auto size = p.shape(node.input(1))[0].constant();
    const auto content = p.content(node.input(3));
    const auto offset = content ? (*content - Expr::index(1)).constant() : std::nullopt;
    if (size && offset && *offset >= 0) {
      p.limit_context(*size - *offset,
                      node.label() + " reads a table of " + std::to_string(*size) + " positions");
    }
  }
  const ValueId rotated = p.emit("RotaryEmbedding", "", std::move(inputs), node.attributes, dtype,
                                 inner, true, p.source().value(node.outputs[0]).name);
  x.id = p.reshaped(rotated, dims);
  p.set(node.outputs[0], std::move(x));
}

}  // namespace

std::pair<KeyRows, KeyRows> key_value_rows(Prover& p, const Node& node) {
  const auto [k, v] = keys_and_values(p, node);
  const auto flat = [&](const Heads& heads) -> KeyRows {
    const std::int64_t features = std::int64_t{heads.stored} * heads.dim;
    return {p.reshaped(heads.value.id, {features}), heads.stored, heads.dim};
  };
  return {flat(k), flat(v)};
}

std::vector<RowEntry> rowwise_attention_rules() {
  return {{"", "Attention", attention}, {"", "RotaryEmbedding", rotary}};
}

}  // namespace kvik::graph
