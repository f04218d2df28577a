// Expressions with other expressions in place of their indices, simplified anew.
#include <map>
#include <vector>

#include "graph/expr.h"
#include "graph/expr_parts.h"

namespace kvik::graph {

namespace {

using Term = ExprNode::Term;

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
