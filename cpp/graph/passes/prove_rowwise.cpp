#include "graph/passes/prove_rowwise.h"

#include <algorithm>
#include <array>
#include <map>

#include "graph/infer/infer.h"
#include "graph/rows/proof.h"

namespace kvik::graph {

namespace {

// The known input that an encoder's caller may choose: which of two texts a token belongs to.
constexpr const char* kTypes = "token_type_ids";

// Inputs along the token axis whose meaning is known, and what the engine supplies for them: a
// prompt is one unpadded sequence that starts at position 0.
struct KnownInput {
  const char* name;
  Expr content;
};
std::vector<KnownInput> known_inputs() {
  return {{"attention_mask", Expr(1)}, {"position_ids", Expr::index(1)}, {kTypes, Expr(0)}};
}

bool is_token_ids(const Value& value) {
  return (value.dtype == DType::kI64 || value.dtype == DType::kI32) && value.shape &&
         (value.shape->size() == 1 || value.shape->size() == 2) &&
         value.shape->back().kind() == ExprKind::kSymbol;
}

// Which input holds the token ids; stops when there is none or no telling.
ValueId find_tokens(const Graph& graph) {
  std::vector<ValueId> candidates;
  for (const ValueId id : graph.inputs) {
    const Value& value = graph.value(id);
    const auto known = known_inputs();
    const bool supplied = std::any_of(known.begin(), known.end(),
                                      [&](const KnownInput& k) { return value.name == k.name; });
    if (!supplied && is_token_ids(value)) candidates.push_back(id);
  }
  if (candidates.size() == 1) return candidates[0];
  if (candidates.empty()) {
    stop(
        "no input holds token ids: an int64 or int32 input [batch, sequence] with a symbolic "
        "sequence was expected");
  }
  for (const char* name : {"input_ids", "tokens", "token_ids", "ids"}) {
    for (const ValueId id : candidates) {
      if (graph.value(id).name == name) return id;
    }
  }
  stop("several inputs could hold the token ids: '" + graph.value(candidates[0]).name + "', '" +
       graph.value(candidates[1]).name + "'");
}

// What the engine supplies, by input; an input that nobody knows stops the proof. Their shapes
// become the token input's, since that is what the engine will pass. An encoder's `types` are rows
// of numbers like the tokens.
std::map<ValueId, Expr> supplied_inputs(Graph& graph, ValueId tokens, Mixing mixing,
                                        ValueId& types) {
  std::map<ValueId, Expr> known;
  for (const ValueId id : graph.inputs) {
    if (id == tokens) continue;
    Value& value = graph.value(id);
    bool found = false;
    for (const KnownInput& k : known_inputs()) {
      if (value.name != k.name || !value.shape || value.shape->size() != 2) continue;
      const bool integral = value.dtype == DType::kI64 || value.dtype == DType::kI32;
      if (mixing == Mixing::kWhole && integral && value.name == kTypes) {
        if (graph.value(tokens).shape->size() != 2) {
          stop("'" + value.name + "' and the token ids have different ranks");
        }
        types = id;
      } else {
        known.emplace(id, integral ? k.content : cast(k.content, ExprType::kFloat));
      }
      if (graph.value(tokens).shape->size() == 2) value.shape = graph.value(tokens).shape;
      found = integral;
    }
    if (!found) stop("the input '" + value.name + "' has no meaning that is known to the engine");
  }
  return known;
}

void explain(const Prover& prover, const RowGraph& rows, const std::map<ValueId, Expr>& known,
             ValueId tokens, const std::string& outputs, std::vector<std::string>& explanation) {
  const Graph& graph = prover.source();
  if (rows.mixing == Mixing::kEarlier) {
    explanation.push_back("incremental: every row of " + outputs +
                          " depends on its own token and earlier ones alone");
  } else if (rows.picked) {
    explanation.push_back("by sequence: " + outputs + " is computed from the rows of one sequence" +
                          ", for its " + (*rows.picked == 0 ? "first" : "last") + " token");
  } else {
    explanation.push_back("by sequence: every row of " + outputs +
                          " depends on its own sequence alone");
  }
  explanation.push_back("token ids: input '" + graph.value(tokens).name + "'");
  for (const auto& [id, content] : known) {
    explanation.push_back("supplied by the engine: '" + graph.value(id).name +
                          "' = " + (content.has_index() ? "the position" : content.str()));
  }
  explanation.insert(explanation.end(), prover.notes.begin(), prover.notes.end());
}

RowGraph prove(Graph graph, std::vector<ValueId> outputs, DimLimits limits, Mixing mixing,
               std::vector<std::string>& explanation) {
  if (outputs.empty()) {
    if (graph.outputs.empty()) stop("the graph has no output");
    outputs = {graph.outputs[0]};
  }
  const ValueId tokens = find_tokens(graph);
  ValueId types = kNoValue;
  const auto known = supplied_inputs(graph, tokens, mixing, types);
  const Contents contents = infer_with_limits(graph, known, limits);
  const std::vector<Expr> ids = *graph.value(tokens).shape;
  const Expr token = ids.back();
  Prover prover(graph, contents, batch_of(ids), token, mixing);
  RowGraph& rows = prover.result();
  rows.graph.name = graph.name;
  rows.tokens = add_row_input(prover, graph.value(tokens).name, graph.value(tokens).dtype);
  rows.positions = add_row_input(prover, "positions", DType::kI64);
  if (const auto it = limits.find(token.str()); it != limits.end()) {
    prover.limit_context(it->second, "a table is sliced to the length of the sequence");
  }

  set_ids(prover, tokens, rows.tokens);
  if (types != kNoValue) {
    rows.types = add_row_input(prover, kTypes, graph.value(types).dtype);
    set_ids(prover, types, rows.types);
  }

  const auto stopped = apply_rules(prover);
  std::vector<RowValue> values;
  std::string names;
  for (const ValueId output : outputs) {
    if (const auto it = stopped.find(output); it != stopped.end()) stop(it->second);
    values.push_back(output_rows(prover, output));
    names += (names.empty() ? "'" : ", '") + graph.value(output).name + "'";
  }
  join_outputs(prover, values);
  RowGraph out = std::move(rows);
  finish(out);
  explain(prover, out, known, tokens, names, explanation);
  return out;
}

}  // namespace

std::vector<ValueId> token_inputs(const Graph& graph) {
  try {
    return {find_tokens(graph)};
  } catch (const ProofStop&) {
    return ids_of_two_sequences(graph);
  }
}

RowProof prove_rowwise(const Graph& graph, std::vector<ValueId> outputs, const DimLimits& limits,
                       Mixing mixing) {
  RowProof proof;
  try {
    proof.rows = prove(graph, std::move(outputs), limits, mixing, proof.explanation);
  } catch (const ProofStop& stopped) {
    proof.rows.reset();
    proof.reason = stopped.reason;
    const char* what = mixing == Mixing::kWhole ? "not by sequence: " : "not incremental: ";
    proof.explanation = {what + stopped.reason};
  }
  return proof;
}

}  // namespace kvik::graph
