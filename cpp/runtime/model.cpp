#include "kvik/model.h"

#include <algorithm>
#include <charconv>
#include <functional>
#include <mutex>
#include <string>
#include <utility>

#include "base/checked.h"
#include "base/fail.h"
#include "base/text.h"
#include "graph/graph.h"
#include "graph/infer/infer.h"
#include "graph/passes/prove_rowwise.h"
#include "runtime/image_runner.h"
#include "runtime/load.h"
#include "runtime/matrices.h"
#include "runtime/model_threads.h"
#include "runtime/recompute_decoder.h"
#include "runtime/row_decoder.h"
#include "runtime/row_encoder.h"
#include "runtime/row_plan.h"
#include "runtime/token_ids.h"

namespace kvik {

namespace {

constexpr int kMaxRows = 65536;

using Metadata = std::map<std::string, std::string>;

constexpr const char* kContextKey = "kvik.context_length";
constexpr const char* kFormatKey = "kvik.format";
constexpr std::int64_t kFormat = 1;  // of the kvik.* entries

// The metadata's number under `key`, at least 1; 0 where there is no such key. Anything else is an
// error: a limit that is passed over in silence shows as wrong text much later.
std::int64_t metadata_number(const Metadata& metadata, const char* key) {
  const auto found = metadata.find(key);
  if (found == metadata.end()) return 0;
  std::int64_t value = 0;
  const std::string& text = found->second;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || value < 1) {
    throw Error(ErrorCode::kInvalidModel, std::string("the file's metadata ") + key + " is " +
                                              quote(text) + "; expected a whole number from 1 on");
  }
  return value;
}

void check_format(const Metadata& metadata) {
  const std::int64_t format = metadata_number(metadata, kFormatKey);
  if (format == 0 || format == kFormat) return;
  throw Error(ErrorCode::kUnsupported, std::string("the file's metadata ") + kFormatKey + " is " +
                                           std::to_string(format) +
                                           "; this version of Kvik reads " +
                                           std::to_string(kFormat) + " and may be too old");
}

// The smaller of two limits, where 0 means none.
std::int64_t stricter(std::int64_t a, std::int64_t b) {
  return a == 0 ? b : b == 0 ? a : std::min(a, b);
}

// The outputs that encode() may give, by order of preference.
std::vector<std::vector<graph::ValueId>> outputs_to_encode(const graph::Graph& graph,
                                                           const LoadOptions& options) {
  constexpr std::size_t kMostChoices = 8;  // each is proved anew
  const auto named = [&](const std::string& name) {
    return std::find_if(graph.outputs.begin(), graph.outputs.end(),
                        [&](graph::ValueId id) { return graph.value(id).name == name; });
  };
  if (options.outputs.empty()) {
    const auto start = named("start_logits"), end = named("end_logits");
    std::vector<std::vector<graph::ValueId>> choices;
    if (start != graph.outputs.end() && end != graph.outputs.end()) {
      choices.push_back({*start, *end});
    }
    if (graph.outputs.empty()) return choices;
    const graph::ValueId first = runtime::logits_output(graph);
    choices.push_back({first});
    for (const graph::ValueId id : graph.outputs) {
      if (graph.value(id).dtype != DType::kF32 || id == first) continue;
      if (choices.size() < kMostChoices) choices.push_back({id});
    }
    return choices;
  }
  std::vector<graph::ValueId> chosen;
  for (const std::string& name : options.outputs) {
    const auto found = named(name);
    if (found == graph.outputs.end()) {
      fail_argument("the model has no output " + quote(name));
    }
    chosen.push_back(*found);
  }
  return {chosen};
}

}  // namespace

struct Model::Impl {
  Impl(graph::Model loaded, const runtime::DeclaredWidths& declared, const LoadOptions& options);

