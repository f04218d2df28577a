// Chooses the next token from a row of logits.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "kvik/error.h"
#include "kvik/export.h"

namespace kvik {

// Applied in this order, which is that of Hugging Face's generate():
//   logit_bias, repetition_penalty, temperature, top_k, top_p, min_p.
struct SamplerOptions {
  // 0: greedy, the largest logit, the lowest id on ties; the filters below then have no effect
  // (bias and penalty do). Else the logits are divided by it; finite, > 0.
  double temperature = 0.0;
  std::int64_t top_k = 0;  // keep the k most likely tokens (lower ids first on ties); 0: all
  double top_p = 1.0;      // keep the fewest tokens whose probabilities reach p; (0, 1]
  double min_p = 0.0;      // drop tokens less likely than min_p times the most likely; [0, 1]
  // > 1 makes tokens that were seen (in the prompt or the answer) less likely: their logits are
  // divided by it when positive and multiplied when negative (CTRL, arXiv:1909.05858). > 0.
  double repetition_penalty = 1.0;
  // Added to the logits of single ids. -infinity forbids an id.
  std::vector<std::pair<std::int64_t, double>> logit_bias;
  // Seed of the random numbers: Philox4x32-10 (Salmon et al., 2011), keyed by the seed and
  // counted by the tokens drawn. The arithmetic of sampling is IEEE double with Kvik's own exp,
  // so equal logits and seeds give equal tokens on every platform.
  std::uint64_t seed = 0;
};

// The sampler of one sequence. Movable, not copyable. Used by one thread at a time.
class KVIK_API Sampler {
 public:
  // Throws Error(kInvalidArgument) that names an option out of its range, or a biased id that is
  // not below vocab_size. Allocates all it needs; the other members allocate nothing.
  Sampler(const SamplerOptions& options, std::int64_t vocab_size);
  Sampler(Sampler&&) noexcept;
  Sampler& operator=(Sampler&&) noexcept;
  ~Sampler();

  // Tells the sampler of tokens that it did not draw itself (the prompt), for the repetition
  // penalty. Ids beyond the vocabulary are ignored.
  void observe(std::span<const std::int64_t> tokens);

  // Draws the next token from logits [vocab_size] and observes it.
  // Throws Error(kInvalidArgument) when a logit is NaN or +infinity, or none is finite; the
  // sampler is then as it was before. The message names the step, counted from 0.
  std::int64_t sample(std::span<const float> logits);

  // Tokens drawn so far.
  std::int64_t steps() const noexcept;

  struct KVIK_HIDDEN Impl;

 private:
  std::unique_ptr<Impl> impl_;
};

}  // namespace kvik
