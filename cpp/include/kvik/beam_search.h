// Beam search: the likeliest continuations of each of some sequences.
//
//   std::vector<kvik::BeamStart> starts;
//   for (kvik::Sequence& target : model.new_sequences({{source_ids}})) {
//     starts.push_back({std::move(target), {start_id}});
//   }
//   const auto found = kvik::beam_search(model, std::move(starts), {.beams = 4, .end_ids = {end}});
//   found[0][0].tokens;  // of the first source, the best
#pragma once

#include <cstdint>
#include <vector>

#include "kvik/error.h"
#include "kvik/export.h"
#include "kvik/model.h"

namespace kvik {

struct BeamStart {
  Sequence sequence;                 // of the model; may hold tokens already
  std::vector<std::int64_t> prompt;  // appended to it first: at least one id
  std::int64_t max_new_tokens = 0;   // of this start alone; 0: as BeamOptions says
};

struct BeamOptions {
  int beams = 4;                      // hypotheses of a start that are kept at once, 1 .. 256
  int results = 1;                    // how many of the best are returned, 1 .. beams
  std::int64_t max_new_tokens = 128;  // >= 1; also limited by the model's context
  // A hypothesis of n new tokens, the end among them, is judged by log p / ((5 + n) / 6)^α (Wu et
  // al. 2016, equation 14): 0 judges by probability alone, more favours longer ones; 0 .. 10.
  double length_penalty = 0.6;
  std::vector<std::int64_t> end_ids;  // any of these ends a hypothesis
};

struct Hypothesis {
  std::vector<std::int64_t> tokens;  // new ones, without the end
  double log_probability = 0;        // of the new tokens, the end among them
  double score = 0;                  // by which it is judged
  bool ended = false;                // by an end id; else it was cut
};

// By start, the best hypotheses first; equal ones in the order in which they were found. With one
// beam it is greedy decoding, which ends at the first end. All hypotheses of all starts run in one
// flat batch, and what is found for a start does not depend on the others.
//
// Throws Error: kInvalidArgument (options out of range; an empty prompt; logits that are NaN or
// +inf; and what Model::forward() refuses), and what else Model::forward() throws.
KVIK_API std::vector<std::vector<Hypothesis>> beam_search(const Model& model,
                                                          std::vector<BeamStart> starts,
                                                          const BeamOptions& options,
                                                          const CancelCheck& cancelled = {});

}  // namespace kvik
