#include "graph/expr.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>

#include "base/checked.h"
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

Expr call(ExprKind kind, ExprType type, const char* name, std::vector<Expr> args) {
  std::string text = name;
  text += '(';
  for (std::size_t i = 0; i < args.size(); ++i) text += (i ? ", " : "") + args[i].str();
  text += ')';
  return make(kind, type, std::move(args), std::move(text));
}

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

bool is_constant(const Expr& e) {
  return e.constant() || e.truth() || e.real_constant();
}

// f(where(c, a, b)) = where(c, f(a), f(b)) when both branches are constants: comparisons and float
// arithmetic on masks fold this way.
bool is_constant_choice(const Expr& e) {
  return e.kind() == ExprKind::kWhere && is_constant(e.args()[1]) && is_constant(e.args()[2]);
}

std::string float_text(float value) {
  char buffer[48];
  std::snprintf(buffer, sizeof buffer, "%.9gf", static_cast<double>(value));
  return buffer;
}

float apply(ExprKind kind, float a, float b) {
  switch (kind) {
    case ExprKind::kFloatAdd: return a + b;
    case ExprKind::kFloatSub: return a - b;
    case ExprKind::kFloatMul: return a * b;
    case ExprKind::kFloatDiv: return a / b;
    case ExprKind::kFloatMin: return std::fmin(a, b);
    case ExprKind::kFloatMax: return std::fmax(a, b);
    case ExprKind::kFloatPow: return std::pow(a, b);
    case ExprKind::kFloatExp: return std::exp(a);
    case ExprKind::kFloatLog: return std::log(a);
    case ExprKind::kFloatSqrt: return std::sqrt(a);
    case ExprKind::kFloatAbs: return std::fabs(a);
    case ExprKind::kFloatNeg: return -a;
    case ExprKind::kFloatFloor: return std::floor(a);
    case ExprKind::kFloatCeil: return std::ceil(a);
    default: return std::numeric_limits<float>::quiet_NaN();
  }
}

const char* float_name(ExprKind kind) {
  switch (kind) {
    case ExprKind::kFloatAdd: return "fadd";
    case ExprKind::kFloatSub: return "fsub";
    case ExprKind::kFloatMul: return "fmul";
    case ExprKind::kFloatDiv: return "fdiv";
    case ExprKind::kFloatMin: return "fmin";
    case ExprKind::kFloatMax: return "fmax";
    case ExprKind::kFloatPow: return "pow";
    case ExprKind::kFloatExp: return "exp";
    case ExprKind::kFloatLog: return "log";
    case ExprKind::kFloatSqrt: return "sqrt";
    case ExprKind::kFloatAbs: return "fabs";
    case ExprKind::kFloatNeg: return "fneg";
    case ExprKind::kFloatFloor: return "floor";
    case ExprKind::kFloatCeil: return "ceil";
    default: return "?";
  }
}

