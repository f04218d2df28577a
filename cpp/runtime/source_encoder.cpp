#include "runtime/source_encoder.h"

#include <algorithm>
#include <string>
#include <utility>

#include "kvik/error.h"
#include "ops/row_attention.h"
#include "runtime/filled_input.h"

namespace kvik::runtime {

SourceEncoder::SourceEncoder(const graph::EncoderDecoder& proved, const KvLayout& layout,
                             const kernels::KernelTable& kernels)
    : states_(proved.states), pool_(std::make_shared<KvPool>(layout)), kernels_(kernels) {
  for (const graph::RowAttention& layer : proved.target.attention) {
    if (layer.mixing == graph::Mixing::kSource) layers_.push_back(layer);
  }
}

std::shared_ptr<Source> SourceEncoder::new_source(std::int64_t count) const {
  auto source = std::make_shared<Source>(pool_);
  source->cache.reserve(count);
  source->cache.commit(count);
  return source;
}

void SourceEncoder::store(Source& source, std::size_t index, const Plane& k, const Plane& v) const {
  const graph::RowAttention& layer = layers_[index];
  std::int64_t table = 0;
  for (std::size_t i = 0; i < index; ++i) table += layers_[i].kv_heads;
  for (int head = 0; head < layer.kv_heads; ++head) {
    ops::store_rows(kernels_, source.cache.tables(), table + head,
                    {.k = k.data + head * k.head,
                     .k_stride = k.row,
                     .v = v.data + head * v.head,
                     .v_stride = v.row,
                     .head_dim = layer.head_dim,
                     .value_dim = layer.value_dim,
                     .rows = source.cache.length()});
  }
}

// ---- by rows -----------------------------------------------------------------------------------

RowSourceEncoder::RowSourceEncoder(std::unique_ptr<RowEncoder> rows,
                                   const graph::EncoderDecoder& proved, const KvLayout& layout,
                                   const kernels::KernelTable& kernels)
    : SourceEncoder(proved, layout, kernels), rows_(std::move(rows)) {}

std::vector<std::shared_ptr<const Source>> RowSourceEncoder::encode(
    std::span<const EncoderInput> inputs, const CancelCheck& cancelled) {
  const std::int64_t features = rows_->features();
  std::vector<std::shared_ptr<const Source>> sources;
  sources.reserve(inputs.size());
  for (std::size_t begin = 0; begin < inputs.size();) {
    // As many as are computed together anyhow: the rows of all would be much memory.
    std::size_t end = begin, rows = 0;
    const auto most = static_cast<std::size_t>(rows_->program().max_rows());
    while (end < inputs.size() && (end == begin || rows + inputs[end].tokens.size() <= most)) {
      rows += inputs[end++].tokens.size();
    }
    out_.resize(rows * static_cast<std::size_t>(features));
    rows_->encode(inputs.subspan(begin, end - begin), out_.data(), cancelled);
    const float* own = out_.data();
    for (; begin < end; ++begin) {
      const auto count = static_cast<std::int64_t>(inputs[begin].tokens.size());
      sources.push_back(keep(own, count));
      own += count * features;
    }
  }
  return sources;
}

std::shared_ptr<const Source> RowSourceEncoder::keep(const float* rows, std::int64_t count) const {
  auto source = new_source(count);
  const std::int64_t stride = rows_->features();
  const float* columns = rows;
  for (std::size_t i = 0; i < layers_.size(); ++i) {
    const graph::RowAttention& layer = layers_[i];
    const float* values = columns + std::int64_t{layer.kv_heads} * layer.head_dim;
    store(*source, i, {columns, stride, layer.head_dim}, {values, stride, layer.value_dim});
    columns = values + std::int64_t{layer.kv_heads} * layer.value_dim;
  }
  for (const graph::EncoderDecoder::State& state : states_) {
    const float* own = rows + (state.token < 0 ? count + state.token : state.token) * stride;
    source->states.insert(source->states.end(), own + state.column,
                          own + state.column + state.width);
  }
  return source;
}

// ---- as the graph stands -----------------------------------------------------------------------

GraphSourceEncoder::GraphSourceEncoder(const graph::Graph& graph, const Engine& engine,
                                       const graph::EncoderDecoder& proved, const KvLayout& layout)
    : SourceEncoder(proved, layout, engine.kernels),
      graph_(graph),
      inputs_(proved.inputs),
      executor_(graph, engine, ExecutorOptions{}, proved.values) {}

std::vector<std::shared_ptr<const Source>> GraphSourceEncoder::encode(
    std::span<const EncoderInput> inputs, const CancelCheck& cancelled) {
  std::vector<std::shared_ptr<const Source>> sources;
  sources.reserve(inputs.size());
  for (const EncoderInput& input : inputs) sources.push_back(encode_one(input.tokens, cancelled));
  return sources;
}

// The values have a batch of one, so that keys are [heads, tokens, dim] or [tokens, heads, dim].
SourceEncoder::Plane GraphSourceEncoder::plane_of(const OwnedTensor& result,
                                                  const graph::RowAttention& layer, int dim,
                                                  std::int64_t tokens) const {
  const Tensor& tensor = result.tensor;
  if (tensor.dtype != DType::kF32 ||
      tensor.elements() != tokens * layer.kv_heads * std::int64_t{dim}) {
    throw Error(ErrorCode::kInvalidModel, "keys or values of a source of " +
                                              std::to_string(tokens) + " tokens are " +
                                              tensor.dims.str());
  }
  const auto* data = tensor.as<const float>();
  if (tensor.dims.rank == 4) return {data, dim, tokens * dim};
  return {data, std::int64_t{layer.kv_heads} * dim, dim};
}

std::shared_ptr<const Source> GraphSourceEncoder::encode_one(std::span<const std::int64_t> ids,
                                                             const CancelCheck& cancelled) const {
  const auto count = static_cast<std::int64_t>(ids.size());
  std::vector<FilledInput> filled;
  std::vector<Tensor> tensors;
  filled.reserve(graph_.inputs.size());
  for (const graph::ValueId id : graph_.inputs) {
    const auto own = std::find_if(inputs_.begin(), inputs_.end(),
                                  [&](const auto& input) { return input.id == id; });
    const DType dtype = graph_.value(id).dtype;
    if (own == inputs_.end()) {  // of the target: nothing that is computed here reads it
      filled.emplace_back(dtype, 2, 1, [](std::int64_t) { return 0; });
    } else if (own->known) {  // a mask of ones, or positions
      const bool counts = own->known->has_index();
      filled.emplace_back(dtype, 2, count,
                          [&](std::int64_t i) { return counts ? i : std::int64_t{1}; });
    } else {
      filled.emplace_back(dtype, 2, count,
                          [&](std::int64_t i) { return ids[static_cast<std::size_t>(i)]; });
    }
    tensors.push_back(filled.back().tensor());
  }
  const auto results = executor_.run(tensors, cancelled);
  auto source = new_source(count);
  std::size_t next = 0;
  for (std::size_t i = 0; i < layers_.size(); ++i) {
    const Plane k = plane_of(results[next++], layers_[i], layers_[i].head_dim, count);
    const Plane v = plane_of(results[next++], layers_[i], layers_[i].value_dim, count);
    store(*source, i, k, v);
  }
  for (const graph::EncoderDecoder::State& state : states_) {
    const Tensor& tensor = results[next++].tensor;
    if (tensor.dtype != DType::kF32 || tensor.elements() != state.width) {
      throw Error(ErrorCode::kInvalidModel, "a state of a source is " + tensor.dims.str() +
                                                "; expected " + std::to_string(state.width) +
                                                " float32 elements");
    }
    const auto* data = tensor.as<const float>();
    source->states.insert(source->states.end(), data, data + state.width);
  }
  return source;
}

}  // namespace kvik::runtime
