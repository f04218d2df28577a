// Row rules of operators that look elements up by index: an embedding table indexed per token, or
// constant indices along feature axes.
#include <algorithm>

#include "graph/infer/rules.h"
#include "graph/rows/prover.h"

namespace kvik::graph {

namespace {

// Positions that index a table bound the length of the sequence.
void limit_by_table(Prover& p, const Node& node, const RowValue& at,
                    const std::optional<Expr>& content, std::int64_t size) {
  if (!content) return;
  for (int i = 0; i < static_cast<int>(at.layout.size()); ++i) {
    if (!has_role(at.layout[static_cast<std::size_t>(i)], kTokenRole)) continue;
    if (const auto offset = (*content - Expr::index(i)).constant(); offset && *offset >= 0) {
      p.limit_context(size - *offset,
                      node.label() + " reads a table of " + std::to_string(size) + " positions");
    }
  }
}

// One token of each sequence, an encoder's first or a decoder's last: what is left of the token
// axis are `ones` axes of size 1.
RowValue picked_token(Prover& p, const Node& node, RowValue data, int axis, std::size_t ones) {
  const auto at = p.content(node.input(1));
  const bool first = at && (at->is(0) || *at == Expr(0) - p.token());
  const bool last = at && (at->is(-1) || *at == p.token() - Expr(1));
  if (!p.may_read_later() || (!first && !last)) {
    stop(node.label() + " picks from the token or batch axis");
  }
  data.id = p.pick(data.id, first ? 0 : -1);
  const auto place = data.layout.erase(data.layout.begin() + axis);
  data.layout.insert(place, ones, Axis{});
  data.id = p.reshaped(data.id, stored_dims(data.layout));
  return data;
}

// The elements `at` of data's axis, as Gather has it; `content` is that of the indices. `data` and
// `at` are dense.
RowValue picked(Prover& p, const Node& node, const RowValue& data, const RowValue& at, int axis,
                const std::optional<Expr>& content) {
  const auto a = static_cast<std::size_t>(axis);
  const Value& result = p.source().value(node.outputs[0]);
  RowValue out;
  out.layout.assign(data.layout.begin(), data.layout.begin() + axis);
  out.layout.insert(out.layout.end(), at.layout.begin(), at.layout.end());
  out.layout.insert(out.layout.end(), data.layout.begin() + axis + 1, data.layout.end());
  broadcast_layouts({&out.layout}, node.label());
  const std::vector<std::int64_t> dims = stored_dims(out.layout);

  if (data.rows) {
    if (at.rows) stop(node.label() + " indexes token rows by token rows");
    if (!features_only(data.layout[a])) stop(node.label() + " picks from the token or batch axis");
    out.id = p.emit("Gather", "", {data.id, at.id}, {{"axis", std::int64_t{axis + 1}}},
                    result.dtype, dims, true, result.name);
    return out;
  }
  out.rows = at.rows;
  if (!at.rows) {
    out.id = p.emit("Gather", "", {data.id, at.id}, {{"axis", std::int64_t{axis}}}, result.dtype,
                    dims, false, result.name);
    return out;
  }
  const auto leading = stored_dims(Layout(data.layout.begin(), data.layout.begin() + axis));
  const auto indices = stored_dims(at.layout);
  const bool one_each = std::all_of(indices.begin(), indices.end(), [](auto d) { return d == 1; });
  const bool no_leading =
      std::all_of(leading.begin(), leading.end(), [](auto d) { return d == 1; });
  if (!no_leading && !one_each) stop(node.label() + " picks several entries per token");
  limit_by_table(p, node, at, content, *axis_size(data.layout[a]).constant());

  const ValueId front = p.axis_to_front(data.id, axis);
  std::vector<std::int64_t> gathered = indices;
  for (std::size_t i = 0; i < data.layout.size(); ++i) {
    if (i != a) gathered.push_back(stored_dims(data.layout)[i]);
  }
  const ValueId rows = p.emit("Gather", "", {front, at.id}, {{"axis", std::int64_t{0}}},
                              result.dtype, gathered, true, result.name);
  out.id = p.reshaped(rows, dims);
  return out;
}

void gather(Prover& p, const Node& node) {
  const RowValue data = p.dense(p.get(node.input(0)));
  const int axis = p.axis_attr(node, "axis", 0, data.layout.size());
  if (data.rows && exactly_tokens(data.layout[static_cast<std::size_t>(axis)])) {
    const std::vector<Expr>& dims = p.shape(node.input(1));
    const bool one = std::all_of(dims.begin(), dims.end(), [](const Expr& d) { return d.is(1); });
    if (!one) stop(node.label() + " picks several tokens");
    return p.set(node.outputs[0], picked_token(p, node, data, axis, dims.size()));
  }
  const RowValue at = p.dense(p.get(node.input(1)));
  p.set(node.outputs[0], picked(p, node, data, at, axis, p.content(node.input(1))));
}

// kvik.Embedding(table, ids, scale?, zero?): a row of the table for each id.
void embedding(Prover& p, const Node& node) {
  const RowValue at = p.dense(p.get(node.input(1)));
  std::vector<ValueId> inputs;
  for (std::size_t i = 0; i < node.inputs.size(); ++i) {
    const RowValue value = i == 1 ? at : p.get(node.inputs[i]);
    if (i != 1 && value.rows && node.inputs[i] != kNoValue) {
      stop(node.label() + " looks up in a table per token");
    }
    inputs.push_back(value.id);
  }
  const std::vector<Expr>& table = p.shape(node.input(0));
  limit_by_table(p, node, at, p.content(node.input(1)), *table[0].constant());
  RowValue out = at;
  const Expr& width = table[1];
  out.layout.push_back(width.is(1) ? Axis{} : Axis{{kFeatureRole, width, false}});
  std::vector<std::int64_t> dims = stored_dims(at.layout);
  dims.push_back(*width.constant());
  const Value& result = p.source().value(node.outputs[0]);
  out.id = p.emit("Embedding", "kvik", std::move(inputs), node.attributes, result.dtype, dims,
                  at.rows, result.name);
  p.set(node.outputs[0], std::move(out));
}

// The same value under another layout of its stored elements, with dimensions `dims`.
RowValue viewed(Prover& p, RowValue value, Layout layout, const std::vector<std::int64_t>& dims) {
  value.layout = std::move(layout);
  if (value.rows) {
    value.id = p.reshaped(value.id, dims);
    return value;
  }
  const DType dtype = p.result().graph.value(value.id).dtype;
  const std::string name = p.result().graph.value(value.id).name;
  value.id = p.emit("Reshape", "", {value.id, p.constant_ints(dims)}, {}, dtype, dims, false, name);
  return value;
}

// Constant index vectors [..., depth] into the leading `depth` axes of data, as row-major offsets.
RowValue linear_offsets(Prover& p, const Node& node, const std::vector<std::int64_t>& sizes) {
  const auto indices = p.source().constant_ints(node.input(1));
  if (!indices) stop(node.label() + " picks by several indices that are not constant");
  std::vector<std::int64_t> offsets;
  for (std::size_t i = 0; i < indices->size(); i += sizes.size()) {
    std::int64_t offset = 0;
    for (std::size_t axis = 0; axis < sizes.size(); ++axis) {
      std::int64_t at = (*indices)[i + axis];
      if (at < 0) at += sizes[axis];
      if (at < 0 || at >= sizes[axis]) stop(node.label() + " has an index out of range");
      offset = offset * sizes[axis] + at;
    }
    offsets.push_back(offset);
  }
  std::vector<Expr> shape = p.shape(node.input(1));
  shape.pop_back();
  RowValue at;
  at.rows = false;
  at.layout = feature_layout(shape);
  const auto dims = stored_dims(at.layout);
  at.id = p.result().graph.add_constant(
      "", ConstantTensor::from_ints(offsets, Dims(std::span<const std::int64_t>(dims))));
  return at;
}

// GatherND: along one axis it is Gather; constant vectors of indices pick from the features that
// the leading axes hold together.
void gather_nd(Prover& p, const Node& node) {
  if (node.int_attr("batch_dims", 0) != 0) stop(node.label() + " has batch axes");
  const auto depth = p.shape(node.input(1)).back().constant();
  RowValue data = p.dense(p.get(node.input(0)));
  if (!depth || *depth < 1 || *depth > static_cast<std::int64_t>(data.layout.size())) {
    stop(node.label() + " has indices of unknown depth");
  }
  if (*depth == 1) {
    RowValue at = p.dense(p.get(node.input(1)));
    auto content = p.content(node.input(1));
    const int last = static_cast<int>(at.layout.size()) - 1;
    if (content) content = content->substitute({{last, Expr(0)}});
    Layout layout(at.layout.begin(), at.layout.end() - 1);
    const auto dims = stored_dims(layout);
    at = viewed(p, std::move(at), std::move(layout), dims);
    return p.set(node.outputs[0], picked(p, node, data, at, 0, content));
  }
  const auto taken = static_cast<std::size_t>(*depth);
  Axis together;
  std::vector<std::int64_t> sizes;
  for (std::size_t i = 0; i < taken; ++i) {
    if (!features_only(data.layout[i])) stop(node.label() + " picks from the token or batch axis");
    together.insert(together.end(), data.layout[i].begin(), data.layout[i].end());
    sizes.push_back(*axis_size(data.layout[i]).constant());
  }
  Layout layout{together};
  layout.insert(layout.end(), data.layout.begin() + *depth, data.layout.end());
  const auto dims = stored_dims(layout);
  data = viewed(p, std::move(data), std::move(layout), dims);
  const RowValue at = linear_offsets(p, node, sizes);
  p.set(node.outputs[0], picked(p, node, data, at, 0, std::nullopt));
}

// GatherElements whose indices differ along its own axis alone, and span all of the others, is
// Gather: out[i, j, k] = data[i, at[j], k].
void gather_elements(Prover& p, const Node& node) {
  const RowValue data = p.dense(p.get(node.input(0)));
  const int axis = p.axis_attr(node, "axis", 0, data.layout.size());
  const auto& from = p.shape(node.input(0));
  const auto& to = p.shape(node.input(1));
  if (from.size() != to.size()) stop(node.label() + " has indices of another rank than its data");
  if (data.rows && exactly_tokens(data.layout[static_cast<std::size_t>(axis)])) {
    for (std::size_t i = 0; i < to.size(); ++i) {
      if (!(static_cast<int>(i) == axis ? to[i].is(1) : to[i] == from[i])) {
        stop(node.label() + " picks several tokens");
      }
    }
    return p.set(node.outputs[0], picked_token(p, node, data, axis, 1));
  }
  RowValue at = p.get(node.input(1));
  for (std::size_t i = 0; i < at.layout.size(); ++i) {
    if (static_cast<int>(i) == axis) continue;
    const bool alike = std::all_of(at.layout[i].begin(), at.layout[i].end(), [](const Atom& a) {
      return a.broadcast && a.role == kFeatureRole;
    });
    if (!alike || !(from[i] == to[i])) {
      stop(node.label() + " has indices that differ along more than one axis");
    }
  }
  auto content = p.content(node.input(1));
  if (content) {
    std::map<int, Expr> indices;
    for (int i = 0; i < static_cast<int>(at.layout.size()); ++i) {
      indices.emplace(i, i == axis ? Expr::index(0) : Expr(0));
    }
    content = content->substitute(indices);
  }
  Layout layout{at.layout[static_cast<std::size_t>(axis)]};
  const auto dims = stored_dims(layout);
  at = p.dense(viewed(p, std::move(at), std::move(layout), dims));
  p.set(node.outputs[0], picked(p, node, data, at, axis, content));
}

}  // namespace

std::vector<RowEntry> rowwise_indexing_rules() {
  return {{"", "Gather", gather},
          {"", "GatherND", gather_nd},
          {"", "GatherElements", gather_elements},
          {"kvik", "Embedding", embedding}};
}

}  // namespace kvik::graph
