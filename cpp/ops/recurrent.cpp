// LSTM, GRU and RNN over whole sequences.
//
// The inputs of all time steps are multiplied in one product; then each step adds the product with
// the state and passes the gates (ops/recurrent.h). A row's numbers depend on its own sequence
// alone, so that a sequence in two parts, the state handed over, gives the bits of the whole.
#include "ops/recurrent.h"

#include <algorithm>
#include <cctype>
#include <cstring>
#include <numeric>
#include <utility>
#include <vector>

#include "ops/families.h"
#include "ops/product.h"
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

// ---- A run -------------------------------------------------------------------------------------

void to_floats(const Tensor& from, std::int64_t first, std::int64_t count, float* to) {
  visit_float(from.dtype, [&]<typename T>() {
    const T* p = from.as<T>() + first;
    for (std::int64_t i = 0; i < count; ++i) to[i] = static_cast<float>(widen(p[i]));
  });
}

void from_floats(const float* from, std::int64_t count, const Tensor& to, std::int64_t first) {
  visit_float(to.dtype, [&]<typename T>() {
    T* p = to.as<T>() + first;
    for (std::int64_t i = 0; i < count; ++i) p[i] = narrow<T>(static_cast<Compute<T>>(from[i]));
  });
}

struct RunSizes {
  std::int64_t steps = 0, batch = 0, input = 0, hidden = 0;
  int directions = 1;
  bool batch_first = false;

  // A tensor [steps, batch, ...] or [batch, steps, ...] as rows: that of step t, sequence b.
  std::int64_t row(std::int64_t t, std::int64_t b) const {
    return batch_first ? b * steps + t : t * batch + b;
  }
  std::int64_t row_step() const { return batch_first ? steps : 1; }  // from b to b + 1
  // The same of states [directions, batch, hidden] or [batch, directions, hidden], and of outputs.
  std::int64_t state_row(int d, std::int64_t b) const {
    return batch_first ? b * directions + d : d * batch + b;
  }
  std::int64_t output_row(std::int64_t t, int d, std::int64_t b) const {
    return batch_first ? (b * steps + t) * directions + d : (t * directions + d) * batch + b;
  }
  std::int64_t output_row_step() const { return batch_first ? steps * directions : 1; }
};

// One direction of a run.
struct RunDirection {
  RecurrentCell cell;
  const PackedWeights* input = nullptr;  // [input, gates · hidden]
  bool reverse = false;
  float* bias = nullptr;            // [gates · hidden]
  float* projected = nullptr;       // [steps · batch, slots · hidden]: x·W + bias
  float* gates = nullptr;           // [batch, slots · hidden], of one step; ragged batches alone
  std::array<float*, 2> buffers{};  // [batch, hidden] each: states by turns, the initial one first
  float* c = nullptr;               // [batch, hidden]
  const float* h = nullptr;         // [batch, hidden]: the state, where sequences have one length
  std::ptrdiff_t h_stride = 0;
};

// A run over all steps. Sequences lie in slots by decreasing length, so that those that go on are
// always the first ones; where all have the length of X, a slot's number is the sequence's.
class SequenceRun {
 public:
  SequenceRun(OpContext& context, const RunSizes& sizes, std::span<RunDirection> directions);
  void read_operands();
  void project();
  void iterate();
  void store_states();

 private:
  void place(std::span<RunDirection> directions);
  void sort_slots();
  // The time of step s of the sequence in a slot.
  std::int64_t time_of(const RunDirection& direction, std::int64_t s, std::int64_t slot) const {
    return direction.reverse ? lengths_[slot] - 1 - s : s;
  }
  CellRows rows_at(RunDirection& direction, int d, std::int64_t s, std::int64_t active);
  void store_rows(RunDirection& direction, int d, std::int64_t s, const CellRows& rows);

  OpContext& context_;
  const kernels::KernelTable& table_;
  const RunSizes& sizes_;
  std::span<RunDirection> directions_;
  std::int64_t width_;               // slots · hidden
  bool ragged_ = false;              // not all sequences have the length of X
  std::int64_t* order_ = nullptr;    // [batch]: the sequence in a slot
  std::int64_t* lengths_ = nullptr;  // [batch]: by slot
  float* x_ = nullptr;               // [steps · batch, input]
  void* memory_ = nullptr;           // of the products
  Tensor* y_ = nullptr;              // null: not wanted
};

SequenceRun::SequenceRun(OpContext& context, const RunSizes& sizes,
                         std::span<RunDirection> directions)
    : context_(context),
      table_(context.kernels()),
      sizes_(sizes),
      directions_(directions),
      width_(dim_product(directions[0].cell.slots(), sizes.hidden)) {
  const Tensor& x = context.input(0);
  if (context.has_input(4)) {
    const auto* given = context.input(4).as<std::int32_t>();
    ragged_ = std::any_of(given, given + sizes.batch, [&](auto n) { return n != sizes.steps; });
  }
  if (context.wants_output(0)) {
    const std::int64_t n = sizes.directions, hidden = sizes.hidden;
    y_ = &context.output(0, x.dtype,
                         sizes.batch_first ? Dims{sizes.batch, sizes.steps, n, hidden}
                                           : Dims{sizes.steps, n, sizes.batch, hidden});
    // Behind the end of a sequence.
    if (ragged_ && y_->elements() > 0) std::memset(y_->data, 0, result_bytes(y_->dims, y_->dtype));
  }
  place(directions);
  sort_slots();
}

