// Symbolic integer (and boolean, and float) expressions.
//
// One kind of expression serves three purposes:
//   - dimensions: polynomials over the named symbols of a model ("batch", "sequence");
//   - the contents of values that depend on shapes alone (positions, masks, reshape targets):
//     functions of the symbols and of the value's own indices along its axes;
//   - the attention bias that is evaluated for the rows at hand.
// Expressions are immutable and shared; construction simplifies, integer arithmetic is kept as a
// normalised polynomial, so equal polynomials compare equal.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

namespace kvik::graph {

struct ExprNode;

class Expr {
 public:
  Expr();                        // the integer 0
  Expr(std::int64_t value);      // NOLINT: implicit on purpose, so that e == 1 reads well
  static Expr symbol(std::string name);  // a dimension: an integer >= 0
  static Expr index(int axis);           // the index along an axis: an integer >= 0

  // The integer when the expression is one.
  std::optional<std::int64_t> constant() const;
  bool is(std::int64_t value) const { return constant() == value; }
  std::string str() const;  // "batch*sequence + 1"

  friend bool operator==(const Expr& a, const Expr& b);
  friend Expr operator+(const Expr& a, const Expr& b);
  friend Expr operator-(const Expr& a, const Expr& b);
  friend Expr operator*(const Expr& a, const Expr& b);

  const ExprNode& node() const { return *node_; }
  explicit Expr(std::shared_ptr<const ExprNode> node) : node_(std::move(node)) {}

 private:
  std::shared_ptr<const ExprNode> node_;
};

// a / b when the division is exact for all values of the symbols, else nothing.
std::optional<Expr> exact_div(const Expr& a, const Expr& b);

}  // namespace kvik::graph
