#include "ops/row_recurrent.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <numeric>
#include <string>
#include <vector>

#include "ops/product.h"
#include "ops/recurrent.h"
#include "ops/recurrent_layer.h"
#include "ops/row_batch.h"
#include "ops/support.h"

namespace kvik::ops {

namespace {

CellKind cell_called(const NodeInfo& info) {
  const std::string name = info.node.string_attr("cell", "");
  if (name == "LSTM") return CellKind::kLstm;
  if (name == "GRU") return CellKind::kGru;
  if (name == "RNN") return CellKind::kRnn;
  fail(ErrorCode::kInternal, info.node.label() + ": a cell called '" + name + "'");
}

// The floats of an input that is a constant; nothing where it is left out.
std::vector<float> constant_floats(const NodeInfo& info, std::size_t input, std::int64_t count) {
  if (info.node.input(input) == graph::kNoValue) return {};
  const graph::ConstantTensor* constant = info.constant(input);
  if (constant == nullptr || constant->dtype != DType::kF32 || constant->dims.elements() != count) {
    fail(ErrorCode::kUnsupported, info.node.label() + ": input " + std::to_string(input) +
                                      " must be a constant of " + std::to_string(count) +
                                      " float32 elements");
  }
  std::vector<float> out(static_cast<std::size_t>(count));
  if (count > 0) std::memcpy(out.data(), constant->data.data(), constant->data.size());
  return out;
}

class RowRecurrentKernel final : public OpKernel {
 public:
  RowRecurrentKernel(const graph::RowRecurrent& layer, std::size_t table, const NodeInfo& info);

  void run(OpContext& context) const override;
  bool needs_aligned(int i) const override { return i == 0 || i == 5 || i == 6; }
  OpCost cost(const OpContext& context) const override;
  OpDescription describe() const override;

 private:
  // One direction, prepared.
  struct Direction {
    PackedDirection packed;
    std::vector<float> bias;            // [gates · hidden]
    std::vector<float> recurrent_bias;  // [gates · hidden]: parts of it are used by GRUs
    RecurrentCell cell;
    bool reverse = false;
  };
  class Run;

  graph::RowRecurrent layer_;
  std::size_t table_;
  std::int64_t hidden_ = 0;
  std::int64_t input_ = 0;
  std::vector<Direction> directions_;
  std::vector<float> peepholes_;  // [directions, 3, hidden]; empty: none
  std::array<Dims, 2> out_dims_;  // of each output; -1: rows
};

RowRecurrentKernel::RowRecurrentKernel(const graph::RowRecurrent& layer, std::size_t table,
                                       const NodeInfo& info)
    : layer_(layer), table_(table) {
  const RecurrentLayer attributes(info.node, cell_called(info));
  const int gates = gates_of(attributes.kind), count = attributes.directions;
  const graph::ConstantTensor* w = info.constant(1);
  const graph::ConstantTensor* r = info.constant(2);
  if (w == nullptr || r == nullptr || info.dtype(0) != DType::kF32) {
    fail(ErrorCode::kUnsupported, info.node.label() + ": X must be float32, W and R constants");
  }
  const RecurrentSizes sizes = check_weights(w->dims, r->dims, count, gates, attributes.hidden);
  const WeightSource inputs = recurrent_weight(info.graph, info.node, 1);
  const WeightSource states = recurrent_weight(info.graph, info.node, 2);
  for (const WeightSource* weights : {&inputs, &states}) {
    if (!weights->quantized() && weights->values().dtype != DType::kF32) {
      fail(ErrorCode::kUnsupported, info.node.label() + ": W and R must be float32 or integers");
    }
  }
  hidden_ = sizes.hidden;
  input_ = sizes.input;
  const std::int64_t size = dim_product(gates, hidden_);
  const std::vector<float> biases = constant_floats(info, 3, 2 * size * count);
  if (attributes.kind == CellKind::kLstm) {
    peepholes_ = constant_floats(info, 7, count * 3 * hidden_);
  }
  directions_.resize(static_cast<std::size_t>(count));
  for (int d = 0; d < count; ++d) {
    Direction& one = directions_[static_cast<std::size_t>(d)];
    one.packed =
        pack_recurrent(inputs, states, attributes, d, info.weights, info.kernels, info.pool);
    one.cell = attributes.cell(d, hidden_, one.packed);
    one.reverse = attributes.reverse(d);
    one.bias.assign(static_cast<std::size_t>(size), 0.0f);
    if (!biases.empty()) {
      const auto own = biases.begin() + d * 2 * size;
      one.bias.assign(own, own + size);
      one.recurrent_bias.assign(own + size, own + 2 * size);
      one.cell.recurrent_bias =
          join_biases(one.cell, hidden_, one.bias.data(), one.recurrent_bias.data());
    }
    if (!peepholes_.empty()) one.cell.peepholes = peepholes_.data() + d * 3 * hidden_;
  }
  for (std::size_t i = 0; i < out_dims_.size(); ++i) {
    if (info.node.output(i) == graph::kNoValue) continue;
    for (const graph::Expr& dim : *info.graph.value(info.node.output(i)).shape) {
      out_dims_[i].push_back(dim.constant().value_or(-1));
    }
  }
  const std::int64_t parts = attributes.kind == CellKind::kLstm ? 2 : 1;
  if (layer.width != dim_product(parts * count, hidden_)) {
    fail(ErrorCode::kInternal, info.node.label() + ": a state of another size");
  }
}

// One run. Sequences lie in slots by decreasing rows, so that those that go on are always the
// first ones.
class RowRecurrentKernel::Run {
 public:
  Run(const RowRecurrentKernel& kernel, OpContext& context, const RowBatch& batch);
  void project();
  void iterate();

