// The matrix product with packed weights. Its contract fixes every rounding (one chain of fused
// steps per output), so before an activation all tables agree bit by bit; the reference itself is
// held to a bound derived from the norms.
#include <algorithm>
#include <cmath>

#include "base/aligned_buffer.h"
#include "kernels/support.h"

using namespace kvik::test;
using kvik::AlignedBuffer;
using kvik::kernels::Activation;
using kvik::kernels::KernelTable;
using kvik::kernels::kReferenceTable;
using kvik::kernels::MatmulEpilogue;
using Side = Guarded::Side;

namespace {

struct Shape {
  std::int64_t rows, k, n;
};

// All row counts around the tiles; column counts around vectors and panels; k around the blocks.
const Shape kShapes[] = {
    {1, 1, 1},    {1, 7, 15},   {1, 64, 64},  {1, 100, 65},  {2, 33, 31},    {3, 16, 96},
    {4, 17, 33},  {5, 9, 130},  {6, 65, 64},  {7, 64, 63},   {8, 40, 129},   {9, 3, 16},
    {12, 5, 17},  {13, 21, 48}, {47, 19, 70}, {48, 8, 64},   {49, 12, 66},   {97, 30, 40},
    {1, 511, 80}, {2, 512, 80}, {7, 513, 80}, {3, 1024, 20}, {50, 1025, 70}, {1, 2000, 100},
    {5, 0, 20},   {0, 4, 4},    {3, 4, 0},
};

struct Packed {
  // transposed: element (k, c) lies at w[c·k_count + k], as the weight of a tied embedding does.
  Packed(const KernelTable& table, const Guarded& w, std::int64_t k, std::int64_t n,
         bool transposed)
      : panels((n + table.panel - 1) / table.panel),
        buffer(static_cast<std::size_t>(panels * table.panel * k) * sizeof(float)) {
    const std::int64_t half = panels / 2;  // two threads would pack like this
    for (auto [begin, end] : {std::pair(half, panels), std::pair(std::int64_t{0}, half)}) {
      table.pack_f32(w.data(), transposed ? 1 : n, transposed ? k : 1, k, n, begin, end, data());
    }
  }
  float* data() const { return buffer.as<float>(); }
  std::int64_t panels;
  AlignedBuffer buffer;
};

// One product and everything around it.
struct Case {
  Case(const Shape& shape, std::uint64_t stream)
      : s(shape),
        random(stream),
        x(s.rows, s.k, s.k + random.integer(0, 3), static_cast<int>(random.integer(0, 3)),
          random.integer(0, 1) ? Side::kStart : Side::kEnd),
        w(s.k * s.n),
        bias(s.n),
        residual(s.rows, s.n, s.n + random.integer(0, 3)) {
    x.fill(random, -1.0f, 1.0f);
    w.fill(random, -1.0f, 1.0f);
    bias.fill(random, -1.0f, 1.0f);
    residual.fill(random, -1.0f, 1.0f);
  }
  MatmulEpilogue epilogue(Activation activation, bool with_bias, bool with_residual) const {
    return {.bias = with_bias ? bias.data() : nullptr,
            .activation = activation,
            .residual = with_residual ? residual.data() : nullptr,
            .residual_stride = residual.stride};
  }
  Shape s;
  Random random;
  Matrix x;
  Guarded w, bias;
  Matrix residual;
};

std::string name_of(const KernelTable& table, const Shape& s) {
  return std::string(table.name) + " rows " + std::to_string(s.rows) + " k " + std::to_string(s.k) +
         " n " + std::to_string(s.n);
}

std::vector<float> multiply(const KernelTable& table, const Case& c, const Packed& packed,
                            const MatmulEpilogue& epilogue) {
  Matrix y(c.s.rows, c.s.n, c.s.n + 2);
  table.matmul_f32(c.x.data(), c.x.stride, c.s.rows, c.s.k, packed.data(), c.s.n, 0, packed.panels,
                   epilogue, y.data(), y.stride);
  CHECK(y.intact() && c.x.intact()) << name_of(table, c.s) << " wrote outside";
  return y.elements();
}

}  // namespace

// |error| <= (k + 2)·eps·(Σ|x||w| + |bias| + |residual|), to first order.
KVIK_TEST(reference_is_within_the_bound) {
  std::uint64_t stream = 0;
  for (const Shape& s : kShapes) {
    const Case c(s, ++stream);
    const Packed packed(kReferenceTable, c.w, s.k, s.n, false);
    const std::vector<float> y =
        multiply(kReferenceTable, c, packed, c.epilogue(Activation::kNone, true, true));
    std::vector<double> want, tolerance;
    for (std::int64_t r = 0; r < s.rows; ++r) {
      for (std::int64_t j = 0; j < s.n; ++j) {
        double sum = static_cast<double>(c.bias[j]) + c.residual.at(r, j);
        double norm = std::fabs(c.bias[j]) + std::fabs(c.residual.at(r, j));
        for (std::int64_t i = 0; i < s.k; ++i) {
          const double product = static_cast<double>(c.x.at(r, i)) * c.w[i * s.n + j];
          sum += product;
          norm += std::fabs(product);
        }
        want.push_back(sum);
        tolerance.push_back(static_cast<double>(s.k + 2) * kEps * norm);
      }
    }
    expect_close(name_of(kReferenceTable, s), y, want, tolerance, 1e-2);
  }
}

