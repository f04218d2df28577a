// Laws of expressions, tried on random ones: a simplified expression has the value that the same
// operation gives on its operands' values; bounds hold; substitution commutes with evaluation.
#include <cmath>
#include <optional>

#include "cpp/check.h"
#include "graph/expr_reference.h"
#include "graph/graph.h"
#include "kvik/error.h"

namespace kvik::test {
namespace {

using graph::Expr;
using graph::ExprKind;
using graph::ExprType;

constexpr int kExpressions = 4000;
constexpr int kPoints = 6;

// Random expressions of each type over two symbols, three indices and a table.
class Generator {
 public:
  explicit Generator(std::uint64_t stream) : random_(stream) {
    std::vector<std::int64_t> table;
    for (int i = 0; i < 12; ++i) table.push_back(random_.integer(-3, 3));
    table_ = std::make_shared<const graph::ConstantTensor>(
        graph::ConstantTensor::from_ints(table, Dims{12}));
  }

  Expr integer(int depth) {
    if (depth == 0) return leaf();
    const Expr a = integer(depth - 1);
    switch (random_.integer(0, 9)) {
      case 0:
      case 1: return a + integer(depth - 1);
      case 2: return a - integer(depth - 1);
      case 3: return a * integer(depth - 1);
      case 4: return graph::floor_div(a, Expr(random_.integer(1, 4)));
      case 5: return graph::floor_mod(a, Expr(random_.integer(1, 4)));
      case 6: return graph::min(a, integer(depth - 1));
      case 7: return graph::max(a, integer(depth - 1));
      case 8: return graph::where(boolean(depth - 1), a, integer(depth - 1));
      default: return Expr::lookup(table_, graph::floor_mod(a, Expr(12)));
    }
  }

  Expr boolean(int depth) {
    if (depth == 0) return graph::less(leaf(), leaf());
    switch (random_.integer(0, 7)) {
      case 0: return graph::less(integer(depth - 1), integer(depth - 1));
      case 1: return graph::equal(integer(depth - 1), integer(depth - 1));
      case 2: return graph::logical_and(boolean(depth - 1), boolean(depth - 1));
      case 3: return graph::logical_or(boolean(depth - 1), boolean(depth - 1));
      case 4: return graph::logical_not(boolean(depth - 1));
      case 5: return graph::where(boolean(depth - 1), boolean(depth - 1), boolean(depth - 1));
      case 6: return graph::less(real(depth - 1), real(depth - 1));
      default: return graph::cast(integer(depth - 1), ExprType::kBool);
    }
  }

  Expr real(int depth) {
    if (depth == 0) return Expr::real(static_cast<float>(random_.integer(-3, 3)));
    switch (random_.integer(0, 5)) {
      case 0: return graph::cast(integer(depth - 1), ExprType::kFloat);
      case 1: return graph::cast(boolean(depth - 1), ExprType::kFloat);
      case 2: return graph::float_binary(ExprKind::kFloatAdd, real(depth - 1), real(depth - 1));
      case 3: return graph::float_binary(ExprKind::kFloatMul, real(depth - 1), real(depth - 1));
      case 4: return graph::float_unary(ExprKind::kFloatNeg, real(depth - 1));
      default: return graph::where(boolean(depth - 1), real(depth - 1), real(depth - 1));
    }
  }

  Environment point() {
    return {{{"n", random_.integer(1, 6)}, {"m", random_.integer(1, 6)}},
            {random_.integer(0, 5), random_.integer(0, 5), random_.integer(0, 5)}};
  }

  Random& random() { return random_; }

 private:
  Expr leaf() {
    switch (random_.integer(0, 4)) {
      case 0: return Expr::symbol("n");
      case 1: return Expr::symbol("m");
      case 2: return Expr::index(0);
      case 3: return Expr::index(static_cast<int>(random_.integer(1, 2)));
      default: return Expr(random_.integer(-4, 4));
    }
  }

