// How an operator is executed: made once per node at planning time, run many times.
#pragma once

#include <cstddef>
#include <map>
#include <memory>
#include <string>
#include <string_view>

#include "base/fail.h"
#include "base/tensor.h"
#include "base/thread_pool.h"
#include "graph/graph.h"
#include "kernels/kernels.h"

namespace kvik::ops {

struct RowBatch;  // ops/row_batch.h

// What a kernel may use while it runs. The executor implements it twice: for a session, where
// output() allocates, and for a planned row program, where output() hands out the place in the
// arena that the plan gave it. A kernel does not know which.
class OpContext {
 public:
  virtual ~OpContext() = default;

  // Number of inputs and outputs of the node, omitted trailing ones not counted.
  virtual int input_count() const = 0;
  virtual int output_count() const = 0;
  // Whether the optional input (output) is there (wanted).
  virtual bool has_input(int i) const = 0;
  virtual bool wants_output(int i) const = 0;

  // The input; contiguous unless the kernel says accepts_strided(i).
  virtual const Tensor& input(int i) const = 0;
  // Uninitialised storage for output i. Called once per wanted output. Throws kOutOfMemory when a
  // budget would be exceeded. Never overlaps an input, unless it was made by alias().
  virtual Tensor& output(int i, DType dtype, const Dims& dims) = 0;
  // Makes output i a view of input j's elements with other dims (Reshape and its kin): no copy.
  virtual void alias(int i, int j, const Dims& dims) = 0;
  // Uninitialised scratch memory, kAlignment-aligned, valid until run() returns; one per run.
  virtual void* workspace(std::size_t bytes) = 0;

  // The rows that a row program runs on, with their sequence states; null in a session.
  virtual const RowBatch* row_batch() const { return nullptr; }

  virtual ThreadPool& pool() = 0;
  virtual const kernels::KernelTable& kernels() const = 0;
};

// What one run must do at least: the profiler holds the time against it.
struct OpCost {
  double bytes = 0;       // of weights, and of cached keys and values, read
  double operations = 0;  // of matrix products; a multiply-add counts two
};

// What a kernel is, for people who read a profile.
struct OpDescription {
  std::string shape;      // "768 x 2304"
  std::string precision;  // of what it multiplies: "int8"
};

// One node, prepared: attributes parsed, weights packed.
class OpKernel {
 public:
  virtual ~OpKernel() = default;
  // Throws kvik::Error(kInvalidArgument / kInvalidModel) that names what is wrong with the actual
  // inputs; the executor adds the node's name. Must be safe to call from several threads at once:
  // state lives in the context.
  virtual void run(OpContext& context) const = 0;
  // Whether input i may come with a row_stride (see base/tensor.h).
  virtual bool accepts_strided(int /*i*/) const { return false; }
  // Whether input i must be aligned for its dtype, as a constant in a file need not be. False for
  // one that was packed when the kernel was made, or that is read as bytes: the executor then makes
  // no aligned copy of it.
  virtual bool needs_aligned(int /*i*/) const { return true; }
  // What the run that has just been made with this context did. Reads dimensions of inputs only.
  virtual OpCost cost(const OpContext& /*context*/) const { return {}; }
  virtual OpDescription describe() const { return {}; }
};

class WeightCache;  // ops/packed_weights.h

// What a maker sees. Throws kUnsupported or kInvalidModel for a node it cannot run.
struct NodeInfo {
  const graph::Graph& graph;
  const graph::Node& node;
  const kernels::KernelTable& kernels;
  ThreadPool& pool;      // for packing weights in parallel
  WeightCache& weights;  // packed weights, shared by all kernels of a model

  // The constant input i as a tensor view, or null. The data lives as long as the graph.
  const graph::ConstantTensor* constant(std::size_t i) const {
    return graph.constant(node.input(i));
  }
  DType dtype(std::size_t i) const {
    const graph::ValueId id = node.input(i);
    return id == graph::kNoValue ? DType::kUndefined : graph.value(id).dtype;
  }
};

using MakeKernel = std::unique_ptr<OpKernel> (*)(const NodeInfo&);

// Maps (domain, op) to its maker. Filled once by the register_* functions, one per op family.
class Registry {
 public:
  void add(std::string_view domain, std::string_view op, MakeKernel make);
  void add(std::string_view op, MakeKernel make) { add("", op, make); }
  // Null when the operator is unknown.
  MakeKernel find(std::string_view domain, std::string_view op) const;

 private:
  std::map<std::string, MakeKernel, std::less<>> makers_;  // "domain\0op"
};

// All operators of the library.
const Registry& registry();

}  // namespace kvik::ops
