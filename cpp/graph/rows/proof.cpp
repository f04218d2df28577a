#include "graph/rows/proof.h"

#include <algorithm>

namespace kvik::graph {

Contents infer_with_limits(Graph& graph, const std::map<ValueId, Expr>& known, DimLimits& limits) {
  for (;;) {
    const DimLimits before = limits;
    Contents contents = infer(graph, known, &limits);
    if (limits == before) return contents;
  }
}

std::optional<Expr> batch_of(const std::vector<Expr>& ids) {
  if (ids.size() != 2 || ids[0].is(1)) return std::nullopt;
  if (ids[0].kind() != ExprKind::kSymbol) stop("the batch size is fixed at " + ids[0].str());
  if (ids[0] == ids[1]) stop("batch and sequence have the same symbol '" + ids[1].str() + "'");
  return ids[0];
}

ValueId add_row_input(Prover& prover, const std::string& name, DType dtype) {
  Graph& graph = prover.result().graph;
  const ValueId id = graph.add_value(name, dtype);
  graph.value(id).shape = std::vector<Expr>{Expr::symbol("rows")};
  return id;
}

void set_ids(Prover& prover, ValueId ids, ValueId rows) {
  const std::vector<Expr>& dims = prover.shape(ids);
  RowValue value;
  if (dims.size() == 2) {
    value.layout.push_back(prover.batched() ? Axis{{kBatchRole, dims[0], false}} : Axis{});
  }
  value.layout.push_back({{kTokenRole, prover.token(), false}});
  value.id = prover.reshaped(rows, stored_dims(value.layout));
  prover.set(ids, value);
}

std::map<ValueId, std::string> apply_rules(Prover& prover) {
  const Graph& source = prover.source();
  std::map<ValueId, std::string> stopped;
  for (const Node& node : source.nodes) {
    if (std::any_of(node.outputs.begin(), node.outputs.end(),
                    [&](ValueId id) { return prover.is_other(id); })) {
      continue;
    }
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

RowValue output_rows(Prover& prover, ValueId id) {
  RowValue value = prover.dense(prover.get(id));
  const auto holds = [&](int role) {
    return std::any_of(value.layout.begin(), value.layout.end(),
                       [role](const Axis& axis) { return has_role(axis, role); });
  };
  const bool whole = value.rows && (holds(kTokenRole) || prover.picked(value.id)) &&
                     (!prover.batched() || holds(kBatchRole));
  if (!whole) {
    stop("the output '" + prover.source().value(id).name + "' does not have a row for every token");
  }
  return value;
}

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

namespace {

// The layers whose nodes, `op` of the row graph, are left; the nodes are given their new indices.
template <typename Layer>
std::vector<std::size_t> keep_live(Graph& graph, const char* op, std::vector<Layer>& layers) {
  std::vector<Layer> live;
  std::vector<std::size_t> former;
  for (std::size_t i = 0; i < graph.nodes.size(); ++i) {
    Node& node = graph.nodes[i];
    if (!node.is(op, "kvik")) continue;
    former.push_back(static_cast<std::size_t>(node.int_attr("layer", 0)));
    Layer entry = layers[former.back()];
    entry.node = static_cast<NodeId>(i);
    node.attributes["layer"] = static_cast<std::int64_t>(live.size());
    live.push_back(std::move(entry));
  }
  layers = std::move(live);
  return former;
}

}  // namespace

Kept finish(RowGraph& rows) {
  // Inputs and outputs survive remove_dead in their order; the other ids change.
  Graph& graph = rows.graph;
  graph.inputs = {rows.tokens, rows.positions};
  if (rows.types != kNoValue) graph.inputs.push_back(rows.types);
  graph.outputs = {rows.output};
  remove_dead(graph);
  rows.tokens = graph.inputs[0];
  rows.positions = graph.inputs[1];
  if (rows.types != kNoValue) rows.types = graph.inputs[2];
  rows.output = graph.outputs[0];
  Kept kept{keep_live(graph, "RowAttention", rows.attention),
            keep_live(graph, "RowRecurrent", rows.recurrent)};
  for (RowRecurrent& layer : rows.recurrent) layer.keeps_states = rows.mixing != Mixing::kWhole;
  verify(graph);
  return kept;
}

}  // namespace kvik::graph
