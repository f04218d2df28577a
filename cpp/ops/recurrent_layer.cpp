#include "ops/recurrent_layer.h"

#include <cctype>
#include <string>
#include <string_view>
#include <utility>

#include "ops/support.h"

namespace kvik::ops {

namespace {

using kernels::CellActivation;
using kernels::CellFunction;

// ---- Attributes --------------------------------------------------------------------------------

// How a function of the gates is called, whether it has parameters, and their defaults.
struct NamedFunction {
  std::string_view name;
  CellFunction function;
  int parameters;  // of alpha, beta
  bool required;   // there are no defaults
  float alpha, beta;
};

constexpr NamedFunction kFunctions[] = {
    {"affine", CellFunction::kAffine, 2, false, 1.0f, 0.0f},
    {"elu", CellFunction::kElu, 1, false, 1.0f, 0.0f},
    {"hardsigmoid", CellFunction::kHardSigmoid, 2, false, 0.2f, 0.5f},
    {"leakyrelu", CellFunction::kLeakyRelu, 1, false, 0.01f, 0.0f},
    {"relu", CellFunction::kRelu, 0, false, 0.0f, 0.0f},
    {"scaledtanh", CellFunction::kScaledTanh, 2, true, 0.0f, 0.0f},
    {"sigmoid", CellFunction::kSigmoid, 0, false, 0.0f, 0.0f},
    {"softplus", CellFunction::kSoftplus, 0, false, 0.0f, 0.0f},
    {"softsign", CellFunction::kSoftsign, 0, false, 0.0f, 0.0f},
    {"tanh", CellFunction::kTanh, 0, false, 0.0f, 0.0f},
    {"thresholdedrelu", CellFunction::kThresholdedRelu, 1, false, 1.0f, 0.0f},
};

const NamedFunction& function_called(std::string name) {
  for (char& c : name) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  for (const NamedFunction& one : kFunctions) {
    if (one.name == name) return one;
  }
  fail_model("attribute activations has '" + name +
             "'; expected Affine, Elu, HardSigmoid, LeakyRelu, Relu, ScaledTanh, Sigmoid, "
             "Softplus, Softsign, Tanh or ThresholdedRelu");
}

template <typename T>
const std::vector<T>& list_attribute(const graph::Node& node, const char* key) {
  static const std::vector<T> kNone;
  const auto it = node.attributes.find(key);
  const auto* list =
      it == node.attributes.end() ? nullptr : std::get_if<std::vector<T>>(&it->second);
  return list == nullptr ? kNone : *list;
}

// Parameters are handed out in order to the functions that have them.
class ParameterList {
 public:
  ParameterList(const graph::Node& node, const char* key)
      : key_(key), values_(list_attribute<float>(node, key)) {}

  float take(const NamedFunction& function, bool wanted, float fallback) {
    if (!wanted) return fallback;
    any_ = true;
    if (next_ < values_.size()) return values_[next_++];
    if (function.required) {
      fail_model("attribute " + std::string(key_) + " is needed by the activation ScaledTanh");
    }
    return fallback;
  }
  // A list for functions of which none has parameters is harmless; one that is too long for those
  // that have leaves open which is whose.
  void check_used_up() const {
    if (any_ && next_ < values_.size()) {
      fail_model("attribute " + std::string(key_) + " has " + std::to_string(values_.size()) +
                 " values; the activations take " + std::to_string(next_));
    }
  }

