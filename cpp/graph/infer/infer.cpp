#include "graph/infer/infer.h"

#include <algorithm>
#include <string>
#include <unordered_map>

#include "base/checked.h"
#include "graph/infer/rules.h"

namespace kvik::graph {

DType InferContext::dtype(std::size_t i) const {
  return has(i) ? graph_.value(node_.inputs[i]).dtype : DType::kUndefined;
}

const std::optional<Shape>& InferContext::shape(std::size_t i) const {
  static const std::optional<Shape> kUnknownShape;
  return has(i) ? graph_.value(node_.inputs[i]).shape : kUnknownShape;
}

std::optional<Expr> InferContext::content(std::size_t i) const {
  if (!has(i)) return std::nullopt;
  return contents_[static_cast<std::size_t>(node_.inputs[i])];
}

std::optional<Expr> InferContext::element(std::size_t i, std::int64_t k) const {
  const auto whole = content(i);
  if (!whole || whole->type() != ExprType::kInt) return std::nullopt;
  const Expr at = whole->substitute({{0, Expr(k)}});
  if (at.has_unknown() || at.has_index()) return std::nullopt;
  return at;
}

std::optional<std::vector<std::int64_t>> InferContext::ints(std::size_t i) const {
  if (!has(i)) return std::nullopt;
  if (auto constant = graph_.constant_ints(node_.inputs[i])) return constant;
  const auto symbolic = elements(i);
  if (!symbolic) return std::nullopt;
  std::vector<std::int64_t> values;
  for (const Expr& e : *symbolic) {
    if (!e.constant()) return std::nullopt;
    values.push_back(*e.constant());
  }
  return values;
}

std::optional<std::vector<Expr>> InferContext::elements(std::size_t i) const {
  const auto& dims = shape(i);
  if (!dims || dims->size() > 1) return std::nullopt;
  const auto count = dims->empty() ? std::optional<std::int64_t>(1) : (*dims)[0].constant();
  if (!count || *count > 64) return std::nullopt;
  std::vector<Expr> values;
  for (std::int64_t k = 0; k < *count; ++k) {
    const auto e = element(i, k);
    if (!e) return std::nullopt;
    values.push_back(*e);
  }
  return values;
}

void InferContext::set(std::size_t output, DType dtype, std::optional<Shape> shape) {
  const ValueId id = node_.output(output);
  if (id == kNoValue) return;
  Value& value = graph_.value(id);
  value.dtype = dtype;
  if (shape && shape->size() > static_cast<std::size_t>(kMaxRank)) shape.reset();
  value.shape = std::move(shape);
}

void InferContext::set_content(std::size_t output, std::optional<Expr> content) {
  const ValueId id = node_.output(output);
  if (id == kNoValue || !content || content->has_unknown()) return;
  contents_[static_cast<std::size_t>(id)] = std::move(content);
}

bool InferContext::assume_at_most(const Expr& symbol, std::int64_t limit) {
  if (limits_ == nullptr || symbol.kind() != ExprKind::kSymbol || limit < 1) return false;
  const auto [it, added] = limits_->emplace(symbol.str(), limit);
  if (!added) it->second = std::min(it->second, limit);
  return true;
}

Expr::Bounds InferContext::bounds(const Expr& e) const {
  Expr::Bounds found = e.bounds();
  if (limits_ == nullptr || e.kind() != ExprKind::kPoly) return found;
  // A sum of multiples of single symbols, each of them within [1, its limit].
  Expr::Bounds sum{0, 0};
  for (const ExprNode::Term& term : e.node().terms) {
    Expr::Bounds factor{1, 1};
    if (!term.factors.empty()) {
      const auto it = limits_->find(term.factors[0].str());
      const bool known = term.factors.size() == 1 && term.factors[0].kind() == ExprKind::kSymbol &&
                         it != limits_->end();
      if (!known) return found;
      factor.high = it->second;
    }
    std::int64_t low = 0;
    std::int64_t high = 0;
    if (!checked_mul(factor.low, term.coefficient, &low) ||
        !checked_mul(factor.high, term.coefficient, &high) ||
        !checked_add(sum.low, std::min(low, high), &sum.low) ||
        !checked_add(sum.high, std::max(low, high), &sum.high)) {
      return found;
    }
  }
  return {std::max(found.low, sum.low), std::min(found.high, sum.high)};
}

std::optional<ExprType> content_type(DType dtype) {
  switch (dtype) {
    case DType::kI64:
    case DType::kI32: return ExprType::kInt;
    case DType::kBool: return ExprType::kBool;
    case DType::kF32: return ExprType::kFloat;
    default: return std::nullopt;
  }
}

Shape broadcast(const Shape& a, const Shape& b) {
  const Shape& longer = a.size() >= b.size() ? a : b;
  const Shape& shorter = a.size() >= b.size() ? b : a;
  Shape out = longer;
  const std::size_t offset = longer.size() - shorter.size();
  for (std::size_t i = 0; i < shorter.size(); ++i) {
    const Expr& x = longer[offset + i];
    const Expr& y = shorter[i];
    if (x == y || y.is(1)) continue;
    if (x.is(1) || y.constant()) {
      out[offset + i] = y;
    } else if (!x.constant()) {
      out[offset + i] = Expr::unknown();
    }
  }
  return out;
}

std::optional<Expr> broadcast_content(const Expr& content, const Shape& from, const Shape& to) {
  if (from.size() > to.size()) return std::nullopt;
  const int offset = static_cast<int>(to.size() - from.size());
  std::map<int, Expr> indices;
  for (int axis = 0; axis < static_cast<int>(from.size()); ++axis) {
    const Expr& dim = from[static_cast<std::size_t>(axis)];
    if (dim.is(1)) {
      indices.emplace(axis, Expr(0));
    } else if (dim == to[static_cast<std::size_t>(axis + offset)]) {
      indices.emplace(axis, Expr::index(axis + offset));
    } else {
      return std::nullopt;
    }
  }
  return content.substitute(indices);
}

std::optional<int> normalize_axis(std::int64_t axis, std::size_t rank) {
  const auto r = static_cast<std::int64_t>(rank);
  if (axis < -r || axis >= r) return std::nullopt;
  return static_cast<int>(axis < 0 ? axis + r : axis);
}

Expr product(const Shape& shape) {
  Expr total(1);
  for (const Expr& dim : shape) total = total * dim;
  return total;
}

InferRule find_infer_rule(std::string_view domain, std::string_view op) {
  static const auto kRules = [] {
    std::unordered_map<std::string, InferRule> rules;
    for (const auto& family : {elementwise_rules(), movement_rules(), indexing_rules(),
                               compute_rules(), window_rules()}) {
      for (const InferEntry& entry : family) {
        rules.emplace(std::string(entry.domain) + ":" + std::string(entry.op), entry.rule);
      }
    }
    return rules;
  }();
  const auto it = kRules.find(std::string(domain) + ":" + std::string(op));
  return it == kRules.end() ? nullptr : it->second;
}

std::optional<Expr> constant_content(const std::shared_ptr<const ConstantTensor>& constant) {
  if (!content_type(constant->dtype) || constant->dims.elements() == 0) return std::nullopt;
  Expr offset(0);
  for (int axis = 0; axis < constant->dims.rank; ++axis) {
    offset = offset * Expr(constant->dims[axis]);
    if (constant->dims[axis] != 1) offset = offset + Expr::index(axis);
  }
  return Expr::lookup(constant, offset);
}

Contents infer(Graph& graph, const std::map<ValueId, Expr>& known, DimLimits* limits) {
  Contents contents(graph.values.size());
  for (std::size_t id = 0; id < graph.values.size(); ++id) {
    Value& value = graph.values[id];
    if (!value.constant) continue;
    value.dtype = value.constant->dtype;
    Shape shape;
    for (const std::int64_t dim : value.constant->dims) shape.emplace_back(dim);
    value.shape = std::move(shape);
    contents[id] = constant_content(value.constant);
  }
  for (const auto& [id, content] : known) contents[static_cast<std::size_t>(id)] = content;

  for (const Node& node : graph.nodes) {
    for (const ValueId id : node.outputs) {
      if (id != kNoValue) graph.value(id).shape.reset();
    }
    InferContext context(graph, contents, limits, node);
    if (const InferRule rule = find_infer_rule(node.domain, node.op)) rule(context);
  }
  return contents;
}

}  // namespace kvik::graph
