#include "graph/rows/prover.h"

#include <algorithm>
#include <unordered_map>

#include "graph/infer/rules.h"

namespace kvik::graph {

void stop(const std::string& reason) {
  throw ProofStop{reason};
}

bool has_role(const Axis& axis, int role) {
  return std::any_of(axis.begin(), axis.end(), [role](const Atom& a) { return a.role == role; });
}

bool exactly_tokens(const Axis& axis) {
  return axis.size() == 1 && axis[0].role == kTokenRole;
}

bool features_only(const Axis& axis) {
  return !has_role(axis, kBatchRole) && !has_role(axis, kTokenRole);
}

std::vector<std::int64_t> stored_dims(const Layout& layout) {
  std::vector<std::int64_t> dims;
  for (const Axis& axis : layout) {
    std::int64_t size = 1;
    for (const Atom& atom : axis) {
      if (atom.role == kFeatureRole && !atom.broadcast) size *= *atom.size.constant();
    }
    dims.push_back(size);
  }
  return dims;
}

Layout feature_layout(const std::vector<Expr>& shape) {
  Layout layout;
  for (const Expr& dim : shape) {
    if (!dim.constant()) stop("a dimension of " + dim.str() + " has no known size");
    layout.push_back(dim.is(1) ? Axis{} : Axis{{kFeatureRole, dim, false}});
  }
  return layout;
}

Layout broadcast_layouts(const std::vector<const Layout*>& layouts, const std::string& where) {
  std::size_t rank = 0;
  for (const Layout* layout : layouts) rank = std::max(rank, layout->size());
  Layout out(rank);
  for (const Layout* layout : layouts) {
    const Layout merged = joined(*layout, kFeatureRole);
    for (std::size_t i = 0; i < merged.size(); ++i) {
      Axis& axis = out[rank - merged.size() + i];
      if (merged[i].empty() || axis == merged[i]) continue;
      if (!axis.empty()) stop(where + " combines axes that do not correspond");
      axis = merged[i];
    }
  }
  const auto count = [&out](int role) {
    return std::count_if(out.begin(), out.end(),
                         [role](const Axis& axis) { return has_role(axis, role); });
  };
  if (count(kTokenRole) > 1) stop(where + " combines every token with every other");
  if (count(kBatchRole) > 1) stop(where + " combines every batch entry with every other");
  return out;
}

Prover::Prover(const Graph& source, const Contents& contents, std::optional<Expr> batch, Expr token,
               Mixing mixing)
    : source_(source),
      contents_(contents),
      batch_(std::move(batch)),
      token_(std::move(token)),
      mixing_(mixing),
      values_(source.values.size()) {}

const std::vector<Expr>& Prover::shape(ValueId id) const {
  const Value& value = source_.value(id);
  if (!value.shape) stop("the shape of '" + value.name + "' does not follow from the inputs");
  return *value.shape;
}

std::optional<Expr> Prover::content(ValueId id) const {
  return id == kNoValue ? std::nullopt : contents_[static_cast<std::size_t>(id)];
}

int Prover::axis_attr(const Node& node, std::string_view key, std::int64_t fallback,
                      std::size_t rank) const {
  const auto axis = normalize_axis(node.int_attr(key, fallback), rank);
  if (!axis) stop(node.label() + " has an axis out of range");
  return *axis;
}

void Prover::set(ValueId source_id, RowValue value) {
  if (source_id == kNoValue) return;
  value.layout = joined(value.layout, kFeatureRole);
  if (value.rows && picked(value.id) &&
      std::any_of(value.layout.begin(), value.layout.end(),
                  [](const Axis& axis) { return has_role(axis, kTokenRole); })) {
    stop("'" + source_.value(source_id).name + "' repeats one token of each sequence for all");
  }
  values_[static_cast<std::size_t>(source_id)] = std::move(value);
}

RowValue Prover::get(ValueId id) {
  RowValue value = get_repeated(id);
  const bool repeated = !value.rows && std::any_of(value.layout.begin(), value.layout.end(),
                                                   [](const Axis& a) { return !features_only(a); });
  if (!repeated) return value;
  if (const auto content = this->content(id)) return from_content(id, *content);
  stop("'" + source_.value(id).name + "' is a weight, repeated for every text");
}

void Prover::refuse(ValueId source_id, const std::string& reason) {
  if (source_id != kNoValue) refused_.emplace(source_id, reason);
}

RowValue Prover::get_repeated(ValueId id) {
  if (id == kNoValue) return {};
  auto& known = values_[static_cast<std::size_t>(id)];
  if (!known) {
    if (is_other(id)) stop("'" + source_.value(id).name + "' belongs to the source");
    if (const auto it = refused_.find(id); it != refused_.end()) stop(it->second);
    if (source_.value(id).constant) {
      known = from_constant(id);
    } else if (const auto content = this->content(id)) {
      known = from_content(id, *content);
    } else {
      stop("'" + source_.value(id).name + "' is not computed row by row");
    }
  }
  return *known;
}

RowValue Prover::from_constant(ValueId id) {
  const Value& value = source_.value(id);
  RowValue out;
  out.rows = false;
  out.id = result_.graph.add_value(value.name, value.dtype);
  result_.graph.value(out.id).constant = value.constant;
  result_.graph.value(out.id).shape = value.shape;
  out.layout = feature_layout(shape(id));
  return out;
}

RowValue Prover::from_content(ValueId id, const Expr& content) {
  const Value& value = source_.value(id);
  RowValue out;
  std::map<int, Expr> indices;  // source axis -> 0: position, 1..: stored feature axes
  int features = 0;
  for (const Expr& dim : shape(id)) {
    const int axis = static_cast<int>(out.layout.size());
    Axis atoms;
    if (is_token(dim)) {
      atoms = {{kTokenRole, dim, false}};
      indices.emplace(axis, Expr::index(0));
    } else if (is_batch(dim)) {
      if (content.has_index(axis)) stop("'" + value.name + "' depends on the place in the batch");
      atoms = {{kBatchRole, dim, false}};
    } else if (dim.constant()) {
      const bool same = !content.has_index(axis);  // written out only where it has to be
      if (!dim.is(1)) atoms = {{kFeatureRole, dim, same}};
      indices.emplace(axis, same || dim.is(1) ? Expr(0) : Expr::index(++features));
    } else {
      stop("'" + value.name + "' has a dimension of " + dim.str());
    }
    out.layout.push_back(std::move(atoms));
  }
  if (features >= 7) stop("'" + value.name + "' has too many axes");
  broadcast_layouts({&out.layout}, "'" + value.name + "'");
  const Expr at = content.substitute(indices);
  if (at.has_symbol()) {
    stop("'" + value.name + "' depends on the length of the whole sequence (" + at.str() + ")");
  }
  const std::vector<std::int64_t> dims = stored_dims(out.layout);
  if (at == Expr::index(0) && value.dtype == DType::kI64) {
    out.id = reshaped(result_.positions, dims);
  } else {
    out.id = emit("EvalIndex", "kvik", {result_.positions}, {{"expr", at}, {"dims", dims}},
                  value.dtype, dims, true, value.name);
  }
  return out;
}

ValueId Prover::constant_ints(const std::vector<std::int64_t>& values) {
  return result_.graph.add_constant(
      "", ConstantTensor::from_ints(values, Dims{static_cast<std::int64_t>(values.size())}));
}

ValueId Prover::emit(std::string_view op, std::string_view domain, std::vector<ValueId> inputs,
                     const std::map<std::string, Attribute, std::less<>>& attributes, DType dtype,
                     const std::vector<std::int64_t>& dims, bool rows, const std::string& name) {
  Graph& graph = result_.graph;
  const ValueId out = graph.add_value(name, dtype);
  std::vector<Expr> shape;
  if (rows) shape.push_back(Expr::symbol("rows"));
  for (const std::int64_t dim : dims) shape.emplace_back(dim);
  graph.value(out).shape = std::move(shape);
  Node node;
  node.op = op;
  node.domain = domain;
  node.name = name;
  node.inputs = std::move(inputs);
  node.outputs = {out};
  node.attributes = attributes;
  add(std::move(node));
  return out;
}

void Prover::add(Node node) {
  Graph& graph = result_.graph;
  std::optional<std::int64_t> token;
  bool every = false;
  for (const ValueId id : node.inputs) {
    if (id == kNoValue) continue;
    const auto& shape = graph.value(id).shape;
    if (!shape || shape->empty() || shape->front().constant()) continue;  // no rows
    const auto at = picked(id);
    if (at && token && *at != *token) stop(node.label() + " combines two tokens of each sequence");
    every = every || !at;
    if (at) token = at;
  }
  if (token && every) stop(node.label() + " combines one token of each sequence with all");
  if (token) {
    for (const ValueId id : node.outputs) picked_.emplace(id, *token);
  }
  graph.nodes.push_back(std::move(node));
}

ValueId Prover::unpicked(ValueId id) {
  Graph& graph = result_.graph;
  const ValueId out = graph.add_value(graph.value(id).name, graph.value(id).dtype);
  graph.value(out).shape = graph.value(id).shape;
  Node node;
  node.op = "Identity";
  node.name = graph.value(id).name;
  node.inputs = {id};
  node.outputs = {out};
  graph.nodes.push_back(std::move(node));
  return out;
}

ValueId Prover::pick(ValueId id, std::int64_t token) {
  if (picked(id)) stop("'" + result_.graph.value(id).name + "' is one token's already");
  const ValueId out = unpicked(id);
  picked_.emplace(out, token);
  return out;
}

std::optional<std::int64_t> Prover::picked(ValueId id) const {
  const auto found = picked_.find(id);
  return found == picked_.end() ? std::nullopt : std::optional(found->second);
}

ValueId Prover::reshaped(ValueId id, const std::vector<std::int64_t>& dims) {
  const Value& value = result_.graph.value(id);
  const std::vector<Expr>& now = *value.shape;
  if (now.size() == dims.size() + 1 && std::equal(dims.begin(), dims.end(), now.begin() + 1)) {
    return id;
  }
  std::vector<std::int64_t> target{-1};
  target.insert(target.end(), dims.begin(), dims.end());
  const DType dtype = value.dtype;
  const std::string name = value.name;
  return emit("Reshape", "", {id, constant_ints(target)}, {}, dtype, dims, true, name);
}

ValueId Prover::axis_to_front(ValueId id, int axis) {
  const Value& value = result_.graph.value(id);
  std::vector<std::int64_t> perm{axis};
  std::vector<std::int64_t> dims{*(*value.shape)[static_cast<std::size_t>(axis)].constant()};
  for (int i = 0; i < static_cast<int>(value.shape->size()); ++i) {
    if (i == axis) continue;
    perm.push_back(i);
    dims.push_back(*(*value.shape)[static_cast<std::size_t>(i)].constant());
  }
  if (axis == 0) return id;
  const DType dtype = value.dtype;
  const std::string name = value.name;
  return emit("Transpose", "", {id}, {{"perm", perm}}, dtype, dims, false, name);
}

RowValue Prover::dense(RowValue value) {
  const auto written_out = [](const Layout& layout) {
    return std::none_of(layout.begin(), layout.end(), [](const Axis& axis) {
      return std::any_of(axis.begin(), axis.end(), [](const Atom& atom) {
        return atom.broadcast && atom.role == kFeatureRole;
      });
    });
  };
  if (!value.rows || written_out(value.layout)) return value;
  // [rows, atoms with broadcast ones as 1] -> Expand -> regrouped by axis.
  std::vector<std::int64_t> narrow;
  std::vector<std::int64_t> wide;
  for (Axis& axis : value.layout) {
    for (Atom& atom : axis) {
      if (atom.role != kFeatureRole) continue;
      narrow.push_back(atom.broadcast ? 1 : *atom.size.constant());
      wide.push_back(*atom.size.constant());
      atom.broadcast = false;
    }
  }
  if (wide.size() > 6) stop("'" + result_.graph.value(value.id).name + "' has too many axes");
  std::vector<std::int64_t> target{1};
  target.insert(target.end(), wide.begin(), wide.end());
  const ValueId source = reshaped(value.id, narrow);
  const DType dtype = result_.graph.value(source).dtype;
  const std::string name = result_.graph.value(source).name;
  const ValueId expanded =
      emit("Expand", "", {source, constant_ints(target)}, {}, dtype, wide, true, name);
  value.id = reshaped(expanded, stored_dims(value.layout));
  return value;
}

void Prover::limit_context(std::int64_t limit, const std::string& why) {
  if (result_.context_limit != 0 && result_.context_limit <= limit) return;
  result_.context_limit = limit;
  notes.push_back("context limit " + std::to_string(limit) + ": " + why);
}

RowRule find_row_rule(std::string_view domain, std::string_view op) {
  static const auto kRules = [] {
    std::unordered_map<std::string, RowRule> rules;
    for (const auto& family :
         {rowwise_elementwise_rules(), rowwise_movement_rules(), rowwise_indexing_rules(),
          rowwise_compute_rules(), rowwise_attention_rules(), rowwise_recurrent_rules()}) {
      for (const RowEntry& entry : family) {
        rules.emplace(std::string(entry.domain) + ":" + std::string(entry.op), entry.rule);
      }
    }
    return rules;
  }();
  const auto it = kRules.find(std::string(domain) + ":" + std::string(op));
  return it == kRules.end() ? nullptr : it->second;
}

}  // namespace kvik::graph