 private:
  const char* key_;
  const std::vector<float>& values_;
  std::size_t next_ = 0;
  bool any_ = false;
};

constexpr int functions_of(CellKind kind) {
  return kind == CellKind::kLstm ? 3 : kind == CellKind::kGru ? 2 : 1;
}

using Functions = RecurrentLayer::Functions;

std::vector<Functions> parse_functions(const graph::Node& node, CellKind kind, int directions) {
  const std::vector<std::string>& names = list_attribute<std::string>(node, "activations");
  const auto each = static_cast<std::size_t>(functions_of(kind));
  const std::size_t count = each * static_cast<std::size_t>(directions);
  if (!names.empty() && names.size() != count) {
    fail_model("attribute activations has " + std::to_string(names.size()) + " names; expected " +
               std::to_string(count));
  }
  const char* defaults[] = {kind == CellKind::kRnn ? "tanh" : "sigmoid", "tanh", "tanh"};
  ParameterList alphas(node, "activation_alpha"), betas(node, "activation_beta");
  std::vector<Functions> out(static_cast<std::size_t>(directions));
  for (std::size_t i = 0; i < count; ++i) {
    const NamedFunction& named = function_called(names.empty() ? defaults[i % each] : names[i]);
    out[i / each][i % each] = {named.function,
                               alphas.take(named, named.parameters >= 1, named.alpha),
                               betas.take(named, named.parameters >= 2, named.beta)};
  }
  alphas.check_used_up();
  betas.check_used_up();
  return out;
}

}  // namespace

RecurrentLayer::RecurrentLayer(const graph::Node& node, CellKind of)
    : kind(of),
      linear_before_reset(node.int_attr("linear_before_reset", 0) != 0),
      coupled(node.int_attr("input_forget", 0) != 0),
      hidden(node.int_attr("hidden_size", -1)) {
  const std::string direction = node.string_attr("direction", "forward");
  if (direction != "forward" && direction != "reverse" && direction != "bidirectional") {
    fail_model("attribute direction is '" + direction +
               "'; expected forward, reverse or bidirectional");
  }
  directions = direction == "bidirectional" ? 2 : 1;
  reverse_first = direction == "reverse";
  if (node.has_attr("clip")) {
    clip = node.float_attr("clip", 0.0f);
    if (!(clip >= 0.0f)) fail_model("attribute clip is negative");
  }
  functions = parse_functions(node, of, directions);
}

RecurrentCell RecurrentLayer::cell(int d, std::int64_t units, const PackedDirection& packed) const {
  const Functions& own = functions[static_cast<std::size_t>(d)];
  RecurrentCell out{.kind = kind,
                    .hidden = units,
                    .f = own[0],
                    .g = own[1],
                    .h = own[2],
                    .clip = clip,
                    .coupled = coupled,
                    .linear_before_reset = linear_before_reset};
  for (std::size_t gate = 0; gate < kMostGates; ++gate) {
    out.recurrent[gate] = packed.recurrent[gate].get();
  }
  return out;
}

const float* join_biases(const RecurrentCell& cell, std::int64_t hidden, float* bias,
                         const float* recurrent) {
  const int gates = cell.gates();
  for (int gate = 0; gate < gates; ++gate) {
    if (cell.linear_before_reset && gate == 2) return recurrent + gate * hidden;
    for (std::int64_t i = 0; i < hidden; ++i)
      bias[gate * hidden + i] += recurrent[gate * hidden + i];
  }
  return nullptr;
}

RecurrentSizes check_weights(const Dims& w, const Dims& r, int directions, int gates,
                             std::int64_t hidden_attribute) {
  if (w.rank != 3 || r.rank != 3) {
    fail_model("W and R have shapes " + w.str() + " and " + r.str() +
               "; expected [directions, gates · hidden, inputs] and [directions, gates · hidden, "
               "hidden]");
  }
  const RecurrentSizes sizes{r[2], w[2]};
  const Dims expected_r{directions, dim_product(gates, sizes.hidden), sizes.hidden};
  const Dims expected_w{directions, expected_r[1], sizes.input};
  if (!(r == expected_r)) fail_model("R has shape " + r.str() + "; expected " + expected_r.str());
  if (!(w == expected_w)) fail_model("W has shape " + w.str() + "; expected " + expected_w.str());
  if (hidden_attribute >= 0 && hidden_attribute != sizes.hidden) {
    fail_model("attribute hidden_size is " + std::to_string(hidden_attribute) +
               "; R has a hidden size of " + std::to_string(sizes.hidden));
  }
  return sizes;
}

WeightType recurrent_type(const WeightSource& weights, int directions, const WeightCache& cache) {
  return cache.type_of(weights.columns(0, weights.n() / directions), /*looked_up=*/false);
}

PackedDirection pack_recurrent(const WeightSource& w, const WeightSource& r,
                               const RecurrentLayer& layer, int direction, WeightCache& cache,
                               const kernels::KernelTable& table, ThreadPool& pool) {
  const std::int64_t rows = r.n() / layer.directions, hidden = r.k();
  PackedDirection out;
  out.input = cache.get(w.columns(direction * rows, rows),
                        recurrent_type(w, layer.directions, cache), table, pool);
  // The gates apart, so that a thread computes a hidden unit's gates and its new state in one go;
  // all in the precision that suits the whole.
  const WeightType type = recurrent_type(r, layer.directions, cache);
  for (int gate = 0; gate < gates_of(layer.kind); ++gate) {
    out.recurrent[static_cast<std::size_t>(gate)] =
        cache.get(r.columns(direction * rows + gate * hidden, hidden), type, table, pool);
  }
  return out;
}

}  // namespace kvik::ops
