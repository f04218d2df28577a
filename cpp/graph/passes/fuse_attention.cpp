// fuse_attention: softmax(softcap(Q K^T * scale) + mask) V in any spelling becomes Attention, with
// the meaning of opset 23: Q, K, V [batch, heads, length, dim], a boolean mask (true attends) or an
// additive one, broadcast to [batch, heads, queries, keys]; is_causal = 0.
//
// The match starts at the product with V and walks up: the softmax over the last axis, then any
// order of scalings, masks (added, or chosen by Where) and at most one tanh softcap, up to Q K^T.
// Nothing is assumed about what a mask means.
//
// A row that a mask hides entirely has no meaning in a model. Attention gives zeros for it; the
// decomposed form gives NaN (or zeros, where the exporter replaces NaN) if the fill is -inf. For a
// finite fill it gives an average, which the additive form keeps: Where becomes a boolean mask
// only if the fill is -inf or every row is proved to see a key.
#include <cmath>
#include <limits>

#include "graph/hidden_score.h"
#include "graph/passes/match.h"
#include "graph/passes/passes.h"

namespace kvik::graph {

namespace {

constexpr int kMaxSteps = 32;
// Rows of a table of masks that are tried out one by one.
constexpr std::int64_t kMaxTried = 8192;
// A fill so large that adding it to a score gives the fill itself, up to rounding.
constexpr double kAbsorbing = -1.0e8;

struct Mask {
  ValueId value = kNoValue;
  double factor = 1.0;  // additive: what it was multiplied by on its way to the softmax
  // Boolean (chosen by Where): true where the score is kept (or hidden, if `inverted`).
  bool boolean = false;
  bool inverted = false;
  double fill = 0.0;
};

struct Scores {
  ValueId q = kNoValue;
  ValueId k_transposed = kNoValue;
  ValueId product = kNoValue;  // Q K^T
  double scale = 1.0;
  double softcap = 0.0;
  std::vector<Mask> masks;
};

// Whether a float32 value is made of zeros and ones alone: a constant that is, a part of one, or a
// cast boolean.
bool is_zero_or_one(const Rewriter& r, ValueId v) {
  while (const Node* node = r.producer(v)) {
    if (node->is("Cast") && r.dtype(node->input(0)) == DType::kBool) return true;
    const bool part = node->is("Slice") || node->is("Unsqueeze") || node->is("Squeeze") ||
                      node->is("Reshape") || node->is("Expand") || node->is("Gather");
    if (!part) return false;
    v = node->input(0);
  }
  const ConstantTensor* tensor = r.constant(v);
  if (tensor == nullptr || tensor->dtype != DType::kF32) return false;
  for (std::int64_t i = 0; i < tensor->dims.elements(); ++i) {
    const double element = tensor->float_at(i);
    if (element != 0.0 && element != 1.0) return false;
  }
  return true;
}

// Walks up from the softmax's input. The present value is multiplied by `factor` further down.
class ScoresMatcher {
 public:
  explicit ScoresMatcher(const Rewriter& r) : r_(r) {}

  std::optional<Scores> match(ValueId v) {
    if (!walk(v, 1.0)) return std::nullopt;
    return scores_;
  }

 private:
  bool walk(ValueId v, double factor) {
    const Node* node = r_.producer(v);
    if (node == nullptr || !r_.used_once(v) || ++steps_ > kMaxSteps) return false;
    if (node->is("MatMul")) return finish(*node, factor);
    if (const auto scaled = with_factor(r_, node)) {
      return walk(scaled->value, factor * scaled->factor);
    }
    if (node->is("Add") && walk_blend(*node, factor)) return true;
    if (node->is("Add") || node->is("Sub")) return walk_sum(*node, factor);
    if (node->is("Where")) return walk_where(*node, factor);
    if (node->is("Tanh")) return walk_softcap(*node, factor);
    return false;
  }

  bool finish(const Node& product, double factor) {
    scores_.q = product.input(0);
    scores_.k_transposed = product.input(1);
    scores_.product = product.output(0);
    scores_.scale = capped_ ? factor * scores_.softcap : factor;
    return true;
  }

  // Either operand may be the scores; the other is a mask that leaves the shape alone.
  bool walk_sum(const Node& node, double factor) {
    if (node.inputs.size() != 2 || capped_) return false;
    for (const std::size_t i : {0U, 1U}) {
      if (i == 1 && node.is("Sub")) break;
      const ValueId mask = node.input(1 - i);
      if (r_.dtype(mask) != DType::kF32 || !keeps_shape(r_, node.input(i), mask)) continue;
      const std::size_t masks = scores_.masks.size();
      scores_.masks.push_back({mask, node.is("Sub") ? -factor : factor});
      if (walk(node.input(i), factor)) return true;
      scores_.masks.resize(masks);
    }
    return false;
  }

