// LSTM, GRU and RNN over whole sequences.
//
// The inputs of all time steps are multiplied in one product; then each step adds the product with
// the state and passes the gates (ops/recurrent.h). A row's numbers depend on its own sequence
// alone, so that a sequence in two parts, the state handed over, gives the bits of the whole.
#include "ops/recurrent.h"

#include <utility>
#include <vector>

#include "ops/families.h"
#include "ops/recurrent_layer.h"
#include "ops/recurrent_run.h"
#include "ops/support.h"

namespace kvik::ops {

namespace {

class Recurrent final : public OpKernel {
 public:
  Recurrent(const NodeInfo& info, CellKind kind)
      : layer_(info.node, kind), batch_first_(info.node.int_attr("layout", 0) != 0) {
    const graph::ConstantTensor* w = info.constant(1);
    const graph::ConstantTensor* r = info.constant(2);
    if (w == nullptr || r == nullptr) return;
    check_weights(w->dims, r->dims, layer_.directions, gates_of(kind), layer_.hidden);
    const WeightSource inputs = recurrent_weight(info.graph, info.node, 1);
    const WeightSource states = recurrent_weight(info.graph, info.node, 2);
    integers_ = {inputs.quantized(), states.quantized()};
    for (int d = 0; d < layer_.directions; ++d) {
      packed_.push_back(
          pack_recurrent(inputs, states, layer_, d, info.weights, info.kernels, info.pool));
    }
  }

  // Weights, and their scales, are read while they are packed.
  bool needs_aligned(int i) const override {
    return packed_.empty() || (i != 1 && i != 2 && i < 8);
  }

  void run(OpContext& context) const override {
    const Tensor& x = context.input(0);
    const Tensor& w = context.input(1);
    const Tensor& r = context.input(2);
    if (x.dtype == DType::kF64) fail_dtype(x.dtype);
    if (!integers_[0]) check_same_dtype(x, w, "X", "W");
    if (!integers_[1]) check_same_dtype(x, r, "X", "R");
    const RecurrentSizes weights =
        check_weights(w.dims, r.dims, layer_.directions, gates_of(layer_.kind), layer_.hidden);
    check(x.dims.rank == 3 && x.dims[2] == weights.input, [&] {
      return "X has shape " + x.dims.str() + "; expected " +
             (batch_first_ ? "[batch, steps, " : "[steps, batch, ") +
             std::to_string(weights.input) + "]";
    });
    RunSizes sizes{.steps = x.dims[batch_first_ ? 1 : 0],
                   .batch = x.dims[batch_first_ ? 0 : 1],
                   .input = weights.input,
                   .hidden = weights.hidden,
                   .directions = layer_.directions,
                   .batch_first = batch_first_};
    check_operands(context, x, sizes);
    if (!packed_.empty()) return run_with(context, sizes, packed_);
    std::vector<PackedDirection> own;
    WeightCache cache;
    const graph::ConstantTensor inputs = constant_view(w), states = constant_view(r);
    for (int d = 0; d < layer_.directions; ++d) {
      own.push_back(pack_recurrent({inputs, {}, true, weights.input},
                                   {states, {}, true, weights.hidden}, layer_, d, cache,
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
    std::string shape = std::to_string(input.k) + " x " + std::to_string(gates_of(layer_.kind)) +
                        " x " + std::to_string(recurrent.n);
    if (layer_.directions == 2) shape = "2 x (" + shape + ")";
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
    const Dims state = batch_first_ ? Dims{sizes.batch, layer_.directions, sizes.hidden}
                                    : Dims{layer_.directions, sizes.batch, sizes.hidden};
    operand(3, "B", {layer_.directions, dim_product(2 * gates_of(layer_.kind), sizes.hidden)});
    operand(5, "initial_h", state);
    if (layer_.kind == CellKind::kLstm) {
      operand(6, "initial_c", state);
      operand(7, "P", {layer_.directions, dim_product(3, sizes.hidden)});
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

  RecurrentLayer layer_;
  bool batch_first_;
  std::array<bool, 2> integers_{};       // whether W and R are integers with scales
  std::vector<PackedDirection> packed_;  // by direction; empty where the weights are no constants
};

void Recurrent::run_with(OpContext& context, const RunSizes& sizes,
                         const std::vector<PackedDirection>& packed) const {
  std::array<RunDirection, 2> directions;
  for (std::size_t d = 0; d < packed.size(); ++d) {
    RunDirection& one = directions[d];
    one.cell = layer_.cell(static_cast<int>(d), sizes.hidden, packed[d]);
    one.input = packed[d].input.get();
    one.reverse = layer_.reverse(static_cast<int>(d));
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
  r.add("kvik", "LSTM", make_recurrent<CellKind::kLstm>);
  r.add("kvik", "GRU", make_recurrent<CellKind::kGru>);
  r.add("kvik", "RNN", make_recurrent<CellKind::kRnn>);
}

}  // namespace kvik::ops
