// Rows rounded to bfloat16, which is exact, and their products with bfloat16 weights, which have a
// bound: the order of additions is each instruction set's own. Whatever it is, a row's bits depend
// on that row alone.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <string_view>

#include "base/float16.h"
#include "base/thread_pool.h"
#include "kernels/support.h"

using namespace kvik::test;
using kvik::BFloat16;
using kvik::Range;
using kvik::ThreadPool;
using kvik::kernels::Activation;
using kvik::kernels::KernelTable;
using kvik::kernels::kGroup;
using kvik::kernels::kReferenceTable;
using kvik::kernels::MatmulEpilogue;
using kvik::kernels::rounded_stride;
using kvik::kernels::RoundedRows;

namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

struct Shape {
  std::int64_t rows, k, n;
};

// Every height of a tile and of two, every k of two steps of a tile and one more, columns around
// vectors and panels, chunks of rows.
std::vector<Shape> shapes() {
  std::vector<Shape> all;
  for (std::int64_t rows = 0; rows <= 33; ++rows) all.push_back({rows, 40, 70});
  for (std::int64_t k = 0; k <= 65; ++k) {
    for (const std::int64_t rows : {1, 5, 17}) all.push_back({rows, k, 20});
  }
  for (std::int64_t n = 0; n <= 33; ++n) all.push_back({2, 35, n});
  const Shape more[] = {{3, 33, 64},   {18, 64, 65},   {49, 33, 66},   {65, 32, 129}, {97, 64, 40},
                        {70, 300, 90}, {1, 1000, 130}, {33, 257, 128}, {7, 96, 193}};
  all.insert(all.end(), std::begin(more), std::end(more));
  return all;
}

std::uint16_t bits_of(float x) {
  return BFloat16::from_float(x);
}
float rounded(float x) {
  return BFloat16::to_float(bits_of(x));
}

// Numbers of 16 bits at the very end of a page, so that reading beyond them faults.
struct Halves {
  explicit Halves(std::int64_t count) : floats((count + 1) / 2) {}
  std::uint16_t* data() const { return reinterpret_cast<std::uint16_t*>(floats.data()); }
  Guarded floats;
};

// Elements of rounded rows without what lies behind the last one.
std::int64_t rounded_size(std::int64_t rows, std::int64_t k) {
  return rows == 0 ? 0 : (rows - 1) * rounded_stride(k) + (k + kGroup - 1) / kGroup * kGroup;
}

struct Rounded {
  Rounded(const KernelTable& table, const Matrix& x)
      : rows(x.rows), k(x.n), halves(rounded_size(x.rows, x.n)) {
    table.round_rows(x.data(), x.stride, x.rows, x.n, halves.data());
    CHECK(halves.floats.intact() && x.intact()) << table.name << " wrote outside";
  }
  RoundedRows view(std::int64_t begin, std::int64_t end) const {
    return {halves.data() + begin * rounded_stride(k), end - begin, k};
  }
  std::int64_t rows, k;
  Halves halves;
};

// Weights in a table's panels: whole lines at the end of a page.
struct Packed {
  Packed(const KernelTable& table, const Matrix& w)
      : panels((w.n + table.panel - 1) / table.panel),
        halves(panels * table.panel * ((w.rows + 1) / 2 * 2)) {
    for (std::int64_t p = 0; p < panels; ++p) {
      const std::int64_t first = p * table.panel;
      const auto columns = static_cast<int>(std::min<std::int64_t>(table.panel, w.n - first));
      std::vector<float> block;
      for (std::int64_t i = 0; i < w.rows; ++i) {
        block.insert(block.end(), w.row(i) + first, w.row(i) + first + columns);
      }
      table.pack_bf16(block.data(), w.rows, columns,
                      halves.data() + first * ((w.rows + 1) / 2 * 2));
    }
  }
  std::int64_t panels;
  Halves halves;
};