 private:
  struct Own {                        // of a direction
    float* projected = nullptr;       // [rows, slots · hidden]: x·W + bias
    float* gates = nullptr;           // [runs, slots · hidden], of one step; uneven batches alone
    std::array<float*, 2> buffers{};  // [runs, hidden] each: states by turns
    float* c = nullptr;               // [runs, hidden]
    const float* h = nullptr;         // [runs, hidden]: the state, in an even batch
    std::ptrdiff_t h_stride = 0;
  };

  void place();
  void sort_slots();
  void read_states();
  // [directions, hidden], the same for every sequence; null: zeros.
  const float* first_state(int input) const {
    if (!context_.has_input(input)) return nullptr;
    const Tensor& state = context_.input(input);
    check(state.dtype == DType::kF32 && state.elements() == row_, [&] {
      return "an initial state is " + ops::describe(state) + "; expected float32 of " +
             std::to_string(row_) + " elements";
    });
    return state.as<const float>();
  }
  const RowRun& run_in(std::int64_t slot) const {
    return batch_.runs[static_cast<std::size_t>(order_[slot])];
  }
  // The row of step s of the sequence in a slot.
  std::int64_t row_at(std::size_t d, std::int64_t s, std::int64_t slot) const {
    const RowRun& run = run_in(slot);
    return run.first_row + (k_.directions_[d].reverse ? run.rows - 1 - s : s);
  }
  CellRows rows_at(std::size_t d, std::int64_t s, std::int64_t active);
  void store_rows(std::size_t d, std::int64_t s, const CellRows& rows);

