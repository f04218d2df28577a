// LSTM, GRU and RNN over whole sequences.
//
// The inputs of all time steps are multiplied in one product; then each step adds the product with
// the state and passes the gates (ops/recurrent.h). A row's numbers depend on its own sequence
// alone, so that a sequence in two parts, the state handed over, gives the bits of the whole.
#include "ops/recurrent.h"

#include <cctype>
#include <utility>
#include <vector>

#include "ops/families.h"
#include "ops/recurrent_run.h"
#include "ops/support.h"

namespace kvik::ops {

namespace {

using graph::ConstantTensor;
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

// f, g and h of each direction.
using Functions = std::array<CellActivation, 3>;
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

// ---- Weights -----------------------------------------------------------------------------------

// Rows [first, first + count) of a constant [rows, columns], rank 3 seen as rank 2.
ConstantTensor rows_of_constant(const ConstantTensor& whole, std::int64_t first,
                                std::int64_t count) {
  const std::int64_t columns = whole.dims.back();
  const auto row_bytes =
      static_cast<std::size_t>(columns) * (static_cast<std::size_t>(dtype_bits(whole.dtype)) / 8);
  ConstantTensor part;
  part.dtype = whole.dtype;
  part.dims = Dims{count, columns};
  part.data = whole.data.subspan(static_cast<std::size_t>(first) * row_bytes,
                                 static_cast<std::size_t>(count) * row_bytes);
  part.owner = whole.owner;
  return part;
}

// The weights of one direction.
struct PackedDirection {
  std::shared_ptr<const PackedWeights> input;  // [input size, gates · hidden]
  std::array<std::shared_ptr<const PackedWeights>, kMostGates> recurrent;
};

struct RecurrentSizes {
  std::int64_t hidden = 0, input = 0;
};

// W [directions, gates · hidden, input] and R [directions, gates · hidden, hidden].
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

PackedDirection pack_recurrent(const ConstantTensor& w, const ConstantTensor& r, int direction,
                               int gates, WeightCache& cache, const kernels::KernelTable& table,
                               ThreadPool& pool) {
  const std::int64_t rows = r.dims[1], hidden = r.dims[2];
  const auto whole = [&](const ConstantTensor& constant) {
    return rows_of_constant(constant, direction * rows, rows);
  };
  const auto pack = [&](const ConstantTensor& part, WeightType type) {
    return cache.get({part, {}, true, part.dims[1]}, type, table, pool);
  };
  const auto type_of = [&](const ConstantTensor& part) {
    return cache.type_of({part, {}, true, part.dims[1]}, false);
  };
  PackedDirection out;
  const ConstantTensor inputs = whole(w);
  out.input = pack(inputs, type_of(inputs));
  // The gates apart, so that a thread computes a hidden unit's gates and its new state in one go;
  // all in the precision that suits the whole.
  const WeightType type = type_of(whole(r));
  for (int gate = 0; gate < gates; ++gate) {
    out.recurrent[static_cast<std::size_t>(gate)] =
        pack(rows_of_constant(r, direction * rows + gate * hidden, hidden), type);
  }
  return out;
}

class Recurrent final : public OpKernel {
 public:
  Recurrent(const NodeInfo& info, CellKind kind)
      : kind_(kind),
        linear_before_reset_(info.node.int_attr("linear_before_reset", 0) != 0),
        coupled_(info.node.int_attr("input_forget", 0) != 0),
        batch_first_(info.node.int_attr("layout", 0) != 0),
        hidden_(info.node.int_attr("hidden_size", -1)) {
    const std::string direction = info.node.string_attr("direction", "forward");
    if (direction != "forward" && direction != "reverse" && direction != "bidirectional") {
      fail_model("attribute direction is '" + direction +
                 "'; expected forward, reverse or bidirectional");
    }
    directions_ = direction == "bidirectional" ? 2 : 1;
    reverse_first_ = direction == "reverse";
    if (info.node.has_attr("clip")) {
      clip_ = info.node.float_attr("clip", 0.0f);
      if (!(clip_ >= 0.0f)) fail_model("attribute clip is negative");
    }
    functions_ = parse_functions(info.node, kind, directions_);
    const ConstantTensor* w = info.constant(1);
    const ConstantTensor* r = info.constant(2);
    if (w == nullptr || r == nullptr) return;
    check_weights(w->dims, r->dims, directions_, gates_of(kind), hidden_);
    for (const DType dtype : {w->dtype, r->dtype}) {
      if (!dtype_is_float(dtype)) fail_dtype(dtype);
    }
    for (int d = 0; d < directions_; ++d) {
      packed_.push_back(
          pack_recurrent(*w, *r, d, gates_of(kind), info.weights, info.kernels, info.pool));
    }
  }

  bool needs_aligned(int i) const override { return packed_.empty() || (i != 1 && i != 2); }

  void run(OpContext& context) const override {
    const Tensor& x = context.input(0);
    const Tensor& w = context.input(1);
    const Tensor& r = context.input(2);
    if (x.dtype == DType::kF64) fail_dtype(x.dtype);
    check_same_dtype(x, w, "X", "W");
    check_same_dtype(x, r, "X", "R");
    const RecurrentSizes weights =
        check_weights(w.dims, r.dims, directions_, gates_of(kind_), hidden_);
    check(x.dims.rank == 3 && x.dims[2] == weights.input, [&] {
      return "X has shape " + x.dims.str() + "; expected " +
             (batch_first_ ? "[batch, steps, " : "[steps, batch, ") +
             std::to_string(weights.input) + "]";
    });
    RunSizes sizes{.steps = x.dims[batch_first_ ? 1 : 0],
                   .batch = x.dims[batch_first_ ? 0 : 1],
                   .input = weights.input,
                   .hidden = weights.hidden,
                   .directions = directions_,
                   .batch_first = batch_first_};
    check_operands(context, x, sizes);
    if (!packed_.empty()) return run_with(context, sizes, packed_);
    std::vector<PackedDirection> own;
    WeightCache cache;
    for (int d = 0; d < directions_; ++d) {
      own.push_back(pack_recurrent(constant_view(w), constant_view(r), d, gates_of(kind_), cache,
                                   context.kernels(), context.pool()));
    }
    run_with(context, sizes, own);
  }

