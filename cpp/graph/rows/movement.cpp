// Row rules of operators that move elements: within a row they are views or small copies; along
// the token axis only what keeps every token in its place is row-wise.
#include <algorithm>

#include "graph/infer/rules.h"
#include "graph/rows/prover.h"

namespace kvik::graph {

namespace {

// Sets the output to the same stored elements under another layout.
void set_view(Prover& p, const Node& node, RowValue value, Layout layout) {
  value.layout = joined(layout, kFeatureRole);
  const std::vector<std::int64_t> dims = stored_dims(value.layout);
  if (value.rows) {
    value.id = p.reshaped(value.id, dims);
  } else {
    const DType dtype = p.source().value(node.outputs[0]).dtype;
    value.id = p.emit("Reshape", "", {value.id, p.constant_ints(dims)}, {}, dtype, dims, false,
                      p.source().value(node.outputs[0]).name);
  }
  p.set(node.outputs[0], std::move(value));
}

// Reshape, Squeeze, Unsqueeze, Flatten: the atoms regrouped by the inferred shape.
void regrouping(Prover& p, const Node& node) {
  RowValue value = p.get_repeated(node.input(0));
  const std::vector<Expr>& to = p.shape(node.outputs[0]);
  const auto layout = regroup(value.layout, to);
  if (!layout) stop(node.label() + " mixes the token axis with features");
  set_view(p, node, std::move(value), *layout);
}

void transpose(Prover& p, const Node& node) {
  RowValue value = p.get_repeated(node.input(0));
  const std::size_t rank = value.layout.size();
  std::vector<std::int64_t> perm = node.ints_attr("perm").value_or(std::vector<std::int64_t>{});
  if (perm.empty()) {
    for (std::size_t i = rank; i-- > 0;) perm.push_back(static_cast<std::int64_t>(i));
  }
  if (perm.size() != rank) stop(node.label() + " has a perm of the wrong length");
  Layout layout;
  const std::vector<std::int64_t> from = stored_dims(value.layout);
  std::int64_t last = -1;
  bool moves = false;  // whether stored elements change their order
  for (std::int64_t& axis : perm) {
    const auto normal = normalize_axis(axis, rank);
    if (!normal) stop(node.label() + " has an axis out of range");
    axis = *normal;
    layout.push_back(value.layout[static_cast<std::size_t>(axis)]);
    if (from[static_cast<std::size_t>(axis)] == 1) continue;
    moves = moves || axis < last;
    last = std::max(last, axis);
  }
  if (!moves) return set_view(p, node, std::move(value), std::move(layout));
  std::vector<std::int64_t> row_perm;
  if (value.rows) row_perm.push_back(0);
  for (const std::int64_t axis : perm) row_perm.push_back(axis + (value.rows ? 1 : 0));
  const Value& result = p.source().value(node.outputs[0]);
  value.id = p.emit("Transpose", "", {value.id}, {{"perm", row_perm}}, result.dtype,
                    stored_dims(layout), value.rows, result.name);
  value.layout = std::move(layout);
  p.set(node.outputs[0], std::move(value));
}

// The layout of a weight, repeated along axes of the batch: it is stored once.
Layout repeated_layout(const Prover& p, const Node& node, const std::vector<Expr>& shape) {
  std::vector<Expr> stored = shape;
  std::size_t batch = shape.size();
  for (std::size_t i = 0; i < shape.size(); ++i) {
    if (shape[i].constant()) continue;
    if (!p.is_batch(shape[i]) || batch < shape.size()) {
      stop(node.label() + " repeats a weight for every token");
    }
    batch = i;
    stored[i] = Expr(1);
  }
  Layout layout = feature_layout(stored);
  if (batch < shape.size()) layout[batch] = {{kBatchRole, shape[batch], false}};
  return layout;
}

// Expand adds atoms that are the same along their whole length; nothing is written out until an
// operator needs it. Of a weight, Tile is the same where it repeats axes of size 1.
void expand(Prover& p, const Node& node) {
  RowValue value = p.get_repeated(node.input(0));
  const std::vector<Expr>& to = p.shape(node.outputs[0]);
  if (!value.rows) {
    const Value& result = p.source().value(node.outputs[0]);
    RowValue out;
    out.rows = false;
    out.layout = repeated_layout(p, node, to);
    out.id = p.emit("Expand", "", {value.id, p.constant_ints(stored_dims(out.layout))}, {},
                    result.dtype, stored_dims(out.layout), false, result.name);
    return p.set(node.outputs[0], std::move(out));
  }
  const std::size_t added = to.size() - value.layout.size();
  Layout layout(added);
  layout.insert(layout.end(), value.layout.begin(), value.layout.end());
  for (std::size_t i = 0; i < to.size(); ++i) {
    if (axis_size(layout[i]) == to[i]) continue;
    if (!layout[i].empty()) stop(node.label() + " expands an axis that is not 1");
    if (p.is_token(to[i])) {
      layout[i] = {{kTokenRole, to[i], false}};
    } else if (p.is_batch(to[i])) {
      layout[i] = {{kBatchRole, to[i], false}};
    } else if (to[i].constant()) {
      layout[i] = {{kFeatureRole, to[i], true}};
    } else {
      stop(node.label() + " expands to a dimension of " + to[i].str());
    }
  }
  broadcast_layouts({&layout}, node.label());  // at most one token axis, one batch axis
  set_view(p, node, std::move(value), std::move(layout));
}

void tile(Prover& p, const Node& node) {
  const RowValue value = p.get_repeated(node.input(0));
  const std::vector<Expr>&from = p.shape(node.input(0)), &to = p.shape(node.outputs[0]);
  for (std::size_t i = 0; i < from.size(); ++i) {
    if (value.rows || !(from[i].is(1) || from[i] == to[i])) {
      stop(node.label() + " is not known to be row-wise");
    }
  }
  expand(p, node);
}

// The feature axis that an operator works along.
int feature_axis(const Prover& p, const Node& node, const RowValue& value, std::int64_t fallback) {
  const int axis = p.axis_attr(node, "axis", fallback, value.layout.size());
  if (!features_only(value.layout[static_cast<std::size_t>(axis)])) {
    stop(node.label() + " works along the token or batch axis");
  }
  return axis;
}

void concat(Prover& p, const Node& node) {
  std::vector<RowValue> inputs;
  bool rows = false;
  for (const ValueId id : node.inputs) {
    inputs.push_back(p.dense(p.get(id)));
    rows = rows || inputs.back().rows;
  }
  const int axis = feature_axis(p, node, inputs[0], 0);
  RowValue out = inputs[0];
  std::int64_t total = 0;
  std::vector<ValueId> ids;
  for (RowValue& input : inputs) {
    if (input.rows != rows) stop(node.label() + " joins weights to token rows");
    if (!features_only(input.layout[static_cast<std::size_t>(axis)])) {
      stop(node.label() + " works along the token or batch axis");
    }
    total += stored_dims(input.layout)[static_cast<std::size_t>(axis)];
    Layout rest = input.layout;
    rest[static_cast<std::size_t>(axis)].clear();
    Layout expected = out.layout;
    expected[static_cast<std::size_t>(axis)].clear();
    if (!(joined(rest, kFeatureRole) == joined(expected, kFeatureRole))) {
      stop(node.label() + " joins values whose axes do not correspond");
    }
    ids.push_back(input.id);
  }
  out.layout[static_cast<std::size_t>(axis)] = {{kFeatureRole, Expr(total), false}};
  const Value& result = p.source().value(node.outputs[0]);
  out.id = p.emit("Concat", "", std::move(ids), {{"axis", std::int64_t{axis + (rows ? 1 : 0)}}},
                  result.dtype, stored_dims(out.layout), rows, result.name);
  p.set(node.outputs[0], std::move(out));
}

// Elements [start, start + size) of a feature axis, by a Slice node.
RowValue sliced(Prover& p, const RowValue& value, int axis, std::int64_t start, std::int64_t size,
                std::int64_t step, const Value& result) {
  RowValue out = value;
  Axis& atoms = out.layout[static_cast<std::size_t>(axis)];
  atoms = size == 1 ? Axis{} : Axis{{kFeatureRole, Expr(size), false}};
  const std::int64_t row_axis = axis + (value.rows ? 1 : 0);
  out.id =
      p.emit("Slice", "",
             {value.id, p.constant_ints({start}), p.constant_ints({start + (size - 1) * step + 1}),
              p.constant_ints({row_axis}), p.constant_ints({step})},
             {}, result.dtype, stored_dims(out.layout), value.rows, result.name);
  return out;
}

void split(Prover& p, const Node& node) {
  const RowValue value = p.dense(p.get(node.input(0)));
  const int axis = feature_axis(p, node, value, 0);
  std::vector<std::int64_t> sizes;
  for (const ValueId id : node.outputs) {
    if (id == kNoValue) stop(node.label() + " leaves out an output");
    sizes.push_back(*p.shape(id)[static_cast<std::size_t>(axis)].constant());
  }
  Node out;
  Graph& graph = p.result().graph;
  out.op = "Split";
  out.name = node.name;
  out.inputs = {value.id, p.constant_ints(sizes)};
  out.attributes["axis"] = std::int64_t{axis + (value.rows ? 1 : 0)};
  for (std::size_t i = 0; i < sizes.size(); ++i) {
    RowValue part = value;
    part.layout[static_cast<std::size_t>(axis)] =
        sizes[i] == 1 ? Axis{} : Axis{{kFeatureRole, Expr(sizes[i]), false}};
    const Value& source = p.source().value(node.outputs[i]);
    part.id = graph.add_value(source.name, source.dtype);
    std::vector<Expr> shape;
    if (value.rows) shape.push_back(Expr::symbol("rows"));
    for (const std::int64_t dim : stored_dims(part.layout)) shape.emplace_back(dim);
    graph.value(part.id).shape = std::move(shape);
    out.outputs.push_back(part.id);
    p.set(node.outputs[i], std::move(part));
  }
  p.add(std::move(out));
}

// A table's rows [start, start + length of the sequence): each token reads the row of its position.
void slice_of_table(Prover& p, const Node& node, const RowValue& table, int axis,
                    std::int64_t start) {
  const std::int64_t size = *p.shape(node.input(0))[static_cast<std::size_t>(axis)].constant();
  p.limit_context(size - start,
                  node.label() + " reads a table of " + std::to_string(size) + " positions");
  const ValueId front = p.axis_to_front(table.id, axis);
  ValueId at = p.result().positions;
  if (start != 0) {
    at = p.emit("EvalIndex", "kvik", {at},
                {{"expr", Expr::index(0) + Expr(start)}, {"dims", std::vector<std::int64_t>{}}},
                DType::kI64, {}, true, "");
  }
  RowValue out;
  out.layout = table.layout;
  out.layout[static_cast<std::size_t>(axis)] = {
      {kTokenRole, p.shape(node.outputs[0])[static_cast<std::size_t>(axis)], false}};
  const std::vector<std::int64_t> dims = stored_dims(out.layout);
  std::vector<std::int64_t> gathered = dims;
  gathered.erase(gathered.begin() + axis);
  const Value& result = p.source().value(node.outputs[0]);
  const ValueId rows = p.emit("Gather", "", {front, at}, {{"axis", std::int64_t{0}}}, result.dtype,
                              gathered, true, result.name);
  out.id = p.reshaped(rows, dims);
  p.set(node.outputs[0], std::move(out));
}

void slice(Prover& p, const Node& node) {
  RowValue value = p.dense(p.get_repeated(node.input(0)));
  const auto& from = p.shape(node.input(0));
  const auto& to = p.shape(node.outputs[0]);
  const auto starts = p.content(node.input(1));
  const auto axes = p.source().constant_ints(node.input(3));
  const auto steps = p.source().constant_ints(node.input(4));
  const std::size_t count = p.shape(node.input(1))[0].constant().value_or(0);
  for (std::size_t i = 0; i < count; ++i) {
    const auto axis = normalize_axis(node.input(3) == kNoValue ? static_cast<std::int64_t>(i)
                                     : axes                    ? (*axes)[i]
                                                               : std::int64_t{99},
                                     from.size());
    const std::int64_t step = node.input(4) == kNoValue ? 1 : steps ? (*steps)[i] : 0;
    if (!axis || step == 0) stop(node.label() + " has axes or steps that are not constant");
    const auto a = static_cast<std::size_t>(*axis);
    const std::optional<std::int64_t> begin =
        starts ? starts->substitute({{0, Expr(static_cast<std::int64_t>(i))}}).constant()
               : std::nullopt;
    if (from[a] == to[a] && step == 1) continue;  // the whole axis
    if (!begin) stop(node.label() + " has a start that is not constant");
    const auto size = from[a].constant();
    if (!value.rows && size && p.is_token(to[a]) && step == 1 && *begin >= 0 && count == 1) {
      return slice_of_table(p, node, value, *axis, *begin);
    }
    if (!features_only(value.layout[a])) stop(node.label() + " cuts the token or batch axis");
    if (!size || !to[a].constant() || step < 0) {
      stop(node.label() + " cuts an axis of unknown size");
    }
    const std::int64_t start =
        std::clamp<std::int64_t>(*begin < 0 ? *begin + *size : *begin, 0, *size);
    if (to[a].is(0)) stop(node.label() + " cuts out nothing");
    value =
        sliced(p, value, *axis, start, *to[a].constant(), step, p.source().value(node.outputs[0]));
  }
  p.set(node.outputs[0], std::move(value));
}

}  // namespace

std::vector<RowEntry> rowwise_movement_rules() {
  return {{"", "Reshape", regrouping}, {"", "Squeeze", regrouping},  {"", "Unsqueeze", regrouping},
          {"", "Flatten", regrouping}, {"", "Transpose", transpose}, {"", "Expand", expand},
          {"", "Tile", tile},          {"", "Concat", concat},       {"", "Split", split},
          {"", "Slice", slice}};
}

}  // namespace kvik::graph
