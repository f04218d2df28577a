// Symbolic expressions over dimensions and indices.
//
// One kind of expression serves three purposes:
//   - dimensions: polynomials over the named symbols of a model ("batch", "sequence");
//   - the contents of values that depend on shapes alone (positions, masks, reshape targets):
//     functions of the symbols and of the value's own index along each of its axes;
//   - an attention bias, evaluated for the rows at hand.
// Expressions are immutable and shared. Construction simplifies: integer arithmetic is kept as a
// normalised polynomial, comparisons are decided from the bounds of their operands where possible.
// Equality is structural: equal() means equal for all values of the symbols; the converse holds for
// polynomials. An expression that would grow too large becomes an unknown, equal to nothing else.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

namespace kvik::graph {

struct ExprNode;
struct ConstantTensor;

enum class ExprType : std::uint8_t { kInt, kBool, kFloat };  // int64, bool, float32

enum class ExprKind : std::uint8_t {
  // int
  kPoly,
  kSymbol,
  kIndex,
  kFloorDiv,
  kMod,
  kMin,
  kMax,
  kTruncate,
  kIntAdd,
  kIntMul,  // only in compiled programs: expressions keep polynomials
  // bool
  kTrue,
  kFalse,
  kPositive,  // a > 0
  kZero,      // a == 0
  kAnd,
  kOr,
  kNot,
  kFloatLess,
  kFloatEqual,
  // float
  kFloat,
  kToFloat,
  kFloatAdd,
  kFloatSub,
  kFloatMul,
  kFloatDiv,
  kFloatMin,
  kFloatMax,
  kFloatPow,
  kFloatExp,
  kFloatLog,
  kFloatSqrt,
  kFloatAbs,
  kFloatNeg,
  kFloatFloor,
  kFloatCeil,
  // any type
  kWhere,   // a ? b : c
  kLookup,  // an element of a constant tensor, by its row-major offset
  kUnknown,
};

class Expr {
 public:
  Expr();                    // the integer 0
  Expr(std::int64_t value);  // NOLINT: implicit on purpose, so that dims read well
  explicit Expr(std::shared_ptr<const ExprNode> node) : node_(std::move(node)) {}

  static Expr symbol(const std::string& name);  // a dimension: an integer >= 1
  // The index along an axis: an integer >= 0, and < size where a size is given. The size helps to
  // simplify; it is no part of the expression's identity.
  static Expr index(int axis, std::int64_t size = 0);
  static Expr boolean(bool value);
  static Expr real(float value);  // NaN becomes an unknown, so that comparisons stay ordered
  static Expr unknown(ExprType type = ExprType::kInt);  // differs from every other expression
  // Element `offset` of `table` (integer, bool or float), which must outlive the expression.
  static Expr lookup(std::shared_ptr<const ConstantTensor> table, const Expr& offset);

  ExprKind kind() const;
  ExprType type() const;
  std::span<const Expr> args() const;
  const std::string& str() const;  // "batch*sequence + 1": also the canonical form that == compares

  std::optional<std::int64_t> constant() const;  // the value of a constant integer
  std::optional<bool> truth() const;             // the value of a constant boolean
  std::optional<float> real_constant() const;    // the value of a constant float
  bool is(std::int64_t value) const { return constant() == value; }

  bool has_index() const;          // mentions an index along any axis
  bool has_index(int axis) const;  // mentions the index along this axis
  bool has_unknown() const;
  bool has_symbol() const;  // mentions a dimension of the model
  // Replaces indices by expressions; indices that the map lacks stay.
  Expr substitute(const std::map<int, Expr>& indices) const;
  // Inclusive bounds of an integer expression, from symbols >= 1 and indices >= 0; the extreme
  // int64 values mean "unbounded".
  struct Bounds {
    std::int64_t low, high;
  };
  Bounds bounds() const;

  const ExprNode& node() const { return *node_; }
  friend bool operator==(const Expr& a, const Expr& b);

 private:
  std::shared_ptr<const ExprNode> node_;
};

struct ExprNode {
  ExprKind kind = ExprKind::kPoly;
  ExprType type = ExprType::kInt;
  std::vector<Expr> args;
  // kPoly: coefficient and factors (none: the constant term), sorted by factors.
  struct Term {
    std::int64_t coefficient;
    std::vector<Expr> factors;
  };
  std::vector<Term> terms;
  std::int64_t integer = 0;                     // kIndex: axis; kUnknown: serial number
  std::int64_t size = 0;                        // kIndex: exclusive upper bound, 0: none known
  float real = 0.0F;                            // kFloat
  std::shared_ptr<const ConstantTensor> table;  // kLookup
  std::uint32_t index_mask = 0;                 // bit a: mentions index a
  bool unknown = false;                         // mentions an unknown
  bool symbol = false;                          // mentions a symbol
  std::string text;                             // canonical form
};

// Integer arithmetic. Division and modulo round towards minus infinity.
Expr operator+(const Expr& a, const Expr& b);
Expr operator-(const Expr& a, const Expr& b);
Expr operator*(const Expr& a, const Expr& b);
Expr floor_div(const Expr& a, const Expr& b);
Expr floor_mod(const Expr& a, const Expr& b);
Expr min(const Expr& a, const Expr& b);  // int or float
Expr max(const Expr& a, const Expr& b);  // int or float
// a / b where the division is exact for all values of the symbols, else nothing.
std::optional<Expr> exact_div(const Expr& a, const Expr& b);

// Comparisons of two ints, two floats or two bools (equal only).
Expr less(const Expr& a, const Expr& b);
Expr equal(const Expr& a, const Expr& b);
Expr logical_and(const Expr& a, const Expr& b);
Expr logical_or(const Expr& a, const Expr& b);
Expr logical_not(const Expr& a);
Expr where(const Expr& condition, const Expr& a, const Expr& b);

// Float arithmetic, in float32 as the model would compute it.
Expr float_unary(ExprKind kind, const Expr& a);
Expr float_binary(ExprKind kind, const Expr& a, const Expr& b);
// Conversion with ONNX Cast's meaning.
Expr cast(const Expr& a, ExprType type);

}  // namespace kvik::graph
