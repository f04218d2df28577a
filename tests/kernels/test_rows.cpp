// Norms, softmax and rotary embedding against the reference, which computes in double.
#include <algorithm>
#include <cmath>
#include <limits>
#include <map>

#include "kernels/support.h"

using namespace kvik::test;
using kvik::kernels::KernelTable;
using kvik::kernels::kReferenceTable;
using Side = Guarded::Side;

namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();

// A slot that maps rows to rows, with everything but the rows bound.
using RowSlot =
    std::function<void(const KernelTable&, const float* x, std::ptrdiff_t x_stride,
                       std::int64_t rows, std::int64_t n, float* y, std::ptrdiff_t y_stride)>;
// Tolerance of element i of a row.
using RowTolerance =
    std::function<double(const float* x, std::int64_t n, std::int64_t i, float want)>;

void check_rows(const std::string& what, const RowSlot& slot, const RowTolerance& tolerance,
                float low, float high) {
  for_each_isa([&](const KernelTable& table) {
    Random random(1);
    for (std::int64_t n : lengths()) {
      for (std::int64_t rows : {0, 1, 3}) {
        const Side side = random.integer(0, 1) ? Side::kStart : Side::kEnd;
        Matrix x(rows, n, n + random.integer(0, 5), static_cast<int>(random.integer(0, 3)), side);
        Matrix y(rows, n, n + random.integer(0, 5), 0, side), want(rows, n, n);
        x.fill(random, low, high);
        slot(table, x.data(), x.stride, rows, n, y.data(), y.stride);
        slot(kReferenceTable, x.data(), x.stride, rows, n, want.data(), want.stride);
        const std::string place = std::string(table.name) + " " + what + " rows " +
                                  std::to_string(rows) + " n " + std::to_string(n);
        std::vector<double> allowed;
        for (std::int64_t r = 0; r < rows; ++r) {
          for (std::int64_t i = 0; i < n; ++i) {
            allowed.push_back(tolerance(x.row(r), n, i, want.at(r, i)));
          }
        }
        const std::vector<float> exact = want.elements();
        expect_close(place, y.elements(), {exact.begin(), exact.end()}, allowed, 1e-3);
        CHECK(x.intact() && y.intact()) << place << " wrote outside";

        Matrix alone(rows, n, n + 1, 1);  // row by row, and in place
        for (std::int64_t r = 0; r < rows; ++r) {
          std::copy(x.row(r), x.row(r) + n, alone.row(r));
          slot(table, alone.row(r), alone.stride, 1, n, alone.row(r), alone.stride);
        }
        CHECK(same_bits(alone.elements(), y.elements())) << place << " alone, in place";
        CHECK(alone.intact()) << place;
      }
    }
  });
}

// Rounding steps on the longest chain of a sum of n terms: vectors of the narrowest ISA, then the
// tree across lanes and partial sums.
double steps(std::int64_t n) {
  return static_cast<double>(n) / 8.0 + 8.0;
}

struct Affine {
  explicit Affine(std::int64_t n) : scale(n), bias(n) {
    Random random(7);
    scale.fill(random, -2.0f, 2.0f);
    bias.fill(random, -1.0f, 1.0f);
  }
  Guarded scale, bias;

  static const Affine& of(std::int64_t n) {
    static std::map<std::int64_t, Affine> made;
    return made.try_emplace(n, n).first->second;
  }
};

}  // namespace

// With m = mean, s = deviation: the mean is off by steps·eps·mean|x|, so each x - m is off by that
// and a rounding of each; relative to s the variance by twice its own steps and the mean's error.
KVIK_TEST(layer_norm) {
  for (float epsilon : {1e-5f, 1e-12f}) {
    for (int option = 0; option < 4; ++option) {
      const auto slot = [&](const KernelTable& t, const float* x, std::ptrdiff_t xs,
                            std::int64_t rows, std::int64_t n, float* y, std::ptrdiff_t ys) {
        const Affine& affine = Affine::of(n);
        t.layer_norm_f32(x, xs, rows, n, option & 1 ? affine.scale.data() : nullptr,
                         option & 2 ? affine.bias.data() : nullptr, epsilon, y, ys);
      };
      const auto tolerance = [&](const float* x, std::int64_t n, std::int64_t i, float want) {
        if (n == 1) return 0.0;  // its own mean, exactly: 0·scale + bias
        double mean = 0.0, magnitude = 0.0, variance = 0.0;
        for (std::int64_t j = 0; j < n; ++j) mean += x[j], magnitude += std::fabs(x[j]);
        mean /= static_cast<double>(n), magnitude /= static_cast<double>(n);
        for (std::int64_t j = 0; j < n; ++j) variance += (x[j] - mean) * (x[j] - mean);
        const double deviation = std::sqrt(variance / static_cast<double>(n) + epsilon);
        const double difference = kEps * (steps(n) * magnitude + std::fabs(x[i]) + magnitude);
        const double z = std::fabs(x[i] - mean) / deviation;
        const double z_error = difference / deviation * (1.0 + z) + z * kEps * (steps(n) + 8.0);
        const double scale = option & 1 ? std::fabs(Affine::of(n).scale[i]) : 1.0;
        return z_error * scale + 2.0 * kEps * (std::fabs(want) + z * scale);
      };
      check_rows("layer_norm option " + std::to_string(option), slot, tolerance, -3.0f, 5.0f);
    }
  }
}

