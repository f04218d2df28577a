// Attention weights: how much each token counted for each other one.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "kvik/export.h"
#include "kvik/tensor.h"

namespace kvik {

// Who attends to whom.
enum class AttentionKind : std::uint8_t {
  kSelf,    // the tokens of a sequence to one another; of a model of two sequences: of the target
  kCross,   // the tokens of the target to those of the source
  kSource,  // the tokens of the source to one another
};

// "self", "cross", "source".
KVIK_API const char* attention_kind_name(AttentionKind kind) noexcept;

// The weights of some layers of one kind, whose shapes are equal.
struct AttentionWeights {
  AttentionKind kind = AttentionKind::kSelf;
  // Of each: its place among all attentions of its kind, in the order in which they run, and its
  // name in the graph.
  std::vector<int> layers;
  std::vector<std::string> names;
  // float32 [layers, heads, queries, keys]; that of Session::attention() [layers, batch, heads,
  // queries, keys]. A row holds what the softmax gave a query: it sums to 1, or to 0 where every
  // key was hidden; a hidden key has 0.
  OwnedTensor weights;
  // Of Session::attention(): the dimensions of queries and keys as the graph knows them, which say
  // of which sequence they are.
  Dimension queries;
  Dimension keys;
};

// Which of them are wanted. The others are neither computed nor kept.
struct AttentionChoice {
  std::optional<AttentionKind> kind;  // nothing: all kinds
  std::vector<int> layers;            // of each kind, counted from 0; none: all
};

}  // namespace kvik
