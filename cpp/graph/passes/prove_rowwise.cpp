#include "graph/passes/prove_rowwise.h"

#include <algorithm>
#include <array>
#include <map>

#include "graph/infer/infer.h"
#include "graph/rows/prover.h"

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

// Applies the rule of every node; a node where it stops leaves its outputs without row values, and
// the reason is kept, so that only what the output needs decides.
std::map<ValueId, std::string> apply_rules(Prover& prover, const Graph& source) {
  std::map<ValueId, std::string> stopped;
  for (const Node& node : source.nodes) {
    const auto wanted = [&](ValueId id) {
      // Integers and booleans with known contents are made on demand, by position.
      return id != kNoValue && !(prover.content(id) && !dtype_is_float(source.value(id).dtype));
    };
    if (std::none_of(node.outputs.begin(), node.outputs.end(), wanted)) continue;
    std::string reason;
    const auto from = std::find_if(node.inputs.begin(), node.inputs.end(),
                                   [&](ValueId id) { return stopped.count(id) != 0; });
    if (from != node.inputs.end()) {
      reason = stopped[*from];
    } else if (const RowRule rule = find_row_rule(node.domain, node.op)) {
      const std::size_t notes = prover.notes.size();
      try {
        rule(prover, node);
        continue;
      } catch (const ProofStop& stop_here) {
        reason = stop_here.reason;
        prover.notes.resize(std::min(notes, prover.notes.size()));
      }
    } else {
      reason = node.label() + " is not known to be row-wise";
    }
    for (const ValueId id : node.outputs) {
      if (id != kNoValue && !prover.content(id)) stopped.emplace(id, reason);
    }
  }
  return stopped;
}

// Inputs and outputs survive remove_dead in their order; the other ids change.
void finish(RowGraph& rows) {
  Graph& graph = rows.graph;
  graph.inputs = {rows.tokens, rows.positions};
  if (rows.types != kNoValue) graph.inputs.push_back(rows.types);
  graph.outputs = {rows.output};
  remove_dead(graph);
  rows.tokens = graph.inputs[0];
  rows.positions = graph.inputs[1];
  if (rows.types != kNoValue) rows.types = graph.inputs[2];
  rows.output = graph.outputs[0];
  std::vector<RowAttention> live;
  for (std::size_t i = 0; i < graph.nodes.size(); ++i) {
    Node& node = graph.nodes[i];
    if (!node.is("RowAttention", "kvik")) continue;
    RowAttention entry = rows.attention[static_cast<std::size_t>(node.int_attr("layer", 0))];
    entry.node = static_cast<NodeId>(i);
    node.attributes["layer"] = static_cast<std::int64_t>(live.size());
    live.push_back(std::move(entry));
  }
  rows.attention = std::move(live);
  verify(graph);
}

// A bound that one node gives away may decide the shapes of those before it.
Contents infer_with_limits(Graph& graph, const std::map<ValueId, Expr>& known, DimLimits& limits) {
  for (;;) {
    const DimLimits before = limits;
    Contents contents = infer(graph, known, &limits);
    if (limits == before) return contents;
  }
}

// An input of the row graph: int64 or int32 [rows].
ValueId add_input(Prover& prover, const std::string& name, DType dtype) {
  Graph& graph = prover.result().graph;
  const ValueId id = graph.add_value(name, dtype);
  graph.value(id).shape = std::vector<Expr>{Expr::symbol("rows")};
  return id;
}

// The row value of an output; stops where it is neither a row for every token nor one token's.
RowValue output_rows(Prover& prover, ValueId id, bool batched) {
  RowValue value = prover.dense(prover.get(id));
  const auto holds = [&](int role) {
    return std::any_of(value.layout.begin(), value.layout.end(),
                       [role](const Axis& axis) { return has_role(axis, role); });
  };
  const bool whole = value.rows && (holds(kTokenRole) || prover.picked(value.id)) &&
                     (!batched || holds(kBatchRole));
  if (!whole) {
    stop("the output '" + prover.source().value(id).name + "' does not have a row for every token");
  }
  return value;
}

// Several outputs become one whose rows hold theirs one after the other.
void join_outputs(Prover& prover, const std::vector<RowValue>& values) {
  RowGraph& rows = prover.result();
  rows.output = values.front().id;
  std::vector<ValueId> parts;
  std::int64_t end = 0;
  for (const RowValue& value : values) {
    std::int64_t features = 1;
    for (const std::int64_t dim : stored_dims(value.layout)) features *= dim;
    rows.output_ends.push_back(end += features);
    if (values.size() > 1) parts.push_back(prover.reshaped(value.id, {features}));
  }
  if (values.size() > 1) {
    const DType dtype = rows.graph.value(parts.front()).dtype;
    rows.output = prover.emit("Concat", "", std::move(parts), {{"axis", std::int64_t{1}}}, dtype,
                              {end}, true, "outputs");
  }
  rows.picked = prover.picked(rows.output);
  if (rows.picked) rows.mixing = Mixing::kWhole;
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
  // A batch axis of constant size 1 has no atoms; the symbol below then matches nothing.
  Expr batch = Expr::symbol("(no batch)");
  if (ids.size() == 2 && !ids[0].is(1)) {
    if (ids[0].kind() != ExprKind::kSymbol) stop("the batch size is fixed at " + ids[0].str());
    batch = ids[0];
  }
  if (batch == token) stop("batch and sequence have the same symbol '" + token.str() + "'");

  Prover prover(graph, contents, batch, token, mixing);
  RowGraph& rows = prover.result();
  rows.graph.name = graph.name;
  rows.tokens = add_input(prover, graph.value(tokens).name, graph.value(tokens).dtype);
  rows.positions = add_input(prover, "positions", DType::kI64);
  if (const auto it = limits.find(token.str()); it != limits.end()) {
    prover.limit_context(it->second, "a table is sliced to the length of the sequence");
  }

  RowValue input;
  if (ids.size() == 2)
    input.layout.push_back(ids[0].is(1) ? Axis{} : Axis{{kBatchRole, batch, false}});
  input.layout.push_back({{kTokenRole, token, false}});
  input.id = prover.reshaped(rows.tokens, stored_dims(input.layout));
  prover.set(tokens, input);
  if (types != kNoValue) {
    rows.types = add_input(prover, kTypes, graph.value(types).dtype);
    input.id = prover.reshaped(rows.types, stored_dims(input.layout));
    prover.set(types, input);
  }

  const auto stopped = apply_rules(prover, graph);
  std::vector<RowValue> values;
  std::string names;
  for (const ValueId output : outputs) {
    if (const auto it = stopped.find(output); it != stopped.end()) stop(it->second);
    values.push_back(output_rows(prover, output, batch == ids[0]));
    names += (names.empty() ? "'" : ", '") + graph.value(output).name + "'";
  }
  join_outputs(prover, values);
  RowGraph out = std::move(rows);
  finish(out);
  explain(prover, out, known, tokens, names, explanation);
  return out;
}

}  // namespace

ValueId token_input(const Graph& graph) {
  try {
    return find_tokens(graph);
  } catch (const ProofStop&) {
    return kNoValue;
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
