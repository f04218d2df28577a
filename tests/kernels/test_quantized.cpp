// Low-precision products. Integer sums are exact and what follows has one fixed order, so all
// tables agree bit by bit; the reference itself is held against the equations in double.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "base/aligned_buffer.h"
#include "base/float16.h"
#include "kernels/support.h"

using namespace kvik::test;
using kvik::AlignedBuffer;
using kvik::BFloat16;
using kvik::Float16;
using kvik::kernels::Activation;
using kvik::kernels::IntegerPanels;
using kvik::kernels::KernelTable;
using kvik::kernels::kGroup;
using kvik::kernels::kReferenceTable;
using kvik::kernels::MatmulEpilogue;
using kvik::kernels::QuantizedRows;
using kvik::kernels::RowOutliers;

namespace {

enum class Kind : std::uint8_t { kI8, kI4, kBF16 };
constexpr Kind kKinds[] = {Kind::kI8, Kind::kI4, Kind::kBF16};
const char* const kKindNames[] = {"int8", "int4", "bf16"};

struct Shape {
  std::int64_t rows, k, n;
};
// Row counts around every tile height and chunk, columns around vectors and panels, k around groups
// and, for bfloat16, odd.
const Shape kShapes[] = {
    {1, 1, 1},    {1, 31, 15},  {1, 32, 16},  {1, 33, 17},   {2, 64, 63},   {3, 96, 64},
    {4, 65, 65},  {5, 127, 96}, {6, 128, 33}, {7, 129, 128}, {8, 40, 129},  {12, 64, 40},
    {13, 32, 70}, {47, 64, 32}, {48, 96, 64}, {49, 33, 66},  {97, 64, 40},  {1, 1000, 130},
    {9, 512, 64}, {0, 32, 16},  {3, 32, 0},   {31, 96, 48},  {33, 128, 64}, {70, 300, 90},
};

std::int64_t round_up(std::int64_t x, std::int64_t unit) {
  return (x + unit - 1) / unit * unit;
}

// Weights as the layouts store them, independent of any table: u[k, n], and scales.
struct Stored {
  Stored(Kind kind_, std::int64_t k_, std::int64_t n_, Random& random)
      : kind(kind_), k(k_), n(n_), groups(round_up(k_, kGroup) / kGroup) {
    const int most = kind == Kind::kI8 ? 255 : kind == Kind::kI4 ? 15 : 0xffff;
    for (std::int64_t i = 0; i < k * n; ++i) {
      if (kind == Kind::kBF16) {
        u.push_back(BFloat16::from_float(random.uniform(-1.0f, 1.0f)));
      } else {
        // Extremes often: sums that saturate show there.
        const auto place = random.integer(0, 3);
        u.push_back(static_cast<std::uint16_t>(place == 0   ? 0
                                               : place == 1 ? most
                                                            : random.integer(0, most)));
      }
    }
    for (std::int64_t i = 0; i < groups * n; ++i) {
      group_scale.push_back(Float16::from_float(random.uniform(-1.0f, 1.0f)));
    }
    for (std::int64_t c = 0; c < n; ++c) column_scale.push_back(random.uniform(0.001f, 0.1f));
  }
  std::uint16_t at(std::int64_t i, std::int64_t c) const {
    if (i >= k || c >= n) return kind == Kind::kI8 ? 128 : kind == Kind::kI4 ? 8 : 0;
    return u[static_cast<std::size_t>(i * n + c)];
  }
  std::uint16_t scale_at(std::int64_t g, std::int64_t c) const {
    return c < n ? group_scale[static_cast<std::size_t>(g * n + c)] : std::uint16_t{0};
  }
  double weight(std::int64_t i, std::int64_t c) const {
    const auto column = static_cast<std::size_t>(c);
    if (kind == Kind::kBF16) return BFloat16::to_float(at(i, c));
    if (kind == Kind::kI8) return (at(i, c) - 128) * static_cast<double>(column_scale[column]);
    return (at(i, c) - 8) * static_cast<double>(Float16::to_float(scale_at(i / kGroup, c))) *
           column_scale[column];
  }

