#include "runtime/executor.h"

#include <algorithm>
#include <cstring>
#include <new>
#include <set>
#include <string>

#include "base/checked.h"
#include "graph/bodies.h"
#include "runtime/node_context.h"

namespace kvik::runtime {

namespace {

using graph::kNoValue;
using graph::ValueId;

std::size_t at(ValueId id) {
  return static_cast<std::size_t>(id);
}

// Runs f; an error gets the node's label in front.
template <typename F>
decltype(auto) labelled(const graph::Node& node, const F& f) {
  try {
    return f();
  } catch (const Error& error) {
    throw Error(error.code(), node.label() + ": " + error.what());
  } catch (const std::bad_alloc&) {
    throw Error(ErrorCode::kOutOfMemory, node.label() + ": out of memory");
  }
}

bool supported(const graph::Node& node) {
  return supports(node.domain, node.op);
}

std::string op_name(const graph::Node& node) {
  return node.domain.empty() ? node.op : node.domain + "." + node.op;
}

void collect_unsupported(const graph::Graph& graph, std::set<std::string>& missing) {
  for (const graph::Node& node : graph.nodes) {
    if (!supported(node)) missing.insert(op_name(node));
    graph::for_each_body(node,
                         [&](const graph::Graph& body) { collect_unsupported(body, missing); });
  }
}

[[noreturn]] void throw_unsupported(const std::set<std::string>& missing) {
  std::string list;
  for (const std::string& op : missing) list += (list.empty() ? "" : ", ") + op;
  throw Error(ErrorCode::kUnsupported, "the model uses operators that Kvik does not have: " + list);
}

std::string shape_text(const std::vector<graph::Expr>& shape) {
  std::string out = "[";
  for (std::size_t i = 0; i < shape.size(); ++i) out += (i ? ", " : "") + shape[i].str();
  return out + "]";
}

void check_input(const graph::Value& value, const Tensor& tensor) {
  const auto refuse = [&](const std::string& found, const std::string& expected) {
    throw Error(ErrorCode::kInvalidArgument,
                "input '" + value.name + "' has " + found + "; expected " + expected);
  };
  if (value.dtype != DType::kUndefined && tensor.dtype != value.dtype) {
    refuse(std::string("type ") + dtype_name(tensor.dtype), dtype_name(value.dtype));
  }
  if (!value.shape) return;
  bool fits = value.shape->size() == static_cast<std::size_t>(tensor.dims.rank);
  for (int i = 0; fits && i < tensor.dims.rank; ++i) {
    const auto fixed = (*value.shape)[static_cast<std::size_t>(i)].constant();
    fits = !fixed || *fixed == tensor.dims[i];
  }
  if (!fits) refuse("shape " + tensor.dims.str(), shape_text(*value.shape));
}

// A view of a constant's elements, wherever they lie.
Tensor constant_view(const graph::ConstantTensor& constant) {
  return {constant.dtype, constant.dims, const_cast<std::byte*>(constant.data.data()), 0};
}

bool aligned(const Tensor& tensor) {
  const std::size_t size = std::max<std::size_t>(dtype_bits(tensor.dtype) / 8, 1);
  return reinterpret_cast<std::uintptr_t>(tensor.data) % size == 0;
}

OwnedTensor copy_of(const Tensor& tensor, BufferPool& buffers) {
  OwnedTensor copy{tensor, nullptr};
  const std::size_t bytes = ops::result_bytes(tensor.dims, tensor.dtype);
  copy.tensor.data = nullptr;
  if (bytes > 0) {
    copy.storage = buffers.allocate(bytes);
    copy.tensor.data = copy.storage->data();
    std::memcpy(copy.tensor.data, tensor.data, bytes);
  }
  return copy;
}

}  // namespace

bool supports(std::string_view domain, std::string_view op) {
  return is_control_flow(domain, op) || ops::registry().find(domain, op) != nullptr;
}

void check_supported(const graph::Graph& graph) {
  std::set<std::string> missing;
  collect_unsupported(graph, missing);
  if (!missing.empty()) throw_unsupported(missing);
}

struct GraphExecutor::Impl {
  const graph::Graph& graph;
  Engine engine;
  ExecutorOptions options;
  std::vector<ValueId> wanted;
  std::vector<Step> steps;
  std::vector<std::pair<ValueId, Tensor>> constants;  // those that steps use, aligned
  std::vector<AlignedBuffer> copies;                  // of constants that were not aligned

