// What the fusion passes ask about values: scalars by value, operands in either order, shapes that
// broadcasting leaves alone.
#pragma once

#include <optional>
#include <string_view>
#include <vector>

#include "graph/passes/rewriter.h"

namespace kvik::graph {

// The value of a float32 value that holds one number everywhere: a constant of one element, or
// contents that infer() knows. Nothing for any other.
std::optional<float> scalar_of(const Rewriter& r, ValueId v);

// Whether a constant from a file is the number that an exporter meant, rounded to float32 somewhere
// on the way.
bool is_about(std::optional<float> found, double meant);

// node(v, c) where one operand of the commutative node is a scalar that does not enlarge the other.
struct Scaled {
  ValueId value = kNoValue;
  float scalar = 0.0F;
};
std::optional<Scaled> with_scalar(const Rewriter& r, const Node* node,
                                  std::string_view commutative);
// v = x * c or x / c (c as the factor), with c in float64 so that 1/c loses nothing.
struct Factor {
  ValueId value = kNoValue;
  double factor = 1.0;
};
std::optional<Factor> with_factor(const Rewriter& r, const Node* node);

// The operand of a two-operand node that is not `v`; kNoValue if `v` is neither.
ValueId other_operand(const Node& node, ValueId v);

// The inputs of a Mul or Add chain: Mul(Mul(a, b), c) gives {a, b, c}. Only inner nodes whose
// result has no other use are opened; at most `limit` factors.
std::vector<ValueId> flatten(const Rewriter& r, ValueId v, std::string_view op, std::size_t limit);

// Whether an element-wise operation of `value` with `operand` has value's own shape.
bool keeps_shape(const Rewriter& r, ValueId value, ValueId operand);
bool same_shape(const Rewriter& r, ValueId a, ValueId b);
bool has_unknown(const Shape& shape);

// A float32 constant that is [n], up to leading dimensions of 1, as a 1-D constant: the value
// itself or a view of the same elements. kNoValue for anything else.
ValueId as_vector(Rewriter& r, ValueId v, const Expr& n);

// A constant matrix of integers that a DequantizeLinear makes float32: its inputs, and its
// attributes as kvik.Linear and kvik.Embedding have them ("axis", "block").
struct Dequantized {
  ValueId values = kNoValue;
  ValueId scale = kNoValue;
  ValueId zero = kNoValue;
  Attributes attributes;
};
std::optional<Dequantized> as_dequantized(const Rewriter& r, ValueId v);

// A node of the standard softmax-like kind: does `axis` (an attribute with this default) name the
// last axis of input 0?
bool on_last_axis(const Rewriter& r, const Node& node, std::int64_t fallback);

// A reduction over exactly the last axis, keeping it as 1.
bool reduces_last_axis(const Rewriter& r, const Node& node);

// An int64 [rank] value that holds `target`, for use before node n: a constant, with one -1 where
// that suffices, else made of Shape nodes of `sources`. Nothing where a dimension can't be had.
std::optional<ValueId> shape_value(Rewriter& r, NodeId n, const Shape& target,
                                   const std::vector<ValueId>& sources);

}  // namespace kvik::graph