struct Case {
  Case(const Shape& shape, std::uint64_t stream)
      : s(shape),
        random(stream),
        x(s.rows, s.k, s.k + random.integer(0, 3), static_cast<int>(random.integer(0, 3)),
          random.integer(0, 1) ? Guarded::Side::kStart : Guarded::Side::kEnd),
        w(s.k, s.n, s.n),
        bias(s.n),
        residual(s.rows, s.n, s.n + random.integer(0, 3)) {
    x.fill(random, -1.0f, 1.0f);
    w.fill(random, -1.0f, 1.0f);
    bias.fill(random, -1.0f, 1.0f);
    residual.fill(random, -1.0f, 1.0f);
  }
  MatmulEpilogue epilogue(Activation activation = Activation::kNone) const {
    return {.bias = bias.data(),
            .activation = activation,
            .residual = residual.data(),
            .residual_stride = residual.stride};
  }
  std::string name(const KernelTable& table) const {
    return std::string(table.name) + " rows " + std::to_string(s.rows) + " k " +
           std::to_string(s.k) + " n " + std::to_string(s.n);
  }
  Shape s;
  Random random;
  Matrix x, w;
  Guarded bias;
  Matrix residual;
};

// Rows [row_begin, row_end) and panels [panel_begin, panel_end) of a product, into y.
void multiply_part(const KernelTable& table, const Case& c, const Packed& w, const Rounded& x,
                   MatmulEpilogue e, Range rows, Range panels, const Matrix& y) {
  if (e.residual) e.residual += rows.begin * e.residual_stride;
  table.matmul_bf16_rows(x.view(rows.begin, rows.end), w.halves.data(), c.s.n, panels.begin,
                         panels.end, e, y.data() + rows.begin * y.stride, y.stride);
}

std::vector<float> multiply(const KernelTable& table, const Case& c, const MatmulEpilogue& e) {
  const Rounded x(table, c.x);
  const Packed w(table, c.w);
  Matrix y(c.s.rows, c.s.n, c.s.n + 2);
  multiply_part(table, c, w, x, e, {0, c.s.rows}, {0, w.panels}, y);
  CHECK(y.intact() && x.halves.floats.intact() && w.halves.floats.intact())
      << c.name(table) << " wrote outside";
  return y.elements();
}

void for_each_table(const std::function<void(const KernelTable&)>& body) {
  for_each_isa([&](const KernelTable& table) {
    if (table.rounds_rows || table.matmul_bf16_rows != nullptr) body(table);
  });
}

bool is_emulated(const KernelTable& table) {
  return std::string_view(table.name).starts_with("emulated");
}

// The exact product of what is rounded, and a bound of the error to first order: each product takes
// part in k + 2 roundings, bias and residual are two more; what is subnormal may be lost whole,
// once for each factor and rounding.
void expect_within_bound(const KernelTable& table, const Case& c, const std::vector<float>& got,
                         double perturbation) {
  constexpr double kSmallest = 0x1p-126;
  std::vector<double> want, tolerance;
  for (std::int64_t r = 0; r < c.s.rows; ++r) {
    for (std::int64_t j = 0; j < c.s.n; ++j) {
      double sum = static_cast<double>(c.bias[j]) + c.residual.at(r, j);
      double norm = std::fabs(c.bias[j]) + std::fabs(c.residual.at(r, j)), lost = 0.0;
      for (std::int64_t i = 0; i < c.s.k; ++i) {
        const double x = rounded(c.x.at(r, i)), w = rounded(c.w.at(i, j));
        sum += x * w;
        norm += std::fabs(x * w);
        lost += kSmallest;
        if (std::fabs(x) < kSmallest || std::fabs(w) < kSmallest) lost += std::fabs(x * w);
      }
      want.push_back(sum);
      tolerance.push_back(static_cast<double>(c.s.k + 4) * kEps * norm + lost + 2 * kSmallest);
    }
  }
  expect_close(c.name(table), got, want, tolerance, perturbation);
}

}  // namespace