  const RowRecurrentKernel& k_;
  OpContext& context_;
  const RowBatch& batch_;
  std::int64_t runs_;
  std::int64_t hidden_;
  std::int64_t width_;      // slots · hidden
  std::int64_t row_;        // directions · hidden: floats of a row of Y
  bool even_ = true;        // all sequences have as many rows
  std::int64_t* order_;     // [runs]: the sequence in a slot
  float* y_ = nullptr;      // [rows, directions, hidden]
  float* cells_ = nullptr;  // the same, or null
  void* memory_;            // of the products
  std::array<Own, 2> own_;
};

RowRecurrentKernel::Run::Run(const RowRecurrentKernel& kernel, OpContext& context,
                             const RowBatch& batch)
    : k_(kernel),
      context_(context),
      batch_(batch),
      runs_(static_cast<std::int64_t>(batch.runs.size())),
      hidden_(kernel.hidden_),
      width_(kernel.directions_[0].cell.slots() * kernel.hidden_),
      row_(static_cast<std::int64_t>(kernel.directions_.size()) * kernel.hidden_) {
  for (const RowRun& run : batch.runs) even_ = even_ && run.rows == batch.runs[0].rows;
  const auto output = [&](int i) -> float* {
    if (!context.wants_output(i)) return nullptr;
    Dims dims = k_.out_dims_[static_cast<std::size_t>(i)];
    for (int axis = 0; axis < dims.rank; ++axis) {
      if (dims[axis] < 0) dims[axis] = batch.rows;
    }
    return context.output(i, DType::kF32, dims).as<float>();
  };
  place();
  if (float* wanted = output(0)) y_ = wanted;
  cells_ = output(1);
  sort_slots();
  read_states();
}

void RowRecurrentKernel::Run::place() {
  const std::size_t count = k_.directions_.size();
  struct Offsets {
    std::size_t projected, gates, first, second, c;
  };
  std::array<Offsets, 2> at{};
  std::array<RowProduct, 2> products{};
  WorkspacePlan plan;
  // The steps leave their states in Y, whether somebody wants it or not.
  const bool own_y = !context_.wants_output(0);
  const std::size_t y = plan.add<float>(own_y ? dim_product(batch_.rows, row_) : 0);
  const std::size_t order = plan.add<std::int64_t>(runs_);
  const std::int64_t state = dim_product(runs_, hidden_);
  for (std::size_t d = 0; d < count; ++d) {
    at[d].projected = plan.add<float>(dim_product(batch_.rows, width_));
    at[d].gates = plan.add<float>(even_ ? 0 : dim_product(runs_, width_));
    at[d].first = plan.add<float>(state);
    at[d].second = plan.add<float>(state);
    at[d].c = plan.add<float>(state);
    products[d].weights = k_.directions_[d].packed.input.get();
  }
  // The product of all rows and those of one step take turns.
  const kernels::KernelTable& table = context_.kernels();
  const std::size_t memory =
      plan.add_bytes(std::max(rounded_bytes(table, batch_.rows, std::span(products).first(count)),
                              step_bytes(table, context_.pool(), k_.directions_[0].cell, runs_)));
  plan.place(context_.workspace(plan.bytes()));
  order_ = plan.at<std::int64_t>(order);
  memory_ = plan.at<std::byte>(memory);
  if (own_y) y_ = plan.at<float>(y);
  for (std::size_t d = 0; d < count; ++d) {
    own_[d].projected = plan.at<float>(at[d].projected);
    own_[d].gates = plan.at<float>(at[d].gates);
    own_[d].buffers = {plan.at<float>(at[d].first), plan.at<float>(at[d].second)};
    own_[d].c = plan.at<float>(at[d].c);
  }
}

void RowRecurrentKernel::Run::sort_slots() {
  std::iota(order_, order_ + runs_, std::int64_t{0});
  if (even_) return;
  const auto rows = [&](std::int64_t i) { return batch_.runs[static_cast<std::size_t>(i)].rows; };
  std::sort(order_, order_ + runs_, [&](std::int64_t a, std::int64_t b) {
    return rows(a) != rows(b) ? rows(a) > rows(b) : a < b;
  });
}

// The state that each sequence has before its first row.
void RowRecurrentKernel::Run::read_states() {
  const bool lstm = k_.directions_[0].cell.kind == CellKind::kLstm;
  for (std::int64_t slot = 0; slot < runs_; ++slot) {
    const RowRun& run = run_in(slot);
    const float* h = first_state(5);
    const float* c = first_state(6);
    if (run.first_position > 0) {
      if (!k_.layer_.keeps_states) {
        fail(ErrorCode::kInternal, "reads a whole sequence, of which a part was given");
      }
      h = run.keys.state(batch_.layer_tables[k_.table_], run.first_position - 1, k_.layer_.width);
      c = h + row_;
    } else {
      if (k_.layer_.source_h >= 0) h = run.source_states + k_.layer_.source_h;
      if (k_.layer_.source_c >= 0) c = run.source_states + k_.layer_.source_c;
    }
    for (std::size_t d = 0; d < k_.directions_.size(); ++d) {
      const auto copy = [&](const float* from, float* to) {
        to += slot * hidden_;
        if (from == nullptr) {
          std::fill_n(to, hidden_, 0.0f);
        } else {
          std::copy_n(from + static_cast<std::int64_t>(d) * hidden_, hidden_, to);
        }
      };
      copy(h, own_[d].buffers[0]);
      if (lstm) copy(c, own_[d].c);
    }
  }
  for (Own& own : own_) {
    own.h = own.buffers[0];
    own.h_stride = hidden_;
  }
}

void RowRecurrentKernel::Run::project() {
  std::array<RowProduct, 2> products{};
  const std::size_t count = k_.directions_.size();
  for (std::size_t d = 0; d < count; ++d) {
    kernels::MatmulEpilogue epilogue;
    epilogue.bias = k_.directions_[d].bias.data();
    products[d] = {k_.directions_[d].packed.input.get(), epilogue, own_[d].projected, width_};
  }
  multiply(context_.kernels(), context_.pool(), context_.input(0).as<const float>(), k_.input_,
           batch_.rows, std::span(products).first(count), memory_);
}

CellRows RowRecurrentKernel::Run::rows_at(std::size_t d, std::int64_t s, std::int64_t active) {
  Own& own = own_[d];
  CellRows rows{.rows = active, .c = own.c, .c_stride = hidden_};
  if (even_) {
    // The rows of a step lie as far apart as sequences are long: they are read and written in
    // their places.
    const std::int64_t first = row_at(d, s, 0), step = batch_.runs[0].rows;
    rows.gates = own.projected + first * width_;
    rows.gates_stride = step * width_;
    rows.h = own.h;
    rows.h_stride = own.h_stride;
    rows.next_h = y_ + first * row_ + static_cast<std::int64_t>(d) * hidden_;
    rows.next_h_stride = step * row_;
    own.h = rows.next_h;
    own.h_stride = rows.next_h_stride;
    return rows;
  }
  for (std::int64_t slot = 0; slot < active; ++slot) {
    std::copy_n(own.projected + row_at(d, s, slot) * width_,
                k_.directions_[d].cell.gates() * hidden_, own.gates + slot * width_);
  }
  rows.gates = own.gates;
  rows.gates_stride = width_;
  const auto turn = static_cast<std::size_t>(s % 2);
  rows.h = own.buffers[turn];
  rows.h_stride = hidden_;
  rows.next_h = own.buffers[1 - turn];
  rows.next_h_stride = hidden_;
  return rows;
}

// The states after a step: as results, unless they were written there, and into the caches.
void RowRecurrentKernel::Run::store_rows(std::size_t d, std::int64_t s, const CellRows& rows) {
  const std::int64_t column = static_cast<std::int64_t>(d) * hidden_;
  const bool lstm = k_.directions_[d].cell.kind == CellKind::kLstm;
  for (std::int64_t slot = 0; slot < rows.rows; ++slot) {
    const RowRun& run = run_in(slot);
    const std::int64_t row = row_at(d, s, slot);
    const float* h = rows.next_h + slot * rows.next_h_stride;
    const float* c = rows.c + slot * rows.c_stride;
    if (!even_) std::copy_n(h, hidden_, y_ + row * row_ + column);
    if (cells_ != nullptr) std::copy_n(c, hidden_, cells_ + row * row_ + column);
    if (!k_.layer_.keeps_states) continue;
    float* kept = run.keys.state(batch_.layer_tables[k_.table_],
                                 run.first_position + row - run.first_row, k_.layer_.width);
    std::copy_n(h, hidden_, kept + column);
    if (lstm) std::copy_n(c, hidden_, kept + row_ + column);
  }
}

void RowRecurrentKernel::Run::iterate() {
  const std::size_t count = k_.directions_.size();
  std::int64_t active = runs_;
  for (std::int64_t s = 0;; ++s) {
    while (active > 0 && run_in(active - 1).rows <= s) --active;
    if (active == 0) return;
    std::array<CellStep, 2> steps{};
    for (std::size_t d = 0; d < count; ++d) {
      steps[d] = {&k_.directions_[d].cell, rows_at(d, s, active)};
    }
    step(context_.kernels(), context_.pool(), std::span(steps).first(count), memory_);
    for (std::size_t d = 0; d < count; ++d) store_rows(d, s, steps[d].rows);
  }
}

void RowRecurrentKernel::run(OpContext& context) const {
  const RowBatch* batch = context.row_batch();
  if (batch == nullptr) fail(ErrorCode::kInternal, "runs in a row program only");
  const Tensor& x = context.input(0);
  if (x.dtype != DType::kF32 || x.elements() != batch->rows * input_) {
    fail(ErrorCode::kInvalidModel, "X is " + ops::describe(x) + "; expected float32 of " +
                                       std::to_string(input_) + " elements a row");
  }
  Run one(*this, context, *batch);
  one.project();
  one.iterate();
}

// A step reads every recurrent weight once, for all sequences that go on.
OpCost RowRecurrentKernel::cost(const OpContext& context) const {
  const RowBatch& batch = *context.row_batch();
  std::int64_t steps = 0;
  for (const RowRun& run : batch.runs) steps = std::max(steps, run.rows);
  OpCost sum;
  for (const Direction& one : directions_) {
    sum.operations += 2.0 * static_cast<double>(batch.rows) * one.cell.gates() *
                      static_cast<double>(hidden_) * static_cast<double>(hidden_ + input_);
    sum.bytes += static_cast<double>(one.packed.input->bytes());
    for (const auto& gate : one.packed.recurrent) {
      if (gate) sum.bytes += static_cast<double>(steps) * static_cast<double>(gate->bytes());
    }
  }
  return sum;
}

// "64 x 4 x 128", "2 x (64 x 4 x 128)": inputs, gates, hidden units.
OpDescription RowRecurrentKernel::describe() const {
  const Direction& one = directions_.front();
  std::string shape = std::to_string(input_) + " x " + std::to_string(one.cell.gates()) + " x " +
                      std::to_string(hidden_);
  if (directions_.size() == 2) shape = "2 x (" + shape + ")";
  return {.shape = shape, .precision = one.packed.recurrent[0]->describe().precision};
}

}  // namespace

std::unique_ptr<OpKernel> make_row_recurrent(const graph::RowRecurrent& layer, std::size_t table,
                                             const NodeInfo& info) {
  return std::make_unique<RowRecurrentKernel>(layer, table, info);
}

}  // namespace kvik::ops
