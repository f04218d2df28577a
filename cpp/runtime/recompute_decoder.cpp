#include "runtime/recompute_decoder.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <string>
#include <utility>

#include "kvik/error.h"
#include "runtime/filled_input.h"

namespace kvik::runtime {

namespace {

// Beyond any vocabulary; keeps the size of a buffer of logits from overflowing.
constexpr std::int64_t kMaxVocab = INT32_MAX;

[[noreturn]] void refuse(const std::string& what) {
  throw Error(ErrorCode::kUnsupported,
              "the graph does not map token ids to logits: " + what +
                  "; run it with a Session (kvik.InferenceSession in Python)");
}

}  // namespace

graph::ValueId logits_output(const graph::Graph& graph) {
  if (graph.outputs.empty()) refuse("it has no output");
  const auto find = [&](const auto& fits) {
    return std::find_if(graph.outputs.begin(), graph.outputs.end(),
                        [&](graph::ValueId id) { return fits(graph.value(id)); });
  };
  auto found = find([](const graph::Value& value) { return value.name == "logits"; });
  if (found == graph.outputs.end()) {
    found = find([](const graph::Value& value) { return value.dtype == DType::kF32; });
  }
  return found == graph.outputs.end() ? graph.outputs.front() : *found;
}

class RecomputeDecoder::State final : public SequenceState {
 public:
  std::int64_t length() const override { return static_cast<std::int64_t>(tokens.size()); }
  std::int64_t bytes() const override { return length() * 8; }
  std::unique_ptr<SequenceState> fork() const override {
    auto copy = std::make_unique<State>();
    copy->tokens = tokens;
    return copy;
  }
  void truncate(std::int64_t length) override { tokens.resize(static_cast<std::size_t>(length)); }

