// Runs the passes to a fixpoint, with verify() after each that changed the graph.
#pragma once

#include <map>
#include <set>
#include <string>
#include <vector>

#include "graph/graph.h"
#include "graph/passes/passes.h"

namespace kvik::graph {

struct PassOptions {
  std::set<std::string, std::less<>> disabled;  // names of passes to leave out
  // Contents of graph inputs that the engine will supply (a mask of ones, positions); see infer().
  std::map<ValueId, Expr> known;
  // Whether inference may take bounds on dimensions for granted (see DimLimits); the rewritten
  // graph then means the same only within PipelineReport::limits.
  bool assume_limits = false;
};

struct PipelineReport {
  struct Entry {
    std::string pass;
    int changes = 0;  // edits of nodes, over all rounds
  };
  std::vector<Entry> passes;  // in order, those that were disabled left out
  int rounds = 0;             // the last one changed nothing
  std::size_t nodes_before = 0;
  std::size_t nodes_after = 0;
  DimLimits limits;  // that the caller must check; empty unless assume_limits
};

// Rewrites the graph. Value ids change, except that inputs and outputs keep their order and their
// names; shapes and dtypes are inferred when it returns. `options.known` is keyed by the ids
// before. Throws kvik::Error: kInvalidArgument for an unknown name in `disabled`, kInternal (with
// the pass's name) when a pass broke the graph.
PipelineReport optimize(Graph& graph, const PassOptions& options = {},
                        const Evaluate& evaluate = {});

}  // namespace kvik::graph
