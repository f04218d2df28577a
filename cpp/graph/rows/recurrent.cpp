// Row rules of LSTM, GRU and RNN: a recurrence along the tokens depends on the state after the
// token before, which the sequence keeps.
#include <algorithm>
#include <array>

#include "graph/rows/prover.h"

namespace kvik::graph {

namespace {

constexpr std::int64_t kMostUnits = 1 << 20;
constexpr std::array<std::size_t, 3> kScaleOf = {0, 8, 10};  // inputs with the scales of X, W and R

struct Recurrence {
  bool batch_first = false;
  bool forward = true;
  std::int64_t directions = 1;
  std::int64_t hidden = 0;
  std::int64_t states = 1;  // 2: h and c
};

// What a state is made of at the beginning: the operator's input, of [directions, batch, hidden].
struct FirstState {
  ValueId id = kNoValue;  // in the row graph, a weight [directions · hidden]; kNoValue: zeros
  bool from_source = false;
};

Recurrence describe_recurrence(Prover& p, const Node& node) {
  Recurrence r;
  const std::string direction = node.string_attr("direction", "forward");
  const auto hidden = p.shape(node.input(2)).back().constant();
  if (!hidden || *hidden < 1 || *hidden > kMostUnits) {
    stop(node.label() + " has an unknown number of hidden units");
  }
  r.batch_first = node.int_attr("layout", 0) != 0;
  r.forward = direction == "forward";
  r.directions = direction == "bidirectional" ? 2 : 1;
  r.hidden = *hidden;
  r.states = node.op == "LSTM" ? 2 : 1;
  if (!r.forward && !p.may_read_later()) {
    stop(node.label() + " is " + direction + ": its state comes from later tokens");
  }
  return r;
}

// X is [tokens, batch, features], or [batch, tokens, features].
RowValue recurrent_input(Prover& p, const Node& node, bool batch_first) {
  RowValue x = p.dense(p.get(node.input(0)));
  if (x.layout.size() != 3) stop(node.label() + " has an input X that is not of rank 3");
  const Axis& steps = x.layout[batch_first ? 1 : 0];
  const Axis& batch = x.layout[batch_first ? 0 : 1];
  if (has_role(steps, kBatchRole)) {
    stop(node.label() + " runs along the batch: texts would meet in its state");
  }
  if (!x.rows || !exactly_tokens(steps)) stop(node.label() + " does not run along the tokens");
  const bool one_each = batch.empty() || (batch.size() == 1 && batch[0].role == kBatchRole);
  if (!one_each || !features_only(x.layout[2])) {
    stop(node.label() + " has an input X whose axes are not " +
         (batch_first ? "[batch, tokens, features]" : "[tokens, batch, features]"));
  }
  return x;
}

void check_lengths(Prover& p, const Node& node) {
  if (node.input(4) == kNoValue) return;
  const auto lengths = p.content(node.input(4));
  if (!lengths || !(*lengths == p.token())) {
    stop(node.label() + " has sequence_lens that are not proved to be the length of the sequence");
  }
}

ValueId recurrent_weight(Prover& p, const Node& node, std::size_t input) {
  if (node.input(input) == kNoValue) return kNoValue;
  if (p.source().constant(node.input(input)) == nullptr) {
    stop(node.label() + " has weights that are computed");
  }
  return p.get(node.input(input)).id;
}

// Contents that are the same for every text, written out; kNoValue: all of them are zero.
ValueId written_state(Prover& p, const Node& node, const Recurrence& r, const Expr& content) {
  std::vector<float> values;
  bool zero = true;
  for (std::int64_t d = 0; d < r.directions; ++d) {
    for (std::int64_t i = 0; i < r.hidden; ++i) {
      const auto at = content.substitute({{r.batch_first ? 1 : 0, Expr(d)}, {2, Expr(i)}});
      const auto value = at.real_constant();
      if (!value) stop(node.label() + " begins with a state that differs between texts");
      values.push_back(*value);
      zero = zero && *value == 0.0F;
    }
  }
  if (zero) return kNoValue;
  return p.result().graph.add_constant(
      "", ConstantTensor::from_floats(values, Dims{r.directions * r.hidden}));
}

FirstState first_state(Prover& p, const Node& node, std::size_t input, const Recurrence& r) {
  const ValueId id = node.input(input);
  if (id == kNoValue) return {};
  if (p.is_other(id)) return {.from_source = true};
  if (const auto content = p.content(id)) return {written_state(p, node, r, *content)};
  RowValue value = p.get_repeated(id);
  if (value.rows) stop(node.label() + " begins with a state that is computed from the tokens");
  const std::vector<Expr>& shape = p.shape(id);
  const std::size_t batch = r.batch_first ? 0 : 1;
  const bool fits = shape.size() == 3 && features_only(value.layout[1 - batch]) &&
                    shape[1 - batch].is(r.directions) && shape[2].is(r.hidden) &&
                    (value.layout[batch].empty() || has_role(value.layout[batch], kBatchRole));
  if (!fits) stop(node.label() + " begins with a state that is not of its size");
  return {value.id};
}

// The state after the last step, which is one token's row.
RowValue last_state(Prover& p, const Recurrence& r, const RowValue& rows) {
  RowValue last;
  last.id = p.pick(rows.id, r.forward ? -1 : 0);
  last.layout = rows.layout;  // [tokens, directions, batch, hidden], or [batch, tokens, ...]
  last.layout.erase(last.layout.begin() + (r.batch_first ? 1 : 0));
  last.id = p.reshaped(last.id, stored_dims(last.layout));
  return last;
}

void set_last_state(Prover& p, const Node& node, std::size_t output, const Recurrence& r,
                    const RowValue& rows) {
  const ValueId id = node.output(output);
  if (id == kNoValue) return;
  if (!p.may_read_later()) {
    return p.refuse(id, node.label() + " gives its last state, which depends on every token");
  }
  if (r.directions == 2) {
    return p.refuse(id, node.label() + " gives the last states of both directions, which are " +
                            "those of two tokens");
  }
  p.set(id, last_state(p, r, rows));
}

void recurrent(Prover& p, const Node& node) {
  for (const std::size_t i : {0U, 1U, 2U}) {
    if (node.input(i) == kNoValue) stop(node.label() + " lacks its input " + "XWR"[i]);
    const auto& shape = p.source().value(node.input(i)).shape;
    if (i > 0 && (!shape || shape->size() != 3)) {
      stop(node.label() + " has an input " + "XWR"[i] + " that is not of rank 3");
    }
    const bool integers = i > 0 && node.input(kScaleOf[i]) != kNoValue;
    if (!integers && p.source().value(node.input(i)).dtype != DType::kF32) {
      stop(node.label() + " is not of float32");
    }
  }
  const Recurrence r = describe_recurrence(p, node);
  RowValue x = recurrent_input(p, node, r.batch_first);
  check_lengths(p, node);
  const FirstState h = first_state(p, node, 5, r);
  const FirstState c = r.states == 2 ? first_state(p, node, 6, r) : FirstState{};
  const bool from_source = h.from_source || c.from_source;

  RowRecurrent entry;
  entry.width = r.states * r.directions * r.hidden;
  Graph& graph = p.result().graph;
  Node out;
  out.op = "RowRecurrent";
  out.domain = "kvik";
  out.name = node.name;
  out.attributes = node.attributes;
  out.attributes["cell"] = std::string(node.op);
  out.attributes["layer"] = static_cast<std::int64_t>(p.result().recurrent.size());
  out.inputs = {x.id,
                recurrent_weight(p, node, 1),
                recurrent_weight(p, node, 2),
                recurrent_weight(p, node, 3),
                kNoValue,
                h.id,
                c.id,
                r.states == 2 ? recurrent_weight(p, node, 7) : kNoValue};
  // Of kvik.LSTM, kvik.GRU and kvik.RNN: scales and zero points of W and R.
  for (std::size_t i = out.inputs.size(); i < node.inputs.size(); ++i) {
    out.inputs.push_back(recurrent_weight(p, node, i));
  }

  // Y: [tokens, directions, batch, hidden], or [batch, tokens, directions, hidden].
  RowValue y = x;
  const Axis units = r.hidden == 1 ? Axis{} : Axis{{kFeatureRole, Expr(r.hidden), false}};
  const Axis directions =
      r.directions == 1 ? Axis{} : Axis{{kFeatureRole, Expr(r.directions), false}};
  y.layout[2] = units;
  y.layout.insert(y.layout.begin() + (r.batch_first ? 2 : 1), directions);
  const std::vector<std::int64_t> dims = stored_dims(y.layout);
  RowValue cells = y;
  const bool keeps_cells = r.states == 2 && p.may_read_later() && node.output(2) != kNoValue;
  for (RowValue* value : {&y, &cells}) {
    if (value == &cells && !keeps_cells) continue;
    const ValueId named = node.output(0);
    const std::string name = named == kNoValue ? node.name : p.source().value(named).name;
    value->id = graph.add_value(value == &y ? name : name + " cells", DType::kF32);
    std::vector<Expr> shape{Expr::symbol("rows")};
    for (const std::int64_t dim : dims) shape.emplace_back(dim);
    graph.value(value->id).shape = std::move(shape);
    out.outputs.push_back(value->id);
  }
  p.add(std::move(out));
  if (from_source) p.initials.push_back({&node, p.result().recurrent.size()});
  if (!r.forward) p.result().mixing = Mixing::kWhole;
  p.result().recurrent.push_back(entry);
  p.notes.push_back("recurrence '" + node.name + "': " + node.op + " of " +
                    std::to_string(r.hidden) + " units, " +
                    (r.forward           ? "goes on from the state after the token before"
                     : r.directions == 2 ? "reads the whole sequence in both directions"
                                         : "reads the whole sequence from its end") +
                    (from_source ? "; begins with a state of the source" : ""));
  p.set(node.output(0), y);
  set_last_state(p, node, 1, r, y);
  if (r.states == 2) set_last_state(p, node, 2, r, cells);
}

}  // namespace

std::vector<RowEntry> rowwise_recurrent_rules() {
  return {{"", "LSTM", recurrent},     {"", "GRU", recurrent},     {"", "RNN", recurrent},
          {"kvik", "LSTM", recurrent}, {"kvik", "GRU", recurrent}, {"kvik", "RNN", recurrent}};
}

}  // namespace kvik::graph
