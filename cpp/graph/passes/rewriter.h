// Edits of a graph by a pass: nodes are rewritten in place, inserted before others, or bypassed,
// while producers, uses, shapes and contents stay up to date.
//
// A pass matches a pattern that ends in some node and rewrites that last node: its output keeps its
// identity and name, so every rewritten value can be compared with the file's own. What nobody uses
// afterwards is removed by the pipeline.
#pragma once

#include <deque>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "graph/graph.h"
#include "graph/infer/rules.h"

namespace kvik::graph {

using Attributes = std::map<std::string, Attribute, std::less<>>;

class Rewriter {
 public:
  // `contents` are those of infer(graph, ..., limits). The graph must outlive the rewriter.
  Rewriter(Graph& graph, Contents contents, DimLimits* limits = nullptr);

  const Graph& graph() const { return graph_; }
  // Nodes that a pass visits: those of the graph at the start, in topological order. Nodes inserted
  // since are visited when the pass runs again.
  NodeId count() const { return static_cast<NodeId>(graph_.nodes.size()); }
  // The reference stays valid until this very node is rewritten.
  const Node& node(NodeId n) const;

  // Whether anything still needs the node; passes skip those that earlier edits left behind.
  bool alive(NodeId n) const;

  // ---- values: kNoValue is allowed everywhere, and has nothing --------------------------------
  NodeId producer_id(ValueId v) const;    // kNoNode for inputs and constants
  const Node* producer(ValueId v) const;  // null for inputs and constants
  const Node* producer(ValueId v, std::string_view op, std::string_view domain = "") const;
  const std::vector<NodeId>& consumers(ValueId v) const;  // one entry per use
  // Whether exactly one node uses the value, once, and it is no output of the graph: rewriting that
  // node makes the value disappear.
  bool used_once(ValueId v) const;
  bool is_output(ValueId v) const;
  std::optional<Shape> shape(ValueId v) const;
  std::optional<Expr> content(ValueId v) const;
  DType dtype(ValueId v) const;
  // The largest value of a dimension, if it is constant or a symbol with a known limit.
  std::optional<std::int64_t> upper_bound(const Expr& dim) const;
  const ConstantTensor* constant(ValueId v) const { return graph_.constant(v); }

  // ---- edits ------------------------------------------------------------------------------------
  // Replaces node n by another operator with the same outputs (those beyond the first are dropped
  // when `keep_outputs` is 1).
  void rewrite(NodeId n, std::string domain, std::string op, std::vector<ValueId> inputs,
               Attributes attributes = {}, std::size_t keep_outputs = 1);
  // Adds a node with one output before node n (and before every node that n will use it in).
  // Returns the output, inferred. `name`: of a node that it replaces; empty: a new one.
  ValueId insert(NodeId before, std::string op, std::vector<ValueId> inputs,
                 Attributes attributes = {}, std::string domain = "", std::string name = "");
  ValueId add_constant(ConstantTensor tensor, std::string_view hint);
  ValueId add_ints(const std::vector<std::int64_t>& values, std::string_view hint = "ints");
  // Makes a value that a node computes a constant.
  void make_constant(ValueId v, ConstantTensor tensor);
  // Makes every use of `from` (the output of node n) a use of `to`, which holds the same elements.
  // Where `from` is an output of the graph, the producer of `to` takes over its identity if that
  // is possible; else nothing changes and the result is false.
  bool bypass(ValueId from, ValueId to);

  int changes() const { return changes_; }
  // Puts inserted nodes in their places. No other member may be called afterwards.
  void finish();

 private:
  Node& mutable_node(NodeId n);
  std::string unique_name(std::string_view base);
  void add_use(ValueId v, NodeId n);
  void drop_use(ValueId v, NodeId n);
  void replace_uses(ValueId from, ValueId to);
  void infer_node(const Node& node);

  Graph& graph_;
  Contents contents_;
  DimLimits* limits_;
  Uses uses_;
  std::deque<Node> inserted_;                     // node ids from count() on
  std::map<NodeId, std::vector<NodeId>> before_;  // by the node that they precede, in order
  std::vector<NodeId> anchor_;                    // of each inserted node: the original it precedes
  std::set<NodeId> dropped_;                      // dead nodes whose uses are not counted
  int changes_ = 0;
  std::int64_t serial_ = 0;
};

}  // namespace kvik::graph
