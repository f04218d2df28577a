#include "graph/rows/mask.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "graph/expr_eval.h"
#include "graph/hidden_score.h"

namespace kvik::graph {

namespace {

// In a mask's expression: the query head, the query position, the key position, and a distance.
constexpr int kHead = 0;
constexpr int kQuery = 1;
constexpr int kKey = 2;
constexpr int kDistance = 3;

// What is hidden weighs nothing only beside something that is seen, far above it: a row of -1e9
// alone is an average over all keys.
constexpr float kSeen = kHiddenScore / 2;

// A difference of scores that a result does not show.
constexpr double kNegligible = 2.5e-4;

// Without a table that bounds the context, a mask that needs checking value by value is checked up
// to this many positions, and the context is limited to it.
constexpr std::int64_t kCheckedPositions = 2048;

bool hides(const Expr& e) {
  if (e.type() == ExprType::kBool) return e.truth() == false;
  return e.real_constant() && *e.real_constant() <= kHiddenScore;
}

bool shows(const Expr& e) {
  if (e.type() == ExprType::kBool) return e.truth() == true;
  return e.real_constant() == 0.0F;
}

// The positions up to which something is checked value by value.
std::int64_t checked_positions(Prover& p) {
  const std::int64_t limit = p.result().context_limit;
  return limit == 0 || limit > kCheckedPositions ? kCheckedPositions : limit;
}

std::string mask_name(const Prover& p, const Node& node) {
  return "the mask '" + p.source().value(node.input(3)).name + "' of " + node.label();
}

// The mask as a function of (head, query, key) and perhaps of the sequence's length, or a stop.
Expr mask_expression(Prover& p, const Node& node) {
  const ValueId id = node.input(3);
  const std::string name = mask_name(p, node);
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
  return content->substitute(indices);
}

// ---- biases that count from the end of the sequence --------------------------------------------

// How far apart the values of f(head, distance) are, for distances below `limit`, if for each head
// they are a line in the distance up to rounding; else nothing.
std::optional<double> linear_spread(const Expr& f, int heads, std::int64_t limit) {
  const ExprProgram program(f);
  std::vector<std::int64_t> scratch(program.scratch_bytes() / sizeof(std::int64_t) + 1);
  std::vector<float> values(static_cast<std::size_t>(limit));
  double spread = 0.0;
  for (int head = 0; head < (f.has_index(kHead) ? heads : 1); ++head) {
    const std::int64_t at[] = {head, 0, 0, 0};
    if (!program.eval(at, kDistance, 0, static_cast<int>(limit), scratch.data(), values.data())) {
      return std::nullopt;
    }
    const double first = values.front();
    const double slope = limit > 1 ? (values.back() - first) / static_cast<double>(limit - 1) : 0.0;
    const double largest = std::max(std::fabs(first), std::fabs(double{values.back()}));
    spread = std::max(spread, std::fabs(values.back() - first));
    const double rounding =
        std::min(2.0 * std::numeric_limits<float>::epsilon() * largest, kNegligible);
    for (std::int64_t i = 0; i < limit; ++i) {
      const double line = first + slope * static_cast<double>(i);
      // Not "greater": a NaN or an infinity is no line.
      if (!(std::fabs(values[static_cast<std::size_t>(i)] - line) <= rounding)) return std::nullopt;
    }
  }
  return spread;
}

// A bias whose terms may depend on the length S of the sequence, split into those that do not and
// those that do. The latter must be functions f(head, S - 1 - key), as ALiBi is where it is written
// as a distance from the last key, and linear: then they differ from f(head, query - key), what
// they are for the prefix that ends at the query, by the same amount for every key of a row, which
// the softmax does not see. That is what takes their place.
struct SplitMask {
  std::optional<Expr> fixed;
  std::optional<Expr> shifted;
  double spread = 0.0;  // of the latter: how much more a later key may get than the query's own
};

void split_terms(Prover& p, const Expr& e, int heads, const std::string& name, SplitMask& out) {
  const auto add = [](std::optional<Expr>& sum, const Expr& term) {
    sum = sum ? float_binary(ExprKind::kFloatAdd, *sum, term) : term;
  };
  if (!e.has_symbol()) return add(out.fixed, e);
  if (e.kind() == ExprKind::kFloatAdd) {
    split_terms(p, e.args()[0], heads, name, out);
    return split_terms(p, e.args()[1], heads, name, out);
  }
  // The distance is an index, since it is not negative: simplifying may rely on it.
  const Expr from_last = p.token() - Expr(1) - Expr::index(kDistance);
  const Expr f = e.substitute({{kKey, from_last}});
  if (e.type() != ExprType::kFloat || f.has_symbol() || f.has_unknown() || f.has_index(kQuery)) {
    stop(name + " depends on the length of the whole sequence (" + e.str() + ")");
  }
  const std::int64_t limit = checked_positions(p);
  const auto spread = linear_spread(f, heads, limit);
  if (!spread) {
    stop(name + " depends on the length of the whole sequence, not only by a shift of each row");
  }
  out.spread += *spread;
  if (out.spread > -kSeen / 2) stop(name + " may weigh more than what hides later tokens");
  p.limit_context(limit, "a bias of " + name + " was checked up to there");
  // Later keys are hidden; the distance stays within the domain for them, too.
  const Expr distance = max(Expr::index(kQuery) - Expr::index(kKey), Expr(0));
  add(out.shifted, f.substitute({{kDistance, distance}}));
}

// ---- masks -------------------------------------------------------------------------------------

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
      bool sees = false;
      for (std::int64_t key = 0; key < limit; ++key) {
        const auto k = static_cast<std::size_t>(key);
        const bool hidden = boolean ? truth[k] == 0 : bias[k] <= kHiddenScore;
        sees = sees || (boolean ? !hidden : key <= query && bias[k] > kSeen);
        if (key > query && !hidden) {
          stop(name + " lets position " + std::to_string(query) + " see position " +
               std::to_string(key));
        }
        plain = plain && (key > query || (boolean ? truth[k] != 0 : bias[k] == 0.0F));
      }
      if (!sees) stop(name + " hides every position from position " + std::to_string(query));
    }
  }
  MaskProof proof;
  if (!plain) proof.bias = mask;
  proof.how = "mask checked for every pair of positions below " + std::to_string(limit);
  return proof;
}

