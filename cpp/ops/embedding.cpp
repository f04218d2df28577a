// kvik.Embedding: y[..., :] = table[ids[...], :], float32, made from Gather by a fusion.
//   inputs:  table [V, K] (constant), ids [...], scale and zero of the table (constants; optional:
//            the table then holds integers)
//   attributes: with a scale axis, block and zero_point (see ops/weight_source.h)
// Only the rows that are looked up are read and dequantised.
#include "ops/embedding.h"

#include <algorithm>
#include <cstring>

#include "ops/families.h"
#include "ops/indices.h"
#include "ops/support.h"

namespace kvik::ops {

namespace {

// The fp32 table of a Linear that multiplies by its rows; null for others.
const graph::ConstantTensor* multiplied_table(const graph::Graph& graph, const graph::Node& node) {
  const bool rows = node.is("Linear", "kvik") && node.int_attr("trans_w", 0) != 0;
  return rows && node.input(4) == graph::kNoValue ? graph.constant(node.input(1)) : nullptr;
}

bool same_table(const graph::ConstantTensor* a, const graph::ConstantTensor* b) {
  return a != nullptr && b != nullptr && a->data.data() == b->data.data() && a->dims == b->dims;
}

class Embedding final : public OpKernel {
 public:
  explicit Embedding(const NodeInfo& info)
      : table_(embedding_table(info.graph, info.node)),
        rows_(embedding_rows(info.graph, info.node, info.weights)) {
    if (rows_.shared) {
      shared_ = info.weights.get(table_, rows_.type, info.kernels, info.pool);
    }
  }

  bool needs_aligned(int i) const override { return i == 1; }

  void run(OpContext& context) const override {
    const Tensor& ids = context.input(1);
    const std::int64_t k = table_.k(), count = ids.elements();
    Dims dims = ids.dims;
    dims.push_back(k);
    float* y = context.output(0, DType::kF32, dims).as<float>();
    const IndexReader index(ids, table_.n());
    if (!shared_ && rows_.type == WeightType::kI8) return look_up_rounded(context, index, count, y);
    const int width = context.kernels().panel;
    parallel_for(context, count, k, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t r = begin; r < end; ++r) {
        if (shared_) {  // nothing of the file is read
          panel_column(*shared_, width, index(r)).widen(y + r * k);
        } else {
          table_.read_block(index(r), 1, y + r * k);
        }
      }
    });
  }

 private:
  // Rounds the fp32 rows as pack_i8 does, a panel of rows at a time.
  void look_up_rounded(OpContext& context, const IndexReader& index, std::int64_t count,
                       float* y) const {
    const std::int64_t k = table_.k();
    const int width = context.kernels().panel;
    const std::size_t column_floats = static_cast<std::size_t>(width);
    const std::size_t block_floats = checked_product(static_cast<std::size_t>(k), column_floats);
    auto* scales = static_cast<float*>(
        context.workspace(checked_product(column_floats + block_floats, sizeof(float)) +
                          panel_bytes(WeightType::kI8, k, width)));
    float* block = scales + column_floats;  // [k, columns]
    auto* panel = reinterpret_cast<std::uint8_t*>(block + block_floats);
    for (std::int64_t first = 0; first < count; first += width) {
      const auto columns = static_cast<int>(std::min<std::int64_t>(width, count - first));
      for (int c = 0; c < columns; ++c) {
        float* row = y + (first + c) * k;
        table_.read_block(index(first + c), 1, row);
        for (std::int64_t i = 0; i < k; ++i) block[i * columns + c] = row[i];
      }
      context.kernels().pack_i8(block, k, columns, panel, scales);
      for (int c = 0; c < columns; ++c) {
        const PanelColumn column{.type = WeightType::kI8,
                                 .panel = panel,
                                 .width = width,
                                 .column = c,
                                 .column_scale = scales[c],
                                 .k = k};
        column.widen(y + (first + c) * k);
      }
    }
  }

  WeightSource table_;
  EmbeddingRows rows_;
  std::shared_ptr<const PackedWeights> shared_;
};

}  // namespace

WeightType linear_type(const graph::Graph& graph, const graph::Node& node,
                       const WeightCache& weights) {
  return weights.type_of(linear_weight(graph, node), /*looked_up=*/false);
}

EmbeddingRows embedding_rows(const graph::Graph& graph, const graph::Node& node,
                             const WeightCache& weights) {
  const WeightSource table = embedding_table(graph, node);
  const bool integers = weights.type() == WeightType::kI8 || weights.type() == WeightType::kI4;
  if (table.quantized() || !integers) return {};
  const WeightType type = weights.type_of(table, true);
  const bool shared =
      type == WeightType::kI8 && type == weights.type_of(table, /*looked_up=*/false) &&
      std::any_of(graph.nodes.begin(), graph.nodes.end(), [&](const graph::Node& other) {
        return same_table(&table.values(), multiplied_table(graph, other));
      });
  return {.type = type, .shared = shared};
}

void register_embedding(Registry& r) {
  r.add("kvik", "Embedding", [](const NodeInfo& info) -> std::unique_ptr<OpKernel> {
    return std::make_unique<Embedding>(info);
  });
}

}  // namespace kvik::ops
