// Plain evaluation of expressions, node by node: what the simplifications are checked against.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "graph/expr.h"

namespace kvik::test {

struct Environment {
  std::map<std::string, std::int64_t> symbols;
  std::vector<std::int64_t> indices;
};

// The value of an integer or boolean (0 or 1) expression; of a float expression, in float32. Throws
// kvik::Error for unknowns, divisions by zero and look-ups outside of their table.
std::int64_t evaluate_int(const graph::Expr& e, const Environment& at);
float evaluate_float(const graph::Expr& e, const Environment& at);
double evaluate(const graph::Expr& e, const Environment& at);  // any type

}  // namespace kvik::test
