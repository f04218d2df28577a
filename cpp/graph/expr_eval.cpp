#include "graph/expr_eval.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "graph/expr_parts.h"
#include "graph/graph.h"
#include "kvik/error.h"

namespace kvik::graph {

namespace {

// Integer arithmetic wraps, as the model's own would.
std::int64_t wrap_add(std::int64_t a, std::int64_t b) {
  return static_cast<std::int64_t>(static_cast<std::uint64_t>(a) + static_cast<std::uint64_t>(b));
}
std::int64_t wrap_mul(std::int64_t a, std::int64_t b) {
  return static_cast<std::int64_t>(static_cast<std::uint64_t>(a) * static_cast<std::uint64_t>(b));
}

std::int64_t floor_quotient(std::int64_t a, std::int64_t b) {
  if (b == -1) return wrap_mul(a, -1);
  const std::int64_t q = a / b;
  return q - ((a % b != 0 && ((a < 0) != (b < 0))) ? 1 : 0);
}

}  // namespace

ExprProgram::ExprProgram(const Expr& expr) : type_(expr.type()) {
  if (expr.has_symbol() || expr.has_unknown()) {
    throw Error(ErrorCode::kUnsupported,
                "the expression " + expr.str().substr(0, 80) + " depends on a dimension");
  }
  result_ = compile(expr);
}

std::int32_t ExprProgram::emit(Instruction instruction) {
  code_.push_back(std::move(instruction));
  return static_cast<std::int32_t>(code_.size()) - 1;
}

std::int32_t ExprProgram::compile(const Expr& expr) {
  for (const auto& [node, reg] : compiled_) {
    if (node == &expr.node()) return reg;
  }
  Instruction instruction{.op = expr.kind(), .type = expr.type()};
  std::int32_t result = -1;
  if (expr.kind() == ExprKind::kPoly) {
    // The sum of coefficient · factors, as a chain of kIntMul and kIntAdd; kPoly itself stands for
    // a constant.
    for (const ExprNode::Term& term : expr.node().terms) {
      std::int32_t product =
          emit({.op = ExprKind::kPoly, .type = ExprType::kInt, .integer = term.coefficient});
      for (const Expr& factor : term.factors) {
        const std::int32_t f = compile(factor);
        product = emit({.op = ExprKind::kIntMul, .type = ExprType::kInt, .args = {product, f, -1}});
      }
      result = result < 0 ? product
                          : emit({.op = ExprKind::kIntAdd,
                                  .type = ExprType::kInt,
                                  .args = {result, product, -1}});
    }
    if (result < 0) result = emit({.op = ExprKind::kPoly, .type = ExprType::kInt});
  } else {
    for (std::size_t i = 0; i < expr.args().size(); ++i) {
      instruction.args[i] = compile(expr.args()[i]);
    }
    instruction.integer = expr.node().integer;
    instruction.real = expr.node().real;
    instruction.table = expr.node().table;
    result = emit(std::move(instruction));
  }
  compiled_.emplace_back(&expr.node(), result);
  keep_.push_back(expr);
  return result;
}

std::size_t ExprProgram::scratch_bytes() const {
  return code_.size() * kLanes * sizeof(Lane);
}

bool ExprProgram::step(const Instruction& in, std::span<const std::int64_t> indices, int varying,
                       std::int64_t first, int n, Lane* registers, Lane* out) {
  const auto reg = [&](int k) {
    return registers + static_cast<std::ptrdiff_t>(in.args[k]) * kLanes;
  };
  const Lane* a = in.args[0] >= 0 ? reg(0) : nullptr;
  const Lane* b = in.args[1] >= 0 ? reg(1) : nullptr;
  const auto ints = [&](auto f) {
    for (int l = 0; l < n; ++l) out[l].i = f(l);
  };
  const auto floats = [&](auto f) {
    for (int l = 0; l < n; ++l) out[l].f = f(l);
  };
  switch (in.op) {
    case ExprKind::kPoly: ints([&](int) { return in.integer; }); return true;
    case ExprKind::kFloat: floats([&](int) { return in.real; }); return true;
    case ExprKind::kTrue: ints([](int) { return 1; }); return true;
    case ExprKind::kFalse: ints([](int) { return 0; }); return true;
    case ExprKind::kIndex:
      if (in.integer == varying) {
        ints([&](int l) { return first + l; });
      } else {
        ints([&](int) { return indices[static_cast<std::size_t>(in.integer)]; });
      }
      return true;
    case ExprKind::kIntAdd: ints([&](int l) { return wrap_add(a[l].i, b[l].i); }); return true;
    case ExprKind::kIntMul: ints([&](int l) { return wrap_mul(a[l].i, b[l].i); }); return true;
    case ExprKind::kMin: ints([&](int l) { return std::min(a[l].i, b[l].i); }); return true;
    case ExprKind::kMax: ints([&](int l) { return std::max(a[l].i, b[l].i); }); return true;
    case ExprKind::kFloorDiv:
    case ExprKind::kMod:
      for (int l = 0; l < n; ++l) {
        if (b[l].i == 0) return false;
        const std::int64_t q = floor_quotient(a[l].i, b[l].i);
        out[l].i = in.op == ExprKind::kFloorDiv ? q : wrap_add(a[l].i, -wrap_mul(q, b[l].i));
      }
      return true;
    case ExprKind::kTruncate:
      for (int l = 0; l < n; ++l) {
        if (!(std::fabs(a[l].f) < 9.0e18F)) return false;
        out[l].i = static_cast<std::int64_t>(a[l].f);
      }
      return true;
    case ExprKind::kPositive: ints([&](int l) { return a[l].i > 0; }); return true;
    case ExprKind::kZero: ints([&](int l) { return a[l].i == 0; }); return true;
    case ExprKind::kAnd: ints([&](int l) { return a[l].i & b[l].i; }); return true;
    case ExprKind::kOr: ints([&](int l) { return a[l].i | b[l].i; }); return true;
    case ExprKind::kNot: ints([&](int l) { return a[l].i ^ 1; }); return true;
    case ExprKind::kFloatLess: ints([&](int l) { return a[l].f < b[l].f; }); return true;
    case ExprKind::kFloatEqual: ints([&](int l) { return a[l].f == b[l].f; }); return true;
    case ExprKind::kToFloat: floats([&](int l) { return static_cast<float>(a[l].i); }); return true;
    case ExprKind::kWhere: {
      const Lane* c = reg(2);
      for (int l = 0; l < n; ++l) out[l] = a[l].i != 0 ? b[l] : c[l];
      return true;
    }
    case ExprKind::kLookup:
      for (int l = 0; l < n; ++l) {
        // Both branches of a choice are computed: the one not taken may look outside the table.
        if (a[l].i < 0 || a[l].i >= in.table->dims.elements()) {
          out[l].i = 0;
          continue;
        }
        if (in.type == ExprType::kFloat) {
          out[l].f = static_cast<float>(in.table->float_at(a[l].i));
        } else {
          out[l].i = in.table->int_at(a[l].i);
          if (in.type == ExprType::kBool) out[l].i = out[l].i != 0;
        }
      }
      return true;
    default:
      floats([&](int l) { return apply_float(in.op, a[l].f, b != nullptr ? b[l].f : 0.0F); });
      return true;
  }
}

bool ExprProgram::run(std::span<const std::int64_t> indices, int varying, std::int64_t first, int n,
                      Lane* registers) const {
  for (std::size_t k = 0; k < code_.size(); ++k) {
    if (!step(code_[k], indices, varying, first, n, registers, registers + k * kLanes))
      return false;
  }
  return true;
}

bool ExprProgram::eval(std::span<const std::int64_t> indices, int varying, std::int64_t first,
                       int n, void* scratch, std::int64_t* out) const {
  Lane* registers = static_cast<Lane*>(scratch);
  const Lane* result = registers + static_cast<std::ptrdiff_t>(result_) * kLanes;
  for (int done = 0; done < n; done += kLanes) {
    const int lanes = std::min(kLanes, n - done);
    if (!run(indices, varying, first + done, lanes, registers)) return false;
    for (int l = 0; l < lanes; ++l) out[done + l] = result[l].i;
  }
  return true;
}

bool ExprProgram::eval(std::span<const std::int64_t> indices, int varying, std::int64_t first,
                       int n, void* scratch, float* out) const {
  Lane* registers = static_cast<Lane*>(scratch);
  const Lane* result = registers + static_cast<std::ptrdiff_t>(result_) * kLanes;
  for (int done = 0; done < n; done += kLanes) {
    const int lanes = std::min(kLanes, n - done);
    if (!run(indices, varying, first + done, lanes, registers)) return false;
    for (int l = 0; l < lanes; ++l) out[done + l] = result[l].f;
  }
  return true;
}

}  // namespace kvik::graph
