#include "graph/expr_reference.h"

#include <algorithm>
#include <cmath>

#include "graph/graph.h"
#include "kvik/error.h"

namespace kvik::test {

using graph::Expr;
using graph::ExprKind;
using graph::ExprType;

namespace {

[[noreturn]] void undefined(const Expr& e) {
  throw Error(ErrorCode::kInvalidArgument, "no value for " + e.str());
}

std::int64_t floor_divided(std::int64_t a, std::int64_t b) {
  const std::int64_t q = a / b;
  return a % b != 0 && (a < 0) != (b < 0) ? q - 1 : q;
}

std::int64_t polynomial(const Expr& e, const Environment& at) {
  std::int64_t sum = 0;
  for (const auto& term : e.node().terms) {
    std::int64_t product = term.coefficient;
    for (const Expr& factor : term.factors) product *= evaluate_int(factor, at);
    sum += product;
  }
  return sum;
}

std::int64_t offset_in_table(const Expr& e, const Environment& at) {
  const std::int64_t offset = evaluate_int(e.args()[0], at);
  if (offset < 0 || offset >= e.node().table->dims.elements()) undefined(e);
  return offset;
}

}  // namespace

std::int64_t evaluate_int(const Expr& e, const Environment& at) {
  const auto arg = [&](std::size_t i) { return evaluate_int(e.args()[i], at); };
  switch (e.kind()) {
    case ExprKind::kPoly: return polynomial(e, at);
    case ExprKind::kSymbol: return at.symbols.at(e.str());
    case ExprKind::kIndex: return at.indices.at(static_cast<std::size_t>(e.node().integer));
    case ExprKind::kFloorDiv:
      if (arg(1) == 0) undefined(e);
      return floor_divided(arg(0), arg(1));
    case ExprKind::kMod:
      if (arg(1) == 0) undefined(e);
      return arg(0) - floor_divided(arg(0), arg(1)) * arg(1);
    case ExprKind::kMin: return std::min(arg(0), arg(1));
    case ExprKind::kMax: return std::max(arg(0), arg(1));
    case ExprKind::kTruncate: return static_cast<std::int64_t>(evaluate_float(e.args()[0], at));
    case ExprKind::kTrue: return 1;
    case ExprKind::kFalse: return 0;
    case ExprKind::kPositive: return arg(0) > 0;
    case ExprKind::kZero: return arg(0) == 0;
    case ExprKind::kAnd: return arg(0) != 0 && arg(1) != 0;
    case ExprKind::kOr: return arg(0) != 0 || arg(1) != 0;
    case ExprKind::kNot: return arg(0) == 0;
    case ExprKind::kFloatLess:
      return evaluate_float(e.args()[0], at) < evaluate_float(e.args()[1], at);
    case ExprKind::kFloatEqual:
      return evaluate_float(e.args()[0], at) == evaluate_float(e.args()[1], at);
    case ExprKind::kWhere: return arg(0) != 0 ? arg(1) : arg(2);
    case ExprKind::kLookup: return e.node().table->int_at(offset_in_table(e, at));
    default: undefined(e);
  }
}

float evaluate_float(const Expr& e, const Environment& at) {
  const auto arg = [&](std::size_t i) { return evaluate_float(e.args()[i], at); };
  switch (e.kind()) {
    case ExprKind::kFloat: return *e.real_constant();
    case ExprKind::kToFloat: return static_cast<float>(evaluate_int(e.args()[0], at));
    case ExprKind::kFloatAdd: return arg(0) + arg(1);
    case ExprKind::kFloatSub: return arg(0) - arg(1);
    case ExprKind::kFloatMul: return arg(0) * arg(1);
    case ExprKind::kFloatDiv: return arg(0) / arg(1);
    case ExprKind::kFloatMin: return std::fmin(arg(0), arg(1));
    case ExprKind::kFloatMax: return std::fmax(arg(0), arg(1));
    case ExprKind::kFloatPow: return std::pow(arg(0), arg(1));
    case ExprKind::kFloatExp: return std::exp(arg(0));
    case ExprKind::kFloatLog: return std::log(arg(0));
    case ExprKind::kFloatSqrt: return std::sqrt(arg(0));
    case ExprKind::kFloatAbs: return std::fabs(arg(0));
    case ExprKind::kFloatNeg: return -arg(0);
    case ExprKind::kFloatFloor: return std::floor(arg(0));
    case ExprKind::kFloatCeil: return std::ceil(arg(0));
    case ExprKind::kWhere: return evaluate_int(e.args()[0], at) != 0 ? arg(1) : arg(2);
    case ExprKind::kLookup:
      return static_cast<float>(e.node().table->float_at(offset_in_table(e, at)));
    default: undefined(e);
  }
}

double evaluate(const Expr& e, const Environment& at) {
  if (e.type() == ExprType::kFloat) return static_cast<double>(evaluate_float(e, at));
  return static_cast<double>(evaluate_int(e, at));
}

}  // namespace kvik::test
