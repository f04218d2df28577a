// Decodes with a row program: each token is computed once.
#pragma once

#include <memory>
#include <vector>

#include "runtime/decoder.h"
#include "runtime/kv_cache.h"
#include "runtime/row_program.h"
#include "runtime/source_encoder.h"

namespace kvik::runtime {

class RowDecoder final : public Decoder {
 public:
  // `sources`: of a model of two sequences, whose states are made by new_states() alone.
  explicit RowDecoder(std::unique_ptr<RowProgram> program,
                      std::unique_ptr<SourceEncoder> sources = nullptr);

  const RowProgram& program() const { return *program_; }
  std::unique_ptr<SequenceState> new_state() const override;
  std::vector<std::unique_ptr<SequenceState>> new_states(std::span<const EncoderInput> sources,
                                                         const CancelCheck& cancelled) override;
  void forward(std::span<const DecodeStep> steps, float* logits,
               const CancelCheck& cancelled) override;
  std::vector<AttentionWeights> attention(const AttentionQuery& query,
                                          const CancelCheck& cancelled) override;
  std::vector<OpProfile> profiled_ops() const override { return program_->profiled_ops(); }
  void set_profiler(Profiler* profiler) override { program_->set_profiler(profiler); }

 private:
  class State;

  static KvCache& cache_of(const DecodeStep& step);
  void reserve(std::span<const DecodeStep> steps);
  void run_chunks(std::span<const DecodeStep> steps, float* logits, const CancelCheck& cancelled);
  void clear_chunk();
  void add_rows(const DecodeStep& step, std::int64_t first, std::int64_t count);
  void run_chunk(float*& logits);

  std::unique_ptr<RowProgram> program_;
  std::unique_ptr<SourceEncoder> sources_;
  std::shared_ptr<KvPool> pool_;
  // The chunk being put together. Reserved for max_rows: a call allocates nothing.
  std::vector<std::int64_t> tokens_;
  std::vector<std::int64_t> positions_;
  std::vector<std::int64_t> wanted_;
  std::vector<ops::RowRun> runs_;
  std::span<const ops::AttentionRecord> records_;  // of the present call; empty: none
};

}  // namespace kvik::runtime
