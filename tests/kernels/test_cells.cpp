// Recurrent cells and weighted sums: every stage and function, every length, against the reference;
// and the promise that an element's result does not depend on its place.
#include <cmath>
#include <limits>
#include <memory>

#include "kernels/support.h"

using namespace kvik::test;
using kvik::kernels::CellActivation;
using kvik::kernels::CellArgs;
using kvik::kernels::CellFunction;
using kvik::kernels::CellStage;
using kvik::kernels::KernelTable;
using kvik::kernels::kReferenceTable;

namespace {

constexpr int kFunctions = static_cast<int>(CellFunction::kThresholdedRelu) + 1;
constexpr CellStage kStages[] = {CellStage::kRnn, CellStage::kGruReset, CellStage::kGru,
                                 CellStage::kGruLinear, CellStage::kLstm};

// The operands of a cell, each with guards and gaps between its rows.
struct Cell {
  Cell(CellStage s, std::int64_t rows, std::int64_t n)
      : stage(s), state(rows, n, n + 3), cell(rows, n, n + 1), out(rows, n, n + 2) {
    for (auto& gate : gates) gate = std::make_unique<Matrix>(rows, n, n + 5);
    for (auto& peephole : peepholes) peephole = std::make_unique<Guarded>(n);
  }
  void fill(Random& random) {
    for (auto& gate : gates) gate->fill(random, -4.0f, 4.0f);
    for (auto& peephole : peepholes) peephole->fill(random, -1.0f, 1.0f);
    state.fill(random, -1.0f, 1.0f);
    cell.fill(random, -2.0f, 2.0f);
  }
  void copy_from(const Cell& other) {
    for (int i = 0; i < 4; ++i) {
      gates[i]->buffer.copy_from(other.gates[i]->buffer);
      if (i < 3) peepholes[i]->copy_from(*other.peepholes[i]);
    }
    state.buffer.copy_from(other.state.buffer);
    cell.buffer.copy_from(other.cell.buffer);
  }
  // Hidden units [first, first + n) of rows [row, row + rows).
  CellArgs args(CellActivation f, CellActivation g, CellActivation h, float clip,
                bool with_peepholes, std::int64_t row, std::int64_t rows, std::int64_t first,
                std::int64_t n) const {
    CellArgs a{};
    a.stage = stage;
    a.f = f;
    a.g = g;
    a.h = h;
    a.clip = clip;
    a.rows = rows;
    a.n = n;
    for (int i = 0; i < 4; ++i) a.gates[i] = gates[i]->row(row) + first;
    a.gates_stride = gates[0]->stride;
    a.state = state.row(row) + first;
    a.state_stride = state.stride;
    a.cell = cell.row(row) + first;
    a.cell_stride = cell.stride;
    if (with_peepholes) {
      for (int i = 0; i < 3; ++i) a.peepholes[i] = peepholes[i]->data() + first;
    }
    a.out = out.row(row) + first;
    a.out_stride = out.stride;
    return a;
  }
  bool intact() const {
    bool all = state.intact() && cell.intact() && out.intact();
    for (const auto& gate : gates) all = all && gate->intact();
    return all;
  }
  // What the stage wrote.
  std::vector<float> results() const {
    if (stage == CellStage::kGruReset) return gates[0]->elements();
    std::vector<float> all = out.elements();
    if (stage == CellStage::kLstm) {
      const std::vector<float> c = cell.elements();
      all.insert(all.end(), c.begin(), c.end());
    }
    return all;
  }

