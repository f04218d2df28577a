#include "runtime/control_flow.h"

#include <cstring>
#include <optional>
#include <string>
#include <utility>

#include "graph/bodies.h"
#include "ops/support.h"

namespace kvik::runtime {

namespace {

// A body, prepared, and where its captures stand among the node's inputs.
struct Body {
  std::unique_ptr<GraphExecutor> executor;
  int first_capture = 0;

  std::vector<OwnedTensor> captures(const BodyContext& context) const {
    std::vector<OwnedTensor> out;
    for (std::size_t i = 0; i < executor->graph().captures.size(); ++i) {
      out.push_back(context.owned_input(first_capture + static_cast<int>(i)));
    }
    return out;
  }
};

BodyContext& body_context(ops::OpContext& context) {
  auto* bodies = dynamic_cast<BodyContext*>(&context);
  if (bodies == nullptr) {
    throw Error(ErrorCode::kInternal, "control flow runs in the graph executor only");
  }
  return *bodies;
}

// Bodies by attribute, in the order in which BodyIndex lists their captures.
std::map<std::string, Body> prepare_bodies(const graph::Node& node, const Engine& engine,
                                           const ExecutorOptions& options) {
  std::map<std::string, Body> bodies;
  int next = static_cast<int>(node.inputs.size());
  for (const auto& [name, attribute] : node.attributes) {
    const auto* graph = std::get_if<std::shared_ptr<graph::Graph>>(&attribute);
    if (graph == nullptr) continue;
    bodies[name] = {std::make_unique<GraphExecutor>(**graph, engine, options), next};
    next += static_cast<int>((*graph)->captures.size());
  }
  return bodies;
}

Body take_body(std::map<std::string, Body>& bodies, const std::string& name) {
  const auto it = bodies.find(name);
  if (it == bodies.end()) {
    throw Error(ErrorCode::kInvalidModel, "attribute " + name + " is missing");
  }
  return std::move(it->second);
}

bool truth(const Tensor& tensor, const char* name) {
  ops::check_dtype(tensor, DType::kBool, name);
  ops::check(tensor.elements() == 1, [&] {
    return std::string(name) + " has shape " + tensor.dims.str() + "; expected one element";
  });
  return *tensor.as<std::uint8_t>() != 0;
}

// ---- If --------------------------------------------------------------------------------------

class If final : public ops::OpKernel {
 public:
  If(const graph::Node& node, const Engine& engine, const ExecutorOptions& options) {
    auto bodies = prepare_bodies(node, engine, options);
    then_ = take_body(bodies, "then_branch");
    else_ = take_body(bodies, "else_branch");
    for (const Body* body : {&then_, &else_}) {
      if (body->executor->graph().outputs.size() != node.outputs.size()) {
        throw Error(ErrorCode::kInvalidModel,
                    "a branch has " + std::to_string(body->executor->graph().outputs.size()) +
                        " outputs; expected " + std::to_string(node.outputs.size()));
      }
    }
  }

  void run(ops::OpContext& plain) const override {
    BodyContext& context = body_context(plain);
    const Body& body = truth(context.input(0), "the condition") ? then_ : else_;
    std::vector<OwnedTensor> results =
        body.executor->run_body({}, body.captures(context), context.buffers(), context.cancelled());
    for (std::size_t i = 0; i < results.size(); ++i) {
      const int output = static_cast<int>(i);
      if (context.wants_output(output)) context.set_output(output, std::move(results[i]));
    }
  }

 private:
  Body then_, else_;
};

// ---- Loop ------------------------------------------------------------------------------------

// The results of one scan output over the iterations, to be stacked along a new first axis.
class Stack {
 public:
  void push(OwnedTensor value) {
    if (!parts_.empty()) {
      const Tensor& first = parts_.front().tensor;
      ops::check(first.dims == value.tensor.dims && first.dtype == value.tensor.dtype, [&] {
        return "a scan output changes from " + ops::describe(first) + " to " +
               ops::describe(value.tensor);
      });
    }
    parts_.push_back(std::move(value));
  }
  // Without an iteration the element's type and shape come from the body's declaration.
  void store(ops::OpContext& context, int output, const graph::Value& declared) const {
    Dims dims{static_cast<std::int64_t>(parts_.size())};
    DType dtype = declared.dtype;
    if (!parts_.empty()) {
      dtype = parts_.front().tensor.dtype;
      for (std::int64_t dim : parts_.front().tensor.dims) dims.push_back(dim);
    } else if (declared.shape) {
      for (const graph::Expr& dim : *declared.shape) dims.push_back(dim.constant().value_or(0));
    }
    Tensor& y = context.output(output, dtype, dims);
    auto* to = static_cast<std::byte*>(y.data);
    for (const OwnedTensor& part : parts_) {
      const std::size_t bytes = ops::result_bytes(part.tensor.dims, dtype);
      if (bytes == 0) continue;
      std::memcpy(to, part.tensor.data, bytes);
      to += bytes;
    }
  }

