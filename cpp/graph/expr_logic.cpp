// Booleans, choices and floats: comparisons and functions that fold what can be folded.
#include <cmath>
#include <limits>
#include <map>

#include "graph/expr.h"
#include "graph/expr_parts.h"

namespace kvik::graph {

namespace {

using Term = ExprNode::Term;

bool is_constant(const Expr& e) {
  return e.constant() || e.truth() || e.real_constant();
}

// f(where(c, a, b)) = where(c, f(a), f(b)) when both branches are constants: comparisons and float
// arithmetic on masks fold this way.
bool is_constant_choice(const Expr& e) {
  return e.kind() == ExprKind::kWhere && is_constant(e.args()[1]) && is_constant(e.args()[2]);
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

// ---- booleans ---------------------------------------------------------------------------------

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

float apply_float(ExprKind kind, float a, float b) {
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

Expr float_unary(ExprKind kind, const Expr& a) {
  if (const auto x = a.real_constant()) return Expr::real(apply_float(kind, *x, 0.0F));
  if (is_constant_choice(a)) {
    return where(a.args()[0], float_unary(kind, a.args()[1]), float_unary(kind, a.args()[2]));
  }
  return call(kind, ExprType::kFloat, float_name(kind), {a});
}

Expr float_binary(ExprKind kind, const Expr& a, const Expr& b) {
  const auto x = a.real_constant();
  const auto y = b.real_constant();
  if (x && y) return Expr::real(apply_float(kind, *x, *y));
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

}  // namespace kvik::graph