  // scores * m + (1 - m) * fill for an m of zeros and ones: Where(m, scores, fill).
  bool walk_blend(const Node& node, double factor) {
    if (node.inputs.size() != 2 || capped_ || factor <= 0.0) return false;
    for (const std::size_t i : {0U, 1U}) {
      const Node* kept = r_.producer(node.input(i), "Mul");
      const auto filled = with_factor(r_, r_.producer(node.input(1 - i)));
      const Node* hidden = filled ? r_.producer(filled->value, "Sub") : nullptr;
      if (kept == nullptr || hidden == nullptr || scalar_of(r_, hidden->input(0)) != 1.0F ||
          filled->factor * factor > kHiddenScore || !r_.used_once(node.input(i))) {
        continue;
      }
      const ValueId m = hidden->input(1);
      const ValueId scores = other_operand(*kept, m);
      if (scores == kNoValue || !is_zero_or_one(r_, m) || !keeps_shape(r_, scores, m)) continue;
      const std::size_t masks = scores_.masks.size();
      scores_.masks.push_back({m, 1.0, true, false, filled->factor * factor});
      if (walk(scores, factor)) return true;
      scores_.masks.resize(masks);
    }
    return false;
  }

  // Where(keep, scores, fill) or Where(hide, fill, scores).
  bool walk_where(const Node& node, double factor) {
    if (capped_ || factor <= 0.0) return false;
    for (const std::size_t i : {1U, 2U}) {
      const auto fill = scalar_of(r_, node.input(3 - i));
      if (!fill || !keeps_shape(r_, node.input(i), node.input(0)) ||
          !keeps_shape(r_, node.input(i), node.input(3 - i))) {
        continue;
      }
      const double value = static_cast<double>(*fill) * factor;
      if (value > kHiddenScore) continue;
      const std::size_t masks = scores_.masks.size();
      scores_.masks.push_back({node.input(0), 1.0, true, i == 2, value});
      if (walk(node.input(i), factor)) return true;
      scores_.masks.resize(masks);
    }
    return false;
  }

  bool walk_softcap(const Node& node, double factor) {
    if (capped_ || factor <= 0.0) return false;
    capped_ = true;
    scores_.softcap = factor;
    if (walk(node.input(0), 1.0)) return true;
    capped_ = false;
    scores_.softcap = 0.0;
    return false;
  }

