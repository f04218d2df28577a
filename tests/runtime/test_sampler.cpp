// The sampler: known answers of Philox, the error of exp, filters in Hugging Face's order against a
// plain restatement of them, and what must raise.
#include "kvik/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <numeric>
#include <set>
#include <vector>

#include "cpp/check.h"
#include "runtime/philox.h"
#include "runtime/portable_exp.h"

namespace {

using kvik::Sampler;
using kvik::SamplerOptions;
using kvik::test::thrown;

constexpr float kInf = std::numeric_limits<float>::infinity();

std::vector<float> random_logits(std::size_t vocab, std::uint64_t stream) {
  kvik::test::Random random(stream);
  std::vector<float> logits(vocab);
  for (float& logit : logits) logit = random.uniform(-6, 6);
  return logits;
}

// Vectors of the Random123 library's kat_vectors for philox4x32, 10 rounds.
KVIK_TEST(philox_known_answers) {
  using kvik::runtime::philox4x32_10;
  using Words = kvik::runtime::PhiloxCounter;
  CHECK((philox4x32_10({0, 0, 0, 0}, {0, 0}) ==
         Words{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  CHECK(
      (philox4x32_10({0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff}, {0xffffffff, 0xffffffff}) ==
       Words{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  CHECK(
      (philox4x32_10({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}) ==
       Words{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

KVIK_TEST(portable_exp_error) {
  double worst = 0;
  for (int i = 0; i <= 700000; ++i) {
    const double x = -i * 1e-3;
    worst = std::max(worst, std::abs(kvik::runtime::portable_exp(x) / std::exp(x) - 1));
  }
  CHECK(worst < 1e-15) << "relative error " << worst;
  CHECK_EQ(kvik::runtime::portable_exp(0.0), 1.0);
  CHECK_EQ(kvik::runtime::portable_exp(-1e9), 0.0);
  CHECK_EQ(kvik::runtime::portable_exp(-std::numeric_limits<double>::infinity()), 0.0);
}

KVIK_TEST(greedy_takes_the_first_maximum) {
  Sampler sampler({}, 5);
  const std::vector<float> logits{1, 3, 3, -kInf, 2};
  CHECK_EQ(sampler.sample(logits), 1);
  CHECK_EQ(sampler.steps(), 1);
}

KVIK_TEST(bias_then_penalty) {
  SamplerOptions options;
  options.logit_bias = {{0, -kInf}, {3, 2.0}};
  options.repetition_penalty = 2;
  Sampler sampler(options, 4);
  const std::vector<std::int64_t> prompt{3, 17};  // 17 is no id of this vocabulary
  sampler.observe(prompt);
  // 0 forbidden; 3: (2.5 + 2) / 2 = 2.25 beats 2; then 3 stays penalised and 3 loses to 2.3.
  CHECK_EQ(sampler.sample(std::vector<float>{9, 1, 2, 2.5F}), 3);
  CHECK_EQ(sampler.sample(std::vector<float>{9, 1, 2.3F, 2.5F}), 2);
  // Negative logits are multiplied: -1 (seen) becomes -2, below -1.5 (not seen).
  CHECK_EQ(sampler.sample(std::vector<float>{9, -1.5F, -1, -9}), 1);
}

// The distribution that the options describe, by a full sort, as the transformers library does it:
// probabilities by id.
std::map<std::int64_t, double> expected(const std::vector<float>& logits,
                                        const SamplerOptions& options) {
  std::vector<std::int64_t> ids(logits.size());
  std::iota(ids.begin(), ids.end(), 0);
  std::stable_sort(ids.begin(), ids.end(), [&](auto a, auto b) {
    return logits[static_cast<std::size_t>(a)] > logits[static_cast<std::size_t>(b)];
  });
  const auto weight = [&](std::int64_t id) {
    return std::exp((static_cast<double>(logits[static_cast<std::size_t>(id)]) -
                     logits[static_cast<std::size_t>(ids[0])]) /
                    options.temperature);
  };
  const auto total = [&] {
    double sum = 0;
    for (const std::int64_t id : ids) sum += weight(id);
    return sum;
  };
  if (options.top_k > 0) ids.resize(std::min(ids.size(), static_cast<std::size_t>(options.top_k)));
  if (options.top_p < 1) {
    const double all = total();
    double before = 0;
    std::size_t kept = 0;
    while (kept < ids.size() && before < options.top_p * all) before += weight(ids[kept++]);
    ids.resize(kept);
  }
  std::erase_if(ids, [&](std::int64_t id) { return weight(id) < options.min_p; });
  std::map<std::int64_t, double> out;
  for (const std::int64_t id : ids) out[id] = weight(id) / total();
  return out;
}

// Draws many times; the support must be exactly the expected one and the frequencies within five
// standard deviations (a false alarm about once in 10^5 over all the cases).
void compare(const SamplerOptions& base, std::size_t vocab, const char* what) {
  constexpr int kDraws = 20000;
  const std::vector<float> logits = random_logits(vocab, vocab);
  SamplerOptions options = base;
  options.seed = 12345;
  const auto want = expected(logits, options);
  Sampler sampler(options, static_cast<std::int64_t>(vocab));
  std::map<std::int64_t, int> seen;
  for (int i = 0; i < kDraws; ++i) ++seen[sampler.sample(logits)];
  for (const auto& [id, count] : seen) CHECK(want.count(id) == 1) << what << ": drew id " << id;
  for (const auto& [id, p] : want) {
    const double sigma = std::sqrt(kDraws * p * (1 - p)) + 1;
    CHECK(std::abs(seen[id] - kDraws * p) < 5 * sigma)
        << what << ": id " << id << " drawn " << seen[id] << " times of " << kDraws << ", p " << p;
  }
}

KVIK_TEST(filters_give_the_described_distribution) {
  for (const std::size_t vocab : {1, 2, 50, 3000}) {
    compare({.temperature = 1}, vocab, "temperature 1");
    compare({.temperature = 0.3}, vocab, "temperature 0.3");
    compare({.temperature = 1, .top_k = 1}, vocab, "top_k 1");
    compare({.temperature = 2, .top_k = 40}, vocab, "top_k 40");
    compare({.temperature = 1, .top_p = 0.1}, vocab, "top_p 0.1");
    compare({.temperature = 1.5, .top_p = 0.95}, vocab, "top_p 0.95");
    compare({.temperature = 1, .min_p = 0.2}, vocab, "min_p");
    compare({.temperature = 1, .top_k = 30, .top_p = 0.8, .min_p = 0.05}, vocab, "all of them");
  }
}

KVIK_TEST(top_k_keeps_low_ids_on_ties) {
  const std::vector<float> logits(1000, 1.0F);
  Sampler sampler({.temperature = 1, .top_k = 3}, 1000);
  std::set<std::int64_t> seen;
  for (int i = 0; i < 300; ++i) seen.insert(sampler.sample(logits));
  CHECK((seen == std::set<std::int64_t>{0, 1, 2}));
}

// These numbers must never change, on any platform: seeds that people have written down.
KVIK_TEST(seeds_are_reproducible) {
  std::vector<float> logits(1000);
  for (std::size_t i = 0; i < logits.size(); ++i) {
    logits[i] = static_cast<float>(static_cast<int>((i * 7919) % 1000) - 500) / 64.0F;
  }
  const auto draw = [&](SamplerOptions options) {
    Sampler sampler(options, 1000);
    std::vector<std::int64_t> ids;
    for (int i = 0; i < 6; ++i) ids.push_back(sampler.sample(logits));
    return ids;
  };
  const auto show = [](const std::vector<std::int64_t>& ids) {
    std::string text;
    for (const std::int64_t id : ids) text += std::to_string(id) + " ";
    return text;
  };
  CHECK_EQ(show(draw({.temperature = 4, .seed = 7})), "748 794 5 249 988 334 ");
  CHECK_EQ(show(draw({.temperature = 4, .top_k = 50, .seed = 7})), "877 519 321 852 50 136 ");
  CHECK_EQ(show(draw({.temperature = 4, .top_p = 0.9, .seed = 1ULL << 40})),
           "311 475 718 704 39 77 ");
  CHECK(draw({.temperature = 4, .seed = 7}) != draw({.temperature = 4, .seed = 8}));
}

KVIK_TEST(bad_logits_raise_and_leave_the_sampler_alone) {
  const std::vector<float> good{0, 1, 2};
  for (const double temperature : {0.0, 1.0}) {
    Sampler sampler({.temperature = temperature}, 3);
    sampler.sample(good);
    const float nan = std::numeric_limits<float>::quiet_NaN();
    for (std::size_t at = 0; at < 3; ++at) {
      std::vector<float> bad = good;
      bad[at] = nan;
      const std::string text = thrown([&] { sampler.sample(bad); });
      CHECK(text.find("step 1") != std::string::npos) << text;
      CHECK(text.find("token " + std::to_string(at) + " is NaN") != std::string::npos) << text;
    }
    CHECK(!thrown([&] { sampler.sample(std::vector<float>{0, kInf, 0}); }).empty());
    CHECK(!thrown([&] { sampler.sample(std::vector<float>{-kInf, -kInf, -kInf}); }).empty());
    CHECK(!thrown([&] { sampler.sample(std::vector<float>{0, 1}); }).empty());
    CHECK_EQ(sampler.steps(), 1);
    sampler.sample(good);
  }
}

KVIK_TEST(options_out_of_range_raise) {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  const std::vector<SamplerOptions> bad{{.temperature = -1},
                                        {.temperature = nan},
                                        {.temperature = kInf},
                                        {.top_k = -1},
                                        {.top_p = 0},
                                        {.top_p = 1.5},
                                        {.top_p = nan},
                                        {.min_p = -0.1},
                                        {.min_p = 2},
                                        {.repetition_penalty = 0},
                                        {.repetition_penalty = nan},
                                        {.logit_bias = {{3, 1.0}}},
                                        {.logit_bias = {{-1, 1.0}}},
                                        {.logit_bias = {{0, nan}}},
                                        {.logit_bias = {{0, kInf}}}};
  for (std::size_t i = 0; i < bad.size(); ++i) {
    CHECK(!thrown([&] { Sampler sampler(bad[i], 3); }).empty()) << "case " << i;
  }
}

}  // namespace

int main(int argc, char** argv) {
  return kvik::test::run_all(argc, argv);
}
