// The likeliest tokens of a row of logits, and their probabilities.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "kernels/kernels.h"

namespace kvik::runtime {

// Reads rows of logits with the vectors of a table. Its memory is used again from row to row. The
// numbers that a row gives depend on nothing but the row.
class LikelyTokens {
 public:
  explicit LikelyTokens(const kernels::KernelTable& table) : table_(table) {}

  // Takes a row, which must stay where it is until the next one. Throws kInvalidArgument when a
  // logit is NaN or +infinity, or when all are -infinity.
  void read(std::span<const float> logits);

  // log Σ e^logit of the row, within 1e-6.
  double log_sum_exp() const { return log_sum_exp_; }

  // The `count` largest logits, or as many as there are, in ascending order of their ids; of equal
  // ones those of the lowest ids. Those of -infinity are left out.
  const std::vector<std::pair<std::int64_t, float>>& largest(std::size_t count);

 private:
  // Logits whose maximum is found once: whole parts without one of the largest are passed over.
  static constexpr std::size_t kPart = 512;

  const kernels::KernelTable& table_;
  std::span<const float> logits_;
  double log_sum_exp_ = 0;
  std::vector<float> tops_;    // of each part
  std::vector<float> sorted_;  // the same, the largest first as far as is asked
  std::vector<std::pair<std::int64_t, float>> found_;
};

}  // namespace kvik::runtime
