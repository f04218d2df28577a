#include "kvik/sampler.h"
#include "base/fail.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>

#include "runtime/philox.h"
#include "runtime/portable_exp.h"

namespace kvik {

namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

void check(const SamplerOptions& o, std::int64_t vocab_size) {
  const auto number = [](double value) { return std::to_string(value); };
  if (vocab_size < 1) fail_argument("a vocabulary of " + std::to_string(vocab_size) + " tokens");
  if (!(o.temperature >= 0) || std::isinf(o.temperature)) {
    fail_argument("temperature " + number(o.temperature) +
                  "; expected 0 (greedy) or a finite number > 0");
  }
  if (o.top_k < 0) fail_argument("top_k " + std::to_string(o.top_k) + "; expected 0 (off) or more");
  if (!(o.top_p > 0 && o.top_p <= 1))
    fail_argument("top_p " + number(o.top_p) + "; expected (0, 1]");
  if (!(o.min_p >= 0 && o.min_p <= 1))
    fail_argument("min_p " + number(o.min_p) + "; expected [0, 1]");
  if (!(o.repetition_penalty > 0) || std::isinf(o.repetition_penalty)) {
    fail_argument("repetition_penalty " + number(o.repetition_penalty) +
                  "; expected a finite number > 0 (1 is off)");
  }
  for (const auto& [id, bias] : o.logit_bias) {
    if (id < 0 || id >= vocab_size) {
      fail_argument("logit_bias for token " + std::to_string(id) + "; the vocabulary has " +
                    std::to_string(vocab_size) + " tokens");
    }
    if (std::isnan(bias) || bias == std::numeric_limits<double>::infinity()) {
      fail_argument("logit_bias of token " + std::to_string(id) + " is " + number(bias) +
                    "; expected a finite number or -infinity");
    }
  }
}

}  // namespace

struct Sampler::Impl {
  struct Candidate {
    float logit;
    std::int64_t id;
    // Larger logits first, lower ids on ties.
    bool operator<(const Candidate& other) const {
      return logit != other.logit ? logit > other.logit : id < other.id;
    }
  };

  Impl(const SamplerOptions& o, std::int64_t vocab_size);

  void see(std::int64_t id);
  std::span<const float> processed(std::span<const float> logits);
  Candidate largest(std::span<const float> logits) const;
  std::int64_t draw(std::span<const float> logits, float top);
  double weight(float logit, float top) const {
    return runtime::portable_exp((static_cast<double>(logit) - top) / options.temperature);
  }
  double weigh_all(std::span<const float> logits, float top);
  std::size_t select(std::span<const float> logits, std::size_t count);
  std::size_t select_nucleus(std::span<const float> logits, float top);
  std::size_t nucleus_of(std::size_t count, double total, float top, bool* reached) const;
  std::int64_t draw_from_all(std::span<const float> logits, float top);
  std::int64_t draw_from_candidates(std::size_t count, float top) const;
  [[noreturn]] void refuse_logits(std::span<const float> logits) const;

  SamplerOptions options;
  std::size_t vocab;
  std::int64_t step = 0;
  double uniform() const {
    return runtime::philox_uniform(options.seed, static_cast<std::uint64_t>(step));
  }

  bool penalised;                      // repetition_penalty is on
  std::vector<std::uint8_t> seen;      // [vocab], if penalised
  std::vector<std::int64_t> seen_ids;  // without repeats
  std::vector<float> adjusted;         // [vocab], if biased or penalised
  std::vector<double> weights;         // [vocab], if it samples
  std::vector<Candidate> candidates;   // [vocab], if top_k or top_p
};

Sampler::Impl::Impl(const SamplerOptions& o, std::int64_t vocab_size)
    : options(o),
      vocab(static_cast<std::size_t>(vocab_size)),
      penalised(o.repetition_penalty != 1.0) {
  if (penalised) {
    seen.resize(vocab);
    seen_ids.reserve(vocab);
  }
  if (penalised || !o.logit_bias.empty()) adjusted.resize(vocab);
  if (o.temperature == 0) return;
  weights.resize(vocab);
  if (o.top_k > 0 || o.top_p < 1) candidates.resize(vocab);
}

