// The likeliest tokens against a sort of the whole row, and their sum against plain doubles.
#include "runtime/likely_tokens.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>
#include <vector>

#include "cpp/check.h"
#include "kernels/support.h"

namespace {

using kvik::kernels::KernelTable;
using kvik::runtime::LikelyTokens;
using kvik::test::for_each_isa;
using kvik::test::Random;
using kvik::test::thrown;

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// Many equal ones, and some that are impossible.
std::vector<float> random_row(std::int64_t n, Random& random) {
  const std::int64_t kinds = random.integer(1, std::min<std::int64_t>(2 * n, 20000));
  std::vector<float> row;
  for (std::int64_t i = 0; i < n; ++i) {
    row.push_back(static_cast<float>(random.integer(-kinds, kinds)) * 0.01F);
    if (random.integer(0, 9) == 0) row.back() = -kInfinity;
  }
  row[static_cast<std::size_t>(random.integer(0, n - 1))] = 1.0F;
  return row;
}

std::vector<std::pair<std::int64_t, float>> sorted(const std::vector<float>& row,
                                                   std::size_t count) {
  std::vector<std::pair<std::int64_t, float>> all;
  for (std::size_t i = 0; i < row.size(); ++i) {
    if (row[i] > -kInfinity) all.emplace_back(static_cast<std::int64_t>(i), row[i]);
  }
  std::stable_sort(all.begin(), all.end(),
                   [](const auto& a, const auto& b) { return a.second > b.second; });
  all.resize(std::min(all.size(), count));
  std::sort(all.begin(), all.end());
  return all;
}

}  // namespace

KVIK_TEST(the_largest_and_the_sum) {
  for_each_isa([](const KernelTable& table) {
    LikelyTokens likely(table);
    Random random(1);
    for (const std::int64_t n : {1, 2, 15, 16, 17, 511, 512, 513, 1024, 5000, 37000}) {
      for (int round = 0; round < 4; ++round) {
        const std::vector<float> row = random_row(n, random);
        likely.read(row);
        double sum = 0;
        for (const float logit : row) sum += std::exp(static_cast<double>(logit));
        const double error = std::fabs(likely.log_sum_exp() - std::log(sum));
        CHECK(error < 1e-6) << table.name << ", " << n << " logits: " << error;
        for (const std::size_t count : {0, 1, 2, 5, 40, 600, 40000}) {
          CHECK(likely.largest(count) == sorted(row, count)) << count << " of " << n;
        }
      }
    }
  });
}

KVIK_TEST(a_row_that_is_no_distribution_is_refused) {
  for_each_isa([](const KernelTable& table) {
    LikelyTokens likely(table);
    for (const std::size_t at : {0U, 15U, 300U, 511U, 512U, 699U}) {
      for (const float bad : {kInfinity, std::numeric_limits<float>::quiet_NaN()}) {
        std::vector<float> row(700, 0.5F);
        row[at] = bad;
        CHECK(!thrown([&] { likely.read(row); }).empty()) << "at " << at;
      }
    }
    const std::vector<float> impossible(700, -kInfinity);
    CHECK(!thrown([&] { likely.read(impossible); }).empty());
    const std::vector<float> far{1e30F, -1e30F};
    likely.read(far);
    CHECK_EQ(likely.log_sum_exp(), static_cast<double>(1e30F));
  });
}

int main(int argc, char** argv) {
  return kvik::test::run_all(argc, argv);
}
