// The passes. Each is a function that edits the graph through a Rewriter and reasons from shapes
// and contents; the pipeline runs them to a fixpoint. One file each, named after the pass.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "graph/passes/rewriter.h"

namespace kvik::graph {

// Computes a node whose inputs are all constants: one tensor per output of the node. Nothing where
// it can't (an operator that it does not know); may throw kvik::Error, which counts as nothing.
using Evaluate =
    std::function<std::optional<std::vector<ConstantTensor>>(const Graph&, const Node&)>;

// What a pass may use besides the graph, kept from round to round.
struct PassState {
  Evaluate evaluate;              // may be empty
  std::int64_t folded_bytes = 0;  // memory that fold_constants has spent so far
};

using PassFunction = void (*)(Rewriter&, PassState&);

struct Pass {
  std::string_view name;
  std::string_view purpose;  // one line, for `kvik inspect` and the documentation
  PassFunction run;
};

// In the order in which they run.
std::span<const Pass> all_passes();

void fold_constants(Rewriter& r, PassState& state);
void simplify_shapes(Rewriter& r, PassState& state);
void remove_noops(Rewriter& r, PassState& state);
void eliminate_common(Rewriter& r, PassState& state);
void merge_views(Rewriter& r, PassState& state);
void sink_reshapes(Rewriter& r, PassState& state);
void fuse_layer_norm(Rewriter& r, PassState& state);
void fuse_rms_norm(Rewriter& r, PassState& state);
void fuse_gelu(Rewriter& r, PassState& state);
void fuse_silu(Rewriter& r, PassState& state);
void fuse_silu_mul(Rewriter& r, PassState& state);
void fuse_attention(Rewriter& r, PassState& state);
void fuse_linear(Rewriter& r, PassState& state);
void fuse_embedding(Rewriter& r, PassState& state);
void fuse_recurrent(Rewriter& r, PassState& state);
void pack_heads(Rewriter& r, PassState& state);

}  // namespace kvik::graph