  OpCost cost(const OpContext& context) const override {
    const Dims& x = context.input(0).dims;
    const Dims& r = context.input(2).dims;
    const double rows = static_cast<double>(x[0]) * static_cast<double>(x[1]);
    OpCost sum{.operations = 2.0 * rows * static_cast<double>(r[0] * r[1]) *
                             static_cast<double>(r[2] + x[2])};
    const auto steps = static_cast<double>(x[batch_first_ ? 1 : 0]);
    for (const PackedDirection& d : packed_) {
      sum.bytes += static_cast<double>(d.input->bytes());
      for (const auto& gate : d.recurrent) {
        if (gate) sum.bytes += steps * static_cast<double>(gate->bytes());
      }
    }
    return sum;
  }
  // "64 x 4 x 128", "2 x (64 x 4 x 128)": inputs, gates, hidden units.
  OpDescription describe() const override {
    if (packed_.empty()) return {};
    const PackedWeights& input = *packed_.front().input;
    const PackedWeights& recurrent = *packed_.front().recurrent[0];
    std::string shape = std::to_string(input.k) + " x " + std::to_string(gates_of(kind_)) + " x " +
                        std::to_string(recurrent.n);
    if (directions_ == 2) shape = "2 x (" + shape + ")";
    return {.shape = shape, .precision = recurrent.describe().precision};
  }

 private:
  void check_operands(OpContext& context, const Tensor& x, const RunSizes& sizes) const {
    const auto operand = [&](int i, const char* name, const Dims& expected) {
      if (!context.has_input(i)) return;
      const Tensor& t = context.input(i);
      check_same_dtype(x, t, "X", name);
      check(t.dims == expected, [&] {
        return std::string(name) + " has shape " + t.dims.str() + "; expected " + expected.str();
      });
    };
    const Dims state = batch_first_ ? Dims{sizes.batch, directions_, sizes.hidden}
                                    : Dims{directions_, sizes.batch, sizes.hidden};
    operand(3, "B", {directions_, dim_product(2 * gates_of(kind_), sizes.hidden)});
    operand(5, "initial_h", state);
    if (kind_ == CellKind::kLstm) {
      operand(6, "initial_c", state);
      operand(7, "P", {directions_, dim_product(3, sizes.hidden)});
    }
    if (!context.has_input(4)) return;
    const Tensor& lengths = context.input(4);
    check_dtype(lengths, DType::kI32, "sequence_lens");
    check(lengths.dims == Dims{sizes.batch}, [&] {
      return "sequence_lens has shape " + lengths.dims.str() + "; expected " +
             Dims{sizes.batch}.str();
    });
    for (std::int64_t b = 0; b < sizes.batch; ++b) {
      const std::int64_t length = lengths.as<std::int32_t>()[b];
      check(length >= 0 && length <= sizes.steps, [&] {
        return "sequence_lens has " + std::to_string(length) + "; expected at most " +
               std::to_string(sizes.steps) + ", the steps of X, and no negative number";
      });
    }
  }

  void run_with(OpContext& context, const RunSizes& sizes,
                const std::vector<PackedDirection>& packed) const;

  CellKind kind_;
  bool linear_before_reset_, coupled_, batch_first_;
  bool reverse_first_ = false;
  int directions_ = 1;
  std::int64_t hidden_;
  float clip_ = std::numeric_limits<float>::infinity();
  std::vector<Functions> functions_;     // by direction
  std::vector<PackedDirection> packed_;  // by direction; empty where the weights are no constants
};

void Recurrent::run_with(OpContext& context, const RunSizes& sizes,
                         const std::vector<PackedDirection>& packed) const {
  std::array<RunDirection, 2> directions;
  for (std::size_t d = 0; d < packed.size(); ++d) {
    RunDirection& one = directions[d];
    one.cell = {.kind = kind_,
                .hidden = sizes.hidden,
                .f = functions_[d][0],
                .g = functions_[d][1],
                .h = functions_[d][2],
                .clip = clip_,
                .coupled = coupled_,
                .linear_before_reset = linear_before_reset_};
    for (std::size_t gate = 0; gate < kMostGates; ++gate) {
      one.cell.recurrent[gate] = packed[d].recurrent[gate].get();
    }
    one.input = packed[d].input.get();
    one.reverse = d == 1 || reverse_first_;
  }
  SequenceRun run(context, sizes, std::span(directions).first(packed.size()));
  run.read_operands();
  run.project();
  run.iterate();
  run.store_states();
}

template <CellKind kKind>
std::unique_ptr<OpKernel> make_recurrent(const NodeInfo& info) {
  return std::make_unique<Recurrent>(info, kKind);
}

}  // namespace

void register_recurrent(Registry& r) {
  r.add("LSTM", make_recurrent<CellKind::kLstm>);
  r.add("GRU", make_recurrent<CellKind::kGru>);
  r.add("RNN", make_recurrent<CellKind::kRnn>);
}

}  // namespace kvik::ops
