// Graphs, bodies and names. Nodes are in node_importer.cpp.
#include "onnx/graph_importer.h"

#include <set>

#include "base/fail.h"
#include "base/text.h"
#include "graph/bodies.h"
#include "kvik/error.h"
#include "onnx/value_flags.h"

namespace kvik::onnx {

using graph::Expr;
using graph::Graph;
using graph::kNoValue;
using graph::Value;
using graph::ValueId;

namespace {

// What a value costs besides its name: itself, its place in the maps of names, its flags.
constexpr std::int64_t kValueCost = static_cast<std::int64_t>(sizeof(Value)) + 96;
constexpr std::int64_t kDimCost = 256;  // an expression of one symbol

constexpr std::size_t kShownMissing = 1000;  // operators listed in the error

}  // namespace

void GraphImporter::add_function(FunctionView view, OpsetMap opsets) {
  const auto key = std::tuple(view.domain, view.name, view.overload);
  const std::string name = bare(view.domain) + "." + bare(view.name);
  if (view.name.empty()) fail_model("a function without a name");
  if (!functions_.emplace(key, Function{std::move(view), std::move(opsets)}).second) {
    fail_model("function " + name + " is defined twice");
  }
}

bool GraphImporter::has_function_domain(std::string_view domain) const {
  const auto it =
      functions_.lower_bound(std::tuple(domain, std::string_view(), std::string_view()));
  return it != functions_.end() && std::get<0>(it->first) == domain;
}

Graph GraphImporter::import_main(Bytes bytes, const OpsetMap& opsets) {
  const GraphView view = parse_graph(source_, bytes);
  if (view.outputs.empty()) fail_model("the graph has no outputs");
  Graph graph;
  graph.name = view.name;
  GraphState state;
  state.graph = &graph;
  Scope scope;
  scope.state = &state;
  scope.opsets = &opsets;
  state.root = &scope;
  import_content(scope, view, true);
  if (!missing_.empty()) {
    std::string list;
    std::size_t shown = 0;
    for (const auto& [op, missing] : missing_) {
      if (shown++ == kShownMissing) {
        list += ", and " + std::to_string(missing_.size() - kShownMissing) + " more";
        break;
      }
      list += (list.empty() ? "" : ", ") + op + " (" + std::to_string(missing.nodes) +
              (missing.nodes == 1 ? " node, " : " nodes, first ") + missing.first + ")";
    }
    throw Error(ErrorCode::kUnsupported, "operators that are not supported: " + list);
  }
  graph::remove_dead(graph);
  return graph;
}

void GraphImporter::import_content(Scope& scope, const GraphView& view, bool is_main) {
  import_initializers(scope, view);
  if (is_main) collect_symbols(view);
  for (Bytes input : view.inputs) import_input(scope, input, is_main);
  for (Bytes output : view.outputs) {
    source_.budget.take_memory(96, "outputs");
    scope.results.insert(parse_value_info(source_, output).name);
  }
  import_nodes(scope, view.nodes);
  std::set<ValueId> seen;
  for (Bytes output : view.outputs) {
    import_output(scope, output, is_main);
    const ValueId id = scope.state->graph->outputs.back();
    if (is_main && !seen.insert(id).second) {
      fail_model("output " + quote(scope.state->graph->value(id).name) + " is listed twice");
    }
  }
  finish(scope);
}

void GraphImporter::import_initializers(Scope& scope, const GraphView& view) {
  Graph& graph = *scope.state->graph;
  const auto add = [&](std::string_view name, const std::string& what, auto read) {
    if (name.empty()) fail_model(what + ": an initializer without a name");
    if (scope.names.count(name)) fail_model(what + " is there twice");
    const ValueId id = declare(scope, name);
    set_constant(graph.value(id), std::make_shared<const graph::ConstantTensor>(read()));
    flags(*scope.state, id) |= kDefined;
  };
  for (Bytes bytes : view.initializers) {
    const TensorView tensor = parse_tensor(source_, bytes);
    const std::string what = "initializer " + quote(tensor.name);
    add(tensor.name, what, [&] { return tensors_.read(tensor, what); });
  }
  for (Bytes bytes : view.sparse_initializers) {
    const SparseTensorView sparse = parse_sparse_tensor(source_, bytes);
    if (!sparse.values) fail_model("a sparse initializer without values");
    const std::string_view name = parse_tensor(source_, *sparse.values).name;
    const std::string what = "sparse initializer " + quote(name);
    add(name, what, [&] { return tensors_.read_sparse(sparse, what); });
  }
}

void GraphImporter::import_input(Scope& scope, Bytes bytes, bool is_main) {
  const ValueInfoView info = parse_value_info(source_, bytes);
  if (info.name.empty()) fail_model("a graph input without a name");
  Graph& graph = *scope.state->graph;
  // Old files list initializers as inputs too, newer ones let a caller override them: here they
  // are constants.
  if (const auto it = scope.names.find(info.name); it != scope.names.end()) {
    if (graph.constant(it->second)) return;
    fail_model("input " + quote(info.name) + " is there twice");
  }
  const ValueId id = declare(scope, info.name);
  flags(*scope.state, id) |= kDefined | kPinned;
  graph.inputs.push_back(id);
  if (!is_main) return;  // what a body is given decides, not what it declares
  const std::string what = "input " + quote(info.name);
  if (!info.has_type) fail_model(what + " has no type");
  if (!info.is_tensor) {
    throw Error(ErrorCode::kUnsupported, what + " is no tensor (a sequence, map or optional)");
  }
  graph.value(id).dtype = dtype_from_onnx(info.elem_type, what);
  if (info.has_shape) graph.value(id).shape = input_shape(info);
}

// All names of dimensions, before the first is made up for an unnamed one.
void GraphImporter::collect_symbols(const GraphView& view) {
  for (Bytes input : view.inputs) {
    for (const DimView& dim : parse_value_info(source_, input).dims) {
      source_.budget.take_memory(96 + static_cast<std::int64_t>(dim.param.size()), "dimensions");
      symbols_.emplace(dim.param);
    }
  }
}

std::vector<Expr> GraphImporter::input_shape(const ValueInfoView& info) {
  if (info.dims.size() > static_cast<std::size_t>(kMaxRank)) {
    throw Error(ErrorCode::kUnsupported,
                "input " + quote(info.name) + " has " + std::to_string(info.dims.size()) +
                    " dimensions; Kvik supports up to " + std::to_string(kMaxRank));
  }
  std::vector<Expr> shape;
  for (const DimView& dim : info.dims) {
    source_.budget.take_memory(kDimCost, "dimensions");
    if (dim.value && *dim.value >= 0) {
      shape.emplace_back(*dim.value);
      continue;
    }
    if (dim.value && *dim.value != -1) {  // some exporters write -1 for "unknown"
      fail_model("input " + quote(info.name) + " has the dimension " + std::to_string(*dim.value));
    }
    std::string symbol(dim.param);
    if (symbol.empty()) {
      // Its own symbol: nothing says that two unnamed dimensions are equal.
      symbol = std::string(info.name) + "." + std::to_string(shape.size());
      while (symbols_.count(symbol)) symbol += "'";
    }
    source_.budget.take_memory(4 * static_cast<std::int64_t>(symbol.size()), "dimensions");
    symbols_.insert(symbol);
    shape.push_back(Expr::symbol(std::move(symbol)));
  }
  return shape;
}

void GraphImporter::import_output(Scope& scope, Bytes bytes, bool is_main) {
  const ValueInfoView info = parse_value_info(source_, bytes);
  if (info.name.empty()) fail_model("a graph output without a name");
  const auto id = find(scope, info.name);
  if (!id) fail_model("graph output " + quote(info.name) + " is never produced");
  scope.state->graph->outputs.push_back(*id);
  if (is_main && options_.declared_widths != nullptr && !info.dims.empty() &&
      info.dims.back().value) {
    options_.declared_widths->emplace(info.name, *info.dims.back().value);
  }
}

// Everything declared was defined by then: outputs of nodes are declared and emitted together. What
// is left is the order.
void GraphImporter::finish(Scope& scope) {
  if (!scope.state->sorted && missing_.empty()) graph::sort_nodes(*scope.state->graph);
}

std::shared_ptr<Graph> GraphImporter::import_body(Scope& outer, Bytes bytes,
                                                  const std::string& label) {
  const int limit = source_.budget.limits().graph_depth;
  if (outer.depth + 1 > limit) {
    fail_model(label + ": more than " + std::to_string(limit) + " graphs within one another");
  }
  const GraphView view = parse_graph(source_, bytes);
  source_.budget.take_memory(512 + static_cast<std::int64_t>(view.name.size()), label);
  const auto graph = std::make_shared<Graph>();
  graph->name = view.name;
  GraphState state;
  state.graph = graph.get();
  Scope scope;
  scope.state = &state;
  scope.outer = &outer;
  scope.opsets = outer.opsets;
  scope.call = outer.call;
  scope.prefix = outer.prefix;
  scope.depth = outer.depth + 1;
  state.root = &scope;
  import_content(scope, view, false);
  return graph;
}

ValueId GraphImporter::add_value(GraphState& state, std::string name) {
  source_.budget.take_memory(kValueCost + static_cast<std::int64_t>(name.size()), "values");
  state.flags.push_back(0);
  return state.graph->add_value(std::move(name));
}

ValueId GraphImporter::declare(Scope& scope, std::string_view name) {
  if (scope.names.count(name)) fail_model("value " + quote(name) + " is defined twice");
  for (const Scope* outer = scope.outer; outer; outer = outer->outer) {
    if (outer->names.count(name)) {
      fail_model("value " + quote(name) +
                 " in a body has the name of a value of an enclosing graph");
    }
  }
  std::string full = scope.prefix + std::string(name);
  if (!scope.prefix.empty() || generated_.count(full)) full = unique_name(*scope.state, full);
  const ValueId id = add_value(*scope.state, std::move(full));
  if (scope.results.count(name)) flags(*scope.state, id) |= kPinned;
  scope.names.emplace(name, id);
  return id;
}

std::optional<ValueId> GraphImporter::find(Scope& scope, std::string_view name) {
  if (const auto it = scope.names.find(name); it != scope.names.end()) {
    const auto alias = scope.state->aliases.find(it->second);
    return alias == scope.state->aliases.end() ? it->second : alias->second;
  }
  if (!scope.outer) return std::nullopt;
  const auto outer_id = find(*scope.outer, name);
  if (!outer_id) return std::nullopt;
  return *outer_id == kNoValue ? kNoValue : capture(scope, *outer_id);
}

ValueId GraphImporter::capture(Scope& scope, ValueId outer_id) {
  const auto known = scope.state->captured.find(outer_id);
  if (known != scope.state->captured.end()) return known->second;
  GraphState& outer = *scope.outer->state;
  // A constant is shared, so that a body can be optimised by itself.
  const Value& value = outer.graph->value(outer_id);
  if (!value.constant) {
    flags(outer, outer_id) |= kUsed;
    if (!(flags(outer, outer_id) & kDefined)) outer.sorted = false;
  }
  const ValueId id = add_value(*scope.state, value.name);
  Value& inner = scope.state->graph->value(id);
  inner.dtype = value.dtype;
  inner.shape = value.shape;
  inner.constant = value.constant;
  if (!value.constant) scope.state->graph->captures.push_back(id);
  flags(*scope.state, id) |= kDefined | kPinned;
  scope.state->captured.emplace(outer_id, id);
  return id;
}

std::string GraphImporter::unique_name(const GraphState& state, std::string name) {
  const auto is_taken = [&](const std::string& candidate) {
    if (generated_.count(candidate)) return true;
    for (const Scope* scope = state.root; scope;
         scope = scope->outer ? scope->outer->state->root : nullptr) {
      if (scope->names.count(candidate)) return true;
    }
    return false;
  };
  source_.budget.take_memory(96 + static_cast<std::int64_t>(name.size()), "names of values");
  if (!is_taken(name)) {
    generated_.emplace(name, 0);
    return name;
  }
  std::int64_t& count = generated_[name];
  std::string candidate;
  do {
    candidate = name + "#" + std::to_string(++count);
  } while (is_taken(candidate));
  source_.budget.take_memory(96 + static_cast<std::int64_t>(name.size()), "names of values");
  generated_.emplace(candidate, 0);
  return candidate;
}

}  // namespace kvik::onnx
