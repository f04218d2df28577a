// The steps that every proof by rows takes, in their order.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "graph/infer/infer.h"
#include "graph/rows/prover.h"

namespace kvik::graph {

// infer() until the limits that it takes for granted stay the same: a bound that one node gives
// away may decide the shapes of those before it.
Contents infer_with_limits(Graph& graph, const std::map<ValueId, Expr>& known, DimLimits& limits);

// The batch's symbol in the shape of ids, [batch, tokens] or [tokens]; nothing where there is none.
// Stops where its size is fixed, or the tokens have the same symbol.
std::optional<Expr> batch_of(const std::vector<Expr>& ids);

// Adds an input of integers [rows] to the row graph.
ValueId add_row_input(Prover& prover, const std::string& name, DType dtype);
// What the proof starts from: an input of ids [batch, tokens] or [tokens] of the source graph as
// the row graph's input `rows`.
void set_ids(Prover& prover, ValueId ids, ValueId rows);

// Applies the rule of every node but those that belong to the other sequence. A node where a rule
// stops leaves its outputs without row values, and the reason is kept by output, so that only what
// the output needs decides.
std::map<ValueId, std::string> apply_rules(Prover& prover);

// The row value of an output; stops where it is neither a row for every token nor one token's.
RowValue output_rows(Prover& prover, ValueId id);

// Makes the row graph's output of values; several become one whose rows hold theirs side by side.
void join_outputs(Prover& prover, const std::vector<RowValue>& values);

// Which attentions and recurrent layers of a row graph are left, by their former indices.
struct Kept {
  std::vector<std::size_t> attention;
  std::vector<std::size_t> recurrent;
};
// Removes what the output does not need, and checks the row graph.
Kept finish(RowGraph& rows);

}  // namespace kvik::graph