void Sampler::Impl::see(std::int64_t id) {
  if (!penalised || id < 0 || static_cast<std::size_t>(id) >= vocab) return;
  std::uint8_t& mark = seen[static_cast<std::size_t>(id)];
  if (mark == 0) seen_ids.push_back(id);
  mark = 1;
}

// The logits with bias and penalty, in float32 as the model's own are.
std::span<const float> Sampler::Impl::processed(std::span<const float> logits) {
  if (adjusted.empty()) return logits;
  std::copy(logits.begin(), logits.end(), adjusted.begin());
  for (const auto& [id, bias] : options.logit_bias) {
    adjusted[static_cast<std::size_t>(id)] += static_cast<float>(bias);
  }
  const auto penalty = static_cast<float>(options.repetition_penalty);
  for (const std::int64_t id : seen_ids) {
    float& logit = adjusted[static_cast<std::size_t>(id)];
    logit = logit > 0 ? logit / penalty : logit * penalty;
  }
  return adjusted;
}

void Sampler::Impl::refuse_logits(std::span<const float> logits) const {
  const std::string where = "step " + std::to_string(step) + ": ";
  for (std::size_t i = 0; i < logits.size(); ++i) {
    if (logits[i] < kInfinity) continue;
    fail_argument(where + "the logit of token " + std::to_string(i) + " is " +
                  (std::isnan(logits[i]) ? "NaN" : "+infinity") +
                  "; the model's numbers overflowed or its weights are damaged");
  }
  fail_argument(where + "every token is forbidden: all logits are -infinity");
}

// The largest logit, after a look at all of them.
Sampler::Impl::Candidate Sampler::Impl::largest(std::span<const float> logits) const {
  float top = -kInfinity;
  bool sound = true;
  for (const float logit : logits) {
    sound &= logit < kInfinity;  // false for NaN too
    top = logit > top ? logit : top;
  }
  if (!sound || top == -kInfinity) refuse_logits(logits);
  const auto first = std::find(logits.begin(), logits.end(), top);
  return {top, first - logits.begin()};
}

double Sampler::Impl::weigh_all(std::span<const float> logits, float top) {
  for (std::size_t i = 0; i < vocab; ++i) weights[i] = weight(logits[i], top);
  double total = 0;
  for (std::size_t i = 0; i < vocab; ++i) total += weights[i];
  return total;
}

// The `count` best candidates, unordered, to the front of `candidates`: one pass over the logits
// with a rising threshold, and a partial selection whenever the buffer is full.
std::size_t Sampler::Impl::select(std::span<const float> logits, std::size_t count) {
  count = std::min(count, vocab);
  const std::size_t capacity = std::min(vocab, std::max<std::size_t>(4 * count, 256));
  std::size_t size = 0;
  float threshold = -kInfinity;
  const auto keep_best = [&] {
    if (size <= count) return;
    const auto begin = candidates.begin();
    std::nth_element(begin, begin + static_cast<std::ptrdiff_t>(count - 1),
                     begin + static_cast<std::ptrdiff_t>(size));
    size = count;
    // A later token must be strictly better: on a tie the lower id wins.
    threshold = candidates[count - 1].logit;
  };
  for (std::size_t i = 0; i < vocab; ++i) {
    if (!(logits[i] > threshold)) continue;
    if (size == capacity) {
      keep_best();
      if (!(logits[i] > threshold)) continue;
    }
    candidates[size++] = {logits[i], static_cast<std::int64_t>(i)};
  }
  keep_best();
  return size;
}

