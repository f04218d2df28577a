#include "graph/passes/pipeline.h"

#include <algorithm>

#include "kvik/error.h"

namespace kvik::graph {

namespace {

// The order matters little for the result, since all run until none changes anything; it follows
// what feeds what: canonical shapes, then small patterns, then those made of them.
constexpr Pass kPasses[] = {
    {"fold_constants", "compute what depends on constants alone", fold_constants},
    {"simplify_shapes", "read dimensions from the inputs, not from activations", simplify_shapes},
    {"remove_noops", "bypass nodes that change nothing", remove_noops},
    {"merge_views", "merge chains of Reshape, Transpose, Squeeze and Unsqueeze", merge_views},
    {"eliminate_common", "compute equal expressions once", eliminate_common},
    {"fuse_layer_norm", "LayerNormalization from its primitives", fuse_layer_norm},
    {"fuse_rms_norm", "RMSNormalization from its primitives", fuse_rms_norm},
    {"fuse_gelu", "Gelu, exact and tanh, from its primitives", fuse_gelu},
    {"fuse_silu", "Swish from x * sigmoid(x)", fuse_silu},
    {"fuse_silu_mul", "silu(gate) * up as one node", fuse_silu_mul},
    {"sink_reshapes", "move reshapes of leading axes below products and softmax", sink_reshapes},
    {"fuse_attention", "Attention from softmax(Q K^T s + mask) V", fuse_attention},
    {"fuse_linear", "MatMul + bias + activation + residual as one node", fuse_linear},
    {"fuse_embedding", "look-ups by token id, or in a table of integers", fuse_embedding},
    {"fuse_recurrent", "LSTM, GRU and RNN on weights that are stored as integers", fuse_recurrent},
    {"pack_heads", "Attention that reads and writes heads where products have them", pack_heads},
};

// Real models settle in fewer than ten rounds. The bound only keeps a defect from looping.
constexpr int kMaxRounds = 100;

// Contents by position among the graph's inputs, which survives renumbering.
std::map<std::size_t, Expr> by_position(const Graph& graph, const std::map<ValueId, Expr>& known) {
  std::map<std::size_t, Expr> out;
  for (const auto& [id, content] : known) {
    const auto it = std::find(graph.inputs.begin(), graph.inputs.end(), id);
    if (it == graph.inputs.end()) {
      throw Error(ErrorCode::kInvalidArgument,
                  "contents are given for the value with id " + std::to_string(id) +
                      ", which is no input of graph '" + graph.name + "'");
    }
    out.emplace(static_cast<std::size_t>(it - graph.inputs.begin()), content);
  }
  return out;
}

std::map<ValueId, Expr> by_id(const Graph& graph, const std::map<std::size_t, Expr>& known) {
  std::map<ValueId, Expr> out;
  for (const auto& [position, content] : known) out.emplace(graph.inputs[position], content);
  return out;
}

void check_names(const PassOptions& options) {
  for (const std::string& name : options.disabled) {
    const bool known = std::any_of(std::begin(kPasses), std::end(kPasses),
                                   [&](const Pass& pass) { return pass.name == name; });
    if (known) continue;
    std::string all;
    for (const Pass& pass : kPasses) all += (all.empty() ? "" : ", ") + std::string(pass.name);
    throw Error(ErrorCode::kInvalidArgument,
                "there is no graph pass '" + name + "'; the passes are " + all);
  }
}

void verify_after(const Graph& graph, std::string_view pass) {
  try {
    verify(graph);
  } catch (const Error& error) {
    throw Error(error.code(), "after the pass " + std::string(pass) + ": " + error.what());
  }
}

// What stays the same from pass to pass.
struct Inference {
  std::map<std::size_t, Expr> known;
  DimLimits* limits = nullptr;

  Contents run(Graph& graph) const { return infer(graph, by_id(graph, known), limits); }
};

int run_pass(Graph& graph, const Pass& pass, PassState& state, Contents& contents,
             const Inference& inference) {
  const std::size_t values = graph.values.size();
  Rewriter rewriter(graph, contents, inference.limits);
  pass.run(rewriter, state);
  const int changes = rewriter.changes();
  if (changes == 0) {
    graph.values.resize(values);  // what was added for a match that then failed
    return 0;
  }
  rewriter.finish();
  remove_dead(graph);  // first: a dead node may use a value whose producer now makes another
  verify_after(graph, pass.name);
  contents = inference.run(graph);
  return changes;
}

}  // namespace

std::span<const Pass> all_passes() {
  return kPasses;
}

PipelineReport optimize(Graph& graph, const PassOptions& options, const Evaluate& evaluate) {
  check_names(options);
  PipelineReport report;
  report.nodes_before = graph.nodes.size();
  const Inference inference{by_position(graph, options.known),
                            options.assume_limits ? &report.limits : nullptr};
  PassState state;
  state.evaluate = evaluate;
  verify_after(graph, "import");
  remove_dead(graph);
  Contents contents = inference.run(graph);
  for (const Pass& pass : kPasses) {
    if (options.disabled.count(pass.name) == 0)
      report.passes.push_back({std::string(pass.name), 0});
  }
  for (bool changed = true; changed && report.rounds < kMaxRounds; ++report.rounds) {
    changed = false;
    std::size_t entry = 0;
    for (const Pass& pass : kPasses) {
      if (options.disabled.count(pass.name) != 0) continue;
      const int changes = run_pass(graph, pass, state, contents, inference);
      report.passes[entry++].changes += changes;
      changed = changed || changes > 0;
    }
  }
  report.nodes_after = graph.nodes.size();
  return report;
}

}  // namespace kvik::graph
