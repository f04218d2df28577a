// Decoders whose every call runs the whole sequence anew: of any graph that maps token ids to
// logits.
#pragma once

#include <memory>
#include <vector>

#include "graph/graph.h"
#include "runtime/decoder.h"
#include "runtime/executor.h"
#include "runtime/row_encoder.h"

namespace kvik::runtime {

class RecomputeDecoder : public Decoder {
 public:
  std::unique_ptr<SequenceState> new_state() const final;
  void forward(std::span<const DecodeStep> steps, float* logits,
               const CancelCheck& cancelled) final;
  virtual std::int64_t vocab_size() const = 0;

 private:
  class State;
  // The logits of the last `rows` of the tokens: float32 [rows, vocabulary].
  virtual void run(std::span<const std::int64_t> tokens, std::int64_t rows, float* logits,
                   const CancelCheck& cancelled) = 0;
};

// As rows of one sequence, which may read later ones.
class RowRecomputeDecoder final : public RecomputeDecoder {
 public:
  // The encoder must outlive the decoder, and give a row for every token.
  explicit RowRecomputeDecoder(RowEncoder& encoder) : encoder_(encoder) {}

  std::int64_t vocab_size() const override { return encoder_.features(); }
  std::vector<AttentionWeights> attention(const AttentionQuery& query,
                                          const CancelCheck& cancelled) override {
    return encoder_.attention(query, cancelled);
  }
  std::vector<OpProfile> profiled_ops() const override { return encoder_.profiled_ops(); }
  void set_profiler(Profiler* profiler) override { encoder_.set_profiler(profiler); }

 private:
  void run(std::span<const std::int64_t> tokens, std::int64_t rows, float* logits,
           const CancelCheck& cancelled) override;

  RowEncoder& encoder_;
  std::vector<float> all_;
};

// As the graph stands.
class GraphRecomputeDecoder final : public RecomputeDecoder {
 public:
  // The graph must outlive the decoder. `declared_vocab`: what the file says of the size of a row
  // of logits, believed where inference cannot tell and checked in every forward(); 0: nothing. The
  // graph is not run: a loop in it may be endless, and loading can't be cancelled. Throws
  // kvik::Error(kUnsupported) when an input is neither the token ids nor one that the engine can
  // supply, or logits_output() is no float32 of one row of a known size a token.
  GraphRecomputeDecoder(const graph::Graph& graph, const Engine& engine,
                        std::int64_t declared_vocab = 0);

  std::int64_t vocab_size() const override { return vocab_size_; }
  std::vector<AttentionWeights> attention(const AttentionQuery& query,
                                          const CancelCheck& cancelled) override;
  std::vector<OpProfile> profiled_ops() const override { return executor_->profiled_ops(); }
  void set_profiler(Profiler* profiler) override { profiler_ = profiler; }

 private:
  // What the engine feeds an input: one number for every token of the sequence.
  enum class Role : std::uint8_t { kTokens, kOnes, kZeros, kPositions };
  struct Input {
    Role role = Role::kTokens;
    DType dtype = DType::kI64;
    int rank = 2;
  };

  static Role role_of(const graph::Value& value);
  void run(std::span<const std::int64_t> tokens, std::int64_t rows, float* logits,
           const CancelCheck& cancelled) override;
  // What run(inputs) gives for these tokens.
  template <typename Run>
  auto execute(std::span<const std::int64_t> tokens, const Run& run) const;

  const graph::Graph& graph_;
  Engine engine_;
  std::vector<Input> inputs_;
  std::unique_ptr<GraphExecutor> executor_;
  std::int64_t vocab_size_ = 0;
  Profiler* profiler_ = nullptr;
};

// The output that holds the logits: the one called "logits", else the first of floats, else the
// first.
graph::ValueId logits_output(const graph::Graph& graph);

}  // namespace kvik::runtime
