// ArgMax, ArgMin and TopK. A NaN counts as larger than everything, as in numpy's order.
#include <cmath>
#include <numeric>

#include "ops/families.h"
#include "ops/support.h"

namespace kvik::ops {

namespace {

using Info = const NodeInfo&;

// A strict weak order of all values, NaN last.
template <typename T>
bool less(T a, T b) {
  const auto x = widen(a), y = widen(b);
  if constexpr (kIsFloat<T>) {
    if (std::isnan(x)) return false;
    if (std::isnan(y)) return true;
  }
  return x < y;
}

template <bool kLargest>
std::unique_ptr<OpKernel> make_arg(Info info) {
  const std::int64_t axis_attribute = info.node.int_attr("axis", 0);
  const bool keep = info.node.int_attr("keepdims", 1) != 0;
  const bool last = info.node.int_attr("select_last_index", 0) != 0;
  return kernel_of([=](OpContext& context) {
    const Tensor& x = context.input(0);
    const int axis = normalize_axis(axis_attribute, x.dims.rank);
    Dims dims;
    for (int i = 0; i < x.dims.rank; ++i) {
      if (i != axis)
        dims.push_back(x.dims[i]);
      else if (keep)
        dims.push_back(1);
    }
    std::int64_t* out = context.output(0, DType::kI64, dims).as<std::int64_t>();
    const std::int64_t n = x.dims[axis], inner = x.dims.elements(axis + 1, x.dims.rank);
    const std::int64_t rows = dims.elements();
    check(n > 0 || rows == 0,
          [&] { return "axis " + std::to_string(axis) + " of " + x.dims.str() + " is empty"; });
    visit_numeric(x.dtype, [&]<typename T>() {
      parallel_for(context, rows, n, [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t r = begin; r < end; ++r) {
          const T* row = x.as<T>() + r / inner * n * inner + r % inner;
          std::int64_t best = 0;
          for (std::int64_t i = 1; i < n; ++i) {
            const T a = row[best * inner], b = row[i * inner];
            const bool better = kLargest ? less(a, b) : less(b, a);
            const bool worse = kLargest ? less(b, a) : less(a, b);
            if (better || (last && !worse)) best = i;
          }
          out[r] = best;
        }
      });
    });
  });
}

std::unique_ptr<OpKernel> make_top_k(Info info) {
  const std::int64_t axis_attribute = info.node.int_attr("axis", -1);
  const bool largest = info.node.int_attr("largest", 1) != 0;
  return kernel_of([=](OpContext& context) {
    const Tensor& x = context.input(0);
    const int axis = normalize_axis(axis_attribute, x.dims.rank);
    const std::int64_t k = int_scalar(context.input(1), "K");
    const std::int64_t n = x.dims[axis], inner = x.dims.elements(axis + 1, x.dims.rank);
    check(k >= 0 && k <= n,
          [&] { return "K is " + std::to_string(k) + " for an axis of " + std::to_string(n); });
    Dims dims = x.dims;
    dims[axis] = k;
    Tensor* values = context.wants_output(0) ? &context.output(0, x.dtype, dims) : nullptr;
    Tensor* indices = context.wants_output(1) ? &context.output(1, DType::kI64, dims) : nullptr;
    const std::int64_t rows = k == 0 ? 0 : dims.elements() / k;
    visit_numeric(x.dtype, [&]<typename T>() {
      parallel_for(context, rows, 8 * n, [&](std::int64_t begin, std::int64_t end) {
        std::vector<std::int64_t> order(static_cast<std::size_t>(n));
        for (std::int64_t r = begin; r < end; ++r) {
          const T* row = x.as<T>() + r / inner * n * inner + r % inner;
          std::iota(order.begin(), order.end(), 0);
          // Equal values keep the order of their indices. Sorted also where the attribute
          // `sorted` leaves the order free.
          const auto before = [&](std::int64_t i, std::int64_t j) {
            const T a = row[i * inner], b = row[j * inner];
            if (largest ? less(b, a) : less(a, b)) return true;
            if (largest ? less(a, b) : less(b, a)) return false;
            return i < j;
          };
          std::partial_sort(order.begin(), order.begin() + k, order.end(), before);
          const std::int64_t first = r / inner * k * inner + r % inner;
          for (std::int64_t i = 0; i < k; ++i) {
            const std::int64_t at = order[static_cast<std::size_t>(i)];
            if (values) values->as<T>()[first + i * inner] = row[at * inner];
            if (indices) indices->as<std::int64_t>()[first + i * inner] = at;
          }
        }
      });
    });
  });
}

}  // namespace

void register_arg_topk(Registry& r) {
  r.add("ArgMax", make_arg<true>);
  r.add("ArgMin", make_arg<false>);
  r.add("TopK", make_top_k);
}

}  // namespace kvik::ops