  void describe_file(const graph::Model& loaded);
  void make_by_rows(const LoadOptions& options, runtime::Optimize how);
  void make_row_decoder(const LoadOptions& options, const graph::DimLimits& limits);
  void make_encoder(const LoadOptions& options, const graph::DimLimits& limits);
  void make_encoder_decoder(const LoadOptions& options, const graph::DimLimits& limits);
  void make_recompute_decoder(const runtime::DeclaredWidths& declared);
  void make_image_runner(graph::ValueId output);
  std::unique_ptr<runtime::RowProgram> make_program(graph::RowProof& proof,
                                                    const LoadOptions& options);
  std::vector<OpProfile> profiled_ops() const;
  void set_profiler(runtime::Profiler* used);
  void take(std::span<const Step> steps);
  void release() noexcept;
  void check_size(std::span<const Step> steps, std::span<float> logits) const;
  void check_step(const Step& step, std::size_t index) const;
  void check_ids(std::span<const std::int64_t> ids, std::int64_t limit, const char* what,
                 const std::string& where) const;
  void check_text(std::span<const std::int64_t> tokens, std::int64_t id_limit,
                  std::int64_t length_limit, const std::string& where) const;
  void check_input(const EncoderInput& input, std::size_t index) const;
  runtime::Graphs running() const {
    if (source_rows) return {&source_rows->graph, &rows->graph};
    return {rows ? &rows->graph : &optimized};
  }

  runtime::HomeProcess home;
  runtime::Workshop workshop;
  std::function<void()> check_files;  // see graph::Model; never empty
  ModelInfo info;
  Metadata metadata;
  std::vector<std::string> explanation;
  graph::Graph imported;
  graph::Graph optimized;
  std::shared_ptr<const graph::RowGraph> rows;         // null: runs as it stands
  std::shared_ptr<const graph::RowGraph> source_rows;  // of a model of two sequences
  std::unique_ptr<runtime::RowEncoder> encoder;        // of rows that read later ones
  std::unique_ptr<runtime::Decoder> decoder;           // null: an encoder of one row for a text
  std::unique_ptr<runtime::ImageRunner> images;        // then there is neither of the two
  runtime::Profiler profiler;

  std::mutex mutex;                        // held during forward(): one arena, one pool
  std::vector<runtime::DecodeStep> taken;  // steps of the present call; keeps its capacity
};

struct Sequence::Impl {
  std::shared_ptr<Model::Impl> model;
  std::unique_ptr<runtime::SequenceState> state;
};

// ---- loading -----------------------------------------------------------------------------------

Model::Impl::Impl(graph::Model loaded, const runtime::DeclaredWidths& declared,
                  const LoadOptions& options)
    : workshop(options.threads, options.weights, loaded.release_pages),
      check_files(runtime::file_check(loaded)),
      metadata(std::move(loaded.metadata)) {
  if (options.max_rows < 1 || options.max_rows > kMaxRows) {
    fail_argument("max_rows is " + std::to_string(options.max_rows) + "; expected 1 to " +
                  std::to_string(kMaxRows));
  }
  check_format(metadata);
  info.context_length = metadata_number(metadata, kContextKey);
  graph::infer(loaded.graph);  // types and shapes of the outputs are not taken from the file
  describe_file(loaded);
  imported = std::move(loaded.graph);
  const auto how = options.optimize ? runtime::Optimize::kAll : runtime::Optimize::kProof;
  const auto choices = outputs_to_encode(imported, options);
  if (!choices.empty() && runtime::takes_images(imported, choices.front().front())) {
    optimized = imported;
    runtime::prepare_graph(optimized, workshop.engine(), how);
    make_image_runner(outputs_to_encode(optimized, options).front().front());
  } else if (options.incremental) {
    make_by_rows(options, how);
  } else {
    explanation.push_back("not incremental: switched off when the model was loaded");
  }
  if (!rows && !images) {
    optimized = imported;  // what runs as a whole must hold for every length
    runtime::prepare_graph(optimized, workshop.engine(), how);
    make_recompute_decoder(declared);
  }
  if (!options.outputs.empty() && !encoder && !images) {
    fail_argument("outputs were chosen, but the model does not encode: " + explanation.front());
  }
  info.incremental = rows != nullptr && encoder == nullptr;
  info.ops_after = runtime::count_ops(rows ? rows->graph : optimized);
  info.weights = options.weights;
  info.cache = options.cache;
  info.threads = workshop.pool.threads();
  info.isa = workshop.engine().kernels.name;
  check_files();  // weights that were packed from a file that was cut meanwhile are not weights
}