KVIK_TEST(rows_are_rounded_alike_everywhere) {
  std::uint64_t stream = 0;
  for (const std::int64_t k : lengths()) {
    for (int offset = 0; offset < 4; ++offset) {
      Random random(++stream);
      Matrix x(3, k, k + offset, offset, offset % 2 ? Guarded::Side::kStart : Guarded::Side::kEnd);
      x.fill(random, -3.0f, 3.0f);
      const float values[] = {0.0f,
                              -0.0f,
                              0x1.01p0f,
                              0x1.03p0f,
                              -0x1.01p0f,
                              0x1.010002p0f,
                              0x1p-130f,
                              0x1p-149f,
                              -0x1.8p-133f,
                              kInf,
                              -kInf,
                              kNan,
                              std::numeric_limits<float>::max(),
                              0x1.fep127f};
      for (std::int64_t i = 0; i < k; ++i) {
        x.at(1, i) = values[(i + offset) % static_cast<std::int64_t>(std::size(values))];
        const std::uint32_t any = static_cast<std::uint32_t>(random.bits());
        std::memcpy(&x.at(2, i), &any, sizeof any);  // any bits: NaNs of every payload, tiny ones
      }
      for_each_isa([&](const KernelTable& table) {
        const Rounded got(table, x);
        const std::int64_t padded = (k + kGroup - 1) / kGroup * kGroup;
        std::int64_t wrong = 0, untouched = 0, gaps = 0;
        for (std::int64_t r = 0; r < 3; ++r) {
          const std::uint16_t* row = got.view(r, 3).data;
          for (std::int64_t i = 0; i < padded; ++i) {
            wrong += row[i] != (i < k ? bits_of(x.at(r, i)) : 0);
          }
          if (r == 2) break;
          for (std::int64_t i = padded; i < rounded_stride(k); i += 2, ++gaps) {
            float gap;
            std::memcpy(&gap, row + i, sizeof gap);
            untouched += is_poison(gap);
          }
        }
        CHECK_EQ(wrong, 0) << table.name << " k " << k << " offset " << offset;
        CHECK_EQ(untouched, gaps) << table.name << " k " << k << " wrote between the rows";
      });
    }
  }
  // What the comparison above holds them to: ties to even, NaNs that stay NaNs, tiny ones that
  // stay.
  CHECK_EQ(bits_of(0x1.01p0f), 0x3f80);
  CHECK_EQ(bits_of(0x1.03p0f), 0x3f82);
  CHECK_EQ(bits_of(0x1.010002p0f), 0x3f81);
  CHECK_EQ(bits_of(0x1p-133f), 0x0001);
  float signalling;
  const std::uint32_t nan_bits = 0x7f800001;
  std::memcpy(&signalling, &nan_bits, sizeof signalling);
  CHECK(std::isnan(rounded(signalling)));
}

KVIK_TEST(products_are_within_the_bound) {
  for_each_table([](const KernelTable& table) {
    std::uint64_t stream = 100;
    for (const Shape& s : shapes()) {
      const Case c(s, ++stream);
      expect_within_bound(table, c, multiply(table, c, c.epilogue()), 1e-2);
    }
  });
}

// On rows that are bfloat16 already the product of a table that widens weights is the same sum.
KVIK_TEST(both_products_agree) {
  for_each_table([](const KernelTable& table) {
    Case c({20, 100, 70}, 200);
    for (std::int64_t r = 0; r < c.s.rows; ++r) {
      for (std::int64_t i = 0; i < c.s.k; ++i) c.x.at(r, i) = rounded(c.x.at(r, i));
    }
    const Packed w(table, c.w);
    Matrix y(c.s.rows, c.s.n, c.s.n);
    table.matmul_bf16(c.x.data(), c.x.stride, c.s.rows, c.s.k, w.halves.data(), c.s.n, 0, w.panels,
                      c.epilogue(), y.data(), y.stride);
    expect_within_bound(table, c, y.elements(), 1e-2);
  });
}

KVIK_TEST(activations_follow_the_sum) {
  for_each_table([](const KernelTable& table) {
    const Case c({19, 50, 70}, 210);
    MatmulEpilogue plain = c.epilogue();
    plain.residual = nullptr;
    const std::vector<float> sums = multiply(table, c, plain);
    const std::vector<float> got = multiply(table, c, c.epilogue(Activation::kRelu));
    for (std::size_t i = 0; i < got.size(); ++i) {
      const auto at = static_cast<std::int64_t>(i);
      const float want = std::max(sums[i], 0.0f) + c.residual.at(at / c.s.n, at % c.s.n);
      CHECK_EQ(got[i], want) << table.name << " element " << i;
    }
  });
}

