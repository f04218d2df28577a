// Runs a row graph on flat batches of token rows.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "base/aligned_buffer.h"
#include "graph/passes/prove_rowwise.h"
#include "ops/op.h"
#include "ops/row_batch.h"
#include "runtime/executor.h"
#include "runtime/kv_cache.h"
#include "runtime/profiler.h"
#include "runtime/row_plan.h"

namespace kvik::runtime {

// The rows of one run().
struct RowInput {
  std::span<const std::int64_t> tokens;     // [rows]
  std::span<const std::int64_t> positions;  // [rows]
  std::span<const std::int64_t> types;      // [rows]; empty: zeros
  ops::RowBatch batch;
  const CancelCheck* cancelled = nullptr;  // asked before every operator; null: never
  std::span<const std::int64_t> wanted;    // ascending rows whose output is wanted
  float* output = nullptr;                 // [wanted, output_features]
};

// A planned row graph: kernels made, constants computed, memory placed. One run() at a time.
class RowProgram {
 public:
  // Plans for up to max_rows rows, and runs two rows once to see what each operator does (whether
  // it makes a view, how much scratch memory it takes), so that a defect shows here and not in
  // the middle of a generation. What `engine` refers to must outlive the program.
  // Throws kvik::Error: kUnsupported when the graph can't be run by rows, kOutOfMemory.
  RowProgram(std::shared_ptr<const graph::RowGraph> rows, const Engine& engine, int max_rows,
             CacheType cache = CacheType::kF32);
  ~RowProgram();

  const KvLayout& kv_layout() const { return layout_; }
  const KvLayout& source_layout() const { return source_layout_; }  // of what is read of a source
  std::span<const std::int64_t> layer_tables() const { return layer_tables_; }  // of RowBatch
  int max_rows() const { return max_rows_; }
  ThreadPool& threads() const { return engine_.pool; }
  // Makes room for calls of up to `rows` rows; no fewer than before. On kvik::Error(kOutOfMemory)
  // the program is as it was.
  void grow(int rows);
  std::int64_t output_features() const { return plan_.output_features; }
  std::int64_t arena_bytes() const { return plan_.arena_bytes; }
  std::int64_t constant_bytes() const;  // computed or copied constants that the program owns
  bool reads_types() const { return reads_types_; }
  const graph::RowGraph& rows() const { return *rows_; }
  // How many nodes run once, for every row, and for the wanted rows alone.
  const RowPlan& plan() const { return plan_; }

  // Runs the batch: stores its keys and values, and writes the wanted rows' output. Allocates
  // nothing, but for scratch memory when a batch needs more than any before it.
  // Throws kvik::Error naming the node that failed.
  void run(const RowInput& input);

  // The operators that a profiler adds to: one for each node of the graph.
  std::vector<OpProfile> profiled_ops() const;
  // Who is told of each operator from the next run on; null: nobody. It must outlive its use.
  void set_profiler(Profiler* profiler) { profiler_ = profiler; }

 private:
  class Context;

  void make_kernels();
  void check_page_size() const;
  void bind_constants();
  void probe();
  void mark_views();
  void bind_slots();
  void bind_arena(AlignedBuffer arena);
  void run_nodes(const std::vector<PlannedNode>& nodes, const CancelCheck* cancelled = nullptr);
  void run_node(const PlannedNode& node);
  void set_rows(Part part, std::int64_t rows);
  void gather(std::span<const std::int64_t> wanted, std::int64_t rows);
  void fill_ids(SlotId slot, std::span<const std::int64_t> ids);

  Slot& slot(SlotId id) { return plan_.slots[static_cast<std::size_t>(id)]; }
  Tensor& tensor(SlotId id) { return tensors_[static_cast<std::size_t>(id)]; }

  std::shared_ptr<const graph::RowGraph> rows_;
  Engine engine_;
  int max_rows_;
  RowPlan plan_;
  KvLayout layout_;
  KvLayout source_layout_;
  std::vector<std::int64_t> layer_tables_;
  std::vector<std::unique_ptr<ops::OpKernel>> made_;  // by node
  std::vector<Tensor> tensors_;                       // by slot
  std::vector<AlignedBuffer> owned_;                  // constants
  AlignedBuffer arena_;
  std::int64_t body_rows_ = -1;  // rows that the tensors are dimensioned for
  std::int64_t tail_rows_ = -1;
  bool reads_types_ = false;
  std::unique_ptr<Context> context_;
  Profiler* profiler_ = nullptr;
};

}  // namespace kvik::runtime