// Leaves `rows` empty, and says why, when the graph cannot be run by rows.
void Model::Impl::make_by_rows(const LoadOptions& options, runtime::Optimize how) {
  // A decoder's other outputs, alignments or last states, are not computed; so they must not keep
  // what only they share with the logits from being fused.
  graph::DimLimits limits;
  optimized = imported;
  optimized.outputs = {runtime::logits_output(imported)};
  const bool several = imported.outputs.size() > 1;
  graph::remove_dead(optimized);
  runtime::prepare_graph(optimized, workshop.engine(), how, &limits);
  make_row_decoder(options, limits);
  if (rows) return;
  graph::Graph logits_alone;
  graph::DimLimits logits_limits;
  if (several) {
    logits_alone = std::exchange(optimized, imported);
    logits_limits = std::exchange(limits, {});
    runtime::prepare_graph(optimized, workshop.engine(), how, &limits);
  }
  make_encoder(options, limits);
  if (rows) return;
  if (several) {
    optimized = std::move(logits_alone);
    limits = std::move(logits_limits);
  }
  make_encoder_decoder(options, limits);
}

void Model::Impl::describe_file(const graph::Model& loaded) {
  info.producer = loaded.producer;
  info.ir_version = loaded.ir_version;
  info.opsets = loaded.opsets;
  info.inputs = runtime::describe_values(loaded.graph, loaded.graph.inputs);
  info.outputs = runtime::describe_values(loaded.graph, loaded.graph.outputs);
  info.ops_before = runtime::count_ops(loaded.graph);
  const runtime::WeightSize size = runtime::weigh(loaded.graph);
  info.parameters = size.elements;
  info.weight_bytes = size.bytes;
}

// Plans the proved rows, and describes them; null, and says why, when they can't be run.
std::unique_ptr<runtime::RowProgram> Model::Impl::make_program(graph::RowProof& proof,
                                                               const LoadOptions& options) {
  auto proved = std::make_shared<const graph::RowGraph>(*std::move(proof.rows));
  std::unique_ptr<runtime::RowProgram> program;
  try {
    program = std::make_unique<runtime::RowProgram>(proved, workshop.engine(), options.max_rows,
                                                    options.cache);
  } catch (const Error& error) {
    if (error.code() == ErrorCode::kOutOfMemory) throw;
    explanation.push_back(std::string("proved, but it cannot be run by rows: ") + error.what());
    return nullptr;
  }
  rows = proved;
  info.token_limit = runtime::index_limit(rows->graph, rows->tokens);
  info.reads_types = program->reads_types();
  info.type_limit = runtime::index_limit(rows->graph, rows->types);
  info.context_length = stricter(info.context_length, rows->context_limit);
  info.packed_bytes = program->constant_bytes() + workshop.weights.bytes();
  info.activation_bytes = program->arena_bytes();
  info.state_bytes_per_position = program->kv_layout().page_bytes() / kernels::kKvBlock;
  for (const graph::RowRecurrent& layer : rows->recurrent) {
    if (!layer.keeps_states) continue;
    info.recurrent_bytes_per_position += layer.width * std::int64_t{sizeof(float)};
  }
  return program;
}

// Leaves `rows` empty, and says why, when the graph is not incremental.
void Model::Impl::make_row_decoder(const LoadOptions& options, const graph::DimLimits& limits) {
  graph::RowProof proof =
      graph::prove_rowwise(optimized, {runtime::logits_output(optimized)}, limits);
  explanation = std::move(proof.explanation);
  if (!proof.rows) return;
  auto program = make_program(proof, options);
  if (!program) return;
  info.vocab_size = program->output_features();
  decoder = std::make_unique<runtime::RowDecoder>(std::move(program));
}