  Kind kind;
  std::int64_t k, n, groups;
  std::vector<std::uint16_t> u, group_scale;
  std::vector<float> column_scale;
};

// The same in the panels of a table.
struct Packed {
  Packed(const KernelTable& table, const Stored& w)
      : panels((w.n + table.panel - 1) / table.panel),
        scale(static_cast<std::size_t>(panels * table.panel) * sizeof(float)) {
    std::vector<std::uint8_t> bytes;
    for (std::int64_t p = 0; p < panels; ++p) append(w, table.panel, p * table.panel, bytes);
    buffer = AlignedBuffer(bytes.size());
    if (!bytes.empty()) std::memcpy(buffer.data(), bytes.data(), bytes.size());
    std::fill_n(scale.as<float>(), panels * table.panel, 0.0f);
    std::copy(w.column_scale.begin(), w.column_scale.end(), scale.as<float>());
  }
  static void append(const Stored& w, int width, std::int64_t first,
                     std::vector<std::uint8_t>& out) {
    const auto half = [&](std::uint16_t value) {
      out.push_back(static_cast<std::uint8_t>(value & 0xff));
      out.push_back(static_cast<std::uint8_t>(value >> 8));
    };
    if (w.kind == Kind::kBF16) {
      for (std::int64_t i = 0; i < w.k; i += 2) {
        for (int c = 0; c < width; ++c) {
          half(w.at(i, first + c));
          half(w.at(i + 1, first + c));
        }
      }
      return;
    }
    for (std::int64_t g = 0; g < w.groups; ++g) {
      const std::int64_t begin = g * kGroup;
      if (w.kind == Kind::kI4) {
        for (int c = 0; c < width; ++c) half(w.scale_at(g, first + c));
      }
      const int step = w.kind == Kind::kI4 ? 8 : 4;
      for (std::int64_t i = begin; i < begin + kGroup; i += step) {
        for (int c = 0; c < width; ++c) {
          for (int j = 0; j < 4; ++j) {
            int value = w.at(i + j, first + c);
            if (w.kind == Kind::kI4) value |= w.at(i + 4 + j, first + c) << 4;
            out.push_back(static_cast<std::uint8_t>(value));
          }
        }
      }
    }
  }
  std::int64_t panels;
  AlignedBuffer buffer, scale;
};

// Rows as a table quantises them.
struct Rows {
  Rows(const KernelTable& table, const Matrix& x)
      : groups(round_up(x.n, kGroup) / kGroup),
        count(x.rows),
        q(static_cast<std::size_t>(x.rows * groups * kGroup)),
        scale(static_cast<std::size_t>(x.rows)),
        sums(static_cast<std::size_t>(x.rows * (groups + 1))),
        outliers(static_cast<std::size_t>(x.rows)) {
    // Without the sums of groups first: what is left is what int8 weights are multiplied with.
    table.quantize_rows(x.data(), x.stride, x.rows, x.n, false, q.data(), scale.data(), sums.data(),
                        outliers.data());
    const std::vector<std::int32_t> without = sums;
    table.quantize_rows(x.data(), x.stride, x.rows, x.n, true, q.data(), scale.data(), sums.data(),
                        outliers.data());
    for (std::int64_t r = 0; r < x.rows; ++r) {
      const auto total = static_cast<std::size_t>(r * (groups + 1) + groups);
      CHECK_EQ(without[total], sums[total]) << table.name;
    }
  }
  // What stands for x[r, i].
  double value(std::int64_t r, std::int64_t i) const {
    const RowOutliers& own = outliers[static_cast<std::size_t>(r)];
    for (int j = 0; j < own.count; ++j) {
      if (own.place[j] == i) return own.value[j];
    }
    return q[static_cast<std::size_t>(r * groups * kGroup + i)] *
           static_cast<double>(scale[static_cast<std::size_t>(r)]);
  }
  std::vector<std::int32_t> places(std::int64_t r) const {
    const RowOutliers& own = outliers[static_cast<std::size_t>(r)];
    return {own.place, own.place + own.count};
  }
  QuantizedRows view(std::int64_t begin, std::int64_t end) const {
    return {.q = q.data() + begin * groups * kGroup,
            .scale = scale.data() + begin,
            .sums = sums.data() + begin * (groups + 1),
            .outliers = outliers.data() + begin,
            .rows = end - begin,
            .groups = groups};
  }
  std::int64_t groups, count;
  std::vector<std::int8_t> q;
  std::vector<float> scale;
  std::vector<std::int32_t> sums;
  std::vector<RowOutliers> outliers;
};

// Every third row has elements that are far larger than the others, up to more than are set apart.
struct Case {
  Case(Kind kind, const Shape& shape, std::uint64_t stream)
      : s(shape),
        random(stream),
        x(s.rows, s.k, s.k + random.integer(0, 3), static_cast<int>(random.integer(0, 3))),
        w(kind, s.k, s.n, random),
        bias(s.n),
        residual(s.rows, s.n, s.n + random.integer(0, 3)) {
    x.fill(random, -1.0f, 1.0f);
    for (std::int64_t r = 0; r < s.rows; r += 3) {
      for (auto i = random.integer(1, RowOutliers::kMost + 2); i > 0; --i) {
        x.at(r, random.integer(0, s.k - 1)) *= random.uniform(20.0f, 90.0f);
      }
    }
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
    return std::string(table.name) + " " + kKindNames[static_cast<int>(w.kind)] + " rows " +
           std::to_string(s.rows) + " k " + std::to_string(s.k) + " n " + std::to_string(s.n);
  }
  Shape s;
  Random random;
  Matrix x;
  Stored w;
  Guarded bias;
  Matrix residual;
};

// Rows [row_begin, row_end) and panels [panel_begin, panel_end) of a product, into y.
void multiply_part(const KernelTable& table, const Case& c, const Packed& w, const Rows& rows,
                   MatmulEpilogue e, std::int64_t row_begin, std::int64_t row_end,
                   std::int64_t panel_begin, std::int64_t panel_end, const Matrix& y) {
  float* to = y.data() + row_begin * y.stride;
  if (e.residual) e.residual += row_begin * e.residual_stride;
  if (c.w.kind == Kind::kBF16) {
    table.matmul_bf16(c.x.data() + row_begin * c.x.stride, c.x.stride, row_end - row_begin, c.s.k,
                      w.buffer.as<std::uint16_t>(), c.s.n, panel_begin, panel_end, e, to, y.stride);
    return;
  }
  const IntegerPanels panels{w.buffer.as<std::uint8_t>(), w.scale.as<float>()};
  const auto product = c.w.kind == Kind::kI8 ? table.matmul_i8 : table.matmul_i4;
  product(rows.view(row_begin, row_end), panels, c.s.n, panel_begin, panel_end, e, to, y.stride);
}

std::vector<float> multiply(const KernelTable& table, const Case& c, const Packed& w,
                            const MatmulEpilogue& e) {
  const Rows rows(table, c.x);
  Matrix y(c.s.rows, c.s.n, c.s.n + 2);
  multiply_part(table, c, w, rows, e, 0, c.s.rows, 0, w.panels, y);
  CHECK(y.intact() && c.x.intact()) << c.name(table) << " wrote outside";
  return y.elements();
}

void for_each_case(const std::function<void(const Case&)>& body) {
  std::uint64_t stream = 0;
  for (const Kind kind : kKinds) {
    for (const Shape& s : kShapes) body(Case(kind, s, ++stream));
  }
}

}  // namespace

