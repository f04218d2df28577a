// The proof that an attention's mask is causal.
#pragma once

#include <optional>
#include <string>

#include "graph/rows/prover.h"

namespace kvik::graph {

struct MaskProof {
  std::optional<Expr> bias;  // as in RowAttention; nothing: plain causal
  std::string how;
};

// What the mask of an Attention node with this many query heads is; stops where a token might see
// later ones. `causal_flag`: the node hides them whatever the mask says.
MaskProof prove_mask(Prover& p, const Node& node, int heads, bool causal_flag);

}  // namespace kvik::graph
