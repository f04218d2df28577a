// The proof of a graph of two sequences: its source is proved as an encoder of the keys and values
// that the target reads, and its target as rows that depend on earlier ones and on the source.
#include <algorithm>
#include <map>

#include "graph/bodies.h"
#include "graph/passes/prove_rowwise.h"
#include "graph/rows/proof.h"

namespace kvik::graph {

namespace {

// What the inputs of one of the two sequences are.
struct Inputs {
  ValueId ids = kNoValue;
  std::vector<ValueId> all;
};

bool is_mask(const Value& value) {
  return value.name.find("mask") != std::string::npos;
}

// Which inputs belong to the target, and which to the source; what the engine supplies goes to
// `known`.
struct TwoSequences {
  Inputs source;
  Inputs target;
  std::map<ValueId, Expr> known;

  TwoSequences(const Graph& graph, ValueId output) {
    const auto& out = graph.value(output).shape;
    if (!out || out->size() < 2 || (*out)[1].kind() != ExprKind::kSymbol) {
      stop("the output '" + graph.value(output).name + "' has no axis of tokens");
    }
    const Expr length = (*out)[1];
    for (const ValueId id : graph.inputs) {
      const Value& value = graph.value(id);
      if (!value.shape || value.shape->size() != 2 ||
          value.shape->back().kind() != ExprKind::kSymbol) {
        stop("the input '" + value.name + "' is no sequence [batch, tokens]");
      }
      add(graph, value.shape->back() == length ? target : source, id);
    }
    for (const Inputs* inputs : {&source, &target}) {
      if (inputs->ids == kNoValue) {
        stop(std::string("no input holds the token ids of the ") +
             (inputs == &source ? "source" : "target"));
      }
    }
    if (!((*graph.value(source.ids).shape)[0] == (*graph.value(target.ids).shape)[0])) {
      stop("source and target have batches of different sizes");
    }
  }

  // The inputs of a sequence get the shape of its ids, since that is what the engine passes.
  void unify(Graph& graph) const {
    for (const Inputs* inputs : {&source, &target}) {
      for (const ValueId id : inputs->all) graph.value(id).shape = graph.value(inputs->ids).shape;
    }
  }