// |error| of the fp32 chain: (steps + 4)·eps·Σ|x||w|, to first order; the rows' own rounding is not
// an error here, the expected value takes the quantised rows.
KVIK_TEST(reference_follows_the_equations) {
  for_each_case([](const Case& c) {
    const Packed packed(kReferenceTable, c.w);
    const Rows rows(kReferenceTable, c.x);
    const std::vector<float> y = multiply(kReferenceTable, c, packed, c.epilogue());
    std::vector<double> want, tolerance;
    for (std::int64_t r = 0; r < c.s.rows; ++r) {
      for (std::int64_t j = 0; j < c.s.n; ++j) {
        double sum = static_cast<double>(c.bias[j]) + c.residual.at(r, j);
        double norm = std::fabs(c.bias[j]) + std::fabs(c.residual.at(r, j));
        for (std::int64_t i = 0; i < c.s.k; ++i) {
          const double x = c.w.kind == Kind::kBF16 ? c.x.at(r, i) : rows.value(r, i);
          sum += x * c.w.weight(i, j);
          norm += std::fabs(x * c.w.weight(i, j));
        }
        want.push_back(sum);
        tolerance.push_back(static_cast<double>(c.s.k + 4) * kEps * norm);
      }
    }
    expect_close(c.name(kReferenceTable), y, want, tolerance, 1e-2);
  });
}