  std::vector<std::int64_t> tokens;
};

GraphRecomputeDecoder::Role GraphRecomputeDecoder::role_of(const graph::Value& value) {
  if (value.name == "attention_mask") return Role::kOnes;
  if (value.name == "position_ids") return Role::kPositions;
  if (value.name == "token_type_ids") return Role::kZeros;
  return Role::kTokens;
}

GraphRecomputeDecoder::GraphRecomputeDecoder(const graph::Graph& graph, const Engine& engine,
                                             std::int64_t declared_vocab) {
  int token_inputs = 0;
  for (const graph::ValueId id : graph.inputs) {
    const graph::Value& value = graph.value(id);
    Input input{.role = role_of(value), .dtype = value.dtype};
    if (value.shape) input.rank = static_cast<int>(value.shape->size());
    const bool integral = value.dtype == DType::kI64 || value.dtype == DType::kI32;
    const bool fits = integral || (input.role != Role::kTokens &&
                                   (value.dtype == DType::kF32 || value.dtype == DType::kBool));
    token_inputs += input.role == Role::kTokens;
    if (!fits || input.rank < 1 || input.rank > 2 || token_inputs > 1) {
      refuse("it has an input '" + value.name + "' (" + dtype_name(value.dtype) +
             ") that the engine cannot supply");
    }
    inputs_.push_back(input);
  }
  if (token_inputs == 0) refuse("no input takes token ids");
  const std::array<graph::ValueId, 1> wanted{logits_output(graph)};
  executor_ = std::make_unique<GraphExecutor>(graph, engine, ExecutorOptions{}, wanted);
  const graph::Value& output = graph.value(wanted[0]);
  const auto& shape = output.shape;
  const auto last = shape && shape->size() >= 2 ? shape->back().constant() : std::nullopt;
  vocab_size_ = last.value_or(declared_vocab);
  if (output.dtype != DType::kF32 && output.dtype != DType::kUndefined) {
    throw Error(ErrorCode::kUnsupported,
                "the output '" + output.name + "' is " + dtype_name(output.dtype) +
                    "; generation expects float32 logits: end the graph with a Cast to float32, or "
                    "run it as it is with a Session (kvik.InferenceSession in Python)");
  }
  if (!last && vocab_size_ == 0) {
    refuse("the size of the last dimension of its output '" + output.name +
           "' follows neither from the operators nor from what the file declares");
  }
  if (vocab_size_ < 1 || vocab_size_ > kMaxVocab) {
    refuse("its output '" + output.name + "' has " + std::to_string(vocab_size_) +
           " logits a token");
  }
}

std::unique_ptr<SequenceState> RecomputeDecoder::new_state() const {
  return std::make_unique<State>();
}

std::vector<OwnedTensor> GraphRecomputeDecoder::execute(std::span<const std::int64_t> tokens,
                                                        const CancelCheck& cancelled) const {
  const auto count = static_cast<std::int64_t>(tokens.size());
  std::vector<FilledInput> filled;
  for (const Input& input : inputs_) {
    filled.emplace_back(input.dtype, input.rank, count, [&](std::int64_t i) -> std::int64_t {
      switch (input.role) {
        case Role::kOnes: return 1;
        case Role::kZeros: return 0;
        case Role::kPositions: return i;
        case Role::kTokens: break;
      }
      return tokens[static_cast<std::size_t>(i)];
    });
  }
  std::vector<Tensor> tensors;
  for (const FilledInput& input : filled) tensors.push_back(input.tensor());
  try {
    return executor_->run(tensors, cancelled, profiler_);
  } catch (const Error& error) {
    if (error.code() != ErrorCode::kInvalidArgument) throw;
    // The graph as a whole has no context length that could be checked beforehand.
    throw Error(error.code(), error.what() + ("; the sequence has " + std::to_string(count)) +
                                  " tokens, perhaps more than the model allows");
  }
}

void GraphRecomputeDecoder::run(std::span<const std::int64_t> tokens, std::int64_t rows,
                                float* logits, const CancelCheck& cancelled) {
  const std::vector<OwnedTensor> results = execute(tokens, cancelled);
  const Tensor& out = results.front().tensor;
  const auto length = static_cast<std::int64_t>(tokens.size());
  if (out.dtype != DType::kF32 || out.elements() != length * vocab_size_) {
    refuse(std::string("the output is ") + dtype_name(out.dtype) + out.dims.str() + " for " +
           std::to_string(length) + " tokens; expected a float32 row of " +
           std::to_string(vocab_size_) + " for each");
  }
  std::memcpy(logits, out.as<const float>() + (length - rows) * vocab_size_,
              static_cast<std::size_t>(rows * vocab_size_) * sizeof(float));
}

void RowRecomputeDecoder::run(std::span<const std::int64_t> tokens, std::int64_t rows,
                              float* logits, const CancelCheck& cancelled) {
  const auto features = static_cast<std::size_t>(encoder_.features());
  all_.resize(tokens.size() * features);
  const EncoderInput input{.tokens = tokens};
  encoder_.encode({&input, 1}, all_.data(), cancelled);
  const std::size_t wanted = static_cast<std::size_t>(rows) * features;
  std::copy(all_.end() - static_cast<std::ptrdiff_t>(wanted), all_.end(), logits);
}

void RecomputeDecoder::forward(std::span<const DecodeStep> steps, float* logits,
                               const CancelCheck& cancelled) {
  std::vector<std::int64_t> lengths;
  for (const DecodeStep& step : steps) lengths.push_back(step.state->length());
  try {
    for (const DecodeStep& step : steps) {
      State& state = *static_cast<State*>(step.state);
      state.tokens.insert(state.tokens.end(), step.tokens.begin(), step.tokens.end());
      if (step.logits == Logits::kNone) continue;
      const std::int64_t rows =
          step.logits == Logits::kLast ? 1 : static_cast<std::int64_t>(step.tokens.size());
      run(state.tokens, rows, logits, cancelled);
      logits += rows * vocab_size();
    }
  } catch (...) {
    for (std::size_t i = 0; i < steps.size(); ++i) {
      if (steps[i].state->length() > lengths[i]) steps[i].state->truncate(lengths[i]);
    }
    throw;
  }
}

}  // namespace kvik::runtime
