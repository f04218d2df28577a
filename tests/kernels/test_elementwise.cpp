// Element-wise slots: every length, misalignment and alias, guards on both sides, and the promise
// that an element's result depends on nothing but the element.
#include <cmath>
#include <limits>

#include "kernels/support.h"

using namespace kvik::test;
using kvik::kernels::Binary;
using kvik::kernels::KernelTable;
using kvik::kernels::kReferenceTable;
using kvik::kernels::Unary;
using Side = Guarded::Side;

namespace {

constexpr int kUnaries = static_cast<int>(Unary::kSquare) + 1;
constexpr int kBinaries = static_cast<int>(Binary::kMax) + 1;

// Inputs with some of everything: ordinary numbers, large ones (beyond the trigonometric range),
// zeros, infinities and NaN.
void fill_mixed(const Guarded& buffer, Random& random) {
  const float inf = std::numeric_limits<float>::infinity();
  const float special[] = {0.0f, -0.0f, inf, -inf, std::nanf(""), 1e-40f, 3e5f, -1e30f};
  for (std::int64_t i = 0; i < buffer.size(); ++i) {
    buffer[i] =
        random.integer(0, 9) == 0 ? special[random.integer(0, 7)] : random.uniform(-10.0f, 10.0f);
  }
}

// The element computed alone: the whole buffer must agree bit by bit. What a single element is
// worth is the business of test_math.
float alone(const KernelTable& table, Unary f, float x) {
  float y = 0.0f;
  table.unary_f32(f, &x, 1, &y);
  return y;
}

bool same_value(float a, float b) {
  return same_bits(a, b) || (std::isnan(a) && std::isnan(b));
}

}  // namespace

KVIK_TEST(unary_every_place) {
  for_each_isa([](const KernelTable& table) {
    Random random(1);
    for (int f = 0; f < kUnaries; ++f) {
      const Unary function = static_cast<Unary>(f);
      for (std::int64_t n : lengths()) {
        for (Side side : {Side::kStart, Side::kEnd}) {
          const int offset = static_cast<int>(random.integer(0, 3));
          Guarded x(n, offset, side), y(n, static_cast<int>(random.integer(0, 3)), side);
          fill_mixed(x, random);
          Guarded in_place(n, 0, side);
          in_place.copy_from(x);
          table.unary_f32(function, x.data(), n, y.data());
          table.unary_f32(function, in_place.data(), n, in_place.data());
          for (std::int64_t i = 0; i < n; ++i) {
            const float want = alone(table, function, x[i]);
            CHECK(same_value(y[i], want)) << table.name << " function " << f << " n " << n << " at "
                                          << i << ": " << show(y[i]) << ", alone " << show(want);
            CHECK(same_value(in_place[i], want)) << table.name << " in place, function " << f;
          }
          CHECK(x.intact() && y.intact() && in_place.intact())
              << table.name << " wrote outside, function " << f << " n " << n;
        }
      }
    }
  });
}

// IEEE operations have one right answer: every table agrees with the reference bit by bit.
KVIK_TEST(binary_every_place) {
  for_each_isa([](const KernelTable& table) {
    Random random(2);
    for (int f = 0; f < kBinaries; ++f) {
      const Binary function = static_cast<Binary>(f);
      for (std::int64_t n : lengths()) {
        for (int steps = 0; steps < 4; ++steps) {
          const int a_step = steps & 1, b_step = steps >> 1;
          const Side side = random.integer(0, 1) ? Side::kStart : Side::kEnd;
          Guarded a(a_step ? n : 1, static_cast<int>(random.integer(0, 3)), side);
          Guarded b(b_step ? n : 1, static_cast<int>(random.integer(0, 3)), side);
          Guarded y(n, 0, side), want(n);
          fill_mixed(a, random);
          fill_mixed(b, random);
          table.binary_f32(function, a.data(), a_step, b.data(), b_step, n, y.data());
          kReferenceTable.binary_f32(function, a.data(), a_step, b.data(), b_step, n, want.data());
          for (std::int64_t i = 0; i < n; ++i) {
            CHECK(same_value(y[i], want[i]))
                << table.name << " function " << f << " n " << n << " steps " << a_step << b_step
                << " of " << show(a[i * a_step]) << ", " << show(b[i * b_step]) << ": "
                << show(y[i]) << ", want " << show(want[i]);
          }
          CHECK(a.intact() && b.intact() && y.intact()) << table.name << " wrote outside";
          if (a_step == 1) {  // in place
            table.binary_f32(function, a.data(), a_step, b.data(), b_step, n, a.data());
            for (std::int64_t i = 0; i < n; ++i) CHECK(same_value(a[i], want[i])) << table.name;
          }
        }
      }
    }
  });
}

KVIK_TEST(silu_mul_every_place) {
  for_each_isa([](const KernelTable& table) {
    Random random(3);
    for (std::int64_t n : lengths()) {
      Guarded gate(n, static_cast<int>(random.integer(0, 3))), up(n), y(n);
      gate.fill(random, -20.0f, 20.0f);
      up.fill(random, -2.0f, 2.0f);
      table.silu_mul_f32(gate.data(), up.data(), n, y.data());
      for (std::int64_t i = 0; i < n; ++i) {
        const float want = alone(table, Unary::kSilu, gate[i]) * up[i];
        CHECK(same_bits(y[i], want)) << table.name << " n " << n << " at " << i;
      }
      CHECK(gate.intact() && up.intact() && y.intact()) << table.name;
      Guarded in_gate(n), in_up(n);
      in_gate.copy_from(gate);
      in_up.copy_from(up);
      table.silu_mul_f32(in_gate.data(), up.data(), n, in_gate.data());
      table.silu_mul_f32(gate.data(), in_up.data(), n, in_up.data());
      for (std::int64_t i = 0; i < n; ++i) {
        CHECK(same_bits(in_gate[i], y[i]) && same_bits(in_up[i], y[i])) << table.name;
      }
    }
  });
}

int main(int argc, char** argv) {
  return kvik::test::run_all(argc, argv);
}