  CellStage stage;
  std::unique_ptr<Matrix> gates[4];
  std::unique_ptr<Guarded> peepholes[3];
  Matrix state, cell, out;
};

CellActivation activation(int i) {
  return {static_cast<CellFunction>(i % kFunctions), 0.3f, 0.4f};
}

// Both compute in fp32 what the other does in double: a handful of roundings of values below
// `largest`, each through functions whose slopes are at most 1 (Elu and Affine: alpha).
void check_cell(const KernelTable& table, CellStage stage, std::int64_t rows, std::int64_t n,
                CellActivation f, CellActivation g, CellActivation h, float clip, bool peepholes,
                Random& random) {
  Cell got(stage, rows, n), want(stage, rows, n);
  got.fill(random);
  want.copy_from(got);
  table.recurrent_cell_f32(got.args(f, g, h, clip, peepholes, 0, rows, 0, n));
  kReferenceTable.recurrent_cell_f32(want.args(f, g, h, clip, peepholes, 0, rows, 0, n));
  CHECK(got.intact()) << table.name << " wrote outside";
  const std::vector<float> expected = want.results();
  std::vector<double> exact(expected.begin(), expected.end()), tolerance;
  for (const double value : exact) tolerance.push_back(64 * kEps * (4.0 + std::fabs(value) * 8.0));
  expect_close(std::string(table.name) + " stage " + std::to_string(static_cast<int>(stage)) +
                   " f " + std::to_string(static_cast<int>(f.function)) + " n " + std::to_string(n),
               got.results(), exact, tolerance, 1e-3);
}

}  // namespace

KVIK_TEST(cells_agree_with_the_reference) {
  const float inf = std::numeric_limits<float>::infinity();
  const CellActivation sigmoid{CellFunction::kSigmoid, 0, 0}, tanh{CellFunction::kTanh, 0, 0};
  for_each_vector_isa([&](const KernelTable& table) {
    Random random(1);
    for (const CellStage stage : kStages) {
      for (const std::int64_t n : lengths()) {
        check_cell(table, stage, 2, n, sigmoid, tanh, tanh, inf, n % 2 == 1, random);
      }
      for (int i = 0; i < kFunctions; ++i) {
        check_cell(table, stage, 3, 21, activation(i), activation(i + 3), activation(i + 5), 1.5f,
                   i % 2 == 0, random);
      }
    }
  });
}

KVIK_TEST(a_cell_does_not_depend_on_its_place) {
  const float inf = std::numeric_limits<float>::infinity();
  for_each_isa([&](const KernelTable& table) {
    Random random(2);
    for (const CellStage stage : kStages) {
      for (const int function : {6, 9}) {  // the usual functions, and others
        const std::int64_t rows = 3, n = 45;
        Cell whole(stage, rows, n), parts(stage, rows, n);
        whole.fill(random);
        parts.copy_from(whole);
        const CellActivation f = activation(function), g = activation(9), h = activation(9);
        table.recurrent_cell_f32(whole.args(f, g, h, inf, true, 0, rows, 0, n));
        for (std::int64_t r = 0; r < rows; ++r) {
          for (std::int64_t first = 0; first < n; first += 7) {
            const std::int64_t count = std::min<std::int64_t>(7, n - first);
            table.recurrent_cell_f32(parts.args(f, g, h, inf, true, r, 1, first, count));
          }
        }
        CHECK(same_bits(whole.results(), parts.results()))
            << table.name << " stage " << static_cast<int>(stage);
      }
    }
  });
}

KVIK_TEST(weighted_sums_are_one_chain) {
  for_each_isa([](const KernelTable& table) {
    Random random(3);
    for (const std::int64_t n : lengths()) {
      constexpr int kTaps = 5;
      std::vector<std::unique_ptr<Guarded>> pixels;
      const float* x[kTaps];
      for (int t = 0; t < kTaps; ++t) {
        pixels.push_back(std::make_unique<Guarded>(n, static_cast<int>(random.integer(0, 3))));
        pixels.back()->fill(random, -2.0f, 2.0f);
        x[t] = t == 2 ? nullptr : pixels.back()->data();
      }
      Guarded w(kTaps * n), bias(n), y(n), want(n);
      w.fill(random, -1.0f, 1.0f);
      bias.fill(random, -1.0f, 1.0f);
      for (const float* b :
           {static_cast<const float*>(nullptr), static_cast<const float*>(bias.data())}) {
        table.weighted_sum_f32(x, w.data(), kTaps, n, b, y.data());
        kReferenceTable.weighted_sum_f32(x, w.data(), kTaps, n, b, want.data());
        for (std::int64_t i = 0; i < n; ++i) {
          CHECK(same_bits(y[i], want[i])) << table.name << " n " << n << " at " << i;
        }
        CHECK(y.intact() && w.intact() && bias.intact()) << table.name;
      }
    }
  });
}

int main(int argc, char** argv) {
  return kvik::test::run_all(argc, argv);
}