// A row's bits are the same alone and in any company, a column's whatever range of panels is asked
// for, and nobody sees how the work was shared.
KVIK_TEST(rows_and_columns_are_independent) {
  for_each_table([](const KernelTable& table) {
    std::uint64_t stream = 300;
    for (const Shape& s : shapes()) {
      const Case c(s, ++stream);
      const Rounded x(table, c.x);
      const Packed w(table, c.w);
      const MatmulEpilogue e = c.epilogue(Activation::kGeluErf);
      const std::vector<float> whole = multiply(table, c, e);
      for (const std::int64_t chunk : {1, 2, 6, 15, 16, 17, 32, 48}) {
        if (chunk >= s.rows && chunk > 1) continue;
        Matrix y(s.rows, s.n, s.n + 1);
        for (std::int64_t r = 0; r < s.rows; r += chunk) {
          multiply_part(table, c, w, x, e, {r, std::min(s.rows, r + chunk)}, {0, w.panels}, y);
        }
        CHECK(same_bits(y.elements(), whole)) << c.name(table) << " in chunks of " << chunk;
      }
      Matrix by_panel(s.rows, s.n, s.n + 1);
      for (std::int64_t p = w.panels - 1; p >= 0; --p) {
        multiply_part(table, c, w, x, e, {0, s.rows}, {p, p + 1}, by_panel);
      }
      CHECK(same_bits(by_panel.elements(), whole)) << c.name(table) << " panel by panel";

      Matrix in_place(s.rows, s.n, c.residual.stride);  // the residual is y itself
      for (std::int64_t r = 0; r < s.rows; ++r) {
        std::copy(c.residual.row(r), c.residual.row(r) + s.n, in_place.row(r));
      }
      MatmulEpilogue own = e;
      own.residual = in_place.data();
      multiply_part(table, c, w, x, own, {0, s.rows}, {0, w.panels}, in_place);
      CHECK(same_bits(in_place.elements(), whole)) << c.name(table) << " residual in place";

      std::vector<float> changed = whole;
      if (changed.empty()) continue;
      changed.back() = std::nextafter(changed.back(), 1e9f);
      CHECK(!same_bits(changed, whole)) << "the comparison notices nothing";
    }
  });
}

KVIK_TEST(threads_do_not_change_a_bit) {
  for_each_table([](const KernelTable& table) {
    const Case c({37, 100, 400}, 400);
    const Packed w(table, c.w);
    const std::vector<float> want = multiply(table, c, c.epilogue());
    for (const int threads : {1, 2, 3}) {
      ThreadPool pool(threads);
      for (const bool by_rows : {false, true}) {
        const Rounded x(table, c.x);
        Matrix y(c.s.rows, c.s.n, c.s.n);
        pool.run([&](int worker, int workers) {
          const Range part = kvik::split_range(by_rows ? c.s.rows : w.panels, worker, workers);
          multiply_part(table, c, w, x, c.epilogue(), by_rows ? part : Range{0, c.s.rows},
                        by_rows ? Range{0, w.panels} : part, y);
        });
        CHECK(same_bits(y.elements(), want)) << table.name << " with " << threads << " threads";
      }
    }
  });
}

// Columns that are not asked for stay as they were, and a panel does not see its neighbour: neither
// through its columns nor through the k that pad the last step.
KVIK_TEST(panels_do_not_touch_each_other) {
  for_each_table([](const KernelTable& table) {
    for (const std::int64_t k : {31, 32, 33, 45, 70}) {
      for (const std::int64_t rows : {1, 18}) {
        const std::int64_t width = table.panel;
        const Case c({rows, k, 3 * width + 5}, 500);
        for (std::int64_t i = 0; i < k; ++i) {
          for (std::int64_t j = 2 * width; j < c.s.n; ++j) c.w.at(i, j) = j % 2 ? kInf : kNan;
        }
        const Rounded x(table, c.x);
        const Packed w(table, c.w);
        Matrix y(rows, c.s.n, c.s.n);
        multiply_part(table, c, w, x, {}, {0, rows}, {1, 2}, y);
        for (std::int64_t r = 0; r < rows; ++r) {
          for (std::int64_t j = 0; j < c.s.n; ++j) {
            const bool asked = j / width == 1;
            CHECK(asked ? std::isfinite(y.at(r, j)) : is_poison(y.at(r, j)))
                << c.name(table) << " row " << r << " column " << j;
          }
        }
      }
    }
  });
}

