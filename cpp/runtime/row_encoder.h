// Encodes whole sequences with a row program: all rows of a sequence together, none of padding.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "kvik/model.h"
#include "runtime/attention_sites.h"
#include "runtime/kv_cache.h"
#include "runtime/profiler.h"
#include "runtime/row_program.h"

namespace kvik::runtime {

class RowEncoder {
 public:
  // A program of a graph that was proved with Mixing::kWhole allowed. `picked`: of that graph.
  RowEncoder(std::unique_ptr<RowProgram> program, std::optional<std::int64_t> picked);

  const RowProgram& program() const { return *program_; }
  bool per_token() const { return !picked_; }
  std::int64_t features() const { return program_->output_features(); }
  // Rows of output for a sequence of this many tokens.
  std::int64_t rows(std::int64_t tokens) const { return picked_ ? 1 : tokens; }

  // One call at a time; ids and lengths are within the limits. Sequences are computed as many
  // together as fit the program's rows; one that is longer makes it grow.
  // out: float32 [rows of all inputs, features]. `records`: where the attentions write their
  // weights, of one input alone; empty: nowhere.
  void encode(std::span<const EncoderInput> inputs, float* out, const CancelCheck& cancelled,
              std::span<const ops::AttentionRecord> records = {});
  // See Model::attention(). One call at a time.
  std::vector<AttentionWeights> attention(const AttentionQuery& query,
                                          const CancelCheck& cancelled);

  std::vector<OpProfile> profiled_ops() const { return program_->profiled_ops(); }
  void set_profiler(Profiler* profiler) { program_->set_profiler(profiler); }

 private:
  void add(const EncoderInput& input);
  void run(float*& out, const CancelCheck& cancelled,
           std::span<const ops::AttentionRecord> records);

  std::unique_ptr<RowProgram> program_;
  std::size_t room_;  // rows that several sequences share
  std::optional<std::int64_t> picked_;
  std::shared_ptr<KvPool> pool_;
  // The sequences that are computed together, and their rows.
  std::vector<std::unique_ptr<KvCache>> caches_;  // kept; as many as were ever together
  std::vector<std::int64_t> tokens_;
  std::vector<std::int64_t> positions_;
  std::vector<std::int64_t> types_;
  std::vector<std::int64_t> wanted_;
  std::vector<ops::RowRun> runs_;
};

}  // namespace kvik::runtime