// Whether every query is proved to see a key, its own or the first.
bool sees_a_key(const Expr& mask) {
  const auto seen = [](const Expr& e) {
    if (e.type() == ExprType::kBool) return e.truth() == true;
    return e.real_constant() && *e.real_constant() > kSeen;
  };
  return seen(mask.substitute({{kKey, Expr::index(kQuery)}})) ||
         seen(mask.substitute({{kKey, Expr(0)}}));
}

void collect_terms(const Expr& e, std::vector<Expr>& terms) {
  if (e.kind() != ExprKind::kFloatAdd) return terms.push_back(e);
  collect_terms(e.args()[0], terms);
  collect_terms(e.args()[1], terms);
}

// A sum of a mask that hides every later key and of a bias of the keys' positions (ALiBi), whose
// values below `limit` are too close to each other to make up for what the mask takes away.
bool hides_beside_bias(const Expr& mask, const Expr& later, std::int64_t limit, int heads) {
  if (mask.type() != ExprType::kFloat) return false;
  std::vector<Expr> terms;
  collect_terms(mask, terms);
  std::optional<Expr> hiding;
  std::optional<Expr> bias;
  for (const Expr& term : terms) {
    auto& sum = term.substitute({{kKey, later}}).real_constant() ? hiding : bias;
    sum = sum ? float_binary(ExprKind::kFloatAdd, *sum, term) : term;
  }
  if (!hiding || !bias || bias->has_index(kQuery)) return false;
  if (!hides(hiding->substitute({{kKey, later}})) || !sees_a_key(*hiding)) return false;
  const ExprProgram program(*bias);
  std::vector<std::int64_t> scratch(program.scratch_bytes() / sizeof(std::int64_t) + 1);
  std::vector<float> values(static_cast<std::size_t>(limit));
  for (int head = 0; head < (bias->has_index(kHead) ? heads : 1); ++head) {
    const std::int64_t at[] = {head, 0, 0};
    if (!program.eval(at, kKey, 0, static_cast<int>(limit), scratch.data(), values.data())) {
      return false;
    }
    const auto [low, high] = std::minmax_element(values.begin(), values.end());
    const bool finite =
        std::all_of(values.begin(), values.end(), [](float v) { return std::isfinite(v); });
    if (!finite || *high - *low > -kSeen / 2) return false;
  }
  return true;
}

