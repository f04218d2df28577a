#include "kvik/generate.h"

#include <algorithm>
#include <string>
#include <utility>

#include "runtime/token_ids.h"

namespace kvik {

const char* finish_reason_name(FinishReason reason) noexcept {
  switch (reason) {
    case FinishReason::kLength: return "length";
    case FinishReason::kStopId: return "stop_id";
    case FinishReason::kContext: return "context";
    case FinishReason::kStopped: return "stopped";
  }
  return "unknown";
}

struct Generator::Impl {
  // A request that is still running.
  struct Active {
    std::size_t request;
    Sequence sequence;
    Sampler sampler;
    std::int64_t next = -1;  // the token to feed; -1: the prompt
  };

  Impl(Model handle, std::vector<GenerateRequest> all);

  void check(std::size_t index) const;
  void forward(const CancelCheck& cancelled);
  GenerateEvent advance(Active& active, std::span<const float> logits);
  GenerateEvent finish(std::size_t request, FinishReason reason, std::int64_t token);
  void drop_finished();

  Model model;
  std::vector<GenerateRequest> requests;
  std::vector<GenerateResult> results;
  std::vector<bool> finished;  // by request
  std::vector<Active> active;  // in the order of the requests
  std::vector<Step> steps;     // of one forward()
  std::vector<float> logits;   // [active, vocab_size]
  std::vector<GenerateEvent> events;
};

Generator::Impl::Impl(Model handle, std::vector<GenerateRequest> all)
    : model(std::move(handle)),
      requests(std::move(all)),
      results(requests.size()),
      finished(requests.size()) {
  const auto vocab = static_cast<std::size_t>(model.info().vocab_size);
  for (std::size_t i = 0; i < requests.size(); ++i) {
    check(i);
    if (requests[i].max_new_tokens == 0) {
      finished[i] = true;
      continue;
    }
    active.push_back({.request = i,
                      .sequence = model.new_sequence(),
                      .sampler = Sampler(requests[i].sampler, model.info().vocab_size)});
    active.back().sampler.observe(requests[i].prompt);
    results[i].tokens.reserve(
        static_cast<std::size_t>(std::min<std::int64_t>(requests[i].max_new_tokens, 1 << 16)));
  }
  steps.reserve(active.size());
  events.reserve(active.size());
  logits.resize(active.size() * vocab);
}

void Generator::Impl::check(std::size_t index) const {
  const GenerateRequest& request = requests[index];
  const ModelInfo& info = model.info();
  const auto refuse = [&](const std::string& what) {
    const std::string where =
        requests.size() > 1 ? "request " + std::to_string(index) + ": " : std::string();
    throw Error(ErrorCode::kInvalidArgument, where + what);
  };
  const auto length = static_cast<std::int64_t>(request.prompt.size());
  if (length == 0) refuse("the prompt is empty; expected at least one token id");
  if (request.max_new_tokens < 0) {
    refuse("max_new_tokens is " + std::to_string(request.max_new_tokens) + "; expected 0 or more");
  }
  if (info.context_length > 0 && length > info.context_length) {
    refuse("the prompt has " + std::to_string(length) + " tokens; the model's context has " +
           std::to_string(info.context_length));
  }
  for (const std::int64_t id : request.prompt) {
    if (runtime::takes_id(id, info.token_limit)) continue;
    refuse("token id " + std::to_string(id) + " in the prompt; the model accepts " +
           runtime::id_range(info.token_limit));
  }
  for (const std::int64_t id : request.stop_ids) {
    if (id >= 0 && id < info.vocab_size) continue;
    refuse("stop id " + std::to_string(id) + "; the vocabulary has " +
           std::to_string(info.vocab_size) + " tokens");
  }
}

// Runs the prompts, or the tokens drawn last, of all active requests.
void Generator::Impl::forward(const CancelCheck& cancelled) {
  steps.clear();
  for (Active& one : active) {
    const std::span<const std::int64_t> tokens =
        one.next < 0 ? std::span<const std::int64_t>(requests[one.request].prompt)
                     : std::span<const std::int64_t>(&one.next, 1);
    steps.push_back({.sequence = &one.sequence, .tokens = tokens, .logits = Logits::kLast});
  }
  const auto vocab = static_cast<std::size_t>(model.info().vocab_size);
  model.forward(steps, std::span(logits).first(active.size() * vocab), cancelled);
}

GenerateEvent Generator::Impl::finish(std::size_t request, FinishReason reason,
                                      std::int64_t token) {
  finished[request] = true;
  results[request].reason = reason;
  return {.request = request, .token = token, .finished = true, .reason = reason};
}

// Draws the next token of one request.
GenerateEvent Generator::Impl::advance(Active& one, std::span<const float> row) {
  const GenerateRequest& request = requests[one.request];
  GenerateResult& result = results[one.request];
  const std::int64_t token = one.sampler.sample(row);
  const auto& stops = request.stop_ids;
  if (std::find(stops.begin(), stops.end(), token) != stops.end()) {
    return finish(one.request, FinishReason::kStopId, -1);
  }
  result.tokens.push_back(token);
  one.next = token;
  if (static_cast<std::int64_t>(result.tokens.size()) == request.max_new_tokens) {
    return finish(one.request, FinishReason::kLength, token);
  }
  const std::int64_t context = model.info().context_length;
  if (context > 0 && one.sequence.length() >= context) {
    return finish(one.request, FinishReason::kContext, token);
  }
  // The model may know more outputs than ids it takes back.
  const std::int64_t limit = model.info().token_limit;
  if (limit > 0 && token >= limit) {
    throw Error(ErrorCode::kInvalidModel, "the model chose token " + std::to_string(token) +
                                              " but takes ids below " + std::to_string(limit) +
                                              " only; forbid it with a logit_bias of -infinity");
  }
  return {.request = one.request, .token = token};
}

void Generator::Impl::drop_finished() {
  std::erase_if(active, [&](const Active& one) { return finished[one.request]; });
}

Generator::Generator(const Model& model, std::vector<GenerateRequest> requests)
    : impl_(std::make_unique<Impl>(Model(model.impl_), std::move(requests))) {}
Generator::Generator(Generator&&) noexcept = default;
Generator& Generator::operator=(Generator&&) noexcept = default;
Generator::~Generator() = default;

bool Generator::done() const noexcept {
  return impl_->active.empty();
}

std::span<const GenerateEvent> Generator::step(const CancelCheck& cancelled) {
  Impl& self = *impl_;
  self.events.clear();
  self.drop_finished();
  if (self.active.empty()) return {};
  if (cancelled && cancelled()) throw Error(ErrorCode::kCancelled, "cancelled between tokens");
  self.forward(cancelled);
  try {
    const auto vocab = static_cast<std::size_t>(self.model.info().vocab_size);
    for (std::size_t i = 0; i < self.active.size(); ++i) {
      const auto row = std::span<const float>(self.logits).subspan(i * vocab, vocab);
      self.events.push_back(self.advance(self.active[i], row));
    }
  } catch (...) {
    self.active.clear();  // some requests have drawn and some have not: there is no going on
    throw;
  }
  self.drop_finished();
  return self.events;
}

void Generator::stop(std::size_t request) {
  if (request >= impl_->finished.size() || impl_->finished[request]) return;
  (void)impl_->finish(request, FinishReason::kStopped, -1);
  impl_->drop_finished();
}

const std::vector<GenerateResult>& Generator::results() const noexcept {
  return impl_->results;
}

std::vector<GenerateResult> generate(const Model& model, std::span<const GenerateRequest> requests,
                                     const OnToken& on_token, const CancelCheck& cancelled) {
  Generator generator(model, {requests.begin(), requests.end()});
  while (!generator.done()) {
    for (const GenerateEvent& event : generator.step(cancelled)) {
      if (on_token && on_token(event)) generator.stop(event.request);
    }
  }
  return generator.results();
}

GenerateResult generate(const Model& model, const GenerateRequest& request, const OnToken& on_token,
                        const CancelCheck& cancelled) {
  return generate(model, std::span(&request, 1), on_token, cancelled).front();
}

}  // namespace kvik
