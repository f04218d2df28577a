// Low-precision products. Integer sums are exact and what follows has one fixed order, so all
// tables agree bit by bit; the reference itself is held against the equations in double.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "base/aligned_buffer.h"
#include "base/float16.h"
#include "kernels/quantized_rows.h"
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
