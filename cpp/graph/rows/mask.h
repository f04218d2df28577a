// The proof that an attention's mask is causal, or reads a whole sequence.
#pragma once

#include <optional>
#include <string>

#include "graph/rows/prover.h"

namespace kvik::graph {

struct MaskProof {
  std::optional<Expr> bias;  // as in RowAttention; nothing: nothing is added
  std::string how;
  Mixing mixing = Mixing::kEarlier;
};

// What the mask of an Attention node with this many query heads is; stops where a token might see
// later ones, unless it may. `causal_flag`: the node hides them whatever the mask says.
MaskProof prove_mask(Prover& p, const Node& node, int heads, bool causal_flag);

// Whether the mask of an Attention node hides nothing and adds nothing, whatever its axes.
bool shows_everything(const Prover& p, const Node& node);

}  // namespace kvik::graph