KVIK_TEST(tables_agree_bit_by_bit) {
  for_each_case([](const Case& c) {
    const std::vector<float> want =
        multiply(kReferenceTable, c, Packed(kReferenceTable, c.w), c.epilogue(Activation::kRelu));
    for_each_vector_isa([&](const KernelTable& table) {
      std::vector<float> y = multiply(table, c, Packed(table, c.w), c.epilogue(Activation::kRelu));
      CHECK(same_bits(y, want)) << c.name(table);
      if (y.empty()) return;
      y.back() = std::nextafter(y.back(), 1e9f);
      CHECK(!same_bits(y, want)) << "the comparison notices nothing";
    });
  });
}

KVIK_TEST(rows_and_columns_are_independent) {
  for_each_isa([](const KernelTable& table) {
    for_each_case([&](const Case& c) {
      const Packed packed(table, c.w);
      const Rows rows(table, c.x);
      const MatmulEpilogue e = c.epilogue(Activation::kGeluErf);
      const std::vector<float> whole = multiply(table, c, packed, e);
      Matrix by_row(c.s.rows, c.s.n, c.s.n), by_panel(c.s.rows, c.s.n, c.s.n);
      for (std::int64_t r = 0; r < c.s.rows; ++r) {
        multiply_part(table, c, packed, rows, e, r, r + 1, 0, packed.panels, by_row);
      }
      for (std::int64_t p = packed.panels - 1; p >= 0; --p) {
        multiply_part(table, c, packed, rows, e, 0, c.s.rows, p, p + 1, by_panel);
      }
      CHECK(same_bits(by_row.elements(), whole)) << c.name(table) << " row by row";
      CHECK(same_bits(by_panel.elements(), whole)) << c.name(table) << " panel by panel";
    });
  });
}

// All weights and rows at the ends of their ranges: where 16-bit sums would saturate.
KVIK_TEST(extremes_do_not_saturate) {
  for (const Kind kind : {Kind::kI8, Kind::kI4}) {
    for (const int end : {0, 1}) {
      Case c(kind, {5, 256, 70}, 900);
      std::fill(c.w.u.begin(), c.w.u.end(),
                static_cast<std::uint16_t>(end == 0            ? 0
                                           : kind == Kind::kI8 ? 255
                                                               : 15));
      for (std::int64_t r = 0; r < 5; ++r) {
        for (std::int64_t i = 0; i < 256; ++i) c.x.at(r, i) = r % 2 == 0 ? 1.0f : -1.0f;
      }
      const std::vector<float> want =
          multiply(kReferenceTable, c, Packed(kReferenceTable, c.w), {});
      const double sum = 256.0 * 127.0 * (kind == Kind::kI8 ? end * 255 - 128 : end * 15 - 8);
      if (kind == Kind::kI8) {
        const double expected = sum * c.w.column_scale[0] / 127.0;
        CHECK(std::fabs(want[0] - expected) <= 1e-5 * std::fabs(expected)) << want[0];
      }
      for_each_vector_isa([&](const KernelTable& table) {
        CHECK(same_bits(multiply(table, c, Packed(table, c.w), {}), want)) << c.name(table);
      });
    }
  }
}