// A mask that does not depend on the sequence's length.
MaskProof prove_fixed_mask(Prover& p, const Node& node, const Expr& mask, int heads,
                           bool causal_flag) {
  const std::string name = "the mask of " + node.label();
  if (mask.has_unknown()) stop(name + " is beyond what the proof can express");
  const Expr query = Expr::index(kQuery);
  const Expr key = Expr::index(kKey);
  const Expr distance = Expr::index(kDistance);
  const Expr later = query + Expr(1) + distance;
  const Expr future = mask.substitute({{kKey, later}});
  if (causal_flag || (hides(future) && sees_a_key(mask))) {
    MaskProof proof;
    proof.how = causal_flag ? "causal by its attribute" : "mask proved causal for every length";
    if (!shows(mask.substitute({{kQuery, key + distance}}))) {
      proof.bias = mask;
      proof.how += "; a bias of the positions is evaluated for the rows at hand";
    }
    return proof;
  }
  if (shows(future)) stop(name + " lets every token see later ones: it is not causal");
  const std::int64_t limit = checked_positions(p);
  MaskProof proof;
  if (hides_beside_bias(mask, later, limit, heads)) {
    proof.bias = mask;
    proof.how = "mask proved causal beside a bias of the positions below " + std::to_string(limit);
  } else {
    proof = check_by_value(mask, limit, heads, name);
  }
  p.limit_context(limit, "the mask of " + node.label() + " was checked up to there");
  return proof;
}

// A mask under which a token may see later ones.
MaskProof whole_mask(const Expr& mask, const std::string& name) {
  if (mask.has_unknown()) stop(name + " is beyond what the proof can express");
  if (mask.has_symbol()) {
    stop(name + " depends on the length of the whole sequence (" + mask.str() + ")");
  }
  MaskProof proof{.how = "every token sees its whole sequence", .mixing = Mixing::kWhole};
  if (!shows(mask)) {
    if (!sees_a_key(mask)) stop(name + " may hide every position from a token");
    proof.bias = mask;
    proof.how += "; a bias of the positions is evaluated for the rows at hand";
  }
  return proof;
}

MaskProof prove_causal_mask(Prover& p, const Node& node, int heads, bool causal_flag) {
  const std::string not_causal =
      node.label() + " lets every token see later ones: it is not causal";
  if (node.input(3) == kNoValue) {
    if (!causal_flag) stop(not_causal);
    return {std::nullopt, "causal by its attribute"};
  }
  const Expr mask = mask_expression(p, node);
  SplitMask parts;
  split_terms(p, mask, heads, mask_name(p, node), parts);
  if (!parts.shifted) return prove_fixed_mask(p, node, mask, heads, causal_flag);
  MaskProof proof;
  if (parts.fixed) {
    proof = prove_fixed_mask(p, node, *parts.fixed, heads, causal_flag);
  } else {
    if (!causal_flag) stop(not_causal);
    proof.how = "causal by its attribute";
  }
  proof.how += "; a bias that counts from the last key counts from the query instead";
  proof.bias =
      proof.bias ? float_binary(ExprKind::kFloatAdd, *proof.bias, *parts.shifted) : *parts.shifted;
  return proof;
}

}  // namespace

MaskProof prove_mask(Prover& p, const Node& node, int heads, bool causal_flag) {
  if (!p.may_read_later() || causal_flag) return prove_causal_mask(p, node, heads, causal_flag);
  if (node.input(3) == kNoValue) return whole_mask(Expr::boolean(true), "");
  const Expr mask = mask_expression(p, node);
  if (shows(mask)) return whole_mask(mask, "");
  const std::size_t notes = p.notes.size();
  const std::int64_t limit = p.result().context_limit;
  try {
    return prove_causal_mask(p, node, heads, causal_flag);
  } catch (const ProofStop&) {
    p.notes.resize(notes);
    p.result().context_limit = limit;
    return whole_mask(mask, mask_name(p, node));
  }
}

bool shows_everything(const Prover& p, const Node& node) {
  const auto content = p.content(node.input(3));
  return content && shows(*content);
}

}  // namespace kvik::graph
