// Order and liveness of nodes: sort_nodes and remove_dead.
#include <algorithm>
#include <queue>

#include "base/text.h"
#include "graph/bodies.h"
#include "graph/graph.h"
#include "kvik/error.h"

namespace kvik::graph {

namespace {

// How many distinct producers each node still waits for is counted per use, so that a node that
// uses one value twice waits for two.
std::vector<std::int64_t> count_pending(const Graph& graph, const Uses& uses) {
  std::vector<std::int64_t> pending(graph.nodes.size(), 0);
  for (std::size_t v = 0; v < graph.values.size(); ++v) {
    if (uses.producer[v] == kNoNode) continue;
    for (NodeId consumer : uses.consumers[v]) ++pending[static_cast<std::size_t>(consumer)];
  }
  return pending;
}

// A node that lies on a cycle: walking backwards through unfinished producers must revisit one.
NodeId find_on_cycle(const Graph& graph, const Uses& uses, const std::vector<bool>& done) {
  std::vector<NodeId> blocked_by(graph.nodes.size(), kNoNode);
  NodeId start = kNoNode;
  for (std::size_t v = 0; v < graph.values.size(); ++v) {
    const NodeId producer = uses.producer[v];
    if (producer == kNoNode || done[static_cast<std::size_t>(producer)]) continue;
    for (NodeId consumer : uses.consumers[v]) {
      blocked_by[static_cast<std::size_t>(consumer)] = producer;
      start = consumer;
    }
  }
  std::vector<bool> seen(graph.nodes.size(), false);
  while (!seen[static_cast<std::size_t>(start)]) {
    seen[static_cast<std::size_t>(start)] = true;
    start = blocked_by[static_cast<std::size_t>(start)];
  }
  return start;
}

// Marks what the outputs need, walking backwards over the topologically sorted nodes.
std::vector<bool> live_values(const Graph& graph) {
  std::vector<bool> live(graph.values.size(), false);
  const auto mark = [&](ValueId id) {
    if (id != kNoValue) live[static_cast<std::size_t>(id)] = true;
  };
  for (ValueId output : graph.outputs) mark(output);
  const BodyIndex bodies(graph);
  for (auto node = graph.nodes.rbegin(); node != graph.nodes.rend(); ++node) {
    const bool needed = std::any_of(node->outputs.begin(), node->outputs.end(), [&](ValueId id) {
      return id != kNoValue && live[static_cast<std::size_t>(id)];
    });
    if (!needed) continue;
    for (ValueId input : node->inputs) mark(input);
    for (ValueId output : node->outputs) mark(output);
    for (ValueId captured : bodies.captured(*node)) mark(captured);
  }
  return live;
}

}  // namespace

void sort_nodes(Graph& graph) {
  const Uses uses(graph);
  std::vector<std::int64_t> pending = count_pending(graph, uses);
  // The ready node that comes first in the present order goes next, so the sort is stable.
  std::priority_queue<NodeId, std::vector<NodeId>, std::greater<>> ready;
  for (std::size_t n = 0; n < graph.nodes.size(); ++n) {
    if (pending[n] == 0) ready.push(static_cast<NodeId>(n));
  }
  std::vector<NodeId> order;
  std::vector<bool> done(graph.nodes.size(), false);
  order.reserve(graph.nodes.size());
  while (!ready.empty()) {
    const NodeId n = ready.top();
    ready.pop();
    order.push_back(n);
    done[static_cast<std::size_t>(n)] = true;
    for (ValueId output : graph.nodes[static_cast<std::size_t>(n)].outputs) {
      if (output == kNoValue) continue;
      for (NodeId consumer : uses.consumers[static_cast<std::size_t>(output)]) {
        if (--pending[static_cast<std::size_t>(consumer)] == 0) ready.push(consumer);
      }
    }
  }
  if (order.size() != graph.nodes.size()) {
    const Node& node = graph.nodes[static_cast<std::size_t>(find_on_cycle(graph, uses, done))];
    throw Error(ErrorCode::kInvalidModel,
                node.label() + " lies on a cycle: it needs its own output");
  }
  std::vector<Node> sorted;
  sorted.reserve(order.size());
  for (NodeId n : order) sorted.push_back(std::move(graph.nodes[static_cast<std::size_t>(n)]));
  graph.nodes = std::move(sorted);
}

void remove_dead(Graph& graph) {
  for (Node& node : graph.nodes) {
    for (auto& [key, attribute] : node.attributes) {
      if (auto* body = std::get_if<std::shared_ptr<Graph>>(&attribute)) remove_dead(**body);
    }
  }
  std::vector<bool> live = live_values(graph);
  std::erase_if(graph.nodes, [&](const Node& node) {
    return std::none_of(node.outputs.begin(), node.outputs.end(), [&](ValueId id) {
      return id != kNoValue && live[static_cast<std::size_t>(id)];
    });
  });
  std::erase_if(graph.captures, [&](ValueId id) { return !live[static_cast<std::size_t>(id)]; });
  for (ValueId input : graph.inputs) live[static_cast<std::size_t>(input)] = true;

  std::vector<ValueId> renumbered(graph.values.size(), kNoValue);
  std::size_t kept = 0;
  for (std::size_t v = 0; v < graph.values.size(); ++v) {
    if (!live[v]) continue;
    renumbered[v] = static_cast<ValueId>(kept);
    if (kept != v) graph.values[kept] = std::move(graph.values[v]);
    ++kept;
  }
  graph.values.resize(kept);
  const auto renumber = [&](std::vector<ValueId>& ids) {
    for (ValueId& id : ids) {
      if (id != kNoValue) id = renumbered[static_cast<std::size_t>(id)];
    }
  };
  for (Node& node : graph.nodes) {
    renumber(node.inputs);
    renumber(node.outputs);
  }
  renumber(graph.inputs);
  renumber(graph.outputs);
  renumber(graph.captures);
}

}  // namespace kvik::graph