 private:
  void add(const Graph& graph, Inputs& inputs, ValueId id) {
    const Value& value = graph.value(id);
    const bool integral = value.dtype == DType::kI64 || value.dtype == DType::kI32;
    if (!inputs.all.empty() && !(graph.value(inputs.all[0]).shape->back() == value.shape->back())) {
      stop("the inputs have more than two lengths: '" + value.name + "'");
    }
    inputs.all.push_back(id);
    if (is_mask(value)) {
      const Expr ones = value.dtype == DType::kBool  ? Expr::boolean(true)
                        : value.dtype == DType::kF32 ? Expr::real(1.0F)
                                                     : Expr(1);
      known.emplace(id, ones);
    } else if (integral && value.name.find("position") != std::string::npos) {
      known.emplace(id, Expr::index(1));
    } else if (integral && inputs.ids == kNoValue) {
      inputs.ids = id;
    } else {
      stop("the input '" + value.name + "' has no meaning that is known to the engine");
    }
  }
};

// What depends on some inputs, through values alone: a shape carries nothing of them.
std::vector<bool> dependants(const Graph& graph, const std::vector<ValueId>& inputs,
                             const Contents& contents) {
  std::vector<bool> found(graph.values.size(), false);
  for (const ValueId id : inputs) found[static_cast<std::size_t>(id)] = true;
  const BodyIndex bodies(graph);
  const auto depends = [&](ValueId id) {
    return id != kNoValue && found[static_cast<std::size_t>(id)] &&
           !contents[static_cast<std::size_t>(id)];
  };
  for (const Node& node : graph.nodes) {
    const auto captured = bodies.captured(node);
    if (std::none_of(node.inputs.begin(), node.inputs.end(), depends) &&
        std::none_of(captured.begin(), captured.end(), depends)) {
      continue;
    }
    for (const ValueId id : node.outputs) {
      if (id != kNoValue) found[static_cast<std::size_t>(id)] = true;
    }
  }
  return found;
}

Prover make_prover(const Graph& graph, const Contents& contents, const Inputs& inputs,
                   const DimLimits& limits, Mixing mixing) {
  const std::vector<Expr>& ids = *graph.value(inputs.ids).shape;
  Prover prover(graph, contents, batch_of(ids), ids.back(), mixing);
  RowGraph& rows = prover.result();
  rows.graph.name = graph.name;
  const Value& value = graph.value(inputs.ids);
  rows.tokens = add_row_input(prover, value.name, value.dtype);
  rows.positions = add_row_input(prover, "positions", DType::kI64);
  if (const auto it = limits.find(ids.back().str()); it != limits.end()) {
    prover.limit_context(it->second, "a table is sliced to the length of '" + value.name + "'");
  }
  set_ids(prover, inputs.ids, rows.tokens);
  return prover;
}

ValueId first_output(const Graph& graph) {
  if (graph.outputs.empty()) stop("the graph has no output");
  return graph.outputs[0];
}

// What the target reads of the source: values of the graph.
struct FromSource {
  struct Attention {
    const Node* node;
    RowAttention* entry;  // of the target
  };
  std::vector<Attention> attention;
  std::vector<ValueId> states;
};

FromSource read_by(const Prover& prover, const Kept& kept, EncoderDecoder& rows) {
  FromSource from;
  for (std::size_t layer = 0; layer < kept.attention.size(); ++layer) {
    const auto cross =
        std::find_if(prover.crosses.begin(), prover.crosses.end(),
                     [&](const Prover::Cross& c) { return c.layer == kept.attention[layer]; });
    if (cross == prover.crosses.end()) continue;
    from.attention.push_back({cross->node, &rows.target.attention[layer]});
    rows.values.insert(rows.values.end(), {cross->node->input(1), cross->node->input(2)});
  }
  std::int64_t offset = 0;
  for (std::size_t layer = 0; layer < kept.recurrent.size(); ++layer) {
    const auto initial =
        std::find_if(prover.initials.begin(), prover.initials.end(),
                     [&](const Prover::Initial& i) { return i.layer == kept.recurrent[layer]; });
    if (initial == prover.initials.end()) continue;
    RowRecurrent& entry = rows.target.recurrent[layer];
    const Node& node = *initial->node;
    const std::int64_t width = node.op == "LSTM" ? entry.width / 2 : entry.width;
    const auto add = [&](std::size_t input, std::int64_t& place) {
      if (!prover.is_other(node.input(input))) return;
      place = offset;
      offset += width;
      from.states.push_back(node.input(input));
      rows.states.push_back({.width = width});
    };
    add(5, entry.source_h);
    if (node.op == "LSTM") add(6, entry.source_c);
  }
  rows.values.insert(rows.values.end(), from.states.begin(), from.states.end());
  return from;
}

void check_heads(const Node& node, RowAttention& entry, int heads, std::int64_t key_dim,
                 std::int64_t value_dim) {
  if (key_dim != entry.head_dim || value_dim != entry.value_dim || heads < 1 ||
      entry.heads % heads != 0) {
    stop(node.label() + " has heads that do not fit together");
  }
  entry.kv_heads = heads;
}

// The source as rows: all that the target reads of it side by side.
RowGraph prove_source(Prover& source, const FromSource& from, EncoderDecoder& rows) {
  const auto stopped = apply_rules(source);
  const auto check = [&](ValueId id) {
    if (const auto it = stopped.find(id); it != stopped.end()) stop(it->second);
  };
  std::vector<RowValue> values;
  std::int64_t columns = 0;
  const auto add = [&](ValueId id, std::int64_t features) {
    const Axis axis = features == 1 ? Axis{} : Axis{{kFeatureRole, Expr(features), false}};
    values.push_back({id, {axis}});
    columns += features;
  };
  for (const FromSource::Attention& attention : from.attention) {
    for (const std::size_t i : {1U, 2U}) check(attention.node->input(i));
    const auto [k, v] = key_value_rows(source, *attention.node);
    check_heads(*attention.node, *attention.entry, k.heads, k.dim, v.dim);
    for (const KeyRows& own : {k, v}) add(own.id, std::int64_t{own.heads} * own.dim);
  }
  for (std::size_t i = 0; i < from.states.size(); ++i) {
    check(from.states[i]);
    const std::int64_t width = rows.states[i].width;
    const RowValue state = source.dense(source.get(from.states[i]));
    const auto token = state.rows ? source.picked(state.id) : std::nullopt;
    const auto dims = stored_dims(state.layout);
    std::int64_t features = 1;
    for (const std::int64_t dim : dims) features *= dim;
    if (!token || features != width) {
      stop("'" + source.source().value(from.states[i]).name + "' is not the state of one token");
    }
    rows.states[i].column = columns;
    rows.states[i].token = *token;
    add(source.unpicked(source.reshaped(state.id, {width})), width);
  }
  join_outputs(source, values);
  RowGraph out = std::move(source.result());
  out.mixing = Mixing::kWhole;
  finish(out);
  return out;
}

// Keys and values as they stand: [batch, heads, tokens, dim], or [batch, tokens, heads · dim].
void check_plain_heads(const Prover& source, const FromSource& from) {
  for (const FromSource::Attention& attention : from.attention) {
    const Node& node = *attention.node;
    const std::vector<Expr>&k = source.shape(node.input(1)), &v = source.shape(node.input(2));
    const bool flat = k.size() == 3;
    const auto heads = flat ? std::optional(node.int_attr("kv_num_heads", 0)) : k[1].constant();
    const auto key = k.back().constant(), value = v.back().constant();
    if (!heads || *heads < 1 || *heads > attention.entry->heads || !key || !value ||
        v.size() != k.size() || !(flat || v[1] == k[1])) {
      stop(node.label() + " has heads that do not fit together");
    }
    const std::size_t tokens = flat ? 1 : 2;
    if (!source.is_token(k[tokens]) || !source.is_token(v[tokens])) {
      stop(node.label() + " has keys that are not as many as the source's tokens");
    }
    const std::int64_t parts = flat ? *heads : 1;
    check_heads(node, *attention.entry, static_cast<int>(*heads), *key / parts, *value / parts);
  }
}

EncoderDecoder prove(Graph graph, ValueId output, DimLimits limits,
                     std::vector<std::string>& explanation) {
  if (output == kNoValue) output = first_output(graph);
  const TwoSequences inputs(graph, output);
  inputs.unify(graph);
  const Contents contents = infer_with_limits(graph, inputs.known, limits);
  const auto from_source = dependants(graph, inputs.source.all, contents);
  const auto from_target = dependants(graph, inputs.target.all, contents);

  Prover target = make_prover(graph, contents, inputs.target, limits, Mixing::kEarlier);
  std::vector<bool> source_alone = from_source;
  for (std::size_t i = 0; i < source_alone.size(); ++i) {
    source_alone[i] = source_alone[i] && !from_target[i];
  }
  target.set_other(source_alone);
  const auto stopped = apply_rules(target);
  if (const auto it = stopped.find(output); it != stopped.end()) stop(it->second);
  join_outputs(target, {output_rows(target, output)});
  EncoderDecoder rows;
  rows.target = std::move(target.result());
  const Kept kept = finish(rows.target);
  const FromSource from = read_by(target, kept, rows);
  if (rows.values.empty()) stop("no attention and no state of the target reads the source");
  for (const ValueId id : inputs.source.all) {
    const auto known = inputs.known.find(id);
    rows.inputs.push_back(
        {id, known == inputs.known.end() ? std::nullopt : std::optional(known->second)});
  }
  const std::vector<Expr>& ids = *graph.value(inputs.source.ids).shape;
  if (const auto it = limits.find(ids.back().str()); it != limits.end()) {
    rows.source_limit = it->second;
  }

  Prover source = make_prover(graph, contents, inputs.source, limits, Mixing::kWhole);
  source.set_other(from_target);
  try {
    rows.source = prove_source(source, from, rows);
  } catch (const ProofStop& not_rows) {
    rows.reason = not_rows.reason;
    source.notes.clear();
    check_plain_heads(source, from);
  }

  explanation.push_back("incremental: every row of '" + graph.value(output).name +
                        "' depends on its own token, earlier ones, and the source alone");
  explanation.push_back("target ids: input '" + graph.value(inputs.target.ids).name +
                        "'; source ids: input '" + graph.value(inputs.source.ids).name +
                        "', computed once for each source");
  if (!rows.source) {
    explanation.push_back("each source is computed by itself, as the graph stands: " + rows.reason);
  }
  for (const auto& [id, content] : inputs.known) {
    explanation.push_back("supplied by the engine: '" + graph.value(id).name +
                          "' = " + (content.has_index() ? "the position" : content.str()));
  }
  for (const Prover* prover : {&source, &target}) {
    explanation.insert(explanation.end(), prover->notes.begin(), prover->notes.end());
  }
  return rows;
}

}  // namespace

std::vector<ValueId> ids_of_two_sequences(const Graph& graph) {
  try {
    const TwoSequences inputs(graph, first_output(graph));
    return {inputs.source.ids, inputs.target.ids};
  } catch (const ProofStop&) {
    return {};
  }
}

EncoderDecoderProof prove_encoder_decoder(const Graph& graph, ValueId output,
                                          const DimLimits& limits) {
  EncoderDecoderProof proof;
  try {
    proof.rows = prove(graph, output, limits, proof.explanation);
  } catch (const ProofStop& stopped) {
    proof.rows.reset();
    proof.reason = stopped.reason;
    proof.explanation = {"not of two sequences: " + stopped.reason};
  }
  return proof;
}

}  // namespace kvik::graph
