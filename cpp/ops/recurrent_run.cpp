#include "ops/recurrent_run.h"

#include <algorithm>
#include <cstring>
#include <numeric>

#include "ops/product.h"
#include "ops/recurrent_layer.h"
#include "ops/support.h"

namespace kvik::ops {

namespace {

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

}  // namespace

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
    at[d].parameters = plan.add<float>(dim_product(2 * kMostGates + 3, sizes_.hidden));
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
    float* recurrent_bias = peepholes + 3 * hidden;     // [gates · hidden]
    std::fill_n(one.bias, size, 0.0f);
    if (context_.has_input(3)) {
      to_floats(context_.input(3), d * 2 * size, size, one.bias);
      to_floats(context_.input(3), (d * 2 + 1) * size, size, recurrent_bias);
      one.cell.recurrent_bias = join_biases(one.cell, hidden, one.bias, recurrent_bias);
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

}  // namespace kvik::ops
