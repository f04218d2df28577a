// Symbolic inference: dtype, shape and, where they depend on shapes alone, contents of every value.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "graph/graph.h"

namespace kvik::graph {

// The contents of a value as a function of its own index along each axis: element [i, j] of a
// rank-2 value is the expression with Expr::index(0) = i and Expr::index(1) = j. Present for
// integer, bool and float32 values that depend on constants and shapes alone.
using Contents = std::vector<std::optional<Expr>>;  // by ValueId

// Upper bounds on symbolic dimensions that the inference took for granted, by symbol: a table of
// 1024 rows that is sliced to the length of the sequence says that the sequence has at most 1024.
// The inferred shapes and contents hold while these bounds do.
using DimLimits = std::map<std::string, std::int64_t>;

// Fills Value::dtype and Value::shape of every value that a node produces, as far as they follow
// from the inputs' and constants', and returns the contents. What a rule does not know is left
// unknown; nothing is taken on trust from the file's own value_info.
// `known`: contents of graph inputs that the engine supplies (a mask of ones, positions).
// `limits`: where the bounds taken for granted are written; null: none are taken.
Contents infer(Graph& graph, const std::map<ValueId, Expr>& known = {},
               DimLimits* limits = nullptr);

}  // namespace kvik::graph
