// The proof of a graph of two sequences: its source is proved as an encoder of the keys and values
// that the target reads, and its target as rows that depend on earlier ones and on the source.
#include <algorithm>
#include <map>

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
// `known`. The inputs of a sequence get the shape of its ids, since that is what the engine passes.
struct TwoSequences {
  Inputs source;
  Inputs target;
  std::map<ValueId, Expr> known;

  TwoSequences(Graph& graph, ValueId output) {
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
      for (const ValueId id : inputs->all) graph.value(id).shape = graph.value(inputs->ids).shape;
    }
    if (!((*graph.value(source.ids).shape)[0] == (*graph.value(target.ids).shape)[0])) {
      stop("source and target have batches of different sizes");
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
  for (const Node& node : graph.nodes) {
    const bool any = std::any_of(node.inputs.begin(), node.inputs.end(), [&](ValueId id) {
      return id != kNoValue && found[static_cast<std::size_t>(id)] &&
             !contents[static_cast<std::size_t>(id)];
    });
    if (!any) continue;
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

EncoderDecoder prove(Graph graph, ValueId output, DimLimits limits,
                     std::vector<std::string>& explanation) {
  if (output == kNoValue) {
    if (graph.outputs.empty()) stop("the graph has no output");
    output = graph.outputs[0];
  }
  const TwoSequences inputs(graph, output);
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
  const std::vector<std::size_t> live = finish(rows.target).attention;

  Prover source = make_prover(graph, contents, inputs.source, limits, Mixing::kWhole);
  source.set_other(from_target);
  const auto source_stopped = apply_rules(source);
  std::vector<RowValue> values;
  for (std::size_t layer = 0; layer < live.size(); ++layer) {
    const auto cross = std::find_if(target.crosses.begin(), target.crosses.end(),
                                    [&](const Prover::Cross& c) { return c.layer == live[layer]; });
    if (cross == target.crosses.end()) continue;
    for (const std::size_t i : {1U, 2U}) {
      const auto it = source_stopped.find(cross->node->input(i));
      if (it != source_stopped.end()) stop(it->second);
    }
    const auto [k, v] = key_value_rows(source, *cross->node);
    RowAttention& entry = rows.target.attention[layer];
    if (k.dim != entry.head_dim || v.dim != entry.value_dim || entry.heads % k.heads != 0) {
      stop(cross->node->label() + " has heads that do not fit together");
    }
    entry.kv_heads = k.heads;
    for (const KeyRows& own : {k, v}) {
      const Expr features(std::int64_t{own.heads} * own.dim);
      values.push_back({own.id, {features.is(1) ? Axis{} : Axis{{kFeatureRole, features, false}}}});
    }
  }
  if (values.empty()) stop("no attention of the target reads the source");
  join_outputs(source, values);
  rows.source = std::move(source.result());
  rows.source.mixing = Mixing::kWhole;
  finish(rows.source);

  explanation.push_back("incremental: every row of '" + graph.value(output).name +
                        "' depends on its own token, earlier ones, and the source alone");
  explanation.push_back("target ids: input '" + graph.value(inputs.target.ids).name +
                        "'; source ids: input '" + graph.value(inputs.source.ids).name +
                        "', computed once for each source");
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
