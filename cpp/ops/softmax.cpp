// Softmax, LogSoftmax and Hardmax along one axis.
#include <cmath>

#include "ops/families.h"
#include "ops/support.h"

namespace kvik::ops {

namespace {

using Info = const NodeInfo&;

enum class Kind { kSoftmax, kLogSoftmax, kHardmax };

// One row of float32, in place allowed.
void softmax_row(const kernels::KernelTable& table, Kind kind, const float* x, std::int64_t n,
                 float* y) {
  if (kind == Kind::kSoftmax) return table.softmax_f32(x, n, 1, n, y, n);
  const std::int64_t top = std::max_element(x, x + n) - x;
  if (kind == Kind::kHardmax) {
    std::fill_n(y, n, 0.0f);
    y[top] = 1.0f;
    return;
  }
  const double highest = static_cast<double>(x[top]);
  double sum = 0.0;
  for (std::int64_t i = 0; i < n; ++i) sum += std::exp(static_cast<double>(x[i]) - highest);
  const double shift = highest + std::log(sum);
  for (std::int64_t i = 0; i < n; ++i) y[i] = static_cast<float>(static_cast<double>(x[i]) - shift);
}

// One row of float64.
void softmax_row(const kernels::KernelTable&, Kind kind, const double* x, std::int64_t n,
                 double* y) {
  const std::int64_t top = std::max_element(x, x + n) - x;
  const double highest = x[top];
  if (kind == Kind::kHardmax) {
    std::fill_n(y, n, 0.0);
    y[top] = 1.0;
    return;
  }
  double sum = 0.0;
  for (std::int64_t i = 0; i < n; ++i) sum += std::exp(x[i] - highest);
  const double log_sum = std::log(sum);
  for (std::int64_t i = 0; i < n; ++i) {
    const double shifted = x[i] - highest;
    y[i] = kind == Kind::kSoftmax ? std::exp(shifted) / sum : shifted - log_sum;
  }
}

template <typename T>
void run_softmax(OpContext& context, Kind kind, int axis, const Tensor& x, Tensor& y) {
  const std::int64_t n = x.dims[axis], inner = x.dims.elements(axis + 1, x.dims.rank);
  const std::int64_t rows = x.dims.elements(0, axis) * inner;
  const auto& table = context.kernels();
  if constexpr (std::is_same_v<T, float>) {
    if (inner == 1) {
      parallel_for(context, rows, 8 * n, [&](std::int64_t begin, std::int64_t end) {
        if (kind == Kind::kSoftmax) {
          return table.softmax_f32(x.as<float>() + begin * n, n, end - begin, n,
                                   y.as<float>() + begin * n, n);
        }
        for (std::int64_t r = begin; r < end; ++r) {
          softmax_row(table, kind, x.as<float>() + r * n, n, y.as<float>() + r * n);
        }
      });
      return;
    }
  }
  // Other axes and types pass through one row of scratch per worker.
  using C = Compute<T>;
  const auto workers = static_cast<std::size_t>(context.pool().threads());
  const std::size_t row_bytes = checked_product(static_cast<std::size_t>(n), sizeof(C));
  C* scratch = static_cast<C*>(context.workspace(checked_product(workers, row_bytes)));
  context.pool().run([&](int worker, int count) {
    C* row = scratch + worker * n;
    const Range range = split_range(rows, worker, count);
    for (std::int64_t r = range.begin; r < range.end; ++r) {
      const std::int64_t first = r / inner * n * inner + r % inner;
      for (std::int64_t i = 0; i < n; ++i) row[i] = widen(x.as<T>()[first + i * inner]);
      softmax_row(table, kind, row, n, row);
      for (std::int64_t i = 0; i < n; ++i) y.as<T>()[first + i * inner] = narrow<T>(row[i]);
    }
  });
}

template <Kind kKind>
std::unique_ptr<OpKernel> make_softmax(Info info) {
  const std::int64_t axis_attribute = info.node.int_attr("axis", -1);
  return kernel_of([=](OpContext& context) {
    const Tensor& x = context.input(0);
    const int axis = normalize_axis(axis_attribute, x.dims.rank);
    Tensor& y = context.output(0, x.dtype, x.dims);
    if (x.elements() == 0) return;
    visit_float(x.dtype, [&]<typename T>() { run_softmax<T>(context, kKind, axis, x, y); });
  });
}

}  // namespace

void register_softmax(Registry& r) {
  r.add("Softmax", make_softmax<Kind::kSoftmax>);
  r.add("LogSoftmax", make_softmax<Kind::kLogSoftmax>);
  r.add("Hardmax", make_softmax<Kind::kHardmax>);
}

}  // namespace kvik::ops
