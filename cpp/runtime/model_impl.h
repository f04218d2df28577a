// What a loaded model is made of. model_load.cpp makes it, model.cpp uses it.
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <vector>

#include "graph/graph.h"
#include "graph/passes/prove_rowwise.h"
#include "kvik/model.h"
#include "runtime/decoder.h"
#include "runtime/image_runner.h"
#include "runtime/load.h"
#include "runtime/matrices.h"
#include "runtime/profiler.h"
#include "runtime/row_encoder.h"

namespace kvik {

namespace runtime {

constexpr int kMaxRows = 65536;  // of one call

// The smaller of two limits, where 0 means none.
inline std::int64_t stricter(std::int64_t a, std::int64_t b) {
  return a == 0 ? b : b == 0 ? a : std::min(a, b);
}

}  // namespace runtime

struct Model::Impl {
  Impl(graph::Model loaded, const runtime::DeclaredWidths& declared, const LoadOptions& options);

  void describe_file(const graph::Model& loaded);
  void make_by_rows(const LoadOptions& options);
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
  std::map<std::string, std::string> metadata;
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

}  // namespace kvik
