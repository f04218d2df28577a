#include "runtime/row_encoder.h"

#include <algorithm>
#include <utility>

namespace kvik::runtime {

RowEncoder::RowEncoder(std::unique_ptr<RowProgram> program, std::optional<std::int64_t> picked)
    : program_(std::move(program)),
      room_(static_cast<std::size_t>(program_->max_rows())),
      picked_(picked),
      pool_(std::make_shared<KvPool>(program_->kv_layout())) {}

void RowEncoder::encode(std::span<const EncoderInput> inputs, float* out,
                        const CancelCheck& cancelled,
                        std::span<const ops::AttentionRecord> records) {
  std::size_t longest = 0;
  for (const EncoderInput& input : inputs) longest = std::max(longest, input.tokens.size());
  program_->grow(static_cast<int>(longest));
  const auto clear = [&] {
    for (std::size_t i = 0; i < runs_.size(); ++i) caches_[i]->truncate(0);
    tokens_.clear();
    positions_.clear();
    types_.clear();
    wanted_.clear();
    runs_.clear();
  };
  try {
    for (const EncoderInput& input : inputs) {
      if (tokens_.size() + input.tokens.size() > room_) {
        run(out, cancelled, records);
        clear();
      }
      add(input);
    }
    run(out, cancelled, records);
  } catch (...) {
    clear();
    throw;
  }
  clear();
}

void RowEncoder::add(const EncoderInput& input) {
  const std::size_t index = runs_.size();
  if (index == caches_.size()) caches_.push_back(std::make_unique<KvCache>(pool_));
  const auto first = static_cast<std::int64_t>(tokens_.size());
  const auto count = static_cast<std::int64_t>(input.tokens.size());
  // Before the cache takes pages: clear() goes by the runs.
  runs_.emplace_back();
  caches_[index]->reserve(count);
  runs_.back() = caches_[index]->run(first, count, 0);
  tokens_.insert(tokens_.end(), input.tokens.begin(), input.tokens.end());
  if (input.types.empty()) {
    types_.insert(types_.end(), input.tokens.size(), 0);
  } else {
    types_.insert(types_.end(), input.types.begin(), input.types.end());
  }
  for (std::int64_t i = 0; i < count; ++i) {
    positions_.push_back(i);
    if (!picked_ || i == (*picked_ < 0 ? count + *picked_ : *picked_)) wanted_.push_back(first + i);
  }
}

void RowEncoder::run(float*& out, const CancelCheck& cancelled,
                     std::span<const ops::AttentionRecord> records) {
  if (tokens_.empty()) return;
  program_->run({.tokens = tokens_,
                 .positions = positions_,
                 .types = types_,
                 .batch = {.runs = runs_,
                           .rows = static_cast<std::int64_t>(tokens_.size()),
                           .layer_tables = program_->layer_tables(),
                           .records = records},
                 .cancelled = cancelled ? &cancelled : nullptr,
                 .wanted = wanted_,
                 .output = out});
  out += static_cast<std::int64_t>(wanted_.size()) * program_->output_features();
}

std::vector<AttentionWeights> RowEncoder::attention(const AttentionQuery& query,
                                                    const CancelCheck& cancelled) {
  const auto count = static_cast<std::int64_t>(query.text.tokens.size());
  std::vector<AttentionSite> sites = row_sites(program_->rows(), AttentionKind::kSelf);
  choose_attention(sites, query.choice);
  measure_sites(sites, program_->rows(), count, 0);
  std::vector<AttentionWeights> weights = make_room(sites);
  std::vector<float> out(static_cast<std::size_t>(rows(count) * features()));
  encode({&query.text, 1}, out.data(), cancelled, records_of(sites));
  return weights;
}

}  // namespace kvik::runtime
