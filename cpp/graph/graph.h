// The intermediate representation: a graph of operator nodes over values in single assignment.
//
// Nodes keep the ONNX meaning, in one canonical form: the newest form of each operator that Kvik
// knows (axes, for example, are inputs where the newest opset has them as inputs); the importer
// rewrites older forms. Operators of Kvik's own (made by fusions) live in the domain "kvik".
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "base/dims.h"
#include "graph/expr.h"
#include "kvik/dtype.h"

namespace kvik::graph {

using ValueId = std::int32_t;
using NodeId = std::int32_t;
inline constexpr ValueId kNoValue = -1;  // an optional input or output that is left out
inline constexpr NodeId kNoNode = -1;

// The elements of an initializer or attribute. `data` points into the mapped file or into memory
// that `owner` keeps alive; it may be unaligned for its dtype. Little-endian.
struct ConstantTensor {
  DType dtype = DType::kUndefined;
  Dims dims;
  std::span<const std::byte> data;
  std::shared_ptr<const void> owner;

  // Element i converted; for integer or bool tensors (int64) and for any numeric tensor (double).
  std::int64_t int_at(std::int64_t i) const;
  double float_at(std::int64_t i) const;
  // All elements of an integer or bool tensor.
  std::vector<std::int64_t> ints() const;

  static ConstantTensor from_ints(std::span<const std::int64_t> values, Dims dims);
  static ConstantTensor from_floats(std::span<const float> values, Dims dims);
  // Zeroed memory of its own; write through mutable_data().
  static ConstantTensor allocate(DType dtype, Dims dims);
  std::byte* mutable_data() const { return const_cast<std::byte*>(data.data()); }
};

struct Graph;

// `Graph` attributes are the bodies of If, Loop and Scan.
using Attribute =
    std::variant<std::int64_t, float, std::string, std::vector<std::int64_t>, std::vector<float>,
                 std::vector<std::string>, ConstantTensor, std::shared_ptr<Graph>, Expr>;

struct Node {
  std::string domain;  // "" for ONNX, "com.microsoft", "kvik"
  std::string op;
  std::string name;              // as in the file, or made up from the first output
  std::vector<ValueId> inputs;   // kNoValue where left out
  std::vector<ValueId> outputs;  // kNoValue where left out
  std::map<std::string, Attribute, std::less<>> attributes;

  bool is(std::string_view op_name, std::string_view domain_name = "") const {
    return op == op_name && domain == domain_name;
  }
  ValueId input(std::size_t i) const { return i < inputs.size() ? inputs[i] : kNoValue; }
  ValueId output(std::size_t i) const { return i < outputs.size() ? outputs[i] : kNoValue; }

  std::int64_t int_attr(std::string_view key, std::int64_t fallback) const;
  float float_attr(std::string_view key, float fallback) const;
  std::string string_attr(std::string_view key, std::string_view fallback) const;
  std::optional<std::vector<std::int64_t>> ints_attr(std::string_view key) const;
  bool has_attr(std::string_view key) const { return attributes.find(key) != attributes.end(); }
  std::string label() const;  // "MatMul node '/layers.0/q'" for messages
};

// A dimension is an expression over the graph's symbolic dimensions ("batch", "sequence", ...).
struct Value {
  std::string name;
  DType dtype = DType::kUndefined;
  std::optional<std::vector<Expr>> shape;          // unknown rank where absent
  std::shared_ptr<const ConstantTensor> constant;  // initializers and folded values
};

struct Graph {
  std::string name;
  std::vector<Value> values;
  std::vector<Node> nodes;  // in topological order
  std::vector<ValueId> inputs;
  std::vector<ValueId> outputs;
  // Values of an enclosing graph that a body (If, Loop, Scan) uses, by name: each is a value here
  // without producer, bound when the body runs. Empty for a model's main graph.
  std::vector<ValueId> captures;

  ValueId add_value(std::string value_name, DType dtype = DType::kUndefined);
  ValueId add_constant(std::string value_name, ConstantTensor tensor);
  const Value& value(ValueId id) const { return values[static_cast<std::size_t>(id)]; }
  Value& value(ValueId id) { return values[static_cast<std::size_t>(id)]; }
  const ConstantTensor* constant(ValueId id) const {
    return id == kNoValue ? nullptr : value(id).constant.get();
  }
  // The constant integers of a value (a shape, axes, ...), or nothing if it is not constant.
  std::optional<std::vector<std::int64_t>> constant_ints(ValueId id) const;
  // The value of a constant with one element, or nothing.
  std::optional<double> constant_scalar(ValueId id) const;
};

// What a model file says besides its graph.
struct Model {
  Graph graph;
  std::int64_t ir_version = 0;
  std::map<std::string, std::int64_t> opsets;   // domain -> version
  std::string producer;                         // "pytorch 2.13.0"
  std::map<std::string, std::string> metadata;  // metadata_props
  // Throws kIo when a mapped file that constants point into has been cut since: touching the lost
  // part would end the process. To be called before weights are read. Empty for a model from
  // memory.
  std::function<void()> check_files;
  // Gives back the memory of constants' bytes that lie in a mapped file; they can still be read.
  // Empty for a model from memory.
  std::function<void(std::span<const std::byte>)> release_pages;
};

// Producer and consumers of every value, made once and rebuilt after a pass has changed the graph.
struct Uses {
  explicit Uses(const Graph& graph);
  std::vector<NodeId> producer;                // by value; kNoNode for inputs and constants
  std::vector<std::vector<NodeId>> consumers;  // by value, one entry per use
  std::vector<bool> is_output;                 // by value
};

// Throws kvik::Error(kInternal or kInvalidModel) naming the node where the graph breaks a rule:
// ids in range, single assignment, every input produced before its use, outputs produced.
void verify(const Graph& graph);

// Drops nodes whose results nobody uses and values that nobody mentions.
void remove_dead(Graph& graph);

// Sorts the nodes topologically, stably. Throws kInvalidModel naming a node on a cycle.
void sort_nodes(Graph& graph);

// A listing that a human can read: one line a node, shapes and dtypes, constants abbreviated.
std::string dump(const Graph& graph);

}  // namespace kvik::graph
