// Checks that a graph keeps the rules of the representation.
#include <string>

#include "base/text.h"
#include "graph/bodies.h"
#include "graph/graph.h"
#include "kvik/error.h"

namespace kvik::graph {

namespace {

class Verifier {
 public:
  explicit Verifier(const Graph& graph) : graph_(graph), state_(graph.values.size(), kUnset) {}

  void run() {
    define_sources();
    const BodyIndex bodies(graph_);
    for (const Node& node : graph_.nodes) check_node(node, bodies);
    for (ValueId output : graph_.outputs) {
      check_range(output, "an output of the graph");
      if (state(output) == kUnset) fail("output " + name(output) + " is never produced");
    }
  }

 private:
  enum State : unsigned char { kUnset, kSource, kProduced };

  [[noreturn]] void fail(const std::string& what) const {
    throw Error(ErrorCode::kInternal, "graph " + quote(graph_.name) + ": " + what);
  }
  std::string name(ValueId id) const { return quote(graph_.value(id).name); }
  State& state(ValueId id) { return state_[static_cast<std::size_t>(id)]; }

  void check_range(ValueId id, const std::string& what) const {
    if (id < 0 || static_cast<std::size_t>(id) >= graph_.values.size()) {
      fail(what + " has the value id " + std::to_string(id) + ", the graph has " +
           std::to_string(graph_.values.size()) + " values");
    }
  }

  void define_sources() {
    for (std::size_t i = 0; i < graph_.values.size(); ++i) {
      const ConstantTensor* tensor = graph_.values[i].constant.get();
      if (!tensor) continue;
      if (graph_.values[i].dtype != tensor->dtype) {
        fail("constant " + quote(graph_.values[i].name) + " is declared " +
             dtype_name(graph_.values[i].dtype) + " and holds " + dtype_name(tensor->dtype));
      }
      state_[i] = kSource;
    }
    for (const auto* ids : {&graph_.inputs, &graph_.captures}) {
      for (ValueId id : *ids) {
        check_range(id, "an input of the graph");
        if (state(id) != kUnset) fail("input " + name(id) + " has two definitions");
        state(id) = kSource;
      }
    }
  }

  void check_node(const Node& node, const BodyIndex& bodies) {
    const auto use = [&](ValueId id) {
      check_range(id, node.label());
      if (state(id) == kUnset) fail(node.label() + " uses " + name(id) + " before it is produced");
    };
    for (ValueId input : node.inputs) {
      if (input != kNoValue) use(input);
    }
    for (ValueId captured : bodies.captured(node)) use(captured);
    for_each_body(node, [](const Graph& body) { verify(body); });
    for (ValueId output : node.outputs) {
      if (output == kNoValue) continue;
      check_range(output, node.label());
      if (state(output) != kUnset) fail(node.label() + " produces " + name(output) + " again");
      state(output) = kProduced;
    }
  }

  const Graph& graph_;
  std::vector<State> state_;
};

}  // namespace

BodyIndex::BodyIndex(const Graph& graph) {
  bool has_captures = false;
  for (const Node& node : graph.nodes) {
    for_each_body(node, [&](const Graph& body) { has_captures |= !body.captures.empty(); });
  }
  if (!has_captures) return;
  for (std::size_t i = 0; i < graph.values.size(); ++i) {
    ids_.emplace(graph.values[i].name, static_cast<ValueId>(i));
  }
}

std::vector<ValueId> BodyIndex::captured(const Node& node) const {
  std::vector<ValueId> ids;
  for_each_body(node, [&](const Graph& body) {
    for (ValueId capture : body.captures) {
      const auto it = ids_.find(body.value(capture).name);
      if (it == ids_.end()) {
        throw Error(ErrorCode::kInternal, node.label() + ": a body captures " +
                                              quote(body.value(capture).name) +
                                              ", which the enclosing graph does not have");
      }
      ids.push_back(it->second);
    }
  });
  return ids;
}

void verify(const Graph& graph) {
  Verifier(graph).run();
}

}  // namespace kvik::graph
