// From an imported graph to what runs it: which of the ways a model can be run is proved, and made.

#include <algorithm>
#include <charconv>
#include <string>
#include <utility>

#include "base/fail.h"
#include "base/text.h"
#include "graph/infer/infer.h"
#include "runtime/model_impl.h"
#include "runtime/recompute_decoder.h"
#include "runtime/row_decoder.h"
#include "runtime/row_plan.h"
#include "runtime/row_program.h"
#include "runtime/source_encoder.h"
#include "runtime/token_ids.h"

namespace kvik {

using runtime::stricter;

namespace {

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

Model::Impl::Impl(graph::Model loaded, const runtime::DeclaredWidths& declared,
                  const LoadOptions& options)
    : workshop(options.threads, options.weights, loaded.release_pages),
      check_files(runtime::file_check(loaded)),
      metadata(std::move(loaded.metadata)) {
  if (options.max_rows < 1 || options.max_rows > runtime::kMaxRows) {
    fail_argument("max_rows is " + std::to_string(options.max_rows) + "; expected 1 to " +
                  std::to_string(runtime::kMaxRows));
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
    make_by_rows(options);
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
void Model::Impl::make_by_rows(const LoadOptions& options) {
  const auto how = options.optimize ? runtime::Optimize::kRows : runtime::Optimize::kProof;
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

}  // namespace kvik
