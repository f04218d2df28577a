#include "runtime/likely_tokens.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <functional>
#include <limits>
#include <numeric>

#include "base/fail.h"

namespace kvik::runtime {

namespace {

using kernels::Binary;
using kernels::KernelTable;

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr std::size_t kLanes = 16;

// x ∘ x ∘ ... of a part: halves upon halves by the table, then from left to right by `last`.
template <std::size_t kPart, typename Last>
float fold(const KernelTable& table, Binary f, std::span<const float> x, float neutral, Last last) {
  std::array<float, kPart> rest;
  const float* from = x.data();
  if (x.size() < kPart) {
    std::copy(x.begin(), x.end(), rest.begin());
    std::fill(rest.begin() + static_cast<std::ptrdiff_t>(x.size()), rest.end(), neutral);
    from = rest.data();
  }
  for (std::size_t half = kPart / 2; half >= kLanes; half /= 2, from = rest.data()) {
    table.binary_f32(f, from, 1, from + half, 1, static_cast<std::int64_t>(half), rest.data());
  }
  return std::accumulate(rest.begin() + 1, rest.begin() + kLanes, rest[0], last);
}

// NaN where one of them is.
float larger(float a, float b) {
  return std::isnan(b) || b > a ? b : a;
}

}  // namespace

void LikelyTokens::read(std::span<const float> logits) {
  logits_ = logits;
  tops_.clear();
  float top = -kInfinity;
  for (std::size_t begin = 0; begin < logits.size(); begin += kPart) {
    const auto part = logits.subspan(begin, std::min(kPart, logits.size() - begin));
    tops_.push_back(fold<kPart>(table_, Binary::kMax, part, -kInfinity, larger));
    if (!(tops_.back() < kInfinity)) {
      fail_argument("the model computed a logit that is NaN or infinite");
    }
    top = std::max(top, tops_.back());
  }
  if (top == -kInfinity) fail_argument("the model gives no token any probability");

  std::array<float, kPart> weights;
  double sum = 0;
  for (std::size_t begin = 0; begin < logits.size(); begin += kPart) {
    const std::size_t size = std::min(kPart, logits.size() - begin);
    const auto count = static_cast<std::int64_t>(size);
    table_.binary_f32(Binary::kSub, logits.data() + begin, 1, &top, 0, count, weights.data());
    table_.unary_f32(kernels::Unary::kExp, weights.data(), count, weights.data());
    sum += static_cast<double>(
        fold<kPart>(table_, Binary::kAdd, std::span(weights).first(size), 0.0F, std::plus<>()));
  }
  log_sum_exp_ = static_cast<double>(top) + std::log(sum);
}

const std::vector<std::pair<std::int64_t, float>>& LikelyTokens::largest(std::size_t count) {
  found_.clear();
  if (count == 0) return found_;
  // `count` parts have a logit of `least` or more, so that none below it is wanted.
  float least = -kInfinity;
  if (count < tops_.size()) {
    sorted_ = tops_;
    const auto place = sorted_.begin() + static_cast<std::ptrdiff_t>(count - 1);
    std::nth_element(sorted_.begin(), place, sorted_.end(), std::greater<>());
    least = *place;
  }
  for (std::size_t p = 0; p < tops_.size(); ++p) {
    if (tops_[p] < least) continue;
    const std::size_t end = std::min((p + 1) * kPart, logits_.size());
    for (std::size_t id = p * kPart; id < end; ++id) {
      if (logits_[id] >= least && logits_[id] > -kInfinity) {
        found_.emplace_back(static_cast<std::int64_t>(id), logits_[id]);
      }
    }
  }
  if (found_.size() > count) {
    const auto end = found_.begin() + static_cast<std::ptrdiff_t>(count);
    std::nth_element(found_.begin(), end - 1, found_.end(), [](const auto& a, const auto& b) {
      return a.second != b.second ? a.second > b.second : a.first < b.first;
    });
    found_.erase(end, found_.end());
    std::sort(found_.begin(), found_.end());
  }
  return found_;
}

}  // namespace kvik::runtime
