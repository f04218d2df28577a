// The attention weights of any graph, as values that the general executor can be asked for.
#pragma once

#include <span>
#include <vector>

#include "graph/graph.h"
#include "runtime/attention_sites.h"
#include "runtime/executor.h"

namespace kvik::runtime {

// A graph whose attentions give their weights. The graph that it was made of must outlive it.
class AttentionTaps {
 public:
  // Finds every Attention, and every softmax over the last axis whose result weighs values: what a
  // product takes with values that are no weights of the model. Those in the bodies of control flow
  // are not found. Which kind one is, the symbols of its dimensions say: it is cross-attention
  // where queries and keys are counted differently, and the source's own where only keys of a
  // cross-attention are counted so. Throws as choose_attention().
  AttentionTaps(const graph::Graph& graph, const Engine& engine, const AttentionChoice& choice);

  // Inputs as GraphExecutor::run() takes them, `batch` sequences. The weights' dimensions: [layers,
  // batch, heads, queries, keys]. No more of the graph is run than they need.
  std::vector<AttentionWeights> run(std::span<const Tensor> inputs, std::int64_t batch,
                                    const CancelCheck& cancelled) const;

 private:
  graph::Graph graph_;
  std::vector<AttentionSite> sites_;
  std::vector<graph::ValueId> wanted_;  // of the wanted sites, in their order
  std::unique_ptr<GraphExecutor> executor_;
};

}  // namespace kvik::runtime
