#include "graph/expr.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>

#include "base/checked.h"
#include "graph/expr_parts.h"
#include "graph/graph.h"

namespace kvik::graph {

namespace {

constexpr std::int64_t kLowest = std::numeric_limits<std::int64_t>::min();
constexpr std::int64_t kHighest = std::numeric_limits<std::int64_t>::max();
// Longest canonical form. Real models stay below a few hundred characters; a hostile one must not
// make the proof slow.
constexpr std::size_t kMaxText = 4096;

using Term = ExprNode::Term;

Expr finish(ExprNode node) {
  for (const Expr& arg : node.args) {
    node.index_mask |= arg.node().index_mask;
    node.unknown = node.unknown || arg.has_unknown();
    node.symbol = node.symbol || arg.has_symbol();
  }
  if (node.text.size() > kMaxText) return Expr::unknown(node.type);
  return Expr(std::make_shared<const ExprNode>(std::move(node)));
}

Expr make(ExprKind kind, ExprType type, std::vector<Expr> args, std::string text) {
  ExprNode node;
  node.kind = kind;
  node.type = type;
  node.args = std::move(args);
  node.text = std::move(text);
  return finish(std::move(node));
}

}  // namespace

Expr call(ExprKind kind, ExprType type, const char* name, std::vector<Expr> args) {
  std::string text = name;
  text += '(';
  for (std::size_t i = 0; i < args.size(); ++i) text += (i ? ", " : "") + args[i].str();
  text += ')';
  return make(kind, type, std::move(args), std::move(text));
}

namespace {

// ---- polynomials ------------------------------------------------------------------------------

bool factors_less(const std::vector<Expr>& a, const std::vector<Expr>& b) {
  return std::lexicographical_compare(
      a.begin(), a.end(), b.begin(), b.end(),
      [](const Expr& x, const Expr& y) { return x.str() < y.str(); });
}

std::string term_text(const Term& term, bool first) {
  std::string text;
  const bool negative = term.coefficient < 0;
  if (first) {
    text = negative ? "-" : "";
  } else {
    text = negative ? " - " : " + ";
  }
  std::string digits = std::to_string(term.coefficient);
  if (negative) digits.erase(0, 1);
  const bool show = digits != "1" || term.factors.empty();
  if (show) text += digits;
  for (std::size_t i = 0; i < term.factors.size(); ++i) {
    if (show || i > 0) text += '*';
    text += term.factors[i].str();
  }
  return text;
}

// Terms must be free of duplicates; sorts them, drops zeros. A single bare atom stays itself.
Expr polynomial(std::vector<Term> terms) {
  std::erase_if(terms, [](const Term& term) { return term.coefficient == 0; });
  std::sort(terms.begin(), terms.end(), [](const Term& a, const Term& b) {
    if (a.factors.empty() != b.factors.empty()) return b.factors.empty();
    return factors_less(a.factors, b.factors);
  });
  if (terms.size() == 1 && terms[0].coefficient == 1 && terms[0].factors.size() == 1) {
    return terms[0].factors[0];
  }
  ExprNode node;
  node.kind = ExprKind::kPoly;
  node.text = terms.empty() ? "0" : "";
  for (std::size_t i = 0; i < terms.size(); ++i) {
    node.text += term_text(terms[i], i == 0);
    if (node.text.size() > kMaxText) return Expr::unknown();
    for (const Expr& factor : terms[i].factors) {
      node.index_mask |= factor.node().index_mask;
      node.unknown = node.unknown || factor.has_unknown();
      node.symbol = node.symbol || factor.has_symbol();
    }
  }
  if (terms.size() > 1) node.text = "(" + node.text + ")";
  node.terms = std::move(terms);
  return finish(std::move(node));
}

std::vector<Term> terms_of(const Expr& e) {
  if (e.kind() == ExprKind::kPoly) return e.node().terms;
  return {{1, {e}}};
}

// Adds a term into a list without duplicates; false when the coefficient overflows.
bool accumulate(std::vector<Term>& terms, const Term& term) {
  for (Term& existing : terms) {
    if (existing.factors == term.factors) {
      return checked_add(existing.coefficient, term.coefficient, &existing.coefficient);
    }
  }
  terms.push_back(term);
  return true;
}

Expr add_scaled(const Expr& a, const Expr& b, std::int64_t scale) {
  std::vector<Term> terms = terms_of(a);
  for (Term term : terms_of(b)) {
    if (!checked_mul(term.coefficient, scale, &term.coefficient) || !accumulate(terms, term)) {
      return Expr::unknown();
    }
  }
  return polynomial(std::move(terms));
}

// ---- bounds -----------------------------------------------------------------------------------

std::int64_t saturating_add(std::int64_t a, std::int64_t b, bool low) {
  const std::int64_t unbounded = low ? kLowest : kHighest;
  if (a == unbounded || b == unbounded) return unbounded;
  std::int64_t sum = 0;
  return checked_add(a, b, &sum) ? sum : unbounded;
}

Expr::Bounds multiply(Expr::Bounds a, Expr::Bounds b) {
  const bool nonnegative = a.low >= 0 && b.low >= 0;
  std::int64_t low = 0;
  std::int64_t high = 0;
  if (nonnegative) {
    if (!checked_mul(a.low, b.low, &low)) low = kHighest;
    if (a.high == 0 || b.high == 0) return {0, 0};
    if (a.high == kHighest || b.high == kHighest || !checked_mul(a.high, b.high, &high)) {
      high = kHighest;
    }
    return {low, high};
  }
  if (a.low == kLowest || b.low == kLowest || a.high == kHighest || b.high == kHighest) {
    return {kLowest, kHighest};
  }
  std::int64_t corners[4];
  if (!checked_mul(a.low, b.low, &corners[0]) || !checked_mul(a.low, b.high, &corners[1]) ||
      !checked_mul(a.high, b.low, &corners[2]) || !checked_mul(a.high, b.high, &corners[3])) {
    return {kLowest, kHighest};
  }
  return {*std::min_element(corners, corners + 4), *std::max_element(corners, corners + 4)};
}

Expr::Bounds scale(Expr::Bounds b, std::int64_t c) {
  const auto one = [c](std::int64_t v, bool low) {
    if (v == kLowest || v == kHighest) return low ? kLowest : kHighest;
    std::int64_t product = 0;
    return checked_mul(v, c, &product) ? product : (low ? kLowest : kHighest);
  };
  return c >= 0 ? Expr::Bounds{one(b.low, true), one(b.high, false)}
                : Expr::Bounds{one(b.high, true), one(b.low, false)};
}

Expr::Bounds poly_bounds(const ExprNode& node) {
  Expr::Bounds sum{0, 0};
  for (const Term& term : node.terms) {
    Expr::Bounds product{1, 1};
    for (const Expr& factor : term.factors) product = multiply(product, factor.bounds());
    product = scale(product, term.coefficient);
    sum = {saturating_add(sum.low, product.low, true),
           saturating_add(sum.high, product.high, false)};
  }
  return sum;
}

std::string float_text(float value) {
  char buffer[48];
  std::snprintf(buffer, sizeof buffer, "%.9gf", static_cast<double>(value));
  return buffer;
}

}  // namespace

// ---- construction -----------------------------------------------------------------------------

Expr::Expr() : Expr(std::int64_t{0}) {}

Expr::Expr(std::int64_t value)
    : Expr(polynomial(value == 0 ? std::vector<Term>{} : std::vector<Term>{{value, {}}})) {}

Expr Expr::symbol(const std::string& name) {
  ExprNode node;
  node.kind = ExprKind::kSymbol;
  node.symbol = true;
  node.text = name;
  return finish(std::move(node));
}

Expr Expr::index(int axis, std::int64_t size) {
  ExprNode node;
  node.kind = ExprKind::kIndex;
  node.integer = axis;
  node.size = size;
  node.index_mask = 1U << axis;
  node.text = "#" + std::to_string(axis);
  return finish(std::move(node));
}

Expr Expr::boolean(bool value) {
  return make(value ? ExprKind::kTrue : ExprKind::kFalse, ExprType::kBool, {},
              value ? "true" : "false");
}

Expr Expr::real(float value) {
  if (std::isnan(value)) return unknown(ExprType::kFloat);
  ExprNode node;
  node.kind = ExprKind::kFloat;
  node.type = ExprType::kFloat;
  node.real = value;
  node.text = float_text(value);
  return finish(std::move(node));
}

Expr Expr::unknown(ExprType type) {
  static std::atomic<std::int64_t> serial{0};
  ExprNode node;
  node.kind = ExprKind::kUnknown;
  node.type = type;
  node.integer = ++serial;
  node.unknown = true;
  node.text = "?" + std::to_string(node.integer);
  return finish(std::move(node));
}

Expr Expr::lookup(std::shared_ptr<const ConstantTensor> table, const Expr& offset) {
  const ExprType type = table->dtype == DType::kBool   ? ExprType::kBool
                        : dtype_is_float(table->dtype) ? ExprType::kFloat
                                                       : ExprType::kInt;
  if (table->dims.elements() == 1 || offset.constant()) {
    const std::int64_t at = table->dims.elements() == 1 ? 0 : *offset.constant();
    if (at < 0 || at >= table->dims.elements()) return unknown(type);
    if (type == ExprType::kFloat) return real(static_cast<float>(table->float_at(at)));
    const std::int64_t value = table->int_at(at);
    return type == ExprType::kBool ? boolean(value != 0) : Expr(value);
  }
  ExprNode node;
  node.kind = ExprKind::kLookup;
  node.type = type;
  node.args = {offset};
  char address[32];
  std::snprintf(address, sizeof address, "%p", static_cast<const void*>(table->data.data()));
  node.text = "table" + std::string(address) + table->dims.str() + "[" + offset.str() + "]";
  node.table = std::move(table);
  return finish(std::move(node));
}

// ---- access -----------------------------------------------------------------------------------

ExprKind Expr::kind() const {
  return node_->kind;
}
ExprType Expr::type() const {
  return node_->type;
}
std::span<const Expr> Expr::args() const {
  return node_->args;
}
const std::string& Expr::str() const {
  return node_->text;
}
bool Expr::has_index() const {
  return node_->index_mask != 0;
}
bool Expr::has_index(int axis) const {
  return (node_->index_mask >> axis & 1U) != 0;
}
bool Expr::has_unknown() const {
  return node_->unknown;
}
bool Expr::has_symbol() const {
  return node_->symbol;
}

std::optional<std::int64_t> Expr::constant() const {
  if (kind() != ExprKind::kPoly) return std::nullopt;
  if (node_->terms.empty()) return 0;
  if (node_->terms.size() == 1 && node_->terms[0].factors.empty()) {
    return node_->terms[0].coefficient;
  }
  return std::nullopt;
}

std::optional<bool> Expr::truth() const {
  if (kind() == ExprKind::kTrue) return true;
  if (kind() == ExprKind::kFalse) return false;
  return std::nullopt;
}

std::optional<float> Expr::real_constant() const {
  if (kind() != ExprKind::kFloat) return std::nullopt;
  return node_->real;
}

bool operator==(const Expr& a, const Expr& b) {
  return a.node_ == b.node_ || (a.type() == b.type() && a.str() == b.str());
}

Expr::Bounds Expr::bounds() const {
  switch (kind()) {
    case ExprKind::kPoly: return poly_bounds(*node_);
    case ExprKind::kSymbol: return {1, kHighest};
    case ExprKind::kIndex: return {0, node_->size > 0 ? node_->size - 1 : kHighest};
    case ExprKind::kMin: {
      const Bounds a = args()[0].bounds();
      const Bounds b = args()[1].bounds();
      return {std::min(a.low, b.low), std::min(a.high, b.high)};
    }
    case ExprKind::kMax: {
      const Bounds a = args()[0].bounds();
      const Bounds b = args()[1].bounds();
      return {std::max(a.low, b.low), std::max(a.high, b.high)};
    }
    case ExprKind::kFloorDiv:
      if (args()[0].bounds().low >= 0 && args()[1].bounds().low >= 1) {
        return {0, args()[0].bounds().high};
      }
      return {kLowest, kHighest};
    case ExprKind::kMod: {
      const Bounds b = args()[1].bounds();
      if (b.low >= 1) return {0, b.high == kHighest ? kHighest : b.high - 1};
      return {kLowest, kHighest};
    }
    case ExprKind::kWhere: {
      const Bounds a = args()[1].bounds();
      const Bounds b = args()[2].bounds();
      return {std::min(a.low, b.low), std::max(a.high, b.high)};
    }
    default: return {kLowest, kHighest};
  }
}

// ---- integers ---------------------------------------------------------------------------------

Expr operator+(const Expr& a, const Expr& b) {
  return add_scaled(a, b, 1);
}
Expr operator-(const Expr& a, const Expr& b) {
  return add_scaled(a, b, -1);
}

Expr operator*(const Expr& a, const Expr& b) {
  std::vector<Term> product;
  for (const Term& x : terms_of(a)) {
    for (const Term& y : terms_of(b)) {
      Term term;
      if (!checked_mul(x.coefficient, y.coefficient, &term.coefficient)) return Expr::unknown();
      term.factors = x.factors;
      term.factors.insert(term.factors.end(), y.factors.begin(), y.factors.end());
      if (term.factors.size() > 8) return Expr::unknown();
      std::sort(term.factors.begin(), term.factors.end(),
                [](const Expr& p, const Expr& q) { return p.str() < q.str(); });
      if (!accumulate(product, term)) return Expr::unknown();
    }
  }
  return polynomial(std::move(product));
}

std::optional<Expr> exact_div(const Expr& a, const Expr& b) {
  if (a == b) return Expr(1);
  const std::vector<Term> divisor = terms_of(b);
  if (divisor.size() != 1 || divisor[0].coefficient == 0) return std::nullopt;
  std::vector<Term> quotient;
  for (Term term : terms_of(a)) {
    if (divisor[0].coefficient == -1) {
      if (!checked_mul(term.coefficient, -1, &term.coefficient)) return std::nullopt;
    } else {
      if (term.coefficient % divisor[0].coefficient != 0) return std::nullopt;
      term.coefficient /= divisor[0].coefficient;
    }
    for (const Expr& factor : divisor[0].factors) {
      const auto it = std::find(term.factors.begin(), term.factors.end(), factor);
      if (it == term.factors.end()) return std::nullopt;
      term.factors.erase(it);
    }
    quotient.push_back(std::move(term));
  }
  return polynomial(std::move(quotient));
}

namespace {

// a = multiple · b + rest, the terms of a that b divides exactly apart from the others.
std::pair<Expr, Expr> split_multiples(const Expr& a, const Expr& b) {
  Expr multiple(0);
  Expr rest(0);
  for (const Term& term : terms_of(a)) {
    const Expr alone = polynomial({term});
    if (const auto quotient = exact_div(alone, b)) {
      multiple = multiple + *quotient;
    } else {
      rest = rest + alone;
    }
  }
  return {multiple, rest};
}

bool within(const Expr& e, const Expr& size) {
  const Expr::Bounds bounds = e.bounds();
  return bounds.low >= 0 && (size - Expr(bounds.high) - Expr(1)).bounds().low >= 0;
}

}  // namespace

Expr floor_div(const Expr& a, const Expr& b) {
  const auto x = a.constant();
  const auto y = b.constant();
  if (y == 0) return Expr::unknown();
  if (x && y && !(*x == kLowest && *y == -1)) {
    const std::int64_t q = *x / *y;
    return Expr(q - ((*x % *y != 0 && ((*x < 0) != (*y < 0))) ? 1 : 0));
  }
  if (const auto exact = exact_div(a, b)) return *exact;
  if (const auto [multiple, rest] = split_multiples(a, b); within(rest, b)) return multiple;
  return call(ExprKind::kFloorDiv, ExprType::kInt, "div", {a, b});
}

Expr floor_mod(const Expr& a, const Expr& b) {
  const auto x = a.constant();
  const auto y = b.constant();
  if (y == 0) return Expr::unknown();
  if (x && y && *y != -1) {
    const std::int64_t r = *x % *y;
    return Expr(r != 0 && ((r < 0) != (*y < 0)) ? r + *y : r);
  }
  if (exact_div(a, b)) return Expr(0);
  if (const auto [multiple, rest] = split_multiples(a, b); within(rest, b)) return rest;
  return call(ExprKind::kMod, ExprType::kInt, "mod", {a, b});
}

Expr min(const Expr& a, const Expr& b) {
  if (a.type() == ExprType::kFloat) return float_binary(ExprKind::kFloatMin, a, b);
  const Expr::Bounds d = (a - b).bounds();
  if (d.high <= 0) return a;
  if (d.low >= 0) return b;
  const bool swap = b.str() < a.str();
  return call(ExprKind::kMin, ExprType::kInt, "min", {swap ? b : a, swap ? a : b});
}

Expr max(const Expr& a, const Expr& b) {
  if (a.type() == ExprType::kFloat) return float_binary(ExprKind::kFloatMax, a, b);
  const Expr::Bounds d = (a - b).bounds();
  if (d.low >= 0) return a;
  if (d.high <= 0) return b;
  const bool swap = b.str() < a.str();
  return call(ExprKind::kMax, ExprType::kInt, "max", {swap ? b : a, swap ? a : b});
}

}  // namespace kvik::graph
