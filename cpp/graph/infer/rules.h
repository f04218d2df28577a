// What an inference rule sees. One rule per operator, in one file per family.
#pragma once

#include <optional>
#include <string_view>
#include <utility>
#include <vector>

#include "graph/infer/infer.h"

namespace kvik::graph {

using Shape = std::vector<Expr>;

class InferContext {
 public:
  InferContext(Graph& graph, Contents& contents, DimLimits* limits, const Node& node)
      : graph_(graph), contents_(contents), limits_(limits), node_(node) {}

  const Node& node() const { return node_; }
  std::size_t inputs() const { return node_.inputs.size(); }
  bool has(std::size_t i) const { return node_.input(i) != kNoValue; }
  DType dtype(std::size_t i) const;
  const std::optional<Shape>& shape(std::size_t i) const;  // unknown for an omitted input
  std::optional<Expr> content(std::size_t i) const;
  // Element k of a 1-D (or scalar, k = 0) integer input.
  std::optional<Expr> element(std::size_t i, std::int64_t k) const;
  std::optional<std::vector<std::int64_t>> ints(std::size_t i) const;  // a constant input
  // A whole 1-D integer input of known length, element by element.
  std::optional<std::vector<Expr>> elements(std::size_t i) const;

  void set(std::size_t output, DType dtype, std::optional<Shape> shape);
  void set_content(std::size_t output, std::optional<Expr> content);
  // Takes for granted that the symbol is at most `limit`; false where the caller wants no such
  // assumption.
  bool assume_at_most(const Expr& symbol, std::int64_t limit);
  // Bounds of an integer expression, given what is taken for granted so far.
  Expr::Bounds bounds(const Expr& e) const;

 private:
  Graph& graph_;
  Contents& contents_;
  DimLimits* limits_;
  const Node& node_;
};

using InferRule = void (*)(InferContext&);
struct InferEntry {
  std::string_view domain;
  std::string_view op;
  InferRule rule;
};

// The rules of each family, and the look-up over all of them (null: no rule).
std::vector<InferEntry> elementwise_rules();
std::vector<InferEntry> movement_rules();
std::vector<InferEntry> indexing_rules();
std::vector<InferEntry> compute_rules();
std::vector<InferEntry> window_rules();
InferRule find_infer_rule(std::string_view domain, std::string_view op);

// ---- shared by the rules ----------------------------------------------------------------------

// NumPy broadcasting of two shapes; a dimension that can't be decided becomes an unknown.
Shape broadcast(const Shape& a, const Shape& b);
// A content over `from`'s axes, re-expressed over the axes of `to` that it is broadcast to.
std::optional<Expr> broadcast_content(const Expr& content, const Shape& from, const Shape& to);
// axis in [-rank, rank) made non-negative; nothing when out of range.
std::optional<int> normalize_axis(std::int64_t axis, std::size_t rank);
Expr product(const Shape& shape);
// A constant's contents: its scalar, or a look-up by the row-major offset of its indices.
std::optional<Expr> constant_content(const std::shared_ptr<const ConstantTensor>& constant);
// Whether contents of this dtype are tracked, and as which type.
std::optional<ExprType> content_type(DType dtype);

}  // namespace kvik::graph
