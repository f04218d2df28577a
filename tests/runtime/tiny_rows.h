// A small random transformer as a row graph, built by hand: what the proof makes of an export.
#pragma once

#include <cmath>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "cpp/check.h"
#include "graph/passes/prove_rowwise.h"

namespace kvik::test {

struct TinyShape {
  int vocab = 61;
  int context = 200;
  int layers = 2;
  int heads = 4;
  int kv_heads = 2;
  int head_dim = 8;
  std::int64_t window = 0;
  bool alibi = false;   // an additive bias of head, query and key positions
  bool linear = false;  // products by kvik.Linear, which packs weights in the asked precision
  bool split = false;   // one product for q, k and v, split into views
  bool swap = false;    // and the halves of q swapped, one negated: no views
  const char* cell = nullptr;  // "LSTM", "GRU" or "RNN" instead of attention, of twice the width
  bool before = true;          // a GRU's reset gate is applied before the product
  bool both = false;           // the cell and attention by turns
};

class TinyRows {
 public:
  explicit TinyRows(const TinyShape& shape) : shape_(shape), random_(7) { build(); }
  std::shared_ptr<const graph::RowGraph> rows() const {
    return std::make_shared<graph::RowGraph>(rows_);
  }

 private:
  using ValueId = graph::ValueId;

  ValueId weight(std::vector<std::int64_t> dims) {
    std::int64_t count = 1;
    for (const std::int64_t dim : dims) count *= dim;
    std::vector<float> values(static_cast<std::size_t>(count));
    const float range = 1.0F / std::sqrt(static_cast<float>(dims[0]));
    for (float& value : values) value = random_.uniform(-range, range) * 2;
    return rows_.graph.add_constant("w" + std::to_string(serial_++),
                                    graph::ConstantTensor::from_floats(values, Dims(dims)));
  }

  ValueId add(std::string op, std::vector<ValueId> inputs, std::vector<std::int64_t> features,
              std::map<std::string, graph::Attribute, std::less<>> attributes = {},
              std::string domain = "") {
    const ValueId out = rows_.graph.add_value("v" + std::to_string(serial_++), DType::kF32);
    std::vector<graph::Expr> dims{graph::Expr::symbol("rows")};
    for (const std::int64_t f : features) dims.emplace_back(f);
    rows_.graph.value(out).shape = dims;
    graph::Node node;
    node.domain = std::move(domain);
    node.op = std::move(op);
    node.name = rows_.graph.value(out).name;
    node.inputs = std::move(inputs);
    node.outputs = {out};
    node.attributes = std::move(attributes);
    rows_.graph.nodes.push_back(std::move(node));
    return out;
  }
  ValueId product(std::vector<ValueId> inputs, std::vector<std::int64_t> features) {
    return shape_.linear ? add("Linear", std::move(inputs), std::move(features), {}, "kvik")
                         : add("MatMul", std::move(inputs), std::move(features));
  }

  ValueId ints(std::vector<std::int64_t> values) {
    const Dims dims{static_cast<std::int64_t>(values.size())};
    return rows_.graph.add_constant("i" + std::to_string(serial_++),
                                    graph::ConstantTensor::from_ints(values, dims));
  }

  // A further output of the node added last.
  ValueId output(std::size_t i, std::vector<std::int64_t> features) {
    const ValueId out = rows_.graph.add_value("v" + std::to_string(serial_++), DType::kF32);
    std::vector<graph::Expr> dims{graph::Expr::symbol("rows")};
    for (const std::int64_t f : features) dims.emplace_back(f);
    rows_.graph.value(out).shape = dims;
    rows_.graph.nodes.back().outputs.resize(i + 1, graph::kNoValue);
    rows_.graph.nodes.back().outputs[i] = out;
    return out;
  }

  ValueId norm(ValueId x, std::int64_t width) {
    return add("LayerNormalization", {x, weight({width}), weight({width})}, {1, width},
               {{"axis", std::int64_t{-1}}, {"epsilon", 1e-5F}});
  }

  ValueId constant(std::vector<std::int64_t> dims, float range) {
    std::vector<float> values(static_cast<std::size_t>(Dims(dims).elements()));
    for (float& value : values) value = random_.uniform(-range, range);
    return rows_.graph.add_constant("w" + std::to_string(serial_++),
                                    graph::ConstantTensor::from_floats(values, Dims(dims)));
  }

