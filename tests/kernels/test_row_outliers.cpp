// Rows as bytes: what they stand for, which elements are set apart, and that all tables agree.
#include <algorithm>
#include <cmath>
#include <limits>
#include <string>

#include "kernels/quantized_rows.h"

using namespace kvik::test;
using kvik::kernels::KernelTable;
using kvik::kernels::kReferenceTable;

namespace {

void check_alike(const Rows& got, const Rows& want, const std::string& what) {
  CHECK(got.q == want.q) << what;
  CHECK(got.sums == want.sums) << what;
  CHECK(std::equal(got.scale.begin(), got.scale.end(), want.scale.begin(), [](float a, float b) {
    return same_bits(a, b) || (a != a && b != b);
  })) << what;
  for (std::int64_t r = 0; r < got.count; ++r) {
    CHECK(got.places(r) == want.places(r)) << what << " row " << r;
    for (const std::int32_t place : want.places(r)) {
      CHECK_EQ(got.value(r, place), want.value(r, place)) << what << " row " << r;
    }
  }
}

// A row of integers: its bytes, too, where the largest of them is 127.
Rows rows_of(const KernelTable& table, const std::vector<int>& q) {
  Matrix x(1, static_cast<std::int64_t>(q.size()), static_cast<std::int64_t>(q.size()));
  for (std::size_t i = 0; i < q.size(); ++i) {
    x.at(0, static_cast<std::int64_t>(i)) = static_cast<float>(q[i]);
  }
  return Rows(table, x);
}

}  // namespace

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
      check_alike(Rows(table, x), want, std::string(table.name) + " n " + std::to_string(n));
    });
  }
}

// Rows of ones, but for a few elements; which of them are set apart.
KVIK_TEST(few_large_elements_are_set_apart) {
  constexpr std::int64_t kN = 2000;  // not whole groups
  using Elements = std::vector<std::pair<std::int64_t, float>>;
  const auto eight_and = [](std::int64_t place) -> Elements {
    return {{9, 60.0f},  {8, 61.0f}, {7, 62.0f}, {6, 63.0f},    {5, 14.0f},
            {4, -65.0f}, {3, 66.0f}, {2, 67.0f}, {place, 68.0f}};
  };
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
       eight_and(100),
       {2, 3, 4, 6, 7, 8, 9, 100},
       14.0f},
      {"one more, in another part of the row", eight_and(1700), {2, 3, 4, 6, 7, 8, 9, 1700}, 14.0f},
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

// At the very limits, where one more in a sum decides.
KVIK_TEST(limits_of_outliers_are_exact) {
  for_each_isa([](const KernelTable& table) {
    for (const int more : {0, 1}) {
      // The largest of 110 elements is 11 times their mean: 127 · 110 = 11 · 1270.
      std::vector<int> q(110, 0);
      q[50] = 127;
      for (std::size_t i = 0; i < 50; ++i) q[i] = 22;
      q[60] = 43 + more;  // 127 + 1100 + 43 = 1270
      CHECK(rows_of(table, q).places(0).empty()) << table.name;
      q[60] = 42;
      CHECK(rows_of(table, q).places(0) == std::vector<std::int32_t>{50}) << table.name;
    }
    // 10 is 8 times the mean of 400 elements whose sum is 500 = 127 + 10 + 363, and then no
    // outlier.
    for (const std::size_t ones : {362U, 363U}) {
      std::vector<int> q(400, 0);
      for (std::size_t i = 0; i < ones; ++i) q[i] = 1;
      q[380] = 127;
      q[390] = 10;
      std::vector<std::int32_t> want{380};
      if (ones == 362) want.push_back(390);
      CHECK(rows_of(table, q).places(0) == want) << table.name << " of " << ones;
    }
    // Without the eight largest the largest is half as large, or just more.
    for (const int rest : {63, 64}) {
      std::vector<int> q(2000, 0);
      for (std::size_t i = 0; i < 7; ++i) q[100 * i] = 100;
      q[1000] = 126;
      q[1500] = rest;
      const std::vector<std::int32_t> want{0, 100, 200, 300, 400, 500, 600, 1000};
      const std::vector<std::int32_t> found = rows_of(table, q).places(0);
      CHECK(found == (rest == 63 ? want : std::vector<std::int32_t>{})) << table.name << rest;
    }
  });
}

// What a NaN, an infinity or the ends of the range do beside outliers.
KVIK_TEST(outliers_of_rows_with_extremes) {
  const float inf = std::numeric_limits<float>::infinity();
  const float most = std::numeric_limits<float>::max();
  const float least = std::numeric_limits<float>::denorm_min();
  constexpr std::int64_t kN = 300;
  Matrix x(6, kN, kN);
  for (std::int64_t r = 0; r < x.rows; ++r) {
    for (std::int64_t i = 0; i < kN; ++i) x.at(r, i) = i % 3 == 0 ? -1.0f : 0.5f;
    x.at(r, 17) = 900.0f;
  }
  x.at(0, 200) = std::numeric_limits<float>::quiet_NaN();
  x.at(1, 200) = -inf;
  x.at(2, 200) = most;
  x.at(2, 17) = -most;
  for (std::int64_t i = 0; i < kN; ++i) {
    if (i != 17) x.at(3, i) = 1e-31f;  // a rest too small to matter
    x.at(4, i) = i == 17 ? 1e-3f : least;
    x.at(5, i) = i == 17 ? 2e-30f : 1e-38f;
  }
  const Rows want(kReferenceTable, x);
  for (const std::int64_t r : {0, 1}) {
    CHECK(std::isnan(want.scale[static_cast<std::size_t>(r)])) << "row " << r;
    CHECK(want.places(r).empty()) << "row " << r;
  }
  CHECK(want.places(2) == std::vector<std::int32_t>({17, 200}));
  for (const std::int64_t r : {3, 4, 5}) {
    CHECK(want.places(r) == std::vector<std::int32_t>{17}) << "row " << r;
    CHECK_EQ(want.scale[static_cast<std::size_t>(r)], 0.0f) << "row " << r;
  }
  for_each_vector_isa(
      [&](const KernelTable& table) { check_alike(Rows(table, x), want, table.name); });
}

// A row has outliers from 12 elements on.
KVIK_TEST(short_rows_have_none) {
  for (const std::size_t n : {std::size_t{1}, std::size_t{11}, std::size_t{12}}) {
    std::vector<int> q(n, 0);
    q[0] = 127;
    for_each_isa([&](const KernelTable& table) {
      CHECK_EQ(rows_of(table, q).places(0).size(), n < 12 ? 0U : 1U) << table.name << " of " << n;
    });
  }
}

int main(int argc, char** argv) {
  return kvik::test::run_all(argc, argv);
}