KVIK_TEST(numbers_that_are_not_finite_stay_in_their_row_and_column) {
  for_each_table([](const KernelTable& table) {
    for (const std::int64_t rows : {1, 3, 20}) {
      const Case c({rows, 45, 70}, 600);
      c.x.at(rows - 1, 44) = kNan;
      c.w.at(44, 3) = kInf;
      const std::vector<float> y = multiply(table, c, {});
      for (std::int64_t r = 0; r < rows; ++r) {
        for (std::int64_t j = 0; j < c.s.n; ++j) {
          const float got = y[static_cast<std::size_t>(r * c.s.n + j)];
          const bool finite = r != rows - 1 && j != 3;
          CHECK_EQ(std::isfinite(got), finite) << c.name(table) << " row " << r << " column " << j;
          CHECK(r != rows - 1 || std::isnan(got)) << c.name(table) << " column " << j;
        }
      }
    }
  });
}

KVIK_TEST(subnormal_numbers_are_within_the_bound) {
  for_each_table([](const KernelTable& table) {
    for (const std::int64_t rows : {1, 17}) {
      const Case c({rows, 67, 40}, 700);
      for (std::int64_t i = 0; i < c.s.k; ++i) {
        for (std::int64_t r = 0; r < rows; ++r) {
          c.x.at(r, i) *= i % 3 == 0 ? 0x1p-128f : i % 3 == 1 ? 0x1p-70f : 1.0f;
        }
        for (std::int64_t j = 0; j < c.s.n; ++j) {
          c.w.at(i, j) *= j % 4 == 0 ? 0x1p-126f : j % 4 == 1 ? 0x1p-60f : 1.0f;
        }
      }
      for (std::int64_t j = 0; j < c.s.n; ++j) c.bias[j] = 0.0f;
      for (std::int64_t r = 0; r < rows; ++r) {
        for (std::int64_t j = 0; j < c.s.n; ++j) c.residual.at(r, j) = 0.0f;
      }
      expect_within_bound(table, c, multiply(table, c, c.epilogue()), 1e-2);
    }
  });
}

// The instructions in software, and that the kernels put them together as they say: bit by bit what
// the documented order gives, k by k.
KVIK_TEST(the_documented_order) {
  for_each_table([](const KernelTable& table) {
    if (!is_emulated(table)) return;
    const bool tiles = table.isa == kvik::kernels::Isa::kAmx;
    for (const std::int64_t k : {1, 2, 31, 32, 33, 64, 77, 130}) {
      const Case c({18, k, 70}, 800);
      const std::vector<float> y = multiply(table, c, {});
      const auto product = [&](std::int64_t r, std::int64_t i, std::int64_t j, float sum) {
        return i < k ? std::fma(rounded(c.x.at(r, i)), rounded(c.w.at(i, j)), sum) : sum;
      };
      for (std::int64_t r = 0; r < c.s.rows; ++r) {
        for (std::int64_t j = 0; j < c.s.n; ++j) {
          float sum = 0.0f;
          for (std::int64_t begin = 0; begin < k; begin += 32) {
            float even = 0.0f, odd = 0.0f;
            for (std::int64_t i = begin; i < begin + 32; i += 2) {
              if (tiles) {
                even = product(r, i, j, even);
                odd = product(r, i + 1, j, odd);
              } else {
                sum = product(r, i, j, product(r, i + 1, j, sum));
              }
            }
            if (tiles) sum = sum + (even + odd);
          }
          CHECK_EQ(y[static_cast<std::size_t>(r * c.s.n + j)], sum)
              << c.name(table) << " row " << r << " column " << j;
        }
      }
    }
  });
}

// Subnormal numbers are zeros to the instructions, as operands and as results.
KVIK_TEST(emulated_instructions_flush) {
  const struct {
    float x, w, want;
  } products[] = {
      {0x1p-127f, 1.0f, 0.0f},       {0x1p-127f, 0x1p100f, 0.0f},     {0x1p-126f, 1.0f, 0x1p-126f},
      {0x1p-63f, 0x1p-64f, 0.0f},    {0x1p-63f, 0x1p-63f, 0x1p-126f}, {1.0f, -0x1p-130f, 0.0f},
      {0x1.fep-64f, 0x1p-63f, 0.0f},
  };
  for_each_table([&](const KernelTable& table) {
    if (!is_emulated(table)) return;
    for (const auto& p : products) {
      const Case c({1, 1, 1}, 900);
      c.x.at(0, 0) = p.x;
      c.w.at(0, 0) = p.w;
      CHECK_EQ(multiply(table, c, {})[0], p.want) << table.name << ": " << p.x << " times " << p.w;
    }
  });
}

int main(int argc, char** argv) {
  return kvik::test::run_all(argc, argv);
}