KVIK_TEST(rows_are_quantised_alike_everywhere) {
  const float inf = std::numeric_limits<float>::infinity();
  const float nan = std::numeric_limits<float>::quiet_NaN();
  for (const std::int64_t n : {1, 7, 31, 32, 33, 64, 100, 257}) {
    Random random(static_cast<std::uint64_t>(n));
    Matrix x(12, n, n + 1);
    x.fill(random, -3.0f, 3.0f);
    for (std::int64_t i = 0; i < n; ++i) {
      x.at(0, i) = 0.0f;
      x.at(1, i) *= 1e-32f;  // too small to matter
      x.at(2, i) *= 1e-29f;
      x.at(3, i) *= 1e38f;
      x.at(4, i) = static_cast<float>(i % 5) - 2.5f;  // halves: ties
    }
    x.at(5, n - 1) = nan;
    x.at(6, 0) = inf;
    x.at(7, n / 2) = -inf;
    const Rows want(kReferenceTable, x);
    for (std::int64_t r = 0; r < 12; ++r) {
      const float scale = want.scale[static_cast<std::size_t>(r)];
      CHECK_EQ(std::isnan(scale), r >= 5 && r <= 7) << "row " << r;
      CHECK_EQ(want.places(r).size(), 0U) << "row " << r;
      if (r == 0 || r == 1) {
        CHECK_EQ(scale, 0.0f);
      }
      if (r >= 5 && r <= 7) continue;
      for (std::int64_t i = 0; i < n; ++i) {  // within half a step
        CHECK(std::fabs(want.value(r, i) - x.at(r, i)) <= 0.5001 * scale + 1e-30)
            << "row " << r << " at " << i;
      }
    }
    for_each_vector_isa([&](const KernelTable& table) {
      const Rows got(table, x);
      CHECK(got.q == want.q) << table.name << " n " << n;
      CHECK(got.sums == want.sums) << table.name << " n " << n;
      CHECK(same_bits(got.scale, want.scale) ||
            std::equal(got.scale.begin(), got.scale.end(), want.scale.begin(),
                       [](float a, float b) { return a == b || (a != a && b != b); }))
          << table.name << " n " << n;
    });
  }
}

// Rows of ones, but for a few elements; which of them are set apart.
KVIK_TEST(few_large_elements_are_set_apart) {
  constexpr std::int64_t kN = 2000;  // not whole groups
  using Elements = std::vector<std::pair<std::int64_t, float>>;
  struct {
    const char* what;
    Elements elements;
    std::vector<std::int32_t> places;
    float largest_rest;
  } const kRows[] = {
      {"none", {}, {}, 1.0f},
      {"one", {{70, -50.0f}}, {70}, 1.0f},
      {"the first and the last", {{1999, 1e30f}, {0, 2e30f}}, {0, 1999}, 1.0f},
      {"not large enough", {{3, 7.0f}}, {}, 7.0f},
      {"as many as there is room for",
       {{9, 60.0f},
        {8, 61.0f},
        {7, 62.0f},
        {6, 63.0f},
        {5, 64.0f},
        {4, -65.0f},
        {3, 66.0f},
        {2, 67.0f}},
       {2, 3, 4, 5, 6, 7, 8, 9},
       1.0f},
      {"one more, the smallest of which is much smaller",
       {{90, 60.0f},
        {8, 61.0f},
        {7, 62.0f},
        {6, 63.0f},
        {5, 14.0f},
        {4, -65.0f},
        {3, 66.0f},
        {2, 67.0f},
        {100, 68.0f}},
       {2, 3, 4, 6, 7, 8, 90, 100},
       14.0f},
      {"one more, as large as the rest",
       {{9, 60.0f},
        {8, 60.0f},
        {7, 60.0f},
        {6, 60.0f},
        {5, 60.0f},
        {4, -60.0f},
        {3, 60.0f},
        {2, 60.0f},
        {100, 60.0f}},
       {},
       60.0f},
      {"equals: the first are kept",
       {{1, 90.0f},
        {9, 40.0f},
        {8, 40.0f},
        {7, 40.0f},
        {6, 40.0f},
        {5, 40.0f},
        {4, -40.0f},
        {3, 40.0f},
        {2, 40.0f},
        {100, 40.0f}},
       {1, 2, 3, 4, 5, 6, 7, 8},
       40.0f},
  };
  for (const auto& row : kRows) {
    Matrix x(1, kN, kN);
    for (std::int64_t i = 0; i < kN; ++i) x.at(0, i) = i % 2 == 0 ? 1.0f : -1.0f;
    for (const auto& [place, value] : row.elements) x.at(0, place) = value;
    const auto check = [&](const KernelTable& table) {
      const Rows got(table, x);
      CHECK(got.places(0) == row.places) << table.name << ": " << row.what;
      CHECK_EQ(got.scale[0], row.largest_rest / 127.0f) << table.name << ": " << row.what;
      std::int32_t total = 0;
      for (const std::int8_t q : got.q) total += q;
      CHECK_EQ(got.sums.back(), total) << table.name << ": " << row.what;
      for (std::int64_t i = 0; i < kN; ++i) {
        CHECK(std::fabs(got.value(0, i) - x.at(0, i)) <= 0.5001 * got.scale[0]) << row.what;
      }
    };
    check(kReferenceTable);
    for_each_vector_isa(check);
  }
  // Nothing but outliers: what remains is zeros.
  Matrix x(1, 64, 64);
  for (std::int64_t i = 0; i < 64; ++i) x.at(0, i) = i == 9 ? -3.0f : 0.0f;
  for_each_isa([&](const KernelTable& table) {
    const Rows got(table, x);
    CHECK(got.places(0) == std::vector<std::int32_t>{9}) << table.name;
    CHECK_EQ(got.scale[0], 0.0f);
    CHECK_EQ(got.value(0, 9), -3.0);
  });
}