 private:
  std::vector<OwnedTensor> parts_;
};

// Inputs: trip count (optional), condition (optional), carried values. The body takes (iteration,
// condition, carried ...) and gives (condition, carried ..., scan outputs ...).
class Loop final : public ops::OpKernel {
 public:
  Loop(const graph::Node& node, const Engine& engine, const ExecutorOptions& options)
      : carried_(node.inputs.size() < 2 ? 0 : node.inputs.size() - 2) {
    auto bodies = prepare_bodies(node, engine, options);
    body_ = take_body(bodies, "body");
    const graph::Graph& graph = body_.executor->graph();
    if (graph.inputs.size() != carried_ + 2 || graph.outputs.size() < carried_ + 1 ||
        graph.outputs.size() - 1 != node.outputs.size()) {
      throw Error(ErrorCode::kInvalidModel,
                  "the body's " + std::to_string(graph.inputs.size()) + " inputs and " +
                      std::to_string(graph.outputs.size()) + " outputs do not fit a loop with " +
                      std::to_string(carried_) + " carried values and " +
                      std::to_string(node.outputs.size()) + " outputs");
    }
  }

  void run(ops::OpContext& plain) const override {
    BodyContext& context = body_context(plain);
    const graph::Graph& graph = body_.executor->graph();
    std::int64_t trips = INT64_MAX;
    if (context.has_input(0)) trips = ops::int_scalar(context.input(0), "the trip count");
    bool condition = !context.has_input(1) || truth(context.input(1), "the condition");
    std::vector<OwnedTensor> carried;
    for (std::size_t i = 0; i < carried_; ++i) {
      carried.push_back(context.owned_input(static_cast<int>(i) + 2));
    }
    std::vector<Stack> stacks(graph.outputs.size() - 1 - carried_);
    const std::vector<OwnedTensor> captures = body_.captures(context);
    const CancelCheck& cancelled = context.cancelled();
    for (std::int64_t trip = 0; trip < trips && condition; ++trip) {
      // A body need not have a node that would ask.
      if (cancelled && cancelled()) {
        throw Error(ErrorCode::kCancelled, "cancelled before trip " + std::to_string(trip));
      }
      std::uint8_t flag = 1;
      std::vector<OwnedTensor> inputs{{{DType::kI64, Dims{}, &trip, 0}, nullptr},
                                      {{DType::kBool, Dims{}, &flag, 0}, nullptr}};
      inputs.insert(inputs.end(), carried.begin(), carried.end());
      carried.clear();
      std::vector<OwnedTensor> results =
          body_.executor->run_body(inputs, captures, context.buffers(), context.cancelled());
      condition = truth(results[0].tensor, "the body's condition");
      for (std::size_t i = 1; i < results.size(); ++i) {
        OwnedTensor value = detach(std::move(results[i]), &trip, &flag, context);
        if (i <= carried_) {
          carried.push_back(std::move(value));
        } else {
          stacks[i - 1 - carried_].push(std::move(value));
        }
      }
    }
    for (std::size_t i = 0; i < carried_; ++i) {
      const int output = static_cast<int>(i);
      if (context.wants_output(output)) context.set_output(output, std::move(carried[i]));
    }
    for (std::size_t i = 0; i < stacks.size(); ++i) {
      const int output = static_cast<int>(carried_ + i);
      if (context.wants_output(output)) {
        stacks[i].store(context, output, graph.value(graph.outputs[1 + carried_ + i]));
      }
    }
  }

 private:
  // The iteration number and condition live on the stack of run(): a result that is one of them
  // (through Identity) is copied.
  static OwnedTensor detach(OwnedTensor value, const void* trip, const void* flag,
                            const BodyContext& context) {
    if (value.tensor.data != trip && value.tensor.data != flag) return value;
    const std::size_t bytes = ops::result_bytes(value.tensor.dims, value.tensor.dtype);
    auto storage = context.buffers()->allocate(bytes);
    std::memcpy(storage->data(), value.tensor.data, bytes);
    value.tensor.data = storage->data();
    value.storage = std::move(storage);
    return value;
  }

  std::size_t carried_;
  Body body_;
};

}  // namespace

bool is_control_flow(std::string_view domain, std::string_view op) {
  return domain.empty() && (op == "If" || op == "Loop");
}

std::unique_ptr<ops::OpKernel> make_control_flow(const graph::Node& node, const Engine& engine,
                                                 const ExecutorOptions& options) {
  if (node.is("If")) return std::make_unique<If>(node, engine, options);
  return std::make_unique<Loop>(node, engine, options);
}

}  // namespace kvik::runtime