// How many of the first `count` candidates, sorted, make up top_p of `total`.
std::size_t Sampler::Impl::nucleus_of(std::size_t count, double total, float top,
                                      bool* reached) const {
  const double wanted = options.top_p * total;
  double sum = 0;
  for (std::size_t i = 0; i < count; ++i) {
    sum += weight(candidates[i].logit, top);
    if (sum >= wanted) {
      *reached = true;
      return i + 1;
    }
  }
  *reached = false;
  return count;
}

// The nucleus of the whole vocabulary, sorted: of ever more candidates until it is complete.
std::size_t Sampler::Impl::select_nucleus(std::span<const float> logits, float top) {
  const double total = weigh_all(logits, top);
  for (std::size_t count = 64;; count *= 8) {
    const std::size_t found = select(logits, count);
    std::sort(candidates.begin(), candidates.begin() + static_cast<std::ptrdiff_t>(found));
    bool reached = false;
    const std::size_t kept = nucleus_of(found, total, top, &reached);
    if (reached || found < count || found == vocab) return kept;
  }
}

std::int64_t Sampler::Impl::draw_from_all(std::span<const float> logits, float top) {
  weigh_all(logits, top);
  double total = 0;
  for (double& w : weights) {
    w = w < options.min_p ? 0 : w;  // relative to the most likely token, whose weight is 1
    total += w;
  }
  const double target = uniform() * total;
  double sum = 0;
  std::int64_t last = 0;
  for (std::size_t i = 0; i < vocab; ++i) {
    if (weights[i] == 0) continue;
    sum += weights[i];
    last = static_cast<std::int64_t>(i);
    if (sum > target) break;
  }
  return last;
}

// Draws from the first `count` candidates, which are sorted.
std::int64_t Sampler::Impl::draw_from_candidates(std::size_t count, float top) const {
  double total = 0;
  std::size_t kept = 0;
  for (; kept < count; ++kept) {
    const double w = weight(candidates[kept].logit, top);
    if (w == 0 || w < options.min_p) break;
    total += w;
  }
  const double target = uniform() * total;
  double sum = 0;
  for (std::size_t i = 0; i < kept; ++i) {
    sum += weight(candidates[i].logit, top);
    if (sum > target) return candidates[i].id;
  }
  return candidates[kept - 1].id;
}

std::int64_t Sampler::Impl::draw(std::span<const float> logits, float top) {
  if (candidates.empty()) return draw_from_all(logits, top);
  if (options.top_k == 0) return draw_from_candidates(select_nucleus(logits, top), top);
  std::size_t count = select(logits, static_cast<std::size_t>(options.top_k));
  std::sort(candidates.begin(), candidates.begin() + static_cast<std::ptrdiff_t>(count));
  if (options.top_p < 1) {
    double total = 0;
    for (std::size_t i = 0; i < count; ++i) total += weight(candidates[i].logit, top);
    bool reached = false;
    count = nucleus_of(count, total, top, &reached);
  }
  return draw_from_candidates(count, top);
}

Sampler::Sampler(const SamplerOptions& options, std::int64_t vocab_size) {
  check(options, vocab_size);
  impl_ = std::make_unique<Impl>(options, vocab_size);
}
Sampler::Sampler(Sampler&&) noexcept = default;
Sampler& Sampler::operator=(Sampler&&) noexcept = default;
Sampler::~Sampler() = default;

void Sampler::observe(std::span<const std::int64_t> tokens) {
  for (const std::int64_t id : tokens) impl_->see(id);
}

std::int64_t Sampler::sample(std::span<const float> logits) {
  if (logits.size() != impl_->vocab) {
    fail_argument("logits of " + std::to_string(logits.size()) +
                  " tokens; the sampler was made for " + std::to_string(impl_->vocab));
  }
  const std::span<const float> processed = impl_->processed(logits);
  const Impl::Candidate top = impl_->largest(processed);
  const std::int64_t id =
      impl_->options.temperature == 0 ? top.id : impl_->draw(processed, top.logit);
  impl_->see(id);
  ++impl_->step;
  return id;
}

std::int64_t Sampler::steps() const noexcept {
  return impl_->step;
}

}  // namespace kvik
