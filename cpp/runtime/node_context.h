// One node's view of a run of the executor.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "ops/support.h"
#include "runtime/control_flow.h"
#include "runtime/executor.h"

namespace kvik::runtime {

// One node, ready to run.
struct Step {
  const graph::Node* node = nullptr;
  std::unique_ptr<ops::OpKernel> kernel;
  std::vector<graph::ValueId> inputs;    // the node's, then the captures of its bodies
  std::vector<graph::ValueId> releases;  // values that nothing after this step uses
};

// Values of a graph during a run, by id. Constants and inputs of the caller have no storage.
using Slots = std::vector<OwnedTensor>;

// Scratch memory that the steps of one run share; it grows to what the largest asks for.
class Scratch {
 public:
  void* reserve(std::size_t bytes, BufferPool& buffers) {
    if (memory_ == nullptr || memory_->size() < bytes) {
      memory_.reset();
      memory_ = buffers.allocate(bytes);
    }
    return memory_->data();
  }

 private:
  std::shared_ptr<const AlignedBuffer> memory_;
};

class NodeContext final : public BodyContext {
 public:
  NodeContext(const Step& step, Slots& slots, const Engine& engine,
              const std::shared_ptr<BufferPool>& buffers, Scratch& scratch,
              const CancelCheck& cancelled)
      : step_(step),
        slots_(slots),
        engine_(engine),
        buffers_(buffers),
        scratch_(scratch),
        cancelled_(cancelled) {
    for (std::size_t n = step.inputs.size(); n > 0 && input_count_ == 0; --n) {
      if (step.inputs[n - 1] != graph::kNoValue) input_count_ = static_cast<int>(n);
    }
    for (std::size_t n = step.node->outputs.size(); n > 0 && output_count_ == 0; --n) {
      if (step.node->outputs[n - 1] != graph::kNoValue) output_count_ = static_cast<int>(n);
    }
  }

  int input_count() const override { return input_count_; }
  int output_count() const override { return output_count_; }
  bool has_input(int i) const override {
    return i < input_count_ && step_.inputs[static_cast<std::size_t>(i)] != graph::kNoValue;
  }
  bool wants_output(int i) const override {
    return step_.node->output(static_cast<std::size_t>(i)) != graph::kNoValue;
  }
  const Tensor& input(int i) const override { return in(i).tensor; }

  Tensor& output(int i, DType dtype, const Dims& dims) override {
    OwnedTensor& slot = out(i);
    slot = {Tensor{dtype, dims, nullptr, 0}, nullptr};
    const std::size_t bytes = ops::result_bytes(dims, dtype);
    if (bytes > 0) {
      slot.storage = buffers_->allocate(bytes);
      slot.tensor.data = slot.storage->data();
    }
    return slot.tensor;
  }
  void alias(int i, int j, const Dims& dims) override {
    OwnedTensor& slot = out(i);
    slot = in(j);
    slot.tensor.dims = dims;
  }
  void* workspace(std::size_t bytes) override { return scratch_.reserve(bytes, *buffers_); }
  ThreadPool& pool() override { return engine_.pool; }
  const kernels::KernelTable& kernels() const override { return engine_.kernels; }

  OwnedTensor owned_input(int i) const override { return in(i); }
  void set_output(int i, OwnedTensor value) override { out(i) = std::move(value); }
  const std::shared_ptr<BufferPool>& buffers() const override { return buffers_; }
  const CancelCheck& cancelled() const override { return cancelled_; }

 private:
  const OwnedTensor& in(int i) const {
    if (!has_input(i)) {
      throw Error(ErrorCode::kInvalidModel, "input " + std::to_string(i) + " is missing");
    }
    return slots_[static_cast<std::size_t>(step_.inputs[static_cast<std::size_t>(i)])];
  }
  OwnedTensor& out(int i) {
    const graph::ValueId id = step_.node->output(static_cast<std::size_t>(i));
    if (id == graph::kNoValue) {
      throw Error(ErrorCode::kInvalidModel, "output " + std::to_string(i) + " is missing");
    }
    return slots_[static_cast<std::size_t>(id)];
  }

  const Step& step_;
  Slots& slots_;
  const Engine& engine_;
  const std::shared_ptr<BufferPool>& buffers_;
  Scratch& scratch_;
  const CancelCheck& cancelled_;
  int input_count_ = 0;
  int output_count_ = 0;
};

}  // namespace kvik::runtime
