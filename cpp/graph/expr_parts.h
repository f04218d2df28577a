// What the files that make up Expr share. Users include expr.h alone.
#pragma once

#include <vector>

#include "graph/expr.h"

namespace kvik::graph {

// A call "name(args...)" as it stands, nothing simplified; unknown when it would be too long.
Expr call(ExprKind kind, ExprType type, const char* name, std::vector<Expr> args);

// The value of a float operation, one or two arguments; NaN for a kind that is none.
float apply_float(ExprKind kind, float a, float b);

Expr positive(const Expr& d);                                     // d > 0
Expr zero(const Expr& d);                                         // d == 0
Expr float_compare(ExprKind kind, const Expr& a, const Expr& b);  // kFloatLess or kFloatEqual

}  // namespace kvik::graph