// ---- Packing ------------------------------------------------------------------------------------

namespace {

// What a table stored of one panel's block [k, columns], decoded: weights, and what they are made
// of.
struct Decoded {
  std::vector<int> u;         // [k, columns]; bfloat16: the bits
  std::vector<float> scale;   // [k, columns]: the step of that weight; bfloat16: 1
  std::vector<float> column;  // [columns]
  bool padding_is_zero = true;
};

Decoded pack_and_decode(const KernelTable& table, Kind kind, const Guarded& block, std::int64_t k,
                        int columns) {
  const int width = table.panel;
  const std::int64_t groups = round_up(k, kGroup) / kGroup;
  const std::int64_t group_bytes = (2 + kGroup / 2) * width;
  const std::int64_t bytes = kind == Kind::kBF16 ? round_up(k, 2) * width * 2
                             : kind == Kind::kI8 ? groups * kGroup * width
                                                 : groups * group_bytes;
  // Floats, so that what is written beyond shows.
  const Guarded panel(bytes / 4), scales(width);
  auto* data = reinterpret_cast<std::uint8_t*>(panel.data());
  if (kind == Kind::kBF16) {
    table.pack_bf16(block.data(), k, columns, reinterpret_cast<std::uint16_t*>(data));
  } else {
    (kind == Kind::kI8 ? table.pack_i8 : table.pack_i4)(block.data(), k, columns, data,
                                                        scales.data());
  }
  CHECK(panel.intact() && scales.intact() && block.intact()) << table.name << " wrote outside";
  Decoded out;
  const std::int64_t padded = kind == Kind::kBF16 ? round_up(k, 2) : groups * kGroup;
  for (std::int64_t i = 0; i < padded; ++i) {
    for (int c = 0; c < width; ++c) {
      int u = 0;
      float scale = 1.0f;
      if (kind == Kind::kBF16) {
        const auto* at = data + ((i / 2 * width + c) * 2 + i % 2) * 2;
        u = at[0] | at[1] << 8;
      } else if (kind == Kind::kI8) {
        u = data[(i / 4 * width + c) * 4 + i % 4] - 128;
        scale = scales[c];
      } else {
        const std::uint8_t* group = data + i / kGroup * group_bytes;
        const std::int64_t place = i % kGroup;
        u = (group[2 * width + (place / 8 * width + c) * 4 + place % 4] >> (place % 8 / 4 * 4)) &
            0xf;
        u -= 8;
        scale =
            Float16::to_float(static_cast<std::uint16_t>(group[2 * c] | group[2 * c + 1] << 8)) *
            scales[c];
      }
      if (i < k && c < columns) {
        out.u.push_back(u);
        out.scale.push_back(scale);
      } else if (u != 0) {
        out.padding_is_zero = false;
      }
    }
  }
  if (kind != Kind::kBF16) out.column.assign(scales.data(), scales.data() + columns);
  return out;
}

}  // namespace

