// The attentions of a model: which there are, which of them are wanted, and room for their weights.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "graph/passes/prove_rowwise.h"
#include "kvik/attention.h"
#include "kvik/model.h"
#include "ops/row_batch.h"

namespace kvik::runtime {

// The arguments of Model::attention(), checked: ids and lengths are within the limits.
struct AttentionQuery {
  EncoderInput text;                     // or the source
  std::span<const std::int64_t> target;  // of a model of two sequences
  const AttentionChoice& choice;
};

// One attention, known before anything runs.
struct AttentionSite {
  AttentionKind kind = AttentionKind::kSelf;
  std::string name;
  Dimension queries, keys;  // as the graph knows them
  int layer = 0;            // among those of its kind
  bool wanted = false;
  // Of a wanted one, once they are known: [heads, queries, keys], in a session [batch, ...].
  std::vector<std::int64_t> dims;
  float* weights = nullptr;  // see make_room()
};

// Numbers the sites of each kind in their order, and marks those that are wanted. Throws
// kUnsupported when there are none at all, kInvalidArgument for a kind or a layer that there is
// none of.
void choose_attention(std::span<AttentionSite> sites, const AttentionChoice& choice);

// Memory for the wanted sites, all zeros, in groups of equal shape in the order of their kinds;
// their `weights` point into it. Throws kOutOfMemory.
std::vector<AttentionWeights> make_room(std::span<AttentionSite> sites);

// The attentions of a row graph; `self`: what those are called that read the sequence itself.
std::vector<AttentionSite> row_sites(const graph::RowGraph& rows, AttentionKind self);
// Sets the dimensions of the wanted ones, of these numbers of tokens.
void measure_sites(std::span<AttentionSite> sites, const graph::RowGraph& rows, std::int64_t tokens,
                   std::int64_t source_tokens);
// Where the row graph's attentions are to write.
std::vector<ops::AttentionRecord> records_of(std::span<const AttentionSite> sites);

}  // namespace kvik::runtime