  const Rewriter& r_;
  Scores scores_;
  bool capped_ = false;  // what is above goes through the softcap's tanh
  int steps_ = 0;
};

// The softmax behind the product with V, looking through Where(IsNaN(p), 0, p).
struct Probabilities {
  ValueId scores = kNoValue;
};

std::optional<Probabilities> match_probabilities(const Rewriter& r, ValueId v) {
  if (!r.used_once(v)) return std::nullopt;
  const Node* node = r.producer(v);
  if (node == nullptr) return std::nullopt;
  ValueId p = v;
  if (node->is("Where")) {
    const Node* is_nan = r.producer(node->input(0), "IsNaN");
    p = node->input(2);
    if (is_nan == nullptr || is_nan->input(0) != p || scalar_of(r, node->input(1)) != 0.0F ||
        !r.used_once(node->input(0)) || r.consumers(p).size() != 2 || r.is_output(p) ||
        !keeps_shape(r, p, node->input(1))) {
      return std::nullopt;
    }
    node = r.producer(p);
  }
  if (node == nullptr || !node->is("Softmax") || !on_last_axis(r, *node, -1) ||
      r.dtype(p) != DType::kF32) {
    return std::nullopt;
  }
  return Probabilities{node->input(0)};
}

// Takes constant factors off a value that only this attention uses.
ValueId strip_factors(const Rewriter& r, ValueId v, double& scale) {
  while (r.used_once(v)) {
    const auto scaled = with_factor(r, r.producer(v));
    if (!scaled) break;
    scale *= scaled->factor;
    v = scaled->value;
  }
  return v;
}

std::vector<std::int64_t> swapped_last(std::vector<std::int64_t> perm) {
  std::swap(perm[perm.size() - 1], perm[perm.size() - 2]);
  return perm;
}

// K from K^T: through its Transpose, or by another.
ValueId untransposed(Rewriter& r, NodeId n, ValueId k_transposed, std::size_t rank) {
  std::vector<std::int64_t> perm(rank);
  for (std::size_t i = 0; i < rank; ++i) perm[i] = static_cast<std::int64_t>(i);
  ValueId source = k_transposed;
  if (const Node* node = r.producer(k_transposed, "Transpose")) {
    const auto given = node->ints_attr("perm");
    if (given && given->size() == rank) {
      perm = *given;
      source = node->input(0);
    }
  }
  perm = swapped_last(perm);
  bool identity = true;
  for (std::size_t i = 0; i < rank; ++i)
    identity = identity && perm[i] == static_cast<std::int64_t>(i);
  return identity ? source : r.insert(n, "Transpose", {source}, {{"perm", perm}});
}

// What the shapes must be for one Attention. Scores: [batch, heads, queries, keys].
struct Geometry {
  bool has_heads = true;  // rank 4; rank 3 [batch, length, dim] is one head
  Shape scores;
};

// A leading dimension that is a plain symbol is a batch; a product (batch * heads, flattened for a
// batched product) is unflattened by sink_reshapes first.
bool is_plain_batch(const Expr& dim) {
  return dim.kind() == ExprKind::kSymbol;
}

std::optional<Geometry> match_geometry(const Rewriter& r, const Scores& scores, ValueId v) {
  const auto q = r.shape(scores.q);
  const auto k = r.shape(scores.k_transposed);
  const auto value = r.shape(v);
  const auto product = r.shape(scores.product);
  if (!q || !k || !value || !product || q->size() != k->size() || q->size() != value->size()) {
    return std::nullopt;
  }
  const std::size_t rank = q->size();
  if ((rank != 4 && rank != 3) || has_unknown(*product)) return std::nullopt;
  const auto batch_equal = [&](const Shape& s) { return s[0] == (*q)[0]; };
  if (!batch_equal(*k) || !batch_equal(*value) || !((*k)[rank - 1] == (*value)[rank - 2])) {
    return std::nullopt;
  }
  if (rank == 3 && !is_plain_batch((*q)[0])) return std::nullopt;
  // One key/value head for all query heads is Attention's own meaning; other ratios don't
  // broadcast.
  if (rank == 4 && (!((*k)[1] == (*value)[1]) || !((*k)[1] == (*q)[1] || (*k)[1].is(1)))) {
    return std::nullopt;
  }
  if (!(*q)[rank - 1].constant() || !((*q)[rank - 1] == (*k)[rank - 2])) return std::nullopt;
  return Geometry{rank == 4, *product};
}

// Whether a mask of this shape can be Attention's: it spans all keys.
bool mask_fits(const Rewriter& r, ValueId mask, const Shape& scores) {
  const auto shape = r.shape(mask);
  return shape && !shape->empty() && shape->size() <= scores.size() &&
         broadcast(scores, *shape) == scores && shape->back() == scores.back();
}

// Whether a boolean expression holds wherever it is defined. One that looks up tables, whose size
// bounds the only index that is left, is tried out.
bool holds_everywhere(const Rewriter& r, const Expr& e, const Expr& rows) {
  if (e.truth()) return *e.truth();
  const auto limit = r.upper_bound(rows);
  if (e.has_symbol() || e.has_unknown() || !limit || *limit > kMaxTried) return false;
  for (std::int64_t i = 0; i < *limit; ++i) {
    std::map<int, Expr> at;
    for (int axis = 0; axis < kMaxRank; ++axis) at.emplace(axis, Expr(i));
    if (e.substitute(at).truth() != true) return false;
  }
  return true;
}

bool mentions_only(const Expr& e, int axis) {
  for (int other = 0; other < kMaxRank; ++other) {
    if (other != axis && e.has_index(other)) return false;
  }
  return true;
}

// Whether each row of a boolean mask is proved to keep a key: the first, or the query's own.
bool every_row_sees_a_key(const Rewriter& r, const Mask& mask, const Shape& scores) {
  const auto content = r.content(mask.value);
  const auto shape = r.shape(mask.value);
  if (!content || content->type() == ExprType::kInt) return false;
  const Expr as_bool = cast(*content, ExprType::kBool);
  const Expr keep = mask.inverted ? logical_not(as_bool) : as_bool;
  const int key = static_cast<int>(shape->size()) - 1;
  const Expr rows = scores[scores.size() - 2];
  const auto holds = [&](const Expr& e) {
    return e.truth() == true || (mentions_only(e, key - 1) && holds_everywhere(r, e, rows));
  };
  if (holds(keep.substitute({{key, Expr(0)}}))) return true;
  const bool square = scores.back() == rows;
  return key > 0 && square && holds(keep.substitute({{key, Expr::index(key - 1)}}));
}

bool stays_boolean(const Rewriter& r, const Mask& mask, const Shape& scores) {
  return mask.boolean && (std::isinf(mask.fill) || every_row_sees_a_key(r, mask, scores));
}

bool masks_fit(const Rewriter& r, const Scores& scores, const Shape& shape) {
  for (const Mask& mask : scores.masks) {
    if (!mask_fits(r, mask.value, shape)) return false;
    if (mask.boolean && mask.fill > kAbsorbing && !stays_boolean(r, mask, shape)) return false;
  }
  return true;
}

ValueId real(Rewriter& r, double value) {
  const float rounded = static_cast<float>(value);
  return r.add_constant(ConstantTensor::from_floats({&rounded, 1}, Dims{}), "scalar");
}

ValueId kept(Rewriter& r, NodeId n, const Mask& mask) {
  if (r.dtype(mask.value) != DType::kBool) {  // zeros and ones
    constexpr std::int64_t kOnnxBool = 9;
    return r.insert(n, "Cast", {mask.value}, {{"to", kOnnxBool}});
  }
  return mask.inverted ? r.insert(n, "Not", {mask.value}) : mask.value;
}

ValueId additive(Rewriter& r, NodeId n, const Mask& mask) {
  if (mask.boolean) {
    const double lowest = -static_cast<double>(std::numeric_limits<float>::max());
    const double fill = std::isinf(mask.fill) ? mask.fill : std::max(mask.fill, lowest);
    return r.insert(n, "Where", {kept(r, n, mask), real(r, 0.0), real(r, fill)});
  }
  if (mask.factor == 1.0) return mask.value;
  return r.insert(n, "Mul", {mask.value, real(r, mask.factor)});
}

// All masks as one: boolean if all are, else their sum. kNoValue if there is none.
ValueId combined_mask(Rewriter& r, NodeId n, const Scores& scores, const Shape& shape) {
  bool boolean = true;
  for (const Mask& mask : scores.masks) boolean = boolean && stays_boolean(r, mask, shape);
  ValueId all = kNoValue;
  // The one next to the product first: the order of the model's own additions.
  for (auto mask = scores.masks.rbegin(); mask != scores.masks.rend(); ++mask) {
    const ValueId one = boolean ? kept(r, n, *mask) : additive(r, n, *mask);
    all = all == kNoValue ? one : r.insert(n, boolean ? "And" : "Add", {all, one});
  }
  return all;
}

// A mask over [batch, queries, keys] gets the axis of the one head.
ValueId with_head_axis(Rewriter& r, NodeId n, ValueId v) {
  return r.insert(n, "Unsqueeze", {v, r.add_ints({1}, "axis")});
}

bool fuse(Rewriter& r, NodeId n) {
  const Node& node = r.node(n);
  if (!node.is("MatMul")) return false;
  const auto probabilities = match_probabilities(r, node.input(0));
  if (!probabilities) return false;
  auto scores = ScoresMatcher(r).match(probabilities->scores);
  if (!scores) return false;
  ValueId v = node.input(1);
  const auto geometry = match_geometry(r, *scores, v);
  if (!geometry || !masks_fit(r, *scores, geometry->scores)) return false;

  const std::size_t rank = geometry->scores.size();
  ValueId q = strip_factors(r, scores->q, scores->scale);
  ValueId k = strip_factors(r, scores->k_transposed, scores->scale);
  k = strip_factors(r, untransposed(r, n, k, rank), scores->scale);
  ValueId mask = combined_mask(r, n, *scores, geometry->scores);
  if (!geometry->has_heads) {
    q = with_head_axis(r, n, q);
    k = with_head_axis(r, n, k);
    v = with_head_axis(r, n, v);
    if (mask != kNoValue && r.shape(mask)->size() == 3) mask = with_head_axis(r, n, mask);
  }
  std::vector<ValueId> inputs{q, k, v};
  if (mask != kNoValue) inputs.push_back(mask);
  Attributes attributes{{"is_causal", std::int64_t{0}},
                        {"scale", static_cast<float>(scores->scale)},
                        {"softcap", static_cast<float>(scores->softcap)}};
  if (geometry->has_heads) {
    r.rewrite(n, "", "Attention", inputs, attributes);
  } else {
    const ValueId out = r.insert(n, "Attention", inputs, attributes);
    r.rewrite(n, "", "Squeeze", {out, r.add_ints({1}, "axis")});
  }
  return true;
}

}  // namespace

void fuse_attention(Rewriter& r, PassState& /*state*/) {
  for (NodeId n = 0; n < r.count(); ++n) {
    if (r.alive(n)) fuse(r, n);
  }
}

}  // namespace kvik::graph