KVIK_TEST(tables_agree_bit_by_bit) {
  for_each_vector_isa([](const KernelTable& table) {
    std::uint64_t stream = 100;
    for (const Shape& s : kShapes) {
      const Case c(s, ++stream);
      for (bool transposed : {false, true}) {
        const Packed packed(table, c.w, s.k, s.n, transposed);
        const Packed truth(kReferenceTable, c.w, s.k, s.n, transposed);
        for (int option = 0; option < 8; ++option) {
          const MatmulEpilogue e = c.epilogue(option & 4 ? Activation::kRelu : Activation::kNone,
                                              option & 1, option & 2);
          std::vector<float> y = multiply(table, c, packed, e);
          const std::vector<float> want = multiply(kReferenceTable, c, truth, e);
          CHECK(same_bits(y, want)) << name_of(table, s) << " option " << option;
          if (y.empty()) continue;
          y.back() = std::nextafter(y.back(), 1e9f);  // the last bit of one element
          CHECK(!same_bits(y, want)) << "the comparison notices nothing";
        }
      }
    }
  });
}

// The value before the activation is exact (above), so what is left is the activation's own error,
// stated in math.inl.h, and the rounding of the residual.
KVIK_TEST(activations) {
  for_each_vector_isa([](const KernelTable& table) {
    std::uint64_t stream = 200;
    for (const Shape& s : kShapes) {
      const Case c(s, ++stream);
      const Packed packed(table, c.w, s.k, s.n, false);
      const Packed truth(kReferenceTable, c.w, s.k, s.n, false);
      for (Activation a : {Activation::kGeluErf, Activation::kGeluTanh, Activation::kSilu,
                           Activation::kTanh, Activation::kSigmoid}) {
        for (bool residual : {false, true}) {
          const MatmulEpilogue e = c.epilogue(a, true, residual);
          const std::vector<float> z =
              multiply(kReferenceTable, c, truth, c.epilogue(Activation::kNone, true, false));
          const std::vector<float> want = multiply(kReferenceTable, c, truth, e);
          std::vector<double> tolerance;
          for (std::size_t i = 0; i < want.size(); ++i) {
            tolerance.push_back(2.5e-7 * std::max(1.0f, std::fabs(z[i])) +
                                2.0 * kEps * std::fabs(want[i]));
          }
          expect_close(name_of(table, s) + " activation " + std::to_string(static_cast<int>(a)),
                       multiply(table, c, packed, e), {want.begin(), want.end()}, tolerance, 1e-3);
        }
      }
    }
  });
}

// A row's bits are the same alone as in company, a column's whatever range of panels is asked for.
KVIK_TEST(rows_and_columns_are_independent) {
  for_each_isa([](const KernelTable& table) {
    std::uint64_t stream = 300;
    for (const Shape& s : kShapes) {
      const Case c(s, ++stream);
      const Packed packed(table, c.w, s.k, s.n, false);
      const MatmulEpilogue e = c.epilogue(Activation::kGeluErf, true, true);
      const std::vector<float> whole = multiply(table, c, packed, e);

      Matrix by_row(s.rows, s.n, s.n);
      for (std::int64_t r = 0; r < s.rows; ++r) {
        MatmulEpilogue row = e;
        row.residual += r * e.residual_stride;
        table.matmul_f32(c.x.row(r), c.x.stride, 1, s.k, packed.data(), s.n, 0, packed.panels, row,
                         by_row.row(r), by_row.stride);
      }
      CHECK(same_bits(by_row.elements(), whole)) << name_of(table, s) << " row by row";

      Matrix by_panel(s.rows, s.n, s.n + 1);
      for (std::int64_t p = packed.panels - 1; p >= 0; --p) {
        table.matmul_f32(c.x.data(), c.x.stride, s.rows, s.k, packed.data(), s.n, p, p + 1, e,
                         by_panel.data(), by_panel.stride);
      }
      CHECK(same_bits(by_panel.elements(), whole)) << name_of(table, s) << " panel by panel";

      Matrix in_place(s.rows, s.n, c.residual.stride);  // the residual is y itself
      for (std::int64_t r = 0; r < s.rows; ++r) {
        std::copy(c.residual.row(r), c.residual.row(r) + s.n, in_place.row(r));
      }
      MatmulEpilogue own = e;
      own.residual = in_place.data();
      table.matmul_f32(c.x.data(), c.x.stride, s.rows, s.k, packed.data(), s.n, 0, packed.panels,
                       own, in_place.data(), in_place.stride);
      CHECK(same_bits(in_place.elements(), whole)) << name_of(table, s) << " residual in place";
    }
  });
}

// Columns of a panel that are not asked for stay as they were.
KVIK_TEST(other_panels_are_not_touched) {
  for_each_isa([](const KernelTable& table) {
    const std::int64_t n = 3 * table.panel + 5;
    const Case c({4, 10, n}, 400);
    const Packed packed(table, c.w, 10, n, false);
    Matrix y(4, n, n);
    table.matmul_f32(c.x.data(), c.x.stride, 4, 10, packed.data(), n, 1, 3, {}, y.data(), y.stride);
    for (std::int64_t r = 0; r < 4; ++r) {
      for (std::int64_t j = 0; j < n; ++j) {
        const bool asked = j >= table.panel && j < 3 * table.panel;
        CHECK_EQ(is_poison(y.at(r, j)), !asked) << table.name << " column " << j;
      }
    }
  });
}

int main(int argc, char** argv) {
  return kvik::test::run_all(argc, argv);
}
