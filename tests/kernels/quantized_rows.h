// Rows of bytes as the tables make them.
#pragma once

#include <vector>

#include "kernels/support.h"

namespace kvik::test {

using kernels::kGroup;
using kernels::QuantizedRows;
using kernels::RowOutliers;

inline std::int64_t round_up(std::int64_t x, std::int64_t unit) {
  return (x + unit - 1) / unit * unit;
}

// Rows as a table quantises them.
struct Rows {
  Rows(const kernels::KernelTable& table, const Matrix& x)
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

}  // namespace kvik::test
