#include "kvik/beam_search.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <string>
#include <utility>

#include "base/fail.h"
#include "kernels/dispatch.h"
#include "runtime/likely_tokens.h"
#include "runtime/model_threads.h"

namespace kvik {

namespace {

using runtime::LikelyTokens;

constexpr int kMostBeams = 256;
constexpr double kMostPenalty = 10;  // scores of the longest texts are still apart

// A hypothesis that is not finished, with its state.
struct Live {
  Sequence sequence;
  Hypothesis found;
  std::vector<std::int64_t> next;  // what is to be fed
};

// One token more for one of the live.
struct Candidate {
  std::size_t parent = 0;
  std::int64_t token = 0;
  double log_probability = 0;
};

// What a search needs of a row of logits.
struct LikelyRow {
  double log_sum_exp = 0;
  std::vector<std::pair<std::int64_t, float>> largest;  // see LikelyTokens
};

// Reads logits [rows, vocabulary], each row by one thread.
void read_rows(const Model& model, std::span<const float> logits, std::size_t vocabulary,
               std::size_t count, std::span<LikelyRow> rows) {
  std::atomic<std::size_t> next{0};
  const auto most_threads = static_cast<int>(rows.size());
  ModelThreads::run(model, most_threads, [&](int, int) {
    LikelyTokens likely(kernels::active_table());
    for (std::size_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < rows.size();) {
      likely.read(logits.subspan(i * vocabulary, vocabulary));
      rows[i].log_sum_exp = likely.log_sum_exp();
      rows[i].largest = likely.largest(count);
    }
  });
}

// The better first; equal ones by their parents and ids, so that the order is one.
bool better(const Candidate& a, const Candidate& b) {
  if (a.log_probability != b.log_probability) return a.log_probability > b.log_probability;
  return std::pair(a.parent, a.token) < std::pair(b.parent, b.token);
}

// The search from one start.
class Search {
 public:
  Search(BeamStart start, const BeamOptions& options)
      : options_(options),
        most_tokens_(start.max_new_tokens > 0 ? start.max_new_tokens : options.max_new_tokens) {
    live_.push_back({std::move(start.sequence), {}, std::move(start.prompt)});
  }

  std::vector<Live>& live() { return live_; }

  // Takes the logits that come next: a row for each that is live.
  void advance(std::span<const LikelyRow> rows, std::int64_t context);
  // Once nothing is live.
  std::vector<Hypothesis> results();

 private:
  double score(double log_probability, std::size_t tokens) const {
    return log_probability /
           std::pow((5.0 + static_cast<double>(tokens)) / 6.0, options_.length_penalty);
  }
  void finish(Hypothesis hypothesis, std::size_t tokens);
  bool settled() const;