  Random random_;
  std::shared_ptr<const graph::ConstantTensor> table_;
};

void check_operation(const char* name, const Expr& result, const Environment& at, double expected) {
  if (result.has_unknown()) return;
  const double found = evaluate(result, at);
  CHECK(found == expected) << name << " gives " << result.str() << " = " << found << ", expected "
                           << expected;
}

KVIK_TEST(integer_operations_keep_their_value) {
  Generator make(1);
  for (int i = 0; i < kExpressions; ++i) {
    const Expr a = make.integer(2);
    const Expr b = make.integer(2);
    const Expr c = make.boolean(2);
    if (a.has_unknown() || b.has_unknown() || c.has_unknown()) continue;
    for (int p = 0; p < kPoints; ++p) {
      const Environment at = make.point();
      const auto x = evaluate_int(a, at);
      const auto y = evaluate_int(b, at);
      const bool t = evaluate_int(c, at) != 0;
      const auto number = [](std::int64_t v) { return static_cast<double>(v); };
      check_operation("+", a + b, at, number(x + y));
      check_operation("-", a - b, at, number(x - y));
      check_operation("*", a * b, at, number(x * y));
      check_operation("min", graph::min(a, b), at, number(std::min(x, y)));
      check_operation("max", graph::max(a, b), at, number(std::max(x, y)));
      check_operation("less", graph::less(a, b), at, x < y);
      check_operation("equal", graph::equal(a, b), at, x == y);
      check_operation("where", graph::where(c, a, b), at, number(t ? x : y));
      if (y != 0) {
        const double q = std::floor(number(x) / number(y));
        check_operation("div", graph::floor_div(a, b), at, q);
        check_operation("mod", graph::floor_mod(a, b), at, number(x) - q * number(y));
        if (const auto exact = graph::exact_div(a, b)) {
          check_operation("exact_div", *exact, at, number(x) / number(y));
        }
      }
    }
  }
}

KVIK_TEST(boolean_operations_keep_their_value) {
  Generator make(2);
  for (int i = 0; i < kExpressions; ++i) {
    const Expr a = make.boolean(2);
    const Expr b = make.boolean(2);
    const Expr c = make.boolean(2);
    if (a.has_unknown() || b.has_unknown() || c.has_unknown()) continue;
    for (int p = 0; p < kPoints; ++p) {
      const Environment at = make.point();
      const bool x = evaluate_int(a, at) != 0;
      const bool y = evaluate_int(b, at) != 0;
      const bool t = evaluate_int(c, at) != 0;
      check_operation("and", graph::logical_and(a, b), at, x && y);
      check_operation("or", graph::logical_or(a, b), at, x || y);
      check_operation("not", graph::logical_not(a), at, !x);
      check_operation("equal", graph::equal(a, b), at, x == y);
      check_operation("where", graph::where(c, a, b), at, t ? x : y);
      check_operation("cast to int", graph::cast(a, ExprType::kInt), at, x);
      check_operation("cast to float", graph::cast(a, ExprType::kFloat), at, x);
    }
  }
}

KVIK_TEST(float_operations_keep_their_value) {
  Generator make(3);
  for (int i = 0; i < kExpressions; ++i) {
    const Expr a = make.real(3);
    const Expr b = make.real(3);
    if (a.has_unknown() || b.has_unknown()) continue;
    for (int p = 0; p < kPoints; ++p) {
      const Environment at = make.point();
      const float x = evaluate_float(a, at);
      const float y = evaluate_float(b, at);
      const auto binary = [&](ExprKind kind) { return graph::float_binary(kind, a, b); };
      check_operation("fadd", binary(ExprKind::kFloatAdd), at, static_cast<double>(x + y));
      check_operation("fsub", binary(ExprKind::kFloatSub), at, static_cast<double>(x - y));
      check_operation("fmul", binary(ExprKind::kFloatMul), at, static_cast<double>(x * y));
      check_operation("fless", graph::less(a, b), at, x < y);
      check_operation("fequal", graph::equal(a, b), at, x == y);
      check_operation("to bool", graph::cast(a, ExprType::kBool), at, x != 0.0F);
      check_operation("to int", graph::cast(a, ExprType::kInt), at,
                      std::trunc(static_cast<double>(x)));
    }
  }
}

KVIK_TEST(bounds_hold) {
  Generator make(4);
  for (int i = 0; i < kExpressions; ++i) {
    const Expr a = make.integer(3);
    if (a.has_unknown()) continue;
    const Expr::Bounds bounds = a.bounds();
    for (int p = 0; p < kPoints; ++p) {
      const std::int64_t value = evaluate_int(a, make.point());
      CHECK(bounds.low <= value && value <= bounds.high)
          << a.str() << " = " << value << " outside of [" << bounds.low << ", " << bounds.high
          << "]";
    }
  }
}

// Values of indices are never negative, so that is what they are substituted by.
KVIK_TEST(substitution_commutes_with_evaluation) {
  Generator make(5);
  for (int i = 0; i < kExpressions; ++i) {
    const Expr e = i % 2 == 0 ? make.integer(3) : make.boolean(3);
    const Expr first = graph::max(make.integer(1), Expr(0));
    const Expr second = graph::max(make.integer(1), Expr(0));
    const Expr changed = e.substitute({{0, first}, {1, second}});
    if (e.has_unknown() || changed.has_unknown()) continue;
    for (int p = 0; p < kPoints; ++p) {
      Environment at = make.point();
      const double found = evaluate(changed, at);
      const std::int64_t i0 = evaluate_int(first, at);
      const std::int64_t i1 = evaluate_int(second, at);
      at.indices[0] = i0;
      at.indices[1] = i1;
      CHECK_EQ(found, evaluate(e, at)) << e.str() << " became " << changed.str();
    }
  }
}

KVIK_TEST(equal_polynomials_are_one_expression) {
  const Expr n = Expr::symbol("n");
  const Expr m = Expr::symbol("m");
  CHECK_EQ(((n + m) * (n - m)).str(), (n * n - m * m).str());
  CHECK((n * m + n) == n * (m + Expr(1)));
  CHECK(!(n + Expr(1) == n));
  CHECK(graph::less(Expr(0), n).truth() == true);
  CHECK(graph::less(n, Expr(1)).truth() == false);
  CHECK(!graph::less(n, m).truth());
  CHECK(!(Expr::unknown() == Expr::unknown()));
}

KVIK_TEST(overflow_becomes_unknown) {
  const Expr big(std::int64_t{1} << 62);
  const Expr n = Expr::symbol("n");
  CHECK((big * n + big * n).has_unknown());
  CHECK((big * Expr(4)).has_unknown());
}

}  // namespace
}  // namespace kvik::test

int main(int argc, char** argv) {
  return kvik::test::run_all(argc, argv);
}
