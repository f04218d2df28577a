// simplify_shapes: Shape(activation) becomes Shape(graph input), dimension by dimension.
//
// Exporters read sizes from whatever tensor is at hand. Read from the inputs instead, equal shape
// arithmetic becomes equal nodes, and no activation is kept alive or counted as used for its shape.
#include <algorithm>

#include "graph/passes/match.h"
#include "graph/passes/passes.h"

namespace kvik::graph {

namespace {

struct Source {
  ValueId input = kNoValue;
  std::int64_t axis = 0;
};

// The first axis of a graph input that has this size.
std::optional<Source> find_input(const Rewriter& r, const Expr& dim) {
  for (const ValueId input : r.graph().inputs) {
    const auto shape = r.shape(input);
    if (!shape) continue;
    const auto it = std::find(shape->begin(), shape->end(), dim);
    if (it != shape->end()) return Source{input, it - shape->begin()};
  }
  return std::nullopt;
}

// The axes [start, end) that a Shape node reads.
std::pair<std::int64_t, std::int64_t> read_axes(const Node& node, std::int64_t rank) {
  const auto clamp = [rank](std::int64_t v) {
    return std::clamp<std::int64_t>(v < 0 ? v + rank : v, 0, rank);
  };
  const std::int64_t start = clamp(node.int_attr("start", 0));
  return {start, std::max(start, clamp(node.int_attr("end", rank)))};
}

bool is_input(const Rewriter& r, ValueId v) {
  const auto& inputs = r.graph().inputs;
  return std::find(inputs.begin(), inputs.end(), v) != inputs.end();
}

void simplify(Rewriter& r, NodeId n) {
  const Node& node = r.node(n);
  const auto shape = r.shape(node.input(0));
  if (!shape) return;
  const auto [start, end] = read_axes(node, static_cast<std::int64_t>(shape->size()));
  if (end == start || (end - start == 1 && is_input(r, node.input(0)))) return;
  std::vector<Source> sources;
  for (std::int64_t axis = start; axis < end; ++axis) {
    const Expr& dim = (*shape)[static_cast<std::size_t>(axis)];
    const auto found = dim.constant() ? std::optional(Source{}) : find_input(r, dim);
    if (!found) return;
    sources.push_back(*found);
  }
  const auto read = [&](const Source& source) {
    return Attributes{{"start", source.axis}, {"end", source.axis + 1}};
  };
  if (sources.size() == 1) {
    if (sources[0].input == kNoValue) return;  // a constant: fold_constants sees to it
    return r.rewrite(n, "", "Shape", {sources[0].input}, read(sources[0]));
  }
  std::vector<ValueId> parts;
  for (std::size_t i = 0; i < sources.size(); ++i) {
    const Expr& dim = (*shape)[static_cast<std::size_t>(start) + i];
    parts.push_back(dim.constant() ? r.add_ints({*dim.constant()}, "dim")
                                   : r.insert(n, "Shape", {sources[i].input}, read(sources[i])));
  }
  r.rewrite(n, "", "Concat", parts, {{"axis", std::int64_t{0}}});
}

}  // namespace

void simplify_shapes(Rewriter& r, PassState& /*state*/) {
  for (NodeId n = 0; n < r.count(); ++n) {
    if (r.alive(n) && r.node(n).is("Shape")) simplify(r, n);
  }
}

}  // namespace kvik::graph
