// Row rules of attention and rotary embedding: where a token may read other tokens' rows, and how
// the proof makes sure that it reads earlier ones alone.
#include <algorithm>
#include <cmath>

#include "graph/expr_eval.h"
#include "graph/rows/prover.h"

namespace kvik::graph {

namespace {

// In a mask's expression: the query head, the query position, the key position, and a distance.
constexpr int kHead = 0;
constexpr int kQuery = 1;
constexpr int kKey = 2;
constexpr int kDistance = 3;

// A score of this or less, relative to a visible one, has a softmax weight of exactly zero in
// float32 unless scores reach the thousands; models write -1e4, -1e9, the lowest float or -inf.
constexpr float kHidden = -1e4F;

// Without a table that bounds the context, a mask that needs checking value by value is checked up
// to this many positions, and the context is limited to it.
constexpr std::int64_t kCheckedPositions = 2048;

bool hides(const Expr& e) {
  if (e.type() == ExprType::kBool) return e.truth() == false;
  return e.real_constant() && *e.real_constant() <= kHidden;
}

bool shows(const Expr& e) {
  if (e.type() == ExprType::kBool) return e.truth() == true;
  return e.real_constant() == 0.0F;
}

// The mask as a function of (head, query, key), or a stop.
Expr mask_expression(Prover& p, const Node& node) {
  const ValueId id = node.input(3);
  const std::string name = "the mask '" + p.source().value(id).name + "' of " + node.label();
  const auto content = p.content(id);
  if (!content) stop(name + " depends on more than positions");
  const auto& dims = p.shape(id);
  const int rank = static_cast<int>(dims.size());
  if (rank > 4) stop(name + " has " + std::to_string(rank) + " axes");
  std::map<int, Expr> indices;
  for (int axis = 0; axis < rank; ++axis) {
    const int place = axis + 4 - rank;  // in [batch, heads, query, key]
    const Expr& dim = dims[static_cast<std::size_t>(axis)];
    if (place == 0 && content->has_index(axis)) stop(name + " differs between batch entries");
    if (place >= 2 && !dim.is(1) && !p.is_token(dim)) {
      stop(name + " has an axis of " + dim.str() + " where the tokens were expected");
    }
    if (!dim.is(1)) indices.emplace(axis, Expr::index(place == 0 ? kDistance : place - 1));
  }
  const Expr mask = content->substitute(indices);
  if (mask.has_symbol()) {
    stop(name + " depends on the length of the whole sequence (" + mask.str() + ")");
  }
  return mask;
}

struct MaskProof {
  std::optional<Expr> bias;  // nothing: plain causal
  std::string how;
};

// Checks every pair of positions below `limit`.
MaskProof check_by_value(const Expr& mask, std::int64_t limit, int heads, const std::string& name) {
  const ExprProgram program(mask);
  const bool boolean = mask.type() == ExprType::kBool;
  std::vector<std::int64_t> scratch(program.scratch_bytes() / sizeof(std::int64_t) + 1);
  std::vector<std::int64_t> truth(static_cast<std::size_t>(limit));
  std::vector<float> bias(static_cast<std::size_t>(limit));
  bool plain = true;
  const int n = static_cast<int>(limit);
  for (int head = 0; head < (mask.has_index(kHead) ? heads : 1); ++head) {
    for (std::int64_t query = 0; query < limit; ++query) {
      const std::int64_t at[] = {head, query, 0};
      const bool ok = boolean ? program.eval(at, kKey, 0, n, scratch.data(), truth.data())
                              : program.eval(at, kKey, 0, n, scratch.data(), bias.data());
      if (!ok) stop(name + " cannot be evaluated");
      for (std::int64_t key = 0; key < limit; ++key) {
        const auto k = static_cast<std::size_t>(key);
        const bool hidden = boolean ? truth[k] == 0 : bias[k] <= kHidden;
        if (key > query && !hidden) {
          stop(name + " lets position " + std::to_string(query) + " see position " +
               std::to_string(key));
        }
        plain = plain && (key > query || (boolean ? truth[k] != 0 : bias[k] == 0.0F));
      }
    }
  }
  MaskProof proof;
  if (!plain) proof.bias = mask;
  proof.how = "mask checked for every pair of positions below " + std::to_string(limit);
  return proof;
}

MaskProof prove_mask(Prover& p, const Node& node, int heads, bool causal_flag) {
  if (node.input(3) == kNoValue) {
    if (!causal_flag) stop(node.label() + " lets every token see later ones: it is not causal");
    return {std::nullopt, "causal by its attribute"};
  }
  const Expr mask = mask_expression(p, node);
  const std::string name = "the mask of " + node.label();
  const Expr query = Expr::index(kQuery);
  const Expr key = Expr::index(kKey);
  const Expr distance = Expr::index(kDistance);
  const Expr future = mask.substitute({{kKey, query + Expr(1) + distance}});
  if (causal_flag || hides(future)) {
    MaskProof proof;
    proof.how = causal_flag ? "causal by its attribute" : "mask proved causal for every length";
    if (!shows(mask.substitute({{kQuery, key + distance}}))) {
      proof.bias = mask;
      proof.how += "; a bias of the positions is evaluated for the rows at hand";
    }
    return proof;
  }
  if (shows(future)) stop(name + " lets every token see later ones: it is not causal");
  std::int64_t limit = p.result().context_limit;
  if (limit == 0 || limit > kCheckedPositions) {
    limit = kCheckedPositions;
  }
  MaskProof proof = check_by_value(mask, limit, heads, name);
  p.limit_context(limit, "the mask of " + node.label() + " was checked up to there");
  return proof;
}

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

bool exactly_tokens(const Axis& axis) {
  return axis.size() == 1 && axis[0].role == kTokenRole;
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

void attention(Prover& p, const Node& node) {
  for (std::size_t i = 4; i < node.inputs.size(); ++i) {
    if (node.inputs[i] != kNoValue) stop(node.label() + " has a past of its own");
  }
  const bool flat = p.shape(node.input(0)).size() == 3;
  const std::int64_t q_heads = node.int_attr("q_num_heads", 0);
  const std::int64_t kv_heads = node.int_attr("kv_num_heads", 0);
  Heads q = flat ? three_dimensional(p, node, 0, q_heads) : four_dimensional(p, node, 0, false);
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
  if (!q.value.rows || !k.value.rows || !v.value.rows) {
    stop(node.label() + " attends to weights, not to tokens");
  }
  if (k.stored != v.stored || q.stored % k.stored != 0 || q.dim != k.dim) {
    stop(node.label() + " has heads that do not fit together");
  }
  RowAttention entry;
  entry.heads = q.stored;
  entry.kv_heads = k.stored;
  entry.head_dim = q.dim;
  entry.value_dim = v.dim;
  entry.scale = node.float_attr("scale", 1.0F / std::sqrt(static_cast<float>(q.dim)));
  entry.softcap = node.float_attr("softcap", 0.0F);
  MaskProof mask = prove_mask(p, node, entry.heads, node.int_attr("is_causal", 0) != 0);
  entry.bias = mask.bias;

  const Value& result = p.source().value(node.outputs[0]);
  RowValue out = q.value;
  Axis& last = out.layout.back();
  const std::int64_t width = flat ? std::int64_t{entry.heads} * entry.value_dim : entry.value_dim;
  last = width == 1 ? Axis{} : Axis{{kFeatureRole, Expr(width), false}};
  const auto layer = static_cast<std::int64_t>(p.result().attention.size());
  out.id = p.emit("RowAttention", "kvik", {q.value.id, k.value.id, v.value.id}, {{"layer", layer}},
                  result.dtype, stored_dims(out.layout), true, result.name);
  p.notes.push_back("attention '" + node.name + "': " + mask.how);
  p.result().attention.push_back(std::move(entry));
  p.set(node.outputs[0], std::move(out));
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

std::vector<RowEntry> rowwise_attention_rules() {
  return {{"", "Attention", attention}, {"", "RotaryEmbedding", rotary}};
}

}  // namespace kvik::graph