KVIK_TEST(weights_are_packed_alike_everywhere) {
  std::uint64_t stream = 2000;
  for (const Kind kind : kKinds) {
    for (const std::int64_t k : {1, 31, 32, 33, 64, 100}) {
      for (const int columns : {1, 7, 15, 16}) {
        Random random(++stream);
        const Guarded block(k * columns);
        block.fill(random, -2.0f, 2.0f);
        for (std::int64_t i = 0; i < k; ++i) {
          if (columns > 7) {
            block[i * columns + 3] = 0.0f;
            block[i * columns + 4] *= 1e-20f;
            block[i * columns + 5] = i == k - 1 ? 50.0f : block[i * columns + 5];  // an outlier
          }
        }
        const Decoded want = pack_and_decode(kReferenceTable, kind, block, k, columns);
        CHECK(want.padding_is_zero);
        for (std::size_t i = 0; i < want.u.size(); ++i) {
          const double w = block[static_cast<std::int64_t>(i)];
          const double got = kind == Kind::kBF16
                                 ? BFloat16::to_float(static_cast<std::uint16_t>(want.u[i]))
                                 : want.u[i] * static_cast<double>(want.scale[i]);
          // int4 gives the ends up where that serves the rest: at most 8.8 steps are cut to 8.
          const double steps = kind == Kind::kI4 ? 1.4 : 0.5001;
          const double bound =
              kind == Kind::kBF16 ? std::fabs(w) / 256 : std::fabs(want.scale[i]) * steps;
          CHECK(std::fabs(got - w) <= bound + 1e-36)
              << kKindNames[static_cast<int>(kind)] << " k " << k << " element " << i << ": " << w
              << " as " << got;
        }
        for_each_vector_isa([&](const KernelTable& table) {
          const Decoded got = pack_and_decode(table, kind, block, k, columns);
          CHECK(got.u == want.u && same_bits(got.scale, want.scale) && got.padding_is_zero)
              << table.name << " " << kKindNames[static_cast<int>(kind)] << " k " << k;
        });
      }
    }
  }
}

// Weights that can't be numbers must not turn into ones: the column's results are NaN.
KVIK_TEST(weights_that_are_not_finite) {
  for (const Kind kind : {Kind::kI8, Kind::kI4}) {
    for (const float bad :
         {std::numeric_limits<float>::infinity(), -std::numeric_limits<float>::infinity(),
          std::numeric_limits<float>::quiet_NaN()}) {
      for_each_isa([&](const KernelTable& table) {
        Random random(7);
        const Guarded block(40 * 3);
        block.fill(random, -1.0f, 1.0f);
        block[35 * 3 + 1] = bad;
        const Decoded got = pack_and_decode(table, kind, block, 40, 3);
        CHECK(std::isnan(got.column[1])) << table.name;
        CHECK(std::isfinite(got.column[0]) && std::isfinite(got.column[2])) << table.name;
      });
    }
  }
}

// Searching scales is worth it: less error than the plain choice of extreme / -8.
KVIK_TEST(int4_scales_are_better_than_plain_ones) {
  Random random(11);
  const Guarded block(kGroup * 16);
  double chosen = 0.0, plain = 0.0;
  for (int round = 0; round < 50; ++round) {
    block.fill(random, -1.0f, 1.0f);
    for (std::int64_t i = 0; i < block.size(); ++i) block[i] *= std::fabs(block[i]);  // peaked
    const Decoded got = pack_and_decode(kReferenceTable, Kind::kI4, block, kGroup, 16);
    for (int c = 0; c < 16; ++c) {
      double extreme = 0.0;
      for (int i = 0; i < kGroup; ++i) {
        const double w = block[i * 16 + c];
        if (std::fabs(w) > std::fabs(extreme)) extreme = w;
      }
      for (int i = 0; i < kGroup; ++i) {
        const auto at = static_cast<std::size_t>(i * 16 + c);
        const double w = block[i * 16 + c];
        const double step = extreme / -8.0;
        const double q = std::min(std::max(std::nearbyint(w / step), -8.0), 7.0);
        plain += (w - q * step) * (w - q * step);
        const double error = w - got.u[at] * static_cast<double>(got.scale[at]);
        chosen += error * error;
      }
    }
  }
  CHECK(chosen < 0.97 * plain) << chosen << " against " << plain;
}

int main(int argc, char** argv) {
  return kvik::test::run_all(argc, argv);
}