  const BeamOptions& options_;
  const std::int64_t most_tokens_;
  std::vector<Live> live_;
  std::vector<Hypothesis> finished_;  // the best first, no more than there are beams
  std::int64_t tokens_ = 0;
};

void Search::finish(Hypothesis hypothesis, std::size_t tokens) {
  hypothesis.score = score(hypothesis.log_probability, tokens);
  const auto place =
      std::upper_bound(finished_.begin(), finished_.end(), hypothesis,
                       [](const Hypothesis& a, const Hypothesis& b) { return a.score > b.score; });
  finished_.insert(place, std::move(hypothesis));
  if (finished_.size() > static_cast<std::size_t>(options_.beams)) finished_.pop_back();
}

// Whether nothing that is live can become better than what is wanted of the finished ones: log p
// can only fall, and the penalty is largest for the longest. One beam that ended was the likeliest
// at every step, and that is what is asked of it.
bool Search::settled() const {
  if (finished_.size() < static_cast<std::size_t>(options_.beams)) return false;
  if (options_.beams == 1) return true;
  double most = -std::numeric_limits<double>::infinity();
  for (const Live& own : live_) {
    most = std::max(most, score(own.found.log_probability, static_cast<std::size_t>(most_tokens_)));
  }
  return most <= finished_[static_cast<std::size_t>(options_.results) - 1].score;
}

void Search::advance(std::span<const LikelyRow> rows, std::int64_t context) {
  std::vector<Candidate> found;
  for (std::size_t i = 0; i < live_.size(); ++i) {
    const double base = live_[i].found.log_probability - rows[i].log_sum_exp;
    for (const auto& [id, logit] : rows[i].largest) {
      found.push_back({i, id, base + static_cast<double>(logit)});
    }
  }
  std::sort(found.begin(), found.end(), better);
  ++tokens_;
  std::vector<Candidate> kept;
  for (const Candidate& candidate : found) {
    if (kept.size() == static_cast<std::size_t>(options_.beams)) break;
    const auto& ends = options_.end_ids;
    if (std::find(ends.begin(), ends.end(), candidate.token) == ends.end()) {
      kept.push_back(candidate);
      continue;
    }
    Hypothesis ended = live_[candidate.parent].found;
    ended.log_probability = candidate.log_probability;
    ended.ended = true;
    finish(std::move(ended), static_cast<std::size_t>(tokens_));
  }
  std::vector<std::size_t> children(live_.size(), 0);
  for (const Candidate& candidate : kept) ++children[candidate.parent];
  std::vector<Live> next;
  for (const Candidate& candidate : kept) {
    Live& parent = live_[candidate.parent];
    // The last child takes the parent's state, the others a fork.
    Sequence sequence =
        --children[candidate.parent] == 0 ? std::move(parent.sequence) : parent.sequence.fork();
    Hypothesis longer = parent.found;
    longer.tokens.push_back(candidate.token);
    longer.log_probability = candidate.log_probability;
    next.push_back({std::move(sequence), std::move(longer), {candidate.token}});
  }
  live_ = std::move(next);
  if (settled()) {
    live_.clear();
  } else if (tokens_ >= most_tokens_ || live_.empty() ||
             (context > 0 && live_.front().sequence.length() + 1 > context)) {
    for (Live& own : live_) finish(std::move(own.found), static_cast<std::size_t>(tokens_));
    live_.clear();
  }
}

std::vector<Hypothesis> Search::results() {
  const auto wanted = std::min(finished_.size(), static_cast<std::size_t>(options_.results));
  finished_.resize(wanted);
  return std::move(finished_);
}

void check(const BeamOptions& options, std::span<const BeamStart> starts) {
  if (options.beams < 1 || options.beams > kMostBeams) {
    fail_argument("beams is " + std::to_string(options.beams) + "; expected 1 to " +
                  std::to_string(kMostBeams));
  }
  if (options.results < 1 || options.results > options.beams) {
    fail_argument("results is " + std::to_string(options.results) + "; expected 1 to the " +
                  std::to_string(options.beams) + " beams");
  }
  if (options.max_new_tokens < 1) {
    fail_argument("max_new_tokens is " + std::to_string(options.max_new_tokens) +
                  "; expected at least 1");
  }
  if (!(options.length_penalty >= 0 && options.length_penalty <= kMostPenalty)) {
    fail_argument("length_penalty is " + std::to_string(options.length_penalty) +
                  "; expected 0 to 10");
  }
  for (std::size_t i = 0; i < starts.size(); ++i) {
    const std::string where = "start " + std::to_string(i) + ": ";
    if (starts[i].prompt.empty()) fail_argument(where + "no prompt");
    if (starts[i].max_new_tokens < 0) fail_argument(where + "max_new_tokens is negative");
  }
}

}  // namespace

std::vector<std::vector<Hypothesis>> beam_search(const Model& model, std::vector<BeamStart> starts,
                                                 const BeamOptions& options,
                                                 const CancelCheck& cancelled) {
  check(options, starts);
  std::vector<Search> searches;
  searches.reserve(starts.size());
  for (BeamStart& start : starts) searches.emplace_back(std::move(start), options);
  const auto vocabulary = static_cast<std::size_t>(model.info().vocab_size);
  std::vector<Step> steps;
  std::vector<float> logits;
  std::vector<LikelyRow> rows;
  // As many as can be kept, beside as many ends as there may be before them.
  const std::size_t most = static_cast<std::size_t>(options.beams) + options.end_ids.size();
  for (;;) {
    steps.clear();
    for (Search& search : searches) {
      for (Live& own : search.live()) steps.push_back({&own.sequence, own.next});
    }
    if (steps.empty()) break;
    logits.resize(steps.size() * vocabulary);
    model.forward(steps, logits, cancelled);
    rows.resize(steps.size());
    read_rows(model, logits, vocabulary, most, rows);
    std::span<const LikelyRow> rest = rows;
    for (Search& search : searches) {
      const std::size_t own = search.live().size();
      if (own > 0) search.advance(rest.first(own), model.info().context_length);
      rest = rest.subspan(own);
    }
  }
  std::vector<std::vector<Hypothesis>> found;
  for (Search& search : searches) found.push_back(search.results());
  return found;
}
}  // namespace kvik