// where(i < n, a, b) for an index i and a small n: if a agrees with b at i = 0 .. n-1, it is b.
bool same_on_prefix(const Expr& condition, const Expr& a, const Expr& b) {
  if (condition.kind() != ExprKind::kPositive) return false;
  // i < n is stored as n - i > 0.
  const Expr& d = condition.args()[0];
  if (d.kind() != ExprKind::kPoly || d.node().terms.size() != 2) return false;
  const Term& first = d.node().terms[0];
  const Term& last = d.node().terms[1];
  if (!last.factors.empty() || first.coefficient != -1 || first.factors.size() != 1 ||
      first.factors[0].kind() != ExprKind::kIndex || last.coefficient > 4) {
    return false;
  }
  const int axis = static_cast<int>(first.factors[0].node().integer);
  for (std::int64_t i = 0; i < last.coefficient; ++i) {
    const std::map<int, Expr> at{{axis, Expr(i)}};
    if (!(a.substitute(at) == b.substitute(at))) return false;
  }
  return true;
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

// ---- booleans ---------------------------------------------------------------------------------

namespace {

// d > 0
Expr positive(const Expr& d) {
  const Expr::Bounds bounds = d.bounds();
  if (bounds.low >= 1) return Expr::boolean(true);
  if (bounds.high <= 0) return Expr::boolean(false);
  if (is_constant_choice(d)) {
    return where(d.args()[0], positive(d.args()[1]), positive(d.args()[2]));
  }
  return call(ExprKind::kPositive, ExprType::kBool, "positive", {d});
}

// d == 0
Expr zero(const Expr& d) {
  const Expr::Bounds bounds = d.bounds();
  if (bounds.low >= 1 || bounds.high <= -1) return Expr::boolean(false);
  if (d.is(0)) return Expr::boolean(true);
  if (is_constant_choice(d)) return where(d.args()[0], zero(d.args()[1]), zero(d.args()[2]));
  // One sign of the two, so that a == b and b == a are one expression.
  const Expr negated = Expr(0) - d;
  return call(ExprKind::kZero, ExprType::kBool, "zero", {negated.str() < d.str() ? negated : d});
}

// A comparison of floats folds through constant choices on either side.
Expr float_compare(ExprKind kind, const Expr& a, const Expr& b) {
  const auto x = a.real_constant();
  const auto y = b.real_constant();
  if (x && y) return Expr::boolean(kind == ExprKind::kFloatLess ? *x < *y : *x == *y);
  if (is_constant_choice(a) && y) {
    return where(a.args()[0], float_compare(kind, a.args()[1], b),
                 float_compare(kind, a.args()[2], b));
  }
  if (is_constant_choice(b) && x) {
    return where(b.args()[0], float_compare(kind, a, b.args()[1]),
                 float_compare(kind, a, b.args()[2]));
  }
  return call(kind, ExprType::kBool, kind == ExprKind::kFloatLess ? "fless" : "fequal", {a, b});
}

}  // namespace

Expr less(const Expr& a, const Expr& b) {
  if (a.type() == ExprType::kFloat) return float_compare(ExprKind::kFloatLess, a, b);
  return positive(b - a);
}

Expr equal(const Expr& a, const Expr& b) {
  if (a.type() == ExprType::kFloat) return float_compare(ExprKind::kFloatEqual, a, b);
  if (a.type() == ExprType::kBool) {
    if (a == b) return Expr::boolean(true);
    return logical_or(logical_and(a, b), logical_and(logical_not(a), logical_not(b)));
  }
  return zero(a - b);
}

Expr logical_and(const Expr& a, const Expr& b) {
  if (a.truth()) return *a.truth() ? b : a;
  if (b.truth()) return *b.truth() ? a : b;
  if (a == b) return a;
  return call(ExprKind::kAnd, ExprType::kBool, "and", {a, b});
}

Expr logical_or(const Expr& a, const Expr& b) {
  if (a.truth()) return *a.truth() ? a : b;
  if (b.truth()) return *b.truth() ? b : a;
  if (a == b) return a;
  return call(ExprKind::kOr, ExprType::kBool, "or", {a, b});
}

Expr logical_not(const Expr& a) {
  if (a.truth()) return Expr::boolean(!*a.truth());
  if (a.kind() == ExprKind::kNot) return a.args()[0];
  if (a.kind() == ExprKind::kPositive) return positive(Expr(1) - a.args()[0]);
  return call(ExprKind::kNot, ExprType::kBool, "not", {a});
}

Expr where(const Expr& condition, const Expr& a, const Expr& b) {
  if (condition.truth()) return *condition.truth() ? a : b;
  if (a == b) return a;
  if (a.type() == ExprType::kBool) {
    if (a.truth() && b.truth()) return *a.truth() ? condition : logical_not(condition);
    if (a.truth()) {
      return *a.truth() ? logical_or(condition, b) : logical_and(logical_not(condition), b);
    }
    if (b.truth()) {
      return *b.truth() ? logical_or(logical_not(condition), a) : logical_and(condition, a);
    }
  }
  if (same_on_prefix(condition, a, b)) return b;
  return call(ExprKind::kWhere, a.type(), "where", {condition, a, b});
}

// ---- floats -----------------------------------------------------------------------------------

Expr float_unary(ExprKind kind, const Expr& a) {
  if (const auto x = a.real_constant()) return Expr::real(apply(kind, *x, 0.0F));
  if (is_constant_choice(a)) {
    return where(a.args()[0], float_unary(kind, a.args()[1]), float_unary(kind, a.args()[2]));
  }
  return call(kind, ExprType::kFloat, float_name(kind), {a});
}

Expr float_binary(ExprKind kind, const Expr& a, const Expr& b) {
  const auto x = a.real_constant();
  const auto y = b.real_constant();
  if (x && y) return Expr::real(apply(kind, *x, *y));
  if (is_constant_choice(a) && y) {
    return where(a.args()[0], float_binary(kind, a.args()[1], b),
                 float_binary(kind, a.args()[2], b));
  }
  if (is_constant_choice(b) && x) {
    return where(b.args()[0], float_binary(kind, a, b.args()[1]),
                 float_binary(kind, a, b.args()[2]));
  }
  if (is_constant_choice(a) && is_constant_choice(b) && a.args()[0] == b.args()[0]) {
    return where(a.args()[0], float_binary(kind, a.args()[1], b.args()[1]),
                 float_binary(kind, a.args()[2], b.args()[2]));
  }
  if (kind == ExprKind::kFloatMul && (x == 1.0F || y == 1.0F)) return x == 1.0F ? b : a;
  return call(kind, ExprType::kFloat, float_name(kind), {a, b});
}

Expr cast(const Expr& a, ExprType type) {
  if (a.type() == type) return a;
  if (is_constant_choice(a)) {
    return where(a.args()[0], cast(a.args()[1], type), cast(a.args()[2], type));
  }
  switch (type) {
    case ExprType::kBool:
      return a.type() == ExprType::kInt ? logical_not(zero(a))
                                        : logical_not(equal(a, Expr::real(0.0F)));
    case ExprType::kInt:
      if (a.type() == ExprType::kBool) return where(a, Expr(1), Expr(0));
      if (a.kind() == ExprKind::kToFloat) return a.args()[0];
      if (const auto x = a.real_constant(); x && std::fabs(*x) < 9.0e18F) {
        return Expr(static_cast<std::int64_t>(*x));
      }
      return call(ExprKind::kTruncate, ExprType::kInt, "int", {a});
    case ExprType::kFloat:
      if (a.type() == ExprType::kBool) return where(a, Expr::real(1.0F), Expr::real(0.0F));
      if (const auto x = a.constant()) return Expr::real(static_cast<float>(*x));
      return call(ExprKind::kToFloat, ExprType::kFloat, "float", {a});
  }
  return Expr::unknown(type);
}

// ---- substitution -----------------------------------------------------------------------------

namespace {

Expr rebuild(const Expr& e, const std::map<int, Expr>& indices,
             std::map<const ExprNode*, Expr>& done);

Expr rebuild_poly(const Expr& e, const std::map<int, Expr>& indices,
                  std::map<const ExprNode*, Expr>& done) {
  Expr sum(0);
  for (const Term& term : e.node().terms) {
    Expr product(term.coefficient);
    for (const Expr& factor : term.factors) product = product * rebuild(factor, indices, done);
    sum = sum + product;
  }
  return sum;
}

Expr rebuild_call(const Expr& e, const std::vector<Expr>& a) {
  switch (e.kind()) {
    case ExprKind::kFloorDiv: return floor_div(a[0], a[1]);
    case ExprKind::kMod: return floor_mod(a[0], a[1]);
    case ExprKind::kMin: return min(a[0], a[1]);
    case ExprKind::kMax: return max(a[0], a[1]);
    case ExprKind::kTruncate: return cast(a[0], ExprType::kInt);
    case ExprKind::kToFloat: return cast(a[0], ExprType::kFloat);
    case ExprKind::kPositive: return positive(a[0]);
    case ExprKind::kZero: return zero(a[0]);
    case ExprKind::kAnd: return logical_and(a[0], a[1]);
    case ExprKind::kOr: return logical_or(a[0], a[1]);
    case ExprKind::kNot: return logical_not(a[0]);
    case ExprKind::kFloatLess:
    case ExprKind::kFloatEqual: return float_compare(e.kind(), a[0], a[1]);
    case ExprKind::kWhere: return where(a[0], a[1], a[2]);
    case ExprKind::kLookup: return Expr::lookup(e.node().table, a[0]);
    default:
      return a.size() == 1 ? float_unary(e.kind(), a[0]) : float_binary(e.kind(), a[0], a[1]);
  }
}

Expr rebuild(const Expr& e, const std::map<int, Expr>& indices,
             std::map<const ExprNode*, Expr>& done) {
  if (!e.has_index()) return e;
  if (const auto it = done.find(&e.node()); it != done.end()) return it->second;
  Expr result = e;
  if (e.kind() == ExprKind::kIndex) {
    const auto it = indices.find(static_cast<int>(e.node().integer));
    if (it != indices.end()) result = it->second;
  } else if (e.kind() == ExprKind::kPoly) {
    result = rebuild_poly(e, indices, done);
  } else {
    std::vector<Expr> args;
    for (const Expr& arg : e.args()) args.push_back(rebuild(arg, indices, done));
    result = rebuild_call(e, args);
  }
  done.emplace(&e.node(), result);
  return result;
}

}  // namespace

Expr Expr::substitute(const std::map<int, Expr>& indices) const {
  std::map<const ExprNode*, Expr> done;
  return rebuild(*this, indices, done);
}

}  // namespace kvik::graph
