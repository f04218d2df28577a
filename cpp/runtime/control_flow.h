// If and Loop: kernels that run other graphs.
#pragma once

#include <memory>
#include <string_view>

#include "runtime/executor.h"

namespace kvik::runtime {

// What the executor offers kernels beyond ops::OpContext: tensors together with their memory, so
// that a body's inputs and results are passed on without a copy.
class BodyContext : public ops::OpContext {
 public:
  virtual OwnedTensor owned_input(int i) const = 0;
  virtual void set_output(int i, OwnedTensor value) = 0;
  virtual const std::shared_ptr<BufferPool>& buffers() const = 0;
  virtual const CancelCheck& cancelled() const = 0;  // of the whole run; bodies ask it too
};

bool is_control_flow(std::string_view domain, std::string_view op);

// The kernel of a control-flow node. It is run with a BodyContext whose inputs are the node's own,
// then one per capture of its bodies (in the order of the attributes' names).
std::unique_ptr<ops::OpKernel> make_control_flow(const graph::Node& node, const Engine& engine,
                                                 const ExecutorOptions& options);

}  // namespace kvik::runtime