  void prepare();
  std::vector<bool> needed_nodes(const graph::BodyIndex& bodies) const;
  void bind_constants();
  void find_last_uses();
  void execute(Slots& slots, const std::shared_ptr<BufferPool>& buffers,
               const CancelCheck& cancelled, Profiler* profiler) const;
  Slots start() const;
};

// Walks backwards from the wanted values.
std::vector<bool> GraphExecutor::Impl::needed_nodes(const graph::BodyIndex& bodies) const {
  std::vector<bool> live(graph.values.size());
  for (ValueId id : wanted) live[at(id)] = true;
  std::vector<bool> needed(graph.nodes.size());
  for (std::size_t i = graph.nodes.size(); i-- > 0;) {
    const graph::Node& node = graph.nodes[i];
    needed[i] = std::any_of(node.outputs.begin(), node.outputs.end(),
                            [&](ValueId id) { return id != kNoValue && live[at(id)]; });
    if (!needed[i]) continue;
    for (ValueId id : node.inputs) {
      if (id != kNoValue) live[at(id)] = true;
    }
    for (ValueId id : bodies.captured(node)) live[at(id)] = true;
  }
  return needed;
}

void GraphExecutor::Impl::prepare() {
  const graph::BodyIndex bodies(graph);
  const std::vector<bool> needed = needed_nodes(bodies);
  std::set<std::string> missing;
  for (std::size_t i = 0; i < needed.size(); ++i) {
    if (needed[i] && !supported(graph.nodes[i])) missing.insert(op_name(graph.nodes[i]));
  }
  if (!missing.empty()) throw_unsupported(missing);

  for (std::size_t i = 0; i < needed.size(); ++i) {
    if (!needed[i]) continue;
    const graph::Node& node = graph.nodes[i];
    Step step;
    step.node = &node;
    step.inputs = node.inputs;
    for (ValueId id : bodies.captured(node)) step.inputs.push_back(id);
    step.kernel = labelled(node, [&] {
      if (is_control_flow(node.domain, node.op)) return make_control_flow(node, engine, options);
      const ops::NodeInfo info{graph, node, engine.kernels, engine.pool, engine.weights};
      return ops::registry().find(node.domain, node.op)(info);
    });
    steps.push_back(std::move(step));
  }
  bind_constants();
  find_last_uses();
}

void GraphExecutor::Impl::bind_constants() {
  std::vector<bool> used(graph.values.size()), read(graph.values.size());
  for (const Step& step : steps) {
    for (std::size_t i = 0; i < step.inputs.size(); ++i) {
      if (step.inputs[i] == kNoValue) continue;
      used[at(step.inputs[i])] = true;
      if (step.kernel->needs_aligned(static_cast<int>(i))) read[at(step.inputs[i])] = true;
    }
  }
  for (ValueId id : wanted) used[at(id)] = true;
  for (std::size_t i = 0; i < used.size(); ++i) {
    const graph::ConstantTensor* constant = graph.values[i].constant.get();
    if (!used[i] || constant == nullptr) continue;
    Tensor view = constant_view(*constant);
    if (read[i] && !aligned(view)) {
      copies.emplace_back(constant->data.size());
      std::memcpy(copies.back().data(), constant->data.data(), constant->data.size());
      view.data = copies.back().data();
    }
    constants.emplace_back(static_cast<ValueId>(i), view);
  }
}

void GraphExecutor::Impl::find_last_uses() {
  std::vector<bool> seen(graph.values.size());
  for (ValueId id : wanted) seen[at(id)] = true;
  for (auto step = steps.rbegin(); step != steps.rend(); ++step) {
    const auto release = [&](ValueId id) {
      if (id == kNoValue || seen[at(id)]) return;
      seen[at(id)] = true;
      step->releases.push_back(id);
    };
    for (ValueId id : step->node->outputs) release(id);  // made and never used
    for (ValueId id : step->inputs) release(id);
  }
}

Slots GraphExecutor::Impl::start() const {
  Slots slots(graph.values.size());
  for (const auto& [id, view] : constants) slots[at(id)].tensor = view;
  return slots;
}

void GraphExecutor::Impl::execute(Slots& slots, const std::shared_ptr<BufferPool>& buffers,
                                  const CancelCheck& cancelled, Profiler* profiler) const {
  Scratch scratch;
  for (std::size_t i = 0; i < steps.size(); ++i) {
    const Step& step = steps[i];
    if (cancelled && cancelled()) {
      throw Error(ErrorCode::kCancelled, "cancelled before " + step.node->label());
    }
    NodeContext context(step, slots, engine, buffers, scratch, cancelled);
    labelled(*step.node, [&] { run_kernel(*step.kernel, context, profiler, i); });
    for (ValueId id : step.releases) slots[at(id)].storage.reset();
  }
}

GraphExecutor::GraphExecutor(const graph::Graph& graph, const Engine& engine,
                             const ExecutorOptions& options, std::span<const ValueId> wanted)
    : impl_(new Impl{graph, engine, options, {}, {}, {}, {}}) {
  impl_->wanted.assign(wanted.begin(), wanted.end());
  if (wanted.empty()) impl_->wanted = graph.outputs;
  impl_->prepare();
}

GraphExecutor::~GraphExecutor() = default;

const graph::Graph& GraphExecutor::graph() const {
  return impl_->graph;
}

std::vector<OpProfile> GraphExecutor::profiled_ops() const {
  std::vector<OpProfile> ops;
  ops.reserve(impl_->steps.size());
  for (const Step& step : impl_->steps) ops.push_back(describe_op(*step.node, *step.kernel));
  return ops;
}

std::vector<OwnedTensor> GraphExecutor::run(std::span<const Tensor> inputs,
                                            const CancelCheck& cancelled,
                                            Profiler* profiler) const {
  const graph::Graph& g = impl_->graph;
  if (inputs.size() != g.inputs.size()) {
    throw Error(ErrorCode::kInvalidArgument, std::to_string(inputs.size()) +
                                                 " inputs were given; the model has " +
                                                 std::to_string(g.inputs.size()));
  }
  Slots slots = impl_->start();
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    check_input(g.value(g.inputs[i]), inputs[i]);
    slots[at(g.inputs[i])].tensor = inputs[i];
  }
  const auto buffers = BufferPool::create(impl_->options.max_bytes);
  impl_->execute(slots, buffers, cancelled, profiler);
  std::vector<OwnedTensor> results;
  for (ValueId id : impl_->wanted) {
    const OwnedTensor& slot = slots[at(id)];
    const bool shared = std::any_of(results.begin(), results.end(), [&](const OwnedTensor& other) {
      return other.storage == slot.storage;
    });
    const bool own = slot.storage != nullptr && !shared;
    results.push_back(own ? slot : copy_of(slot.tensor, *buffers));
  }
  buffers->stop_keeping();
  return results;
}

std::vector<OwnedTensor> GraphExecutor::run_body(std::span<const OwnedTensor> inputs,
                                                 std::span<const OwnedTensor> captures,
                                                 const std::shared_ptr<BufferPool>& buffers,
                                                 const CancelCheck& cancelled) const {
  const graph::Graph& g = impl_->graph;
  if (inputs.size() != g.inputs.size() || captures.size() != g.captures.size()) {
    throw Error(ErrorCode::kInvalidModel,
                "the body '" + g.name + "' has " + std::to_string(g.inputs.size()) +
                    " inputs; the node gives it " + std::to_string(inputs.size()));
  }
  Slots slots = impl_->start();
  for (std::size_t i = 0; i < inputs.size(); ++i) slots[at(g.inputs[i])] = inputs[i];
  for (std::size_t i = 0; i < captures.size(); ++i) slots[at(g.captures[i])] = captures[i];
  impl_->execute(slots, buffers, cancelled, nullptr);
  std::vector<OwnedTensor> results;
  for (ValueId id : impl_->wanted) results.push_back(slots[at(id)]);
  return results;
}

}  // namespace kvik::runtime
