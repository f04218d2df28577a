#include <algorithm>

#include "ops/product.h"
#include "ops/recurrent.h"
#include "ops/support.h"

namespace kvik::ops {

namespace {

using kernels::CellArgs;
using kernels::CellStage;

// A step's products and passes for a range of hidden units. Where the reset gate is applied to the
// state before the product, all units of the first phase come before any of the second.
class PhaseRange {
 public:
  PhaseRange(const kernels::KernelTable& table, const CellStep& step, std::int64_t panel_begin,
             std::int64_t panel_end, void* memory)
      : table_(table),
        cell_(*step.cell),
        rows_(step.rows),
        panel_begin_(panel_begin),
        panel_end_(panel_end),
        first_(panel_begin * table.panel),
        count_(std::min(panel_end * table.panel, step.cell->hidden) - first_),
        memory_(memory) {}

  void run(int phase) const {
    switch (cell_.kind) {
      case CellKind::kRnn: add_products({0}); return pass(CellStage::kRnn, {0});
      case CellKind::kLstm: add_products({0, 1, 2, 3}); return pass(CellStage::kLstm, {0, 1, 2, 3});
      case CellKind::kGru: break;
    }
    if (cell_.linear_before_reset) {
      add_products({0, 1});
      multiply(rows_.h, rows_.h_stride, {2}, [&](int) {
        return RowProduct{
            cell_.recurrent[2], {.bias = cell_.recurrent_bias}, slot(3), rows_.gates_stride};
      });
      return pass(CellStage::kGruLinear, {0, 2, 1, 3});
    }
    if (phase == 0) {
      add_products({0, 1});
      return pass(CellStage::kGruReset, {1});
    }
    // The reset gate's place holds reset · state, [rows, hidden].
    multiply(slot(1), rows_.gates_stride, {2}, [&](int gate) { return onto(gate); });
    pass(CellStage::kGru, {0, 2});
  }

 private:
  float* slot(int i) const { return rows_.gates + i * cell_.hidden; }

  // gate += state · R of the gate
  RowProduct onto(int gate) const {
    kernels::MatmulEpilogue epilogue;
    epilogue.residual = slot(gate);
    epilogue.residual_stride = rows_.gates_stride;
    return {cell_.recurrent[static_cast<std::size_t>(gate)], epilogue, slot(gate),
            rows_.gates_stride};
  }

  template <typename Make>
  void multiply(const float* x, std::ptrdiff_t x_stride, std::initializer_list<int> gates,
                Make make) const {
    std::array<RowProduct, kMostGates> products;
    std::size_t count = 0;
    for (const int gate : gates) products[count++] = make(gate);
    multiply_panels(table_, x, x_stride, rows_.rows, std::span(products).first(count), panel_begin_,
                    panel_end_, memory_);
  }
  void add_products(std::initializer_list<int> gates) const {
    multiply(rows_.h, rows_.h_stride, gates, [&](int gate) { return onto(gate); });
  }

  void pass(CellStage stage, std::initializer_list<int> slots) const {
    CellArgs args{.stage = stage,
                  .f = cell_.f,
                  .g = cell_.g,
                  .h = cell_.h,
                  .clip = cell_.clip,
                  .coupled = cell_.coupled,
                  .rows = rows_.rows,
                  .n = count_,
                  .gates = {},
                  .gates_stride = rows_.gates_stride,
                  .state = rows_.h + first_,
                  .state_stride = rows_.h_stride,
                  .cell = rows_.c == nullptr ? nullptr : rows_.c + first_,
                  .cell_stride = rows_.c_stride,
                  .peepholes = {},
                  .out = rows_.next_h + first_,
                  .out_stride = rows_.next_h_stride};
    int at = 0;
    for (const int i : slots) args.gates[at++] = slot(i) + first_;
    if (cell_.peepholes != nullptr) {
      for (int i = 0; i < 3; ++i) args.peepholes[i] = cell_.peepholes + i * cell_.hidden + first_;
    }
    table_.recurrent_cell_f32(args);
  }

  const kernels::KernelTable& table_;
  const RecurrentCell& cell_;
  const CellRows& rows_;
  std::int64_t panel_begin_, panel_end_;
  std::int64_t first_, count_;  // hidden units
  void* memory_;
};

std::int64_t panels_of_cell(const kernels::KernelTable& table, const RecurrentCell& cell) {
  return (cell.hidden + table.panel - 1) / table.panel;
}

// Of one thread.
std::size_t thread_bytes(const kernels::KernelTable& table, const RecurrentCell& cell,
                         std::int64_t rows) {
  const RowProduct product{cell.recurrent[0], {}, nullptr, 0};
  return align_up(rounded_bytes(table, rows, std::span(&product, 1)));
}

}  // namespace

std::size_t step_bytes(const kernels::KernelTable& table, const ThreadPool& pool,
                       const RecurrentCell& cell, std::int64_t rows) {
  return checked_product(thread_bytes(table, cell, rows), static_cast<std::size_t>(pool.threads()));
}

void step(const kernels::KernelTable& table, ThreadPool& pool, std::span<const CellStep> steps,
          void* memory) {
  if (steps.empty()) return;
  const RecurrentCell& cell = *steps.front().cell;
  std::int64_t rows = 0;
  for (const CellStep& one : steps) rows = std::max(rows, one.rows.rows);
  const std::int64_t panels = panels_of_cell(table, cell);
  const std::int64_t total = panels * static_cast<std::int64_t>(steps.size());
  if (rows == 0 || total == 0) return;
  const bool two_phases = cell.kind == CellKind::kGru && !cell.linear_before_reset;
  const std::size_t bytes = thread_bytes(table, cell, rows);

  for (int phase = 0; phase < (two_phases ? 2 : 1); ++phase) {
    const auto range = [&](int worker, std::int64_t begin, std::int64_t end) {
      auto* mine = bytes == 0
                       ? nullptr
                       : static_cast<std::byte*>(memory) + static_cast<std::size_t>(worker) * bytes;
      for (const CellStep& one : steps) {
        const std::int64_t first = std::max<std::int64_t>(begin, 0);
        const std::int64_t last = std::min(end, panels);
        if (first < last && one.rows.rows > 0) {
          PhaseRange(table, one, first, last, mine).run(phase);
        }
        begin -= panels;
        end -= panels;
      }
    };
    // Of a panel of hidden units: about 8 multiply-adds, 8 bytes of weights, or a twentieth of a
    // gate's function take the time of one simple operation on an element.
    const std::int64_t products = std::max(rows * cell.hidden / 8, cell.hidden / 2);
    const std::int64_t cost = (products + rows * 20) * cell.gates() * table.panel;
    if (pool.threads() == 1 || total < 2 || cost < kMinParallelWork / total) {
      range(0, 0, total);
      continue;
    }
    pool.run([&](int worker, int workers) {
      const Range part = split_range(total, worker, workers);
      if (part.begin < part.end) range(worker, part.begin, part.end);
    });
  }
}

}  // namespace kvik::ops
