// Beam search on a small model, against every continuation tried one by one.
#include <algorithm>
#include <cmath>
#include <map>
#include <vector>

#include "cpp/check.h"
#include "kvik/beam_search.h"
#include "kvik/generate.h"
#include "runtime/tiny_onnx.h"

namespace {

using namespace kvik;
using kvik::test::tiny_onnx;
using Tokens = std::vector<std::int64_t>;

constexpr std::int64_t kVocab = 40;

Model load(int threads = 1) {
  return Model::from_bytes(tiny_onnx({}), {.threads = threads});
}

std::vector<BeamStart> starts_of(const Model& model, const std::vector<Tokens>& prompts) {
  std::vector<BeamStart> starts;
  for (const Tokens& prompt : prompts) starts.push_back({model.new_sequence(), prompt});
  return starts;
}

// log p of every token after a text.
std::vector<double> log_probabilities(const Model& model, const Tokens& text) {
  Sequence sequence = model.new_sequence();
  std::vector<float> logits(kVocab);
  model.forward({{&sequence, text}}, logits);
  double sum = 0;
  for (const float logit : logits) sum += std::exp(static_cast<double>(logit));
  std::vector<double> out;
  for (const float logit : logits) out.push_back(static_cast<double>(logit) - std::log(sum));
  return out;
}

Tokens joined(Tokens text, const Tokens& more) {
  text.insert(text.end(), more.begin(), more.end());
  return text;
}

KVIK_TEST(one_beam_is_greedy) {
  const Model model = load();
  for (const Tokens& prompt : {Tokens{1, 2, 3}, Tokens{39}, Tokens{7, 7}}) {
    const auto found = beam_search(model, starts_of(model, {prompt}),
                                   {.beams = 1, .max_new_tokens = 12, .end_ids = {}});
    const auto greedy = generate(model, {.prompt = prompt, .max_new_tokens = 12});
    CHECK(found.at(0).at(0).tokens == greedy.tokens);
    CHECK(!found[0][0].ended);
    // It stops at the first end, however much longer texts are favoured.
    for (std::size_t i = 0; i < greedy.tokens.size(); ++i) {
      const std::int64_t end = greedy.tokens[i];
      const auto first = std::find(greedy.tokens.begin(), greedy.tokens.end(), end);
      const auto cut =
          beam_search(model, starts_of(model, {prompt}),
                      {.beams = 1, .max_new_tokens = 12, .length_penalty = 10, .end_ids = {end}});
      CHECK((cut.at(0).at(0).tokens == Tokens(greedy.tokens.begin(), first)));
      CHECK(cut[0][0].ended);
    }
  }
}

KVIK_TEST(a_start_may_have_a_limit_of_its_own) {
  const Model model = load();
  auto starts = starts_of(model, {{1, 2}, {1, 2}});
  starts[1].max_new_tokens = 3;
  const auto found = beam_search(model, std::move(starts), {.max_new_tokens = 6, .end_ids = {}});
  CHECK_EQ(found.at(0).at(0).tokens.size(), std::size_t{6});
  CHECK_EQ(found.at(1).at(0).tokens.size(), std::size_t{3});
}

KVIK_TEST(enough_beams_find_the_best_of_all) {
  const Model model = load();
  const Tokens prompt{5, 9};
  const std::int64_t end = 3;
  const double penalty = 0.8;
  // Everything of at most two tokens that ended, or has two.
  std::map<Tokens, double> all;
  const auto judged = [&](double log_p, std::size_t n) {
    return log_p / std::pow((5.0 + static_cast<double>(n)) / 6.0, penalty);
  };
  const auto first = log_probabilities(model, prompt);
  for (std::int64_t a = 0; a < kVocab; ++a) {
    const double one = first[static_cast<std::size_t>(a)];
    if (a == end) {
      all[{}] = judged(one, 1);
      continue;
    }
    const auto second = log_probabilities(model, joined(prompt, {a}));
    for (std::int64_t b = 0; b < kVocab; ++b) {
      const double two = one + second[static_cast<std::size_t>(b)];
      all[b == end ? Tokens{a} : Tokens{a, b}] = judged(two, 2);
    }
  }
  std::vector<std::pair<Tokens, double>> best(all.begin(), all.end());
  std::sort(best.begin(), best.end(),
            [](const auto& a, const auto& b) { return a.second > b.second; });
  const auto found = beam_search(model, starts_of(model, {prompt}),
                                 {.beams = 256,
                                  .results = 20,
                                  .max_new_tokens = 2,
                                  .length_penalty = penalty,
                                  .end_ids = {end}});
  CHECK_EQ(found.at(0).size(), std::size_t{20});
  for (std::size_t i = 0; i < found[0].size(); ++i) {
    CHECK(found[0][i].tokens == best[i].first) << i;
    CHECK(std::abs(found[0][i].score - best[i].second) < 1e-5);
    CHECK_EQ(found[0][i].ended, found[0][i].tokens.size() < 2);
  }
}

KVIK_TEST(a_start_does_not_depend_on_its_neighbours) {
  const Model model = load(2), single = load(1);
  const std::vector<Tokens> prompts{{1}, {2, 3, 4, 5}, {30, 31}};
  const BeamOptions options{.beams = 5, .results = 5, .max_new_tokens = 20, .end_ids = {3, 17}};
  const auto together = beam_search(model, starts_of(model, prompts), options);
  for (std::size_t i = 0; i < prompts.size(); ++i) {
    const auto alone = beam_search(single, starts_of(single, {prompts[i]}), options);
    CHECK_EQ(alone.at(0).size(), together.at(i).size());
    for (std::size_t k = 0; k < alone[0].size(); ++k) {
      CHECK(alone[0][k].tokens == together[i][k].tokens);
      CHECK_EQ(alone[0][k].score, together[i][k].score);
    }
  }
}

KVIK_TEST(hypotheses_are_ordered_and_end_with_the_context) {
  const Model model = load();
  const auto found = beam_search(model, starts_of(model, {Tokens(66, 4)}),
                                 {.beams = 3, .results = 3, .max_new_tokens = 50, .end_ids = {}});
  CHECK_EQ(found.at(0).size(), std::size_t{3});
  for (std::size_t i = 0; i < 3; ++i) {
    CHECK_EQ(found[0][i].tokens.size(), std::size_t{5});  // 66 + 4 fill the 70, and one follows
    CHECK(i == 0 || found[0][i - 1].score >= found[0][i].score);
  }
}

KVIK_TEST(impossible_options_are_refused) {
  const Model model = load();
  const auto refused = [&](const BeamOptions& options, const Tokens& prompt = {1}) {
    try {
      beam_search(model, starts_of(model, {prompt}), options);
      return false;
    } catch (const Error& error) {
      return error.code() == ErrorCode::kInvalidArgument;
    }
  };
  CHECK(refused({.beams = 0}));
  CHECK(refused({.beams = 257}));
  CHECK(refused({.beams = 2, .results = 3}));
  CHECK(refused({.max_new_tokens = 0}));
  CHECK(refused({.length_penalty = -1}));
  CHECK(refused({.length_penalty = 11}));
  CHECK(refused({.length_penalty = std::nan("")}));
  CHECK(refused({}, {}));
  CHECK(refused({}, {kVocab}));
  CHECK(beam_search(model, {}, {}).empty());
}

}  // namespace

int main(int argc, char** argv) {
  return kvik::test::run_all(argc, argv);
}
