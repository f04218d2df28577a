// Generation: prompts in, new tokens out, one or many at a time.
//
//   kvik::GenerateRequest request{.prompt = ids, .max_new_tokens = 64};
//   request.sampler.temperature = 0.8;
//   kvik::GenerateResult result = kvik::generate(model, request);
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "kvik/error.h"
#include "kvik/export.h"
#include "kvik/model.h"
#include "kvik/sampler.h"

namespace kvik {

struct GenerateRequest {
  std::vector<std::int64_t> prompt;   // token ids, at least one
  std::int64_t max_new_tokens = 128;  // >= 0
  // A request's tokens depend on its own prompt, options and seed alone, never on the requests
  // beside it: equal requests with equal seeds give equal answers.
  SamplerOptions sampler;
  // Generation ends before a token of these; it is not among the new tokens.
  std::vector<std::int64_t> stop_ids;
};

enum class FinishReason : std::uint8_t {
  kLength,   // max_new_tokens reached
  kStopId,   // a stop id was drawn
  kContext,  // the model's context is full
  kStopped,  // the caller stopped this request
};

// "length", "stop_id", "context", "stopped".
KVIK_API const char* finish_reason_name(FinishReason reason) noexcept;

struct GenerateResult {
  std::vector<std::int64_t> tokens;  // the new tokens, without the prompt and the stop id
  FinishReason reason = FinishReason::kLength;
};

// A token that was just drawn, or the end of a request.
struct GenerateEvent {
  std::size_t request = 0;  // index into the requests
  std::int64_t token = -1;  // -1: none; the request has ended (see finished)
  bool finished = false;    // the request is done, `reason` says why
  FinishReason reason = FinishReason::kLength;
};

// Generation one step at a time, for callers that stream. The first step runs the prompts (in
// chunks, all requests in one flat batch); each step draws one token for every request that is
// still running. Requests that have ended drop out of the batch and free their state.
//
// Movable, not copyable. Used by one thread at a time; it keeps the model alive. Several
// generators may share one model (see Model on threads).
class KVIK_API Generator {
 public:
  // Throws Error(kInvalidArgument): an empty prompt, one longer than the context, ids beyond the
  // vocabulary, options out of range; the message names the request when there are several.
  Generator(const Model& model, std::vector<GenerateRequest> requests);
  Generator(Generator&&) noexcept;
  Generator& operator=(Generator&&) noexcept;
  ~Generator();

  bool done() const noexcept;  // every request has ended

  // Draws the next tokens. The events are in the order of the requests and valid until the next
  // call; a request's last token and its end come as one event. Empty when done().
  // Throws what Model::forward() and Sampler::sample() throw. After an error of forward(), such as
  // kCancelled, step() may be called again and goes on where it was; after one of sample() the
  // generator is done.
  std::span<const GenerateEvent> step(const CancelCheck& cancelled = {});

  // Ends a request: its result keeps the tokens so far. No effect on one that has ended.
  void stop(std::size_t request);

  // Results so far, one a request.
  const std::vector<GenerateResult>& results() const noexcept;

  struct KVIK_HIDDEN Impl;

 private:
  std::unique_ptr<Impl> impl_;
};

// Called for every event, on the calling thread; true stops that request.
using OnToken = std::function<bool(const GenerateEvent& event)>;

// Runs requests to their ends. Throws what Generator's members throw.
KVIK_API std::vector<GenerateResult> generate(const Model& model,
                                              std::span<const GenerateRequest> requests,
                                              const OnToken& on_token = {},
                                              const CancelCheck& cancelled = {});
KVIK_API GenerateResult generate(const Model& model, const GenerateRequest& request,
                                 const OnToken& on_token = {}, const CancelCheck& cancelled = {});

}  // namespace kvik