  ValueId recurrence(ValueId x, std::int64_t width) {
    const std::string cell = shape_.cell;
    const std::int64_t hidden = 2 * width, states = cell == "LSTM" ? 2 : 1;
    const std::int64_t rows = (cell == "LSTM" ? 4 : cell == "GRU" ? 3 : 1) * hidden;
    std::vector<ValueId> inputs{x,
                                constant({1, rows, width}, 0.5F),
                                constant({1, rows, hidden}, 0.3F),
                                constant({1, 2 * rows}, 0.2F),
                                graph::kNoValue,
                                constant({hidden}, 0.5F)};
    if (states == 2) {
      inputs.push_back(graph::kNoValue);
      inputs.push_back(constant({1, 3 * hidden}, 0.2F));
    }
    const auto layer = static_cast<std::int64_t>(rows_.recurrent.size());
    const ValueId out = add(
        "RowRecurrent", std::move(inputs), {1, hidden},
        {{"layer", layer}, {"cell", cell}, {"linear_before_reset", std::int64_t{!shape_.before}}},
        "kvik");
    rows_.recurrent.push_back({.node = static_cast<graph::NodeId>(rows_.graph.nodes.size()) - 1,
                               .width = states * hidden});
    return product({out, weight({hidden, width})}, {1, width});
  }

  ValueId attention(ValueId x, std::int64_t width) {
    const std::int64_t kv = std::int64_t{shape_.kv_heads} * shape_.head_dim;
    ValueId q, k, v;
    if (shape_.split) {
      const ValueId qkv = product({x, weight({width, width + 2 * kv})}, {1, width + 2 * kv});
      q = add("Split", {qkv, ints({width, kv, kv})}, {1, width}, {{"axis", std::int64_t{-1}}});
      k = output(1, {1, kv});
      v = output(2, {1, kv});
      if (shape_.swap) {
        const std::int64_t half = width / 2;
        const ValueId low = add("Slice", {q, ints({0}), ints({half}), ints({2})}, {1, half});
        const ValueId high =
            add("Slice", {q, ints({half}), ints({width}), ints({2})}, {1, width - half});
        q = add("Concat", {add("Neg", {high}, {1, width - half}), low}, {1, width},
                {{"axis", std::int64_t{-1}}});
      }
    } else {
      q = product({x, weight({width, width})}, {1, width});
      k = product({x, weight({width, kv})}, {1, kv});
      v = product({x, weight({width, kv})}, {1, kv});
    }
    const auto layer = static_cast<std::int64_t>(rows_.attention.size());
    const ValueId out = add("RowAttention", {q, k, v}, {1, width}, {{"layer", layer}}, "kvik");
    graph::RowAttention entry;
    entry.node = static_cast<graph::NodeId>(rows_.graph.nodes.size()) - 1;
    entry.heads = shape_.heads;
    entry.kv_heads = shape_.kv_heads;
    entry.head_dim = shape_.head_dim;
    entry.value_dim = shape_.head_dim;
    entry.scale = 1.0F / std::sqrt(static_cast<float>(shape_.head_dim));
    entry.window = shape_.window;
    if (shape_.alibi) {
      using graph::Expr;
      const Expr distance = Expr::index(2) - Expr::index(1);
      entry.bias = graph::float_binary(
          graph::ExprKind::kFloatMul, graph::cast(distance, graph::ExprType::kFloat),
          graph::cast(Expr::index(0) + Expr(1), graph::ExprType::kFloat));
    }
    rows_.attention.push_back(entry);
    return product({out, weight({width, width})}, {1, width});
  }

  void build() {
    graph::Graph& graph = rows_.graph;
    const std::int64_t width = std::int64_t{shape_.heads} * shape_.head_dim;
    const auto ids = [&](const char* name) {
      const ValueId id = graph.add_value(name, DType::kI64);
      graph.value(id).shape = std::vector<graph::Expr>{graph::Expr::symbol("rows")};
      graph.inputs.push_back(id);
      return id;
    };
    rows_.tokens = ids("tokens");
    rows_.positions = ids("positions");
    const ValueId table = weight({shape_.vocab, 1, width});
    const ValueId places = weight({shape_.context, 1, width});
    ValueId x = add("Add",
                    {add("Gather", {table, rows_.tokens}, {1, width}),
                     add("Gather", {places, rows_.positions}, {1, width})},
                    {1, width});
    for (int layer = 0; layer < shape_.layers; ++layer) {
      const bool recurrent = shape_.cell != nullptr && !(shape_.both && layer % 2 != 0);
      const ValueId mixed =
          recurrent ? recurrence(norm(x, width), width) : attention(norm(x, width), width);
      x = add("Add", {x, mixed}, {1, width});
      const ValueId up = product({norm(x, width), weight({width, 4 * width})}, {1, 4 * width});
      const ValueId act = add("Relu", {up}, {1, 4 * width});
      x = add("Add", {x, product({act, weight({4 * width, width})}, {1, width})}, {1, width});
    }
    const ValueId logits =
        product({norm(x, width), weight({width, shape_.vocab})}, {1, shape_.vocab});
    // A view at the end, as exports have: the output must still go straight to the caller.
    const std::int64_t target[] = {-1, shape_.vocab};
    const ValueId to = graph.add_constant("shape", graph::ConstantTensor::from_ints(target, {2}));
    rows_.output = add("Reshape", {logits, to}, {shape_.vocab});
    graph.outputs = {rows_.output};
    rows_.context_limit = shape_.context;
  }

  TinyShape shape_;
  Random random_;
  int serial_ = 0;
  graph::RowGraph rows_;
};

}  // namespace kvik::test