// Two passes: a large mean must not destroy the variance.
KVIK_TEST(layer_norm_of_a_large_mean) {
  for_each_isa([](const KernelTable& table) {
    std::vector<float> x, y(256);
    for (int i = 0; i < 256; ++i) x.push_back(4096.0f + (i % 2 ? 0.5f : -0.5f));
    table.layer_norm_f32(x.data(), 256, 1, 256, nullptr, nullptr, 0.0f, y.data(), 256);
    for (std::size_t i = 0; i < 256; ++i) CHECK_EQ(y[i], i % 2 ? 1.0f : -1.0f) << table.name;
  });
}

KVIK_TEST(rms_norm) {
  for (bool scaled : {false, true}) {
    const auto slot = [&](const KernelTable& t, const float* x, std::ptrdiff_t xs,
                          std::int64_t rows, std::int64_t n, float* y, std::ptrdiff_t ys) {
      const Affine& affine = Affine::of(n);
      t.rms_norm_f32(x, xs, rows, n, scaled ? affine.scale.data() : nullptr, 1e-6f, y, ys);
    };
    // Half the relative error of the sum of squares, a root, a quotient and two products.
    const auto tolerance = [](const float*, std::int64_t n, std::int64_t, float want) {
      return kEps * (steps(n) / 2.0 + 6.0) * std::fabs(want);
    };
    check_rows("rms_norm", slot, tolerance, -3.0f, 3.0f);
  }
}

KVIK_TEST(softmax) {
  const auto slot = [](const KernelTable& t, const float* x, std::ptrdiff_t xs, std::int64_t rows,
                       std::int64_t n, float* y,
                       std::ptrdiff_t ys) { t.softmax_f32(x, xs, rows, n, y, ys); };
  // The exponent's rounding eps·|x - max| (here at most 20) is a relative error of the result, once
  // for itself and once for the sum; exp's ulp (2 eps) likewise; the sum's steps; two products.
  const auto tolerance = [](const float*, std::int64_t n, std::int64_t, float want) {
    return kEps * (2.0 * (20.0 + 2.0) + steps(n) + 3.0) * std::fabs(want) + 1e-45;
  };
  check_rows("softmax", slot, tolerance, -10.0f, 10.0f);
}

KVIK_TEST(softmax_special_rows) {
  for_each_isa([](const KernelTable& table) {
    for (std::size_t n : {1u, 7u, 16u, 40u}) {
      const auto run = [&](std::vector<float> x) {
        table.softmax_f32(x.data(), 0, 1, static_cast<std::int64_t>(n), x.data(), 0);
        return x;
      };
      for (float y : run(std::vector<float>(n, -kInf))) CHECK(std::isnan(y)) << table.name;
      for (std::size_t at = 0; at < n; ++at) {
        std::vector<float> x(n, -kInf);
        x[at] = -1e30f;  // the only one that is not hidden
        const std::vector<float> y = run(x);
        for (std::size_t i = 0; i < n; ++i) CHECK_EQ(y[i], i == at ? 1.0f : 0.0f) << table.name;
        x.assign(n, 1.0f);
        x[at] = std::nanf("");
        for (float v : run(x)) CHECK(std::isnan(v)) << table.name << " NaN at " << at;
      }
    }
  });
}

KVIK_TEST(rotary) {
  for_each_isa([](const KernelTable& table) {
    Random random(2);
    for (int half : {0, 1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 24, 32, 33, 64}) {
      for (int rest : {0, 1, 6, 16, 19}) {
        for (bool interleaved : {false, true}) {
          const int head_dim = 2 * half + rest, heads = 3;
          const Side side = random.integer(0, 1) ? Side::kStart : Side::kEnd;
          Guarded x(heads * head_dim, static_cast<int>(random.integer(0, 3)), side);
          Guarded cos(half, 0, side), sin(half, 0, side), y(heads * head_dim, 0, side);
          x.fill(random, -2.0f, 2.0f);
          cos.fill(random, -1.0f, 1.0f);
          sin.fill(random, -1.0f, 1.0f);
          Guarded want(heads * head_dim);
          const auto run = [&](const KernelTable& t, const Guarded& from, const Guarded& to) {
            t.rotary_f32(from.data(), heads, head_dim, half, interleaved, cos.data(), sin.data(),
                         to.data());
          };
          run(table, x, y);
          run(kReferenceTable, x, want);
          const std::string place = std::string(table.name) + " rotary half " +
                                    std::to_string(half) + " of " + std::to_string(head_dim);
          // Two products and a sum: a rounding each, of terms of at most 2.
          std::vector<float> got(y.data(), y.data() + y.size());
          std::vector<double> exact(want.data(), want.data() + want.size());
          std::vector<double> allowed;
          for (std::int64_t i = 0; i < x.size(); ++i) {
            const bool copied = i % head_dim >= 2 * half;
            allowed.push_back(copied ? 0.0 : kEps * (2.0 + 2.0 + 4.0));
          }
          expect_close(place, got, exact, allowed, 1e-3);
          CHECK(x.intact() && y.intact()) << place << " wrote outside";
          Guarded own(x.size());
          own.copy_from(x);
          run(table, own, own);
          for (std::int64_t i = 0; i < x.size(); ++i) {
            CHECK(same_bits(own[i], y[i])) << place << " in place";
          }
        }
      }
    }
  });
}

int main(int argc, char** argv) {
  return kvik::test::run_all(argc, argv);
}
