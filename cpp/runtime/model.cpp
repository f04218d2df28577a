#include "kvik/model.h"

#include <mutex>
#include <string>
#include <utility>

#include "base/checked.h"
#include "base/fail.h"
#include "runtime/model_impl.h"
#include "runtime/model_threads.h"
#include "runtime/token_ids.h"

namespace kvik {

using runtime::kMaxRows;
using runtime::stricter;

Sequence::Sequence() = default;
Sequence::Sequence(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Sequence::Sequence(Sequence&&) noexcept = default;
Sequence& Sequence::operator=(Sequence&&) noexcept = default;
Sequence::~Sequence() = default;

bool Sequence::valid() const noexcept {
  return impl_ != nullptr;
}
std::int64_t Sequence::length() const noexcept {
  return impl_ ? impl_->state->length() : 0;
}
std::int64_t Sequence::state_bytes() const noexcept {
  return impl_ ? impl_->state->bytes() : 0;
}

Sequence Sequence::fork() const {
  if (!impl_) fail_argument("fork() of an empty sequence handle");
  return Sequence(std::make_unique<Impl>(Impl{impl_->model, impl_->state->fork()}));
}

void Sequence::truncate(std::int64_t length) {
  if (!impl_) fail_argument("truncate() of an empty sequence handle");
  if (length < 0 || length > this->length()) {
    fail_argument("truncate to " + std::to_string(length) + " tokens; the sequence has " +
                  std::to_string(this->length()));
  }
  impl_->state->truncate(length);
}

// ---- the model ---------------------------------------------------------------------------------

Model::Model(std::shared_ptr<Impl> impl) : impl_(std::move(impl)) {}
Model::Model(Model&&) noexcept = default;
Model& Model::operator=(Model&&) noexcept = default;
Model::~Model() = default;

Model Model::load(const std::filesystem::path& path, const LoadOptions& options) {
  runtime::DeclaredWidths declared;
  graph::Model loaded = runtime::import_model(path, &declared);
  return runtime::naming_file(
      path, [&] { return Model(std::make_shared<Impl>(std::move(loaded), declared, options)); });
}

Model Model::from_bytes(std::span<const std::byte> bytes, const LoadOptions& options) {
  runtime::DeclaredWidths declared;
  graph::Model loaded = runtime::import_model(bytes, &declared);
  return Model(std::make_shared<Impl>(std::move(loaded), declared, options));
}

const ModelInfo& Model::info() const noexcept {
  return impl_->info;
}
const std::map<std::string, std::string>& Model::metadata() const noexcept {
  return impl_->metadata;
}
const std::vector<std::string>& Model::explain() const noexcept {
  return impl_->explanation;
}

std::string Model::dump(GraphStage stage) const {
  impl_->check_files();
  switch (stage) {
    case GraphStage::kImported: return graph::dump(impl_->imported);
    case GraphStage::kOptimized: return graph::dump(impl_->optimized);
    case GraphStage::kRows: break;
  }
  return impl_->rows ? graph::dump(impl_->rows->graph) : std::string();
}

std::vector<GraphNode> Model::nodes(GraphStage stage) const {
  switch (stage) {
    case GraphStage::kImported: return runtime::list_nodes(impl_->imported);
    case GraphStage::kOptimized: return runtime::list_nodes(impl_->optimized);
    case GraphStage::kRows: break;
  }
  return impl_->rows ? runtime::list_nodes(impl_->rows->graph) : std::vector<GraphNode>();
}

std::vector<MatrixInfo> Model::matrices() const {
  impl_->check_files();  // scales and zero points are read
  return runtime::list_matrices(impl_->running(), impl_->workshop.weights);
}

IntegerMatrix Model::integers(const MatrixInfo& matrix) const {
  impl_->home.check();
  impl_->check_files();
  const std::lock_guard lock(impl_->mutex);  // the pool
  return runtime::read_integers(impl_->running(), impl_->workshop.engine(), matrix);
}

std::vector<Sequence> Model::new_sequences(std::span<const EncoderInput> sources,
                                           const CancelCheck& cancelled) const {
  Impl& self = *impl_;
  self.home.check();
  if (!self.info.two_sequences) {
    fail_argument("the model has no source: use new_sequence()");
  }
  for (std::size_t i = 0; i < sources.size(); ++i) {
    const std::string where = "source " + std::to_string(i) + ": ";
    if (!sources[i].types.empty()) fail_argument(where + "token types, which the model lacks");
    self.check_text(sources[i].tokens, self.info.source_limit, self.info.source_length, where);
  }
  const std::lock_guard lock(self.mutex);
  self.check_files();
  std::vector<Sequence> out;
  for (auto& state : self.decoder->new_states(sources, cancelled)) {
    out.push_back(
        Sequence(std::make_unique<Sequence::Impl>(Sequence::Impl{impl_, std::move(state)})));
  }
  return out;
}

Sequence Model::new_sequence() const {
  if (impl_->info.two_sequences) fail_argument("the model needs a source: use new_sequences()");
  if (!impl_->decoder) {
    fail_argument(std::string("the model has no logits of tokens: use ") +
                  (impl_->images ? "encode_images()" : "encode()"));
  }
  return Sequence(
      std::make_unique<Sequence::Impl>(Sequence::Impl{impl_, impl_->decoder->new_state()}));
}

std::int64_t Model::logits_rows(std::span<const Step> steps) noexcept {
  std::int64_t rows = 0;
  for (const Step& step : steps) {
    if (step.logits == Logits::kLast) rows += 1;
    if (step.logits == Logits::kAll) rows += static_cast<std::int64_t>(step.tokens.size());
  }
  return rows;
}

void Model::Impl::check_size(std::span<const Step> steps, std::span<float> logits) const {
  const std::int64_t wanted = logits_rows(steps);
  const auto size = static_cast<std::int64_t>(logits.size());
  if (size == wanted * info.vocab_size) return;
  fail_argument("the logits buffer holds " + std::to_string(size) + " floats; the steps ask for " +
                std::to_string(wanted) + " rows of " + std::to_string(info.vocab_size));
}

void Model::Impl::check_ids(std::span<const std::int64_t> ids, std::int64_t limit, const char* what,
                            const std::string& where) const {
  for (const std::int64_t id : ids) {
    if (runtime::takes_id(id, limit)) continue;
    fail_argument(where + what + " " + std::to_string(id) + "; the model accepts " +
                  runtime::id_range(limit));
  }
}

void Model::Impl::check_step(const Step& step, std::size_t index) const {
  const std::string where = "step " + std::to_string(index) + ": ";
  if (step.tokens.empty()) fail_argument(where + "no tokens");
  check_ids(step.tokens, info.token_limit, "token id", where);
  const std::int64_t length = step.sequence->length();
  const auto added = static_cast<std::int64_t>(step.tokens.size());
  // A sequence that is computed anew is one call's rows.
  const std::int64_t limit =
      encoder ? stricter(info.context_length, kMaxRows) : info.context_length;
  if (limit > 0 && added > limit - length) {
    fail_argument(where + std::to_string(length) + " + " + std::to_string(added) +
                  " tokens exceed the model's context of " + std::to_string(limit));
  }
}

// A text that is computed as a whole.
void Model::Impl::check_text(std::span<const std::int64_t> tokens, std::int64_t id_limit,
                             std::int64_t length_limit, const std::string& where) const {
  if (tokens.empty()) fail_argument(where + "no tokens");
  check_ids(tokens, id_limit, "token id", where);
  const auto length = static_cast<std::int64_t>(tokens.size());
  const std::int64_t limit = stricter(length_limit, kMaxRows);
  if (length > limit) {
    fail_argument(where + std::to_string(length) + " tokens exceed the model's context of " +
                  std::to_string(limit));
  }
}

void Model::Impl::check_input(const EncoderInput& input, std::size_t index) const {
  const std::string where = "text " + std::to_string(index) + ": ";
  check_text(input.tokens, info.token_limit, info.context_length, where);
  if (!input.types.empty() && !info.reads_types) {
    fail_argument(where + "token types, which the model does not read");
  }
  if (!input.types.empty() && input.types.size() != input.tokens.size()) {
    fail_argument(where + std::to_string(input.types.size()) + " token types for " +
                  std::to_string(input.tokens.size()) + " tokens");
  }
  check_ids(input.types, info.type_limit, "token type", where);
}

// Checks the steps and marks their sequences, which shows one that occurs twice.
void Model::Impl::take(std::span<const Step> steps) {
  taken.clear();
  taken.reserve(steps.size());
  for (std::size_t i = 0; i < steps.size(); ++i) {
    const Step& step = steps[i];
    if (step.sequence == nullptr || !step.sequence->valid()) {
      fail_argument("step " + std::to_string(i) + ": no sequence");
    }
    const Sequence::Impl& own = *step.sequence->impl_;
    if (own.model.get() != this) {
      fail_argument("step " + std::to_string(i) + ": the sequence belongs to another model");
    }
    if (own.state->taken)
      fail_argument("step " + std::to_string(i) + ": the sequence occurs twice");
    check_step(step, i);
    own.state->taken = true;
    taken.push_back({.state = own.state.get(), .tokens = step.tokens, .logits = step.logits});
  }
}

void Model::Impl::release() noexcept {
  for (const runtime::DecodeStep& step : taken) step.state->taken = false;
}

void Model::forward(std::span<const Step> steps, std::span<float> logits,
                    const CancelCheck& cancelled) const {
  Impl& self = *impl_;
  self.home.check();
  if (steps.empty()) return;
  const std::lock_guard lock(self.mutex);
  self.check_files();
  struct Release {
    Impl& impl;
    ~Release() { impl.release(); }
  } release{self};
  self.take(steps);
  self.check_size(steps, logits);
  runtime::ProfiledCall call(self.profiler.active());
  self.decoder->forward(self.taken, logits.data(), cancelled);
  call.done();
}

std::int64_t Model::encoded_rows(std::span<const EncoderInput> inputs) const noexcept {
  std::int64_t rows = 0;
  for (const EncoderInput& input : inputs) {
    rows += impl_->info.encoded_per_token ? static_cast<std::int64_t>(input.tokens.size()) : 1;
  }
  return rows;
}

void Model::encode(std::span<const EncoderInput> inputs, std::span<float> out,
                   const CancelCheck& cancelled) const {
  Impl& self = *impl_;
  self.home.check();
  if (!self.encoder) {
    fail_argument(self.images ? "the model reads images: use encode_images()"
                  : self.info.incremental
                      ? "the model generates, it does not encode: use forward()"
                      : "the model can't be run by sequence; explain() says why. Run it with a "
                        "Session (kvik.InferenceSession in Python)");
  }
  for (std::size_t i = 0; i < inputs.size(); ++i) self.check_input(inputs[i], i);
  const std::int64_t rows = encoded_rows(inputs), features = self.info.encoded_features();
  if (static_cast<std::int64_t>(out.size()) != rows * features) {
    fail_argument("the buffer holds " + std::to_string(out.size()) + " floats; the texts give " +
                  std::to_string(rows) + " rows of " + std::to_string(features));
  }
  const std::lock_guard lock(self.mutex);
  self.check_files();
  runtime::ProfiledCall call(self.profiler.active());
  self.encoder->encode(inputs, out.data(), cancelled);
  call.done();
}

std::vector<AttentionWeights> Model::attention(const EncoderInput& text,
                                               std::span<const std::int64_t> target,
                                               const AttentionChoice& choice,
                                               const CancelCheck& cancelled) const {
  Impl& self = *impl_;
  self.home.check();
  if (self.images) fail_argument("the model reads images: use attention() of a Session");
  if (self.info.two_sequences) {
    if (!text.types.empty()) fail_argument("source: token types, which the model lacks");
    self.check_text(text.tokens, self.info.source_limit, self.info.source_length, "source: ");
    self.check_text(target, self.info.token_limit, self.info.context_length, "target: ");
  } else {
    if (!target.empty()) fail_argument("a target, for a model of one sequence");
    self.check_input(text, 0);
  }
  const std::lock_guard lock(self.mutex);
  self.check_files();
  const runtime::AttentionQuery query{.text = text, .target = target, .choice = choice};
  if (self.encoder) return self.encoder->attention(query, cancelled);
  return self.decoder->attention(query, cancelled);
}

void Model::encode_images(const TensorView& images, std::span<float> out,
                          const CancelCheck& cancelled) const {
  Impl& self = *impl_;
  self.home.check();
  if (!self.images) fail_argument("the model reads no images");
  const auto elements = checked_elements(images.dims);
  if (!elements || images.dims.size() != 4) {
    fail_argument("images must be float32 [images, channels, height, width]");
  }
  if (*elements > 0 && images.data == nullptr) fail_argument("the images have no data");
  const std::int64_t wanted = images.dims[0] * self.images->features();
  if (static_cast<std::int64_t>(out.size()) != wanted) {
    fail_argument("the buffer holds " + std::to_string(out.size()) + " floats; the images give " +
                  std::to_string(images.dims[0]) + " rows of " +
                  std::to_string(self.images->features()));
  }
  const std::lock_guard lock(self.mutex);
  self.check_files();
  runtime::Profiler* const used = self.profiler.active();
  runtime::ProfiledCall call(used);
  const Tensor pixels{.dtype = images.dtype,
                      .dims = Dims(images.dims),
                      .data = const_cast<void*>(images.data)};  // inputs are not written to
  self.images->run(pixels, out.data(), cancelled, used);
  call.done();
}

std::vector<OpProfile> Model::Impl::profiled_ops() const {
  if (images) return images->profiled_ops();
  return encoder ? encoder->profiled_ops() : decoder->profiled_ops();
}

void Model::Impl::set_profiler(runtime::Profiler* used) {
  if (images) return;  // it is told at each call
  if (encoder) return encoder->set_profiler(used);
  decoder->set_profiler(used);
}

void Model::start_profile() const {
  impl_->home.check();
  const std::lock_guard lock(impl_->mutex);
  impl_->profiler.start(impl_->profiled_ops());
  impl_->set_profiler(&impl_->profiler);
}

Profile Model::stop_profile() const {
  impl_->home.check();
  const std::lock_guard lock(impl_->mutex);
  impl_->set_profiler(nullptr);
  return impl_->profiler.stop();
}

void ModelThreads::run(const Model& model, int most, ParallelBody body) {
  const std::lock_guard lock(model.impl_->mutex);
  model.impl_->workshop.pool.run(body, most);
}

}  // namespace kvik
