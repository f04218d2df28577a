// Runs any graph of supported operators, node by node, on tensors of any shape.
//
// This is what Session.run and constant folding use. Values are allocated as they are made and
// freed after their last use; a row program (runtime/...) runs the same kernels with planned
// memory instead.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "base/aligned_buffer.h"
#include "base/tensor.h"
#include "base/thread_pool.h"
#include "graph/graph.h"
#include "kernels/kernels.h"
#include "kvik/session.h"
#include "ops/op.h"
#include "ops/packed_weights.h"
#include "runtime/buffer_pool.h"
#include "runtime/profiler.h"

namespace kvik::runtime {

// A tensor with the memory that it lies in. Contiguous.
struct OwnedTensor {
  Tensor tensor;
  std::shared_ptr<const AlignedBuffer> storage;  // null when there are no elements
};

struct ExecutorOptions {
  // Bound on the bytes of intermediate values and results that are alive at once.
  std::int64_t max_bytes = std::int64_t{8} << 30;
};

// What kernels are made with. All of it outlives the executor.
struct Engine {
  const kernels::KernelTable& kernels;
  ThreadPool& pool;
  ops::WeightCache& weights;
};

// A graph, prepared. The graph must outlive the executor and stay as it is. run() is const and may
// be called from several threads at once.
class GraphExecutor {
 public:
  // Prepares the nodes that the wanted values need (the graph's outputs when `wanted` is empty).
  // Throws kUnsupported that lists every operator that Kvik does not have, and whatever a
  // kernel's maker throws, with the node's label before it.
  GraphExecutor(const graph::Graph& graph, const Engine& engine,
                const ExecutorOptions& options = {}, std::span<const graph::ValueId> wanted = {});
  ~GraphExecutor();
  GraphExecutor(const GraphExecutor&) = delete;
  GraphExecutor& operator=(const GraphExecutor&) = delete;

  // Inputs in the order of graph.inputs, contiguous; results in the order of `wanted` (of
  // graph.outputs), each in memory of its own. Throws kInvalidArgument when an input does not fit
  // the graph, kOutOfMemory when the budget is exceeded; errors of a node begin with its label.
  // `cancelled` is asked before every node, those of bodies and the trips of loops included; when
  // it returns true, run() throws kCancelled. The profiler, if there is one, is told of each node;
  // the time of a control-flow node is that of its bodies.
  std::vector<OwnedTensor> run(std::span<const Tensor> inputs, const CancelCheck& cancelled = {},
                               Profiler* profiler = nullptr) const;

  // As run(), for the body of a control-flow node: `captures` in the order of graph.captures, and
  // the buffers of the run around it. Results may share memory with each other.
  std::vector<OwnedTensor> run_body(std::span<const OwnedTensor> inputs,
                                    std::span<const OwnedTensor> captures,
                                    const std::shared_ptr<BufferPool>& buffers,
                                    const CancelCheck& cancelled) const;

  const graph::Graph& graph() const;
  // The operators that a profiler adds to: one for each node that is run.
  std::vector<OpProfile> profiled_ops() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// Whether the executor can run an operator (in canonical form, see graph/graph.h): what an importer
// asks to refuse a model with one list.
bool supports(std::string_view domain, std::string_view op);

// Throws kUnsupported listing every operator of the graph and its bodies that Kvik lacks.
void check_supported(const graph::Graph& graph);

}  // namespace kvik::runtime
