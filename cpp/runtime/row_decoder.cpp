#include "runtime/row_decoder.h"

#include <algorithm>
#include <atomic>
#include <utility>

#include "kvik/error.h"

namespace kvik::runtime {

class RowDecoder::State final : public SequenceState {
 public:
  explicit State(std::shared_ptr<KvPool> pool, std::shared_ptr<const Source> from = nullptr)
      : cache(std::move(pool)), source(std::move(from)) {}
  State(const State&) = default;

  std::int64_t length() const override { return cache.length(); }
  std::int64_t bytes() const override { return cache.bytes() + (source ? source->bytes() : 0); }
  std::unique_ptr<SequenceState> fork() const override {
    auto copy = std::make_unique<State>(*this);
    copy->taken = false;
    return copy;
  }
  void truncate(std::int64_t length) override { cache.truncate(length); }

  KvCache cache;
  std::shared_ptr<const Source> source;  // null: the model has one sequence
};

RowDecoder::RowDecoder(std::unique_ptr<RowProgram> program, std::unique_ptr<SourceEncoder> sources)
    : program_(std::move(program)),
      sources_(std::move(sources)),
      pool_(std::make_shared<KvPool>(program_->kv_layout())) {
  const auto rows = static_cast<std::size_t>(program_->max_rows());
  tokens_.reserve(rows);
  positions_.reserve(rows);
  wanted_.reserve(rows);
  runs_.reserve(rows);
}

KvCache& RowDecoder::cache_of(const DecodeStep& step) {
  return static_cast<State*>(step.state)->cache;
}

std::unique_ptr<SequenceState> RowDecoder::new_state() const {
  return std::make_unique<State>(pool_);
}

std::vector<std::unique_ptr<SequenceState>> RowDecoder::new_states(
    std::span<const EncoderInput> sources, const CancelCheck& cancelled) {
  std::vector<std::unique_ptr<SequenceState>> states;
  for (auto& source : sources_->encode(sources, cancelled, {})) {
    states.push_back(std::make_unique<State>(pool_, std::move(source)));
  }
  return states;
}

void RowDecoder::forward(std::span<const DecodeStep> steps, float* logits,
                         const CancelCheck& cancelled) {
  try {
    reserve(steps);
    run_chunks(steps, logits, cancelled);
  } catch (...) {
    for (const DecodeStep& step : steps) {
      KvCache& own = cache_of(step);
      own.truncate(own.length());
    }
    throw;
  }
  for (const DecodeStep& step : steps) {
    KvCache& own = cache_of(step);
    own.commit(own.length() + static_cast<std::int64_t>(step.tokens.size()));
  }
}

// Makes room for the tokens of all steps.
void RowDecoder::reserve(std::span<const DecodeStep> steps) {
  const auto reserve = [](const DecodeStep& step) {
    KvCache& own = cache_of(step);
    own.reserve(own.length() + static_cast<std::int64_t>(step.tokens.size()));
  };
  // Forks copy the page that they go on in: of several, as in a beam search, the threads take
  // shares. Most calls copy none.
  const auto copies = std::count_if(steps.begin(), steps.end(), [](const DecodeStep& step) {
    return cache_of(step).shares_last_page();
  });
  if (copies < 2) {
    for (const DecodeStep& step : steps) reserve(step);
    return;
  }
  std::atomic<std::size_t> next{0};
  program_->threads().run([&](int, int) {
    for (std::size_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < steps.size();) {
      reserve(steps[i]);
    }
  });
}

// Cuts the rows of all steps, in order, into chunks of at most max_rows.
void RowDecoder::run_chunks(std::span<const DecodeStep> steps, float* logits,
                            const CancelCheck& cancelled) {
  const std::int64_t max_rows = program_->max_rows();
  clear_chunk();
  for (const DecodeStep& step : steps) {
    const auto total = static_cast<std::int64_t>(step.tokens.size());
    for (std::int64_t done = 0; done < total;) {
      const auto room = max_rows - static_cast<std::int64_t>(tokens_.size());
      if (room == 0) {
        run_chunk(logits);
        if (cancelled && cancelled()) {
          throw Error(ErrorCode::kCancelled, "cancelled between chunks of the prefill");
        }
        continue;
      }
      const std::int64_t count = std::min(room, total - done);
      add_rows(step, done, count);
      done += count;
    }
  }
  run_chunk(logits);
}

void RowDecoder::clear_chunk() {
  tokens_.clear();
  positions_.clear();
  wanted_.clear();
  runs_.clear();
}

void RowDecoder::add_rows(const DecodeStep& step, std::int64_t first, std::int64_t count) {
  const State& state = *static_cast<const State*>(step.state);
  const KvCache& cache = state.cache;
  const auto first_row = static_cast<std::int64_t>(tokens_.size());
  const std::int64_t position = cache.length() + first;
  const auto last = static_cast<std::int64_t>(step.tokens.size()) - 1;
  runs_.push_back(cache.run(first_row, count, position));
  if (state.source) {
    runs_.back().source = state.source->cache.tables();
    runs_.back().source_length = state.source->cache.length();
    runs_.back().source_states = state.source->states.data();
  }
  for (std::int64_t i = 0; i < count; ++i) {
    tokens_.push_back(step.tokens[static_cast<std::size_t>(first + i)]);
    positions_.push_back(position + i);
    if (step.logits == Logits::kAll || (step.logits == Logits::kLast && first + i == last)) {
      wanted_.push_back(first_row + i);
    }
  }
}

void RowDecoder::run_chunk(float*& logits) {
  program_->run({.tokens = tokens_,
                 .positions = positions_,
                 .batch = {.runs = runs_,
                           .rows = static_cast<std::int64_t>(tokens_.size()),
                           .layer_tables = program_->layer_tables(),
                           .records = records_},
                 .wanted = wanted_,
                 .output = logits});
  logits += static_cast<std::int64_t>(wanted_.size()) * program_->output_features();
  clear_chunk();
}

// The target's tokens are computed as in any call, without logits.
std::vector<AttentionWeights> RowDecoder::attention(const AttentionQuery& query,
                                                    const CancelCheck& cancelled) {
  const std::span<const std::int64_t> tokens = sources_ ? query.target : query.text.tokens;
  const auto count = static_cast<std::int64_t>(tokens.size());
  const auto source_count = static_cast<std::int64_t>(query.text.tokens.size());
  std::vector<AttentionSite> sites = row_sites(program_->rows(), AttentionKind::kSelf);
  const std::size_t own = sites.size();
  const graph::RowGraph* source_rows = sources_ ? sources_->rows() : nullptr;
  if (source_rows != nullptr) {
    const auto more = row_sites(*source_rows, AttentionKind::kSource);
    sites.insert(sites.end(), more.begin(), more.end());
  }
  choose_attention(sites, query.choice);
  const std::span<AttentionSite> of_target = std::span(sites).first(own);
  const std::span<AttentionSite> of_source = std::span(sites).subspan(own);
  measure_sites(of_target, program_->rows(), count, source_count);
  if (source_rows != nullptr) measure_sites(of_source, *source_rows, source_count, 0);
  std::vector<AttentionWeights> weights = make_room(sites);

  std::unique_ptr<SequenceState> state;
  if (sources_) {
    auto sources = sources_->encode({&query.text, 1}, cancelled, records_of(of_source));
    state = std::make_unique<State>(pool_, std::move(sources.front()));
  } else {
    state = new_state();
  }
  const std::vector<ops::AttentionRecord> records = records_of(of_target);
  const auto wanted = [](const AttentionSite& site) { return site.wanted; };
  if (std::none_of(of_target.begin(), of_target.end(), wanted)) return weights;
  struct Reset {
    std::span<const ops::AttentionRecord>& records;
    ~Reset() { records = {}; }
  } reset{records_};
  records_ = records;
  const DecodeStep step{state.get(), tokens, Logits::kNone};
  forward({&step, 1}, nullptr, cancelled);
  return weights;
}

}  // namespace kvik::runtime
