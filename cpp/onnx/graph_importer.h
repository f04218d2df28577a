// GraphProto and FunctionProto to Graph.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <tuple>
#include <vector>

#include "graph/graph.h"
#include "onnx/importer.h"
#include "onnx/proto.h"
#include "onnx/rewrite.h"
#include "onnx/tensor.h"

namespace kvik::onnx {

// Names come from untrusted files: ordered maps keep their promise whatever the names are, hash
// tables with a known hash do not.
using OpsetMap = std::map<std::string_view, std::int64_t>;
using NameMap = std::map<std::string_view, graph::ValueId>;

struct Function {
  FunctionView view;
  OpsetMap opsets;
};

// A function being inlined: what its body may refer to.
struct Call {
  const Function* function = nullptr;
  const Call* caller = nullptr;  // the call within which this one stands
  int depth = 1;
  std::map<std::string_view, graph::Attribute> attributes;
};

struct Scope;

// One Graph under construction. Inlined functions add to the graph of their caller.
struct GraphState {
  graph::Graph* graph = nullptr;
  Scope* root = nullptr;            // the scope of the graph's own names
  std::vector<std::uint8_t> flags;  // by value, see graph_importer.cpp
  bool sorted = true;               // no value was used before the node that produces it
  std::map<graph::ValueId, graph::ValueId> aliases;   // outputs of dropped Identity nodes
  std::map<graph::ValueId, graph::ValueId> captured;  // of a body: outer value -> own value
};

// Where names are looked up: a graph's own names, or those of an inlined function.
struct Scope {
  GraphState* state = nullptr;
  Scope* outer = nullptr;  // of a body: the scope that its node stands in
  const OpsetMap* opsets = nullptr;
  const Call* call = nullptr;          // the innermost function, also around a body
  std::string prefix;                  // of the names of values and nodes
  int depth = 0;                       // bodies within one another
  NameMap names;                       // kNoValue: an omitted input or output of a function
  NameMap outputs;                     // of a function: the caller's values
  std::set<std::string_view> results;  // of a graph: its outputs, which keep their names
};

class GraphImporter {
 public:
  GraphImporter(const Source& source, TensorReader& tensors, const ImportOptions& options)
      : source_(source), tensors_(tensors), options_(options) {}

  // Throws kInvalidModel when the function is defined twice.
  void add_function(FunctionView view, OpsetMap opsets);
  bool has_function_domain(std::string_view domain) const;

  // The main graph. Throws kUnsupported with the list of all operators that can't be run.
  graph::Graph import_main(Bytes graph, const OpsetMap& opsets);

 private:
  class NodeEmitter;
  struct Missing {
    std::int64_t nodes = 0;
    std::string first;  // label of the first node
  };

  // Graphs
  void import_content(Scope& scope, const GraphView& view, bool is_main);
  void import_initializers(Scope& scope, const GraphView& view);
  void import_input(Scope& scope, Bytes bytes, bool is_main);
  void collect_symbols(const GraphView& view);
  std::vector<graph::Expr> input_shape(const ValueInfoView& info);
  void import_output(Scope& scope, Bytes bytes, bool is_main);
  void finish(Scope& scope);
  std::shared_ptr<graph::Graph> import_body(Scope& outer, Bytes bytes, const std::string& label);

  // Nodes
  void import_nodes(Scope& scope, const std::vector<Bytes>& nodes);
  void declare_outputs(Scope& scope, const NodeView& view);
  void import_constant(Scope& scope, const NodeView& view);
  void import_node(Scope& scope, const NodeView& view);
  void import_attributes(Scope& scope, const NodeView& view, graph::Node& node);
  std::optional<graph::Attribute> import_attribute(Scope& scope, const AttributeView& view,
                                                   const std::string& label);
  std::int64_t opset_of(const Scope& scope, const NodeView& view, const std::string& label) const;
  void inline_call(Scope& scope, const NodeView& view, const Function& function,
                   const std::string& name);
  void bind_call(Scope& scope, const NodeView& view, Scope& inner, Call& call,
                 const std::string& name);
  void emit(GraphState& state, graph::Node node);
  void forward(GraphState& state, graph::ValueId output, graph::ValueId input,
               const std::string& name);
  void report_missing(const graph::Node& node);

  // Names; find() leaves dropped Identity nodes behind
  std::string node_name(const Scope& scope, const NodeView& view);
  graph::ValueId declare(Scope& scope, std::string_view name);
  graph::ValueId add_value(GraphState& state, std::string name);
  std::optional<graph::ValueId> find(Scope& scope, std::string_view name);
  graph::ValueId capture(Scope& scope, graph::ValueId outer_id);
  std::string unique_name(const GraphState& state, std::string name);
  std::uint8_t& flags(GraphState& state, graph::ValueId id) {
    return state.flags[static_cast<std::size_t>(id)];
  }

  const Source& source_;
  TensorReader& tensors_;
  const ImportOptions& options_;
  std::map<std::tuple<std::string_view, std::string_view, std::string_view>, Function> functions_;
  std::map<std::string, Missing> missing_;
  std::map<std::string, std::int64_t, std::less<>> generated_;  // names made up -> how often
  std::set<std::string> symbols_;  // names of the main graph's dimensions
};

}  // namespace kvik::onnx
