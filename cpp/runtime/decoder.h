// What a Model decodes with: rows with a cache, or the whole sequence anew.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "kvik/model.h"
#include "runtime/attention_sites.h"
#include "runtime/profiler.h"

namespace kvik::runtime {

// The state of one sequence, as its decoder keeps it.
class SequenceState {
 public:
  virtual ~SequenceState() = default;
  virtual std::int64_t length() const = 0;
  virtual std::int64_t bytes() const = 0;
  virtual std::unique_ptr<SequenceState> fork() const = 0;
  virtual void truncate(std::int64_t length) = 0;  // 0 <= length <= length()

  // Set for the steps of a call while it is checked, to notice a sequence that occurs twice.
  bool taken = false;
};

// A Step of Model::forward(), checked: ids and lengths are within the limits.
struct DecodeStep {
  SequenceState* state = nullptr;
  std::span<const std::int64_t> tokens;
  Logits logits = Logits::kLast;
};

class Decoder {
 public:
  virtual ~Decoder() = default;
  virtual std::unique_ptr<SequenceState> new_state() const = 0;
  // Of a model of two sequences: one for each source. One call at a time, not while forward() runs.
  virtual std::vector<std::unique_ptr<SequenceState>> new_states(
      [[maybe_unused]] std::span<const EncoderInput> sources,
      [[maybe_unused]] const CancelCheck& cancelled) {
    throw Error(ErrorCode::kInternal, "a decoder without sources");
  }
  // One call at a time. On an error every state is as it was.
  // logits: float32 [wanted rows, vocab_size].
  virtual void forward(std::span<const DecodeStep> steps, float* logits,
                       const CancelCheck& cancelled) = 0;
  // See Model::attention(). One call at a time.
  virtual std::vector<AttentionWeights> attention(const AttentionQuery& query,
                                                  const CancelCheck& cancelled) = 0;
  // See RowProgram and GraphExecutor.
  virtual std::vector<OpProfile> profiled_ops() const = 0;
  virtual void set_profiler(Profiler* profiler) = 0;
};

}  // namespace kvik::runtime
