// The way from a file to a graph that can be run, stage by stage.
#pragma once

#include <cstddef>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/thread_pool.h"
#include "graph/graph.h"
#include "graph/infer/infer.h"
#include "kvik/error.h"
#include "kvik/model.h"
#include "kvik/session.h"
#include "ops/packed_weights.h"
#include "runtime/executor.h"

namespace kvik::runtime {

// What kernels of one model share; it outlives them.
struct Workshop {
  // 0 threads: all CPUs. `release`: see WeightCache.
  explicit Workshop(int threads, WeightType type = WeightType::kF32,
                    ops::WeightCache::Release release = {});
  Engine engine() { return {kernels::active_table(), pool, weights}; }

  ThreadPool pool;
  ops::WeightCache weights;
};

// The last dimensions that a file declares for its outputs, by name: claims, not facts.
using DeclaredWidths = std::map<std::string, std::int64_t>;

// Imports a model; operators that Kvik lacks are listed in one error.
graph::Model import_model(const std::filesystem::path& path, DeclaredWidths* declared = nullptr);
graph::Model import_model(std::span<const std::byte> bytes,  // copies them
                          DeclaredWidths* declared = nullptr);

// The model's check_files; for a model from memory, one that finds nothing.
std::function<void()> file_check(const graph::Model& model);

// How much of the optimiser runs.
enum class Optimize : std::uint8_t {
  kNothing,  // the graph as the file spells it
  kProof,    // folding, and what the row-wise proof needs to see; no other fusions
  kRows,     // all that serves a graph which is then run by rows
  kAll,      // and what serves one that runs as it stands
};

// Folds constants, fuses, infers shapes and checks the graph. `limits`: where bounds on dimensions
// that the passes took for granted are written; null: the graph keeps its meaning for all sizes.
void prepare_graph(graph::Graph& graph, const Engine& engine, Optimize how,
                   graph::DimLimits* limits = nullptr);

// Calls make(); a fault of the model that it reports gets the file's name.
template <typename Make>
auto naming_file(const std::filesystem::path& path, const Make& make) {
  try {
    return make();
  } catch (const Error& error) {
    // Arguments are the caller's, and errors of reading name the file already.
    if (error.code() == ErrorCode::kInvalidArgument || error.code() == ErrorCode::kIo) throw;
    throw Error(error.code(), path.string() + ": " + error.what());
  }
}

// ---- what info() and inspect show --------------------------------------------------------------
std::vector<TensorInfo> describe_values(const graph::Graph& graph,
                                        std::span<const graph::ValueId> values);
OpCounts count_ops(const graph::Graph& graph);
std::vector<GraphNode> list_nodes(const graph::Graph& graph);
// Elements and bytes of the constants that nodes use, each counted once.
struct WeightSize {
  std::int64_t elements = 0;
  std::int64_t bytes = 0;
};
WeightSize weigh(const graph::Graph& graph);

// Which process this is; compared on use, to refuse a forked child.
class HomeProcess {
 public:
  HomeProcess();
  // Throws kvik::Error(kInvalidArgument) in any other process.
  void check() const;

 private:
  long id_;
};

}  // namespace kvik::runtime
