#include "graph/infer_check.h"

#include <cmath>

#include "graph/evaluate.h"
#include "graph/expr_reference.h"
#include "graph/infer/infer.h"
#include "kvik/error.h"

namespace kvik::test {

namespace {

using graph::Expr;
using graph::Graph;
using graph::ValueId;

constexpr std::int64_t kMaxCompared = 20000;  // elements of one value

// The first thing about `actual` that contradicts the inferred shape, or nothing.
std::string shape_error(const std::vector<Expr>& shape, const Tensor& actual,
                        const Environment& at) {
  if (static_cast<int>(shape.size()) != actual.dims.rank) return "rank " + actual.dims.str();
  for (int axis = 0; axis < actual.dims.rank; ++axis) {
    const Expr& dim = shape[static_cast<std::size_t>(axis)];
    if (dim.has_unknown()) continue;
    if (evaluate_int(dim, at) != actual.dims[axis]) {
      return "dimension " + dim.str() + " of actual " + actual.dims.str();
    }
  }
  return {};
}

std::string content_error(const Expr& content, const Tensor& actual, Environment at) {
  const std::vector<double> found = elements(actual);
  const auto count = std::min(actual.elements(), kMaxCompared);
  for (std::int64_t i = 0; i < count; ++i) {
    at.indices.assign(static_cast<std::size_t>(actual.dims.rank), 0);
    std::int64_t rest = i;
    for (int axis = actual.dims.rank; axis-- > 0;) {
      at.indices[static_cast<std::size_t>(axis)] = rest % actual.dims[axis];
      rest /= actual.dims[axis];
    }
    const double expected = evaluate(content, at);
    const double is = found[static_cast<std::size_t>(i)];
    // exp, log and pow of the engine and of the C library differ by a few units in the last place.
    const double tolerance = content.type() == graph::ExprType::kFloat ? 1e-5 * std::fabs(is) : 0.0;
    if (expected == is || std::fabs(expected - is) <= tolerance) continue;
    return "element " + std::to_string(i) + " of " + content.str() + ": inferred " +
           std::to_string(expected) + ", actual " + std::to_string(is);
  }
  return {};
}

}  // namespace

InferCheck check_inference(Graph graph, const std::map<std::string, std::int64_t>& dims,
                           std::uint64_t stream) {
  InferCheck check;
  graph::DimLimits limits;
  const graph::Contents contents = graph::infer(graph, {}, &limits);
  std::vector<ValueId> wanted;
  for (const graph::Node& node : graph.nodes) {
    for (const ValueId id : node.outputs) {
      if (id != graph::kNoValue) wanted.push_back(id);
    }
  }
  const auto inputs = random_inputs(graph, dims, stream);
  std::vector<Tensor> views;
  for (const auto& input : inputs) views.push_back(input.tensor);
  const runtime::GraphExecutor executor(graph, engine(), {}, wanted);
  const auto actual = executor.run(views);
  const Environment at{dims, {}};
  for (std::size_t i = 0; i < wanted.size(); ++i) {
    const graph::Value& value = graph.value(wanted[i]);
    const auto& content = contents[static_cast<std::size_t>(wanted[i])];
    const auto report = [&](const std::string& what) {
      if (!what.empty()) check.wrong.push_back("'" + value.name + "': " + what);
      return what.empty();
    };
    if (value.dtype != DType::kUndefined && value.dtype != actual[i].tensor.dtype) {
      report(std::string("dtype ") + dtype_name(value.dtype) + ", actual " +
             dtype_name(actual[i].tensor.dtype));
    }
    if (value.shape) {
      ++check.shapes;
      if (!report(shape_error(*value.shape, actual[i].tensor, at))) continue;
    }
    if (content && !content->has_unknown()) {
      ++check.contents;
      report(content_error(*content, actual[i].tensor, at));
    }
  }
  return check;
}

}  // namespace kvik::test