void Model::Impl::make_encoder(const LoadOptions& options, const graph::DimLimits& limits) {
  std::vector<std::string> reasons;
  for (const auto& outputs : outputs_to_encode(optimized, options)) {
    graph::RowProof proof = graph::prove_rowwise(optimized, outputs, limits, graph::Mixing::kWhole);
    if (!proof.rows) {
      reasons.insert(reasons.end(), proof.explanation.begin(), proof.explanation.end());
      continue;
    }
    const auto picked = proof.rows->picked;
    auto program = make_program(proof, options);
    if (!program) continue;
    explanation.insert(explanation.end(), proof.explanation.begin(), proof.explanation.end());
    std::int64_t before = 0;
    for (std::size_t i = 0; i < outputs.size(); ++i) {
      const std::int64_t end = rows->output_ends[i];
      info.encoded.push_back({optimized.value(outputs[i]).name, end - before});
      before = end;
    }
    info.encoded_per_token = !picked;
    encoder = std::make_unique<runtime::RowEncoder>(std::move(program), picked);
    if (!picked && outputs.size() == 1) {
      decoder = std::make_unique<runtime::RowRecomputeDecoder>(*encoder);
      info.vocab_size = encoder->features();
    }
    return;
  }
  explanation.insert(explanation.end(), reasons.begin(), reasons.end());
}

void Model::Impl::make_encoder_decoder(const LoadOptions& options, const graph::DimLimits& limits) {
  graph::EncoderDecoderProof proof =
      graph::prove_encoder_decoder(optimized, runtime::logits_output(optimized), limits);
  if (!proof.rows) {
    explanation.insert(explanation.end(), proof.explanation.begin(), proof.explanation.end());
    return;
  }
  explanation = std::move(proof.explanation);
  graph::EncoderDecoder& proved = *proof.rows;
  graph::RowProof target;
  target.rows = proved.target;
  auto program = make_program(target, options);
  if (!program) return;
  info.two_sequences = true;
  info.vocab_size = program->output_features();
  std::unique_ptr<runtime::SourceEncoder> sources;
  if (proved.source) {
    auto source = std::make_shared<const graph::RowGraph>(*std::move(proved.source));
    auto encoder_rows =
        std::make_unique<runtime::RowProgram>(source, workshop.engine(), options.max_rows);
    info.source_limit = runtime::index_limit(source->graph, source->tokens);
    info.source_length = source->context_limit;
    info.packed_bytes =
        workshop.weights.bytes() + program->constant_bytes() + encoder_rows->constant_bytes();
    info.activation_bytes += encoder_rows->arena_bytes();
    sources = std::make_unique<runtime::RowSourceEncoder>(
        std::make_unique<runtime::RowEncoder>(std::move(encoder_rows), std::nullopt), proved,
        program->source_layout(), workshop.engine().kernels);
    source_rows = std::move(source);
  } else {
    for (const auto& input : proved.inputs) {
      if (!input.known) info.source_limit = runtime::index_limit(optimized, input.id);
    }
    info.source_length = proved.source_limit;
    sources = std::make_unique<runtime::GraphSourceEncoder>(optimized, workshop.engine(), proved,
                                                            program->source_layout());
    info.packed_bytes = program->constant_bytes() + workshop.weights.bytes();
  }
  info.source_length = stricter(metadata_number(metadata, kContextKey), info.source_length);
  decoder = std::make_unique<runtime::RowDecoder>(std::move(program), std::move(sources));
}

void Model::Impl::make_recompute_decoder(const runtime::DeclaredWidths& declared) {
  const auto width = declared.find(imported.value(runtime::logits_output(imported)).name);
  std::unique_ptr<runtime::GraphRecomputeDecoder> recompute;
  try {
    recompute = std::make_unique<runtime::GraphRecomputeDecoder>(
        optimized, workshop.engine(), width == declared.end() ? 0 : width->second);
  } catch (const Error& error) {
    if (error.code() != ErrorCode::kUnsupported || explanation.empty()) throw;
    std::string message = error.what();  // and why it is run as a whole at all
    for (const std::string& line : explanation) message += "; " + line;
    throw Error(error.code(), message);
  }
  info.vocab_size = recompute->vocab_size();
  info.packed_bytes = workshop.weights.bytes();
  explanation.push_back("every token recomputes its whole sequence: correct, and slow");
  decoder = std::move(recompute);
}

void Model::Impl::make_image_runner(graph::ValueId output) {
  images = std::make_unique<runtime::ImageRunner>(optimized, workshop.engine(), output);
  info.reads_images = true;
  info.encoded.push_back({optimized.value(output).name, images->features()});
  info.packed_bytes = workshop.weights.bytes();
  explanation.push_back("a row of " + std::to_string(images->features()) +
                        " for each image: the graph runs as it stands, batch by batch");
}

// ---- sequences ---------------------------------------------------------------------------------

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
