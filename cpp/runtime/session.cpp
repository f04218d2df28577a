#include "kvik/session.h"

#include <algorithm>
#include <functional>
#include <string>
#include <utility>

#include "base/checked.h"
#include "base/fail.h"
#include "graph/graph.h"
#include "runtime/attention_taps.h"
#include "runtime/executor.h"
#include "runtime/load.h"

namespace kvik {

std::int64_t OwnedTensor::elements() const {
  std::int64_t product = 1;
  for (const std::int64_t dim : dims) product *= dim;
  return product;
}

std::size_t OwnedTensor::bytes() const {
  return static_cast<std::size_t>(checked_bytes(elements(), dtype).value_or(0));
}

struct Session::Impl {
  Impl(graph::Model model, const SessionOptions& options);

  std::vector<Tensor> bind(std::span<const Feed> feeds) const;
  std::size_t input_index(std::string_view name) const;
  std::size_t output_index(std::string_view name) const;

  runtime::HomeProcess home;
  runtime::Workshop workshop;
  std::function<void()> check_files;  // see graph::Model; never empty
  graph::Model model;
  std::vector<TensorInfo> inputs;
  std::vector<TensorInfo> outputs;
  std::unique_ptr<runtime::GraphExecutor> executor;
  runtime::Profiler profiler;
};

namespace {

std::string name_list(const std::vector<TensorInfo>& infos) {
  std::string list;
  for (const TensorInfo& info : infos) list += (list.empty() ? "'" : ", '") + info.name + "'";
  return list.empty() ? "none" : list;
}

void add_outputs(graph::Graph& graph, const std::vector<std::string>& names) {
  for (const std::string& name : names) {
    const auto found = std::find_if(graph.values.begin(), graph.values.end(),
                                    [&](const graph::Value& value) { return value.name == name; });
    if (found == graph.values.end()) fail_argument("the graph has no value '" + name + "'");
    graph.outputs.push_back(static_cast<graph::ValueId>(found - graph.values.begin()));
  }
}

// The result shares the executor's memory.
OwnedTensor to_public(const runtime::OwnedTensor& result) {
  const std::span<const std::int64_t> dims = result.tensor.dims.span();
  return {.dtype = result.tensor.dtype,
          .dims = {dims.begin(), dims.end()},
          .data = std::shared_ptr<void>(result.storage, result.tensor.data)};
}

}  // namespace

Session::Impl::Impl(graph::Model loaded, const SessionOptions& options)
    : workshop(options.threads, options.weights, loaded.release_pages),
      check_files(runtime::file_check(loaded)),
      model(std::move(loaded)) {
  add_outputs(model.graph, options.extra_outputs);
  runtime::prepare_graph(model.graph, workshop.engine(),
                         options.optimize ? runtime::Optimize::kAll : runtime::Optimize::kNothing);
  inputs = runtime::describe_values(model.graph, model.graph.inputs);
  outputs = runtime::describe_values(model.graph, model.graph.outputs);
  executor = std::make_unique<runtime::GraphExecutor>(model.graph, workshop.engine());
  check_files();  // weights that were packed from a file that was cut meanwhile are not weights
}

std::size_t Session::Impl::input_index(std::string_view name) const {
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    if (inputs[i].name == name) return i;
  }
  fail_argument("the model has no input '" + std::string(name) + "'; it has " + name_list(inputs));
}

std::size_t Session::Impl::output_index(std::string_view name) const {
  for (std::size_t i = 0; i < outputs.size(); ++i) {
    if (outputs[i].name == name) return i;
  }
  fail_argument("the model has no output '" + std::string(name) + "'; it has " +
                name_list(outputs));
}

// The feeds in the order of the graph's inputs.
std::vector<Tensor> Session::Impl::bind(std::span<const Feed> feeds) const {
  std::vector<Tensor> tensors(inputs.size());
  std::vector<bool> given(inputs.size());
  for (const Feed& feed : feeds) {
    const std::size_t i = input_index(feed.name);
    if (given[i]) fail_argument("input '" + std::string(feed.name) + "' was given twice");
    const auto elements = checked_elements(feed.tensor.dims);
    if (!elements) fail_argument("input '" + inputs[i].name + "' has impossible dimensions");
    if (*elements > 0 && feed.tensor.data == nullptr) {
      fail_argument("input '" + inputs[i].name + "' has elements but no data");
    }
    given[i] = true;
    tensors[i] = {.dtype = feed.tensor.dtype,
                  .dims = Dims(feed.tensor.dims),
                  .data = const_cast<void*>(feed.tensor.data)};  // inputs are not written to
  }
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    if (!given[i]) fail_argument("input '" + inputs[i].name + "' was not given");
  }
  return tensors;
}

Session::Session(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Session::Session(Session&&) noexcept = default;
Session& Session::operator=(Session&&) noexcept = default;
Session::~Session() = default;

Session Session::load(const std::filesystem::path& path, const SessionOptions& options) {
  graph::Model loaded = runtime::import_model(path);
  return runtime::naming_file(
      path, [&] { return Session(std::make_unique<Impl>(std::move(loaded), options)); });
}

Session Session::from_bytes(std::span<const std::byte> bytes, const SessionOptions& options) {
  return Session(std::make_unique<Impl>(runtime::import_model(bytes), options));
}

const std::vector<TensorInfo>& Session::inputs() const {
  return impl_->inputs;
}
const std::vector<TensorInfo>& Session::outputs() const {
  return impl_->outputs;
}

const std::map<std::string, std::string>& Session::metadata() const {
  return impl_->model.metadata;
}

std::vector<OwnedTensor> Session::run(std::span<const Feed> feeds,
                                      std::span<const std::string> output_names,
                                      const CancelCheck& cancelled) const {
  impl_->home.check();
  impl_->check_files();
  std::vector<std::size_t> wanted;
  for (const std::string& name : output_names) wanted.push_back(impl_->output_index(name));
  runtime::Profiler* const profiler = impl_->profiler.active();
  runtime::ProfiledCall call(profiler);
  const std::vector<runtime::OwnedTensor> results =
      impl_->executor->run(impl_->bind(feeds), cancelled, profiler);
  call.done();
  std::vector<OwnedTensor> out;
  if (output_names.empty()) {
    for (const runtime::OwnedTensor& result : results) out.push_back(to_public(result));
  }
  for (const std::size_t i : wanted) out.push_back(to_public(results[i]));
  return out;
}

std::vector<AttentionWeights> Session::attention(std::span<const Feed> feeds,
                                                 const AttentionChoice& choice,
                                                 const CancelCheck& cancelled) const {
  impl_->home.check();
  impl_->check_files();
  const std::vector<Tensor> inputs = impl_->bind(feeds);
  const runtime::AttentionTaps taps(impl_->model.graph, impl_->workshop.engine(), choice);
  const bool batched = !inputs.empty() && inputs[0].dims.rank > 0;
  return taps.run(inputs, batched ? inputs[0].dims[0] : 1, cancelled);
}

void Session::start_profile() const {
  impl_->profiler.start(impl_->executor->profiled_ops());
}

Profile Session::stop_profile() const {
  return impl_->profiler.stop();
}

}  // namespace kvik
