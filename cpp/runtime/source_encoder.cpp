#include "runtime/source_encoder.h"

#include <algorithm>
#include <utility>

#include "ops/row_attention.h"

namespace kvik::runtime {

SourceEncoder::SourceEncoder(std::unique_ptr<RowEncoder> rows, const graph::RowGraph& target,
                             const KvLayout& layout, const kernels::KernelTable& kernels)
    : rows_(std::move(rows)), pool_(std::make_shared<KvPool>(layout)), kernels_(kernels) {
  for (const graph::RowAttention& layer : target.attention) {
    if (layer.mixing == graph::Mixing::kSource) layers_.push_back(layer);
  }
}

std::vector<std::shared_ptr<const Source>> SourceEncoder::encode(
    std::span<const EncoderInput> inputs, const CancelCheck& cancelled,
    std::span<const ops::AttentionRecord> records) {
  const std::int64_t features = rows_->features();
  std::vector<std::shared_ptr<const Source>> sources;
  sources.reserve(inputs.size());
  for (std::size_t begin = 0; begin < inputs.size();) {
    // As many as are computed together anyhow: the rows of all would be much memory.
    std::size_t end = begin, rows = 0;
    const auto most = static_cast<std::size_t>(program().max_rows());
    while (end < inputs.size() && (end == begin || rows + inputs[end].tokens.size() <= most)) {
      rows += inputs[end++].tokens.size();
    }
    out_.resize(rows * static_cast<std::size_t>(features));
    rows_->encode(inputs.subspan(begin, end - begin), out_.data(), cancelled, records);
    const float* own = out_.data();
    for (; begin < end; ++begin) {
      const auto count = static_cast<std::int64_t>(inputs[begin].tokens.size());
      sources.push_back(keep(own, count));
      own += count * features;
    }
  }
  return sources;
}

std::shared_ptr<const Source> SourceEncoder::keep(const float* rows, std::int64_t count) const {
  auto source = std::make_shared<Source>(pool_);
  source->cache.reserve(count);
  source->cache.commit(count);
  const std::int64_t stride = rows_->features();
  std::int64_t table = 0;
  for (const graph::RowAttention& layer : layers_) {
    const float* values = rows + std::int64_t{layer.kv_heads} * layer.head_dim;
    for (int head = 0; head < layer.kv_heads; ++head) {
      ops::store_rows(kernels_, source->cache.tables(), table++,
                      {.k = rows + std::int64_t{head} * layer.head_dim,
                       .k_stride = stride,
                       .v = values + std::int64_t{head} * layer.value_dim,
                       .v_stride = stride,
                       .head_dim = layer.head_dim,
                       .value_dim = layer.value_dim,
                       .rows = count});
    }
    rows = values + std::int64_t{layer.kv_heads} * layer.value_dim;
  }
  return source;
}

}  // namespace kvik::runtime