void SequenceRun::place(std::span<RunDirection> directions) {
  const Tensor& x = context_.input(0);
  const std::int64_t rows = dim_product(sizes_.steps, sizes_.batch);
  const std::int64_t state = dim_product(sizes_.batch, sizes_.hidden);
  const bool widened = x.dtype != DType::kF32;
  struct Offsets {
    std::size_t parameters, projected, gates, first, second, c;
  };
  std::array<Offsets, 2> at{};
  std::array<RowProduct, 2> products{};

  WorkspacePlan plan;
  const std::size_t order = plan.add<std::int64_t>(sizes_.batch);
  const std::size_t lengths = plan.add<std::int64_t>(sizes_.batch);
  const std::size_t floats = plan.add<float>(widened ? dim_product(rows, sizes_.input) : 0);
  for (std::size_t d = 0; d < directions.size(); ++d) {
    // Parameters: the bias, three peepholes, the recurrent bias.
    at[d].parameters = plan.add<float>(dim_product(kMostGates + 4, sizes_.hidden));
    at[d].projected = plan.add<float>(dim_product(rows, width_));
    at[d].gates = plan.add<float>(ragged_ ? dim_product(sizes_.batch, width_) : 0);
    at[d].first = plan.add<float>(state);
    at[d].second = plan.add<float>(state);
    at[d].c = plan.add<float>(state);
    products[d].weights = directions[d].input;
  }
  // The product of all steps and those of one take turns.
  const std::size_t memory = plan.add_bytes(
      std::max(rounded_bytes(table_, rows, std::span(products).first(directions.size())),
               step_bytes(table_, context_.pool(), directions[0].cell, sizes_.batch)));
  plan.place(context_.workspace(plan.bytes()));

  order_ = plan.at<std::int64_t>(order);
  lengths_ = plan.at<std::int64_t>(lengths);
  x_ = widened ? plan.at<float>(floats) : x.as<float>();
  memory_ = plan.at<std::byte>(memory);
  for (std::size_t d = 0; d < directions.size(); ++d) {
    directions[d].bias = plan.at<float>(at[d].parameters);
    directions[d].projected = plan.at<float>(at[d].projected);
    directions[d].gates = plan.at<float>(at[d].gates);
    directions[d].buffers = {plan.at<float>(at[d].first), plan.at<float>(at[d].second)};
    directions[d].c = plan.at<float>(at[d].c);
  }
}

void SequenceRun::sort_slots() {
  const auto* given = ragged_ ? context_.input(4).as<std::int32_t>() : nullptr;
  const auto length = [&](std::int64_t b) { return given ? given[b] : sizes_.steps; };
  std::iota(order_, order_ + sizes_.batch, std::int64_t{0});
  std::sort(order_, order_ + sizes_.batch, [&](std::int64_t a, std::int64_t b) {
    return length(a) != length(b) ? length(a) > length(b) : a < b;
  });
  for (std::int64_t slot = 0; slot < sizes_.batch; ++slot) lengths_[slot] = length(order_[slot]);
}

// Everything but W and R, as floats.
void SequenceRun::read_operands() {
  const Tensor& x = context_.input(0);
  const std::int64_t hidden = sizes_.hidden;
  if (x.dtype != DType::kF32) {
    parallel_elements(context_, x.elements(), [&](std::int64_t begin, std::int64_t end) {
      to_floats(x, begin, end - begin, x_ + begin);
    });
  }
  for (int d = 0; d < sizes_.directions; ++d) {
    RunDirection& one = directions_[static_cast<std::size_t>(d)];
    const std::int64_t size = one.cell.gates() * hidden;
    float* peepholes = one.bias + kMostGates * hidden;  // [3, hidden]
    float* recurrent_bias = peepholes + 3 * hidden;     // [hidden]
    std::fill_n(one.bias, size, 0.0f);
    if (context_.has_input(3)) {
      const Tensor& b = context_.input(3);
      to_floats(b, d * 2 * size, size, one.bias);
      for (int gate = 0; gate < one.cell.gates(); ++gate) {
        to_floats(b, (d * 2 + 1) * size + gate * hidden, hidden, recurrent_bias);
        if (one.cell.linear_before_reset && gate == 2) {
          one.cell.recurrent_bias = recurrent_bias;
          break;
        }
        for (std::int64_t i = 0; i < hidden; ++i) one.bias[gate * hidden + i] += recurrent_bias[i];
      }
    }
    const bool lstm = one.cell.kind == CellKind::kLstm;
    if (lstm && context_.has_input(7)) {
      to_floats(context_.input(7), d * 3 * hidden, 3 * hidden, peepholes);
      one.cell.peepholes = peepholes;
    }
    const auto read_state = [&](int input, float* to) {
      if (!context_.has_input(input)) {
        std::fill_n(to, sizes_.batch * hidden, 0.0f);
        return;
      }
      for (std::int64_t slot = 0; slot < sizes_.batch; ++slot) {
        to_floats(context_.input(input), sizes_.state_row(d, order_[slot]) * hidden, hidden,
                  to + slot * hidden);
      }
    };
    read_state(5, one.buffers[0]);
    if (lstm) read_state(6, one.c);
    one.h = one.buffers[0];
    one.h_stride = hidden;
  }
}

