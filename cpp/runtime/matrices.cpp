#include "runtime/matrices.h"

#include <algorithm>
#include <map>
#include <utility>

#include "base/fail.h"
#include "base/text.h"
#include "ops/embedding.h"
#include "ops/packed_weights.h"
#include "ops/recurrent_layer.h"

namespace kvik::runtime {

namespace {

using graph::Graph;
using graph::Node;
using ops::WeightCache;
using ops::WeightSource;

// A node's input that it multiplies by or looks rows up in.
struct MatrixUse {
  std::size_t input = 0;  // which one the matrix is
  bool looked_up = false;
  int directions = 0;  // of a recurrent layer: 1 or 2; 0: of any other
};

bool is_recurrent(const Node& node) {
  for (const char* domain : {"", "kvik"}) {
    for (const char* op : {"LSTM", "GRU", "RNN"}) {
      if (node.is(op, domain)) return true;
    }
  }
  return node.is("RowRecurrent", "kvik");
}

std::vector<MatrixUse> uses_of(const Graph& graph, const Node& node) {
  if (node.is("Linear", "kvik")) return {{.input = 1}};
  if (node.is("Embedding", "kvik")) return {{.input = 0, .looked_up = true}};
  if (!is_recurrent(node)) return {};
  std::vector<MatrixUse> uses;
  for (const std::size_t i : {std::size_t{1}, std::size_t{2}}) {
    const auto* weights = graph.constant(node.input(i));
    // Weights that are computed are multiplied in fp32, and then so are the others.
    if (weights == nullptr || weights->dims.rank != 3) return {};
    if (weights->dims[0] != 1 && weights->dims[0] != 2) return {};
    // Integers with scales of float32 are float32 to a file: a layer of 16-bit floats keeps those.
    if (dtype_is_float(weights->dtype) && weights->dtype != DType::kF32) continue;
    uses.push_back({.input = i, .directions = static_cast<int>(weights->dims[0])});
  }
  return uses;
}

WeightSource source_of(const Graph& graph, const Node& node, const MatrixUse& use) {
  if (use.directions > 0) return ops::recurrent_weight(graph, node, use.input);
  return use.looked_up ? ops::embedding_table(graph, node) : ops::linear_weight(graph, node);
}

MatrixInfo describe(const Graph& graph, const Node& node, const MatrixUse& use,
                    const WeightCache& weights) {
  const WeightSource source = source_of(graph, node, use);
  const std::int64_t rows = source.transposed() ? source.n() : source.k();
  const std::int64_t columns = source.transposed() ? source.k() : source.n();
  MatrixInfo info{.name = graph.value(node.input(use.input)).name,
                  .dims = {rows, columns},
                  .stored = source.quantized(),
                  .multiplied = !use.looked_up,
                  .looked_up = use.looked_up,
                  .directions = use.directions,
                  .channel_axis = source.transposed() ? 0 : 1};
  if (use.directions > 0) {
    info.type = ops::recurrent_type(source, use.directions, weights);
  } else if (!use.looked_up) {
    info.type = ops::linear_type(graph, node, weights);
  } else if (source.quantized()) {
    info.type = ops::packed_type(source.panel_type(), source.k(), source.n());
  } else {
    info.type = ops::embedding_rows(graph, node, weights).type;
  }
  return info;
}

// What the first node that uses a matrix as it says reads; nothing: there is none.
std::optional<WeightSource> find(const Graphs& graphs, const MatrixInfo& matrix) {
  for (const Graph* graph : graphs) {
    for (const Node& node : graph->nodes) {
      for (const MatrixUse& use : uses_of(*graph, node)) {
        if (graph->value(node.input(use.input)).name == matrix.name &&
            use.looked_up == !matrix.multiplied) {
          return source_of(*graph, node, use);
        }
      }
    }
  }
  return std::nullopt;
}

}  // namespace

std::vector<MatrixInfo> list_matrices(const Graphs& graphs, const WeightCache& weights) {
  std::vector<MatrixInfo> out;
  // By their elements. One that is kept in two precisions, its rows in 8 bits and its columns in 4,
  // is listed once for each.
  std::multimap<const void*, std::size_t> known;
  const auto add = [&](const Graph& graph, const Node& node, const MatrixUse& use) {
    const auto* values = graph.constant(node.input(use.input));
    if (values == nullptr) return;
    MatrixInfo info = describe(graph, node, use, weights);
    const auto [begin, end] = known.equal_range(values->data.data());
    const auto same = std::find_if(begin, end, [&](const auto& entry) {
      const MatrixInfo& other = out[entry.second];
      return other.channel_axis == info.channel_axis && other.type == info.type &&
             other.directions == info.directions;
    });
    if (same != end) {
      MatrixInfo& first = out[same->second];
      first.multiplied = first.multiplied || info.multiplied;
      first.looked_up = first.looked_up || info.looked_up;
      return;
    }
    const bool apart = std::all_of(begin, end, [&](const auto& entry) {
      const MatrixInfo& other = out[entry.second];
      return other.channel_axis == info.channel_axis && other.looked_up != info.looked_up;
    });
    if (apart) {
      known.emplace(values->data.data(), out.size());
      out.push_back(std::move(info));
    } else {
      out[begin->second].other_use = node.label();
    }
  };
  const auto note_other_uses = [&](const Graph& graph, const Node& node) {
    const std::vector<MatrixUse> uses = uses_of(graph, node);
    for (std::size_t i = 0; i < node.inputs.size(); ++i) {
      const auto* values = graph.constant(node.inputs[i]);
      const bool used = std::any_of(uses.begin(), uses.end(),
                                    [&](const MatrixUse& use) { return use.input == i; });
      if (values == nullptr || values->data.empty() || used) continue;
      const auto [begin, end] = known.equal_range(values->data.data());
      for (auto it = begin; it != end; ++it) out[it->second].other_use = node.label();
    }
  };
  for (const Graph* graph : graphs) {
    for (const Node& node : graph->nodes) {
      for (const MatrixUse& use : uses_of(*graph, node)) add(*graph, node, use);
    }
  }
  for (const Graph* graph : graphs) {
    for (const Node& node : graph->nodes) note_other_uses(*graph, node);
  }
  return out;
}

IntegerMatrix read_integers(const Graphs& graphs, const Engine& engine, const MatrixInfo& matrix) {
  const auto found = find(graphs, matrix);
  if (!found) fail_argument("the model has no matrix " + quote(matrix.name));
  if ((matrix.type != WeightType::kI8 && matrix.type != WeightType::kI4) ||
      !matrix.other_use.empty()) {
    fail_argument("the matrix " + quote(matrix.name) + " is not kept as integers alone");
  }
  const WeightSource& source = *found;
  // A table of its own is packed for this call alone: its rows are rounded as they are looked up.
  WeightCache passing;
  const bool packed = matrix.multiplied;
  const auto weights =
      (packed ? engine.weights : passing).get(source, matrix.type, engine.kernels, engine.pool);
  const std::int64_t k = source.k(), n = source.n(), group = kernels::kGroup;
  const std::int64_t groups = weights->type == WeightType::kI8 ? 1 : (k + group - 1) / group;
  IntegerMatrix out;
  out.values.resize(static_cast<std::size_t>(k * n));
  out.scales.resize(static_cast<std::size_t>(groups * n));
  std::vector<std::int8_t> q(static_cast<std::size_t>(k));
  std::vector<float> scales(static_cast<std::size_t>(groups));
  // Element i of column c in a matrix of `length` rows of W, as the file has it.
  const auto place = [&](std::int64_t i, std::int64_t c, std::int64_t length) {
    return static_cast<std::size_t>(source.transposed() ? c * length + i : i * n + c);
  };
  for (std::int64_t c = 0; c < n; ++c) {
    ops::panel_column(*weights, engine.kernels.panel, c).read(q.data(), scales.data());
    for (std::int64_t i = 0; i < k; ++i)
      out.values[place(i, c, k)] = q[static_cast<std::size_t>(i)];
    for (std::int64_t g = 0; g < groups; ++g) {
      out.scales[place(g, c, groups)] = scales[static_cast<std::size_t>(g)];
    }
  }
  return out;
}

}  // namespace kvik::runtime