// The inputs' share of every gate at every step, in one product.
void SequenceRun::project() {
  std::array<RowProduct, 2> products{};
  for (std::size_t d = 0; d < directions_.size(); ++d) {
    kernels::MatmulEpilogue epilogue;
    epilogue.bias = directions_[d].bias;
    products[d] = {directions_[d].input, epilogue, directions_[d].projected, width_};
  }
  multiply(table_, context_.pool(), x_, sizes_.input, sizes_.steps * sizes_.batch,
           std::span(products).first(directions_.size()), memory_);
}

CellRows SequenceRun::rows_at(RunDirection& one, int d, std::int64_t s, std::int64_t active) {
  const std::int64_t hidden = sizes_.hidden;
  CellRows rows{.rows = active, .c = one.c, .c_stride = hidden};
  if (ragged_) {
    for (std::int64_t slot = 0; slot < active; ++slot) {
      const std::int64_t row = sizes_.row(time_of(one, s, slot), order_[slot]);
      std::copy_n(one.projected + row * width_, one.cell.gates() * hidden,
                  one.gates + slot * width_);
    }
    rows.gates = one.gates;
    rows.gates_stride = width_;
  } else {
    rows.gates = one.projected + sizes_.row(time_of(one, s, 0), 0) * width_;
    rows.gates_stride = sizes_.row_step() * width_;
  }
  // By turns for each sequence: those that have ended keep theirs.
  const auto turn = static_cast<std::size_t>(s % 2);
  rows.h = one.buffers[turn];
  rows.h_stride = hidden;
  rows.next_h = one.buffers[1 - turn];
  rows.next_h_stride = hidden;
  if (!ragged_) {
    rows.h = one.h;
    rows.h_stride = one.h_stride;
    if (y_ != nullptr && y_->dtype == DType::kF32) {
      rows.next_h = y_->as<float>() + sizes_.output_row(time_of(one, s, 0), d, 0) * hidden;
      rows.next_h_stride = sizes_.output_row_step() * hidden;
    }
    one.h = rows.next_h;
    one.h_stride = rows.next_h_stride;
  }
  return rows;
}

// The new states as outputs, unless they were written there.
void SequenceRun::store_rows(RunDirection& one, int d, std::int64_t s, const CellRows& rows) {
  if (y_ == nullptr || (!ragged_ && y_->dtype == DType::kF32)) return;
  for (std::int64_t slot = 0; slot < rows.rows; ++slot) {
    from_floats(rows.next_h + slot * rows.next_h_stride, sizes_.hidden, *y_,
                sizes_.output_row(time_of(one, s, slot), d, order_[slot]) * sizes_.hidden);
  }
}

void SequenceRun::iterate() {
  std::int64_t active = sizes_.batch;
  for (std::int64_t s = 0; s < sizes_.steps; ++s) {
    while (active > 0 && lengths_[active - 1] <= s) --active;
    if (active == 0) return;
    std::array<CellStep, 2> steps{};
    for (std::size_t d = 0; d < directions_.size(); ++d) {
      steps[d] = {&directions_[d].cell, rows_at(directions_[d], static_cast<int>(d), s, active)};
    }
    step(table_, context_.pool(), std::span(steps).first(directions_.size()), memory_);
    for (std::size_t d = 0; d < directions_.size(); ++d) {
      store_rows(directions_[d], static_cast<int>(d), s, steps[d].rows);
    }
  }
}

// Y_h and Y_c: the states behind the last step of each sequence.
void SequenceRun::store_states() {
  const std::int64_t hidden = sizes_.hidden;
  const Dims dims = sizes_.batch_first ? Dims{sizes_.batch, sizes_.directions, hidden}
                                       : Dims{sizes_.directions, sizes_.batch, hidden};
  for (int output = 1; output <= 2; ++output) {
    const bool cell = output == 2;
    if (!context_.wants_output(output)) continue;
    check(!cell || directions_[0].cell.kind == CellKind::kLstm,
          [] { return std::string("there are three outputs; expected two at most"); });
    const Tensor& to = context_.output(output, context_.input(0).dtype, dims);
    for (int d = 0; d < sizes_.directions; ++d) {
      const RunDirection& one = directions_[static_cast<std::size_t>(d)];
      for (std::int64_t slot = 0; slot < sizes_.batch; ++slot) {
        const float* from = one.h + slot * one.h_stride;
        if (ragged_)
          from = one.buffers[static_cast<std::size_t>(lengths_[slot] % 2)] + slot * hidden;
        if (cell) from = one.c + slot * hidden;
        from_floats(from, hidden, to, sizes_.state_row(d, order_[slot]) * hidden);
      }
    }
  }
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
