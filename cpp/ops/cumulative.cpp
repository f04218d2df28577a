// CumSum, CumProd and ReverseSequence: walks along one axis.
#include "ops/families.h"
#include "ops/support.h"

namespace kvik::ops {

namespace {

using Info = const NodeInfo&;

template <typename T, bool kProduct>
auto accumulate(T total, T value) {
  if constexpr (std::is_integral_v<T>) {
    const auto a = static_cast<std::uint64_t>(total), b = static_cast<std::uint64_t>(value);
    return static_cast<T>(kProduct ? a * b : a + b);
  } else {
    return kProduct ? total * value : total + value;
  }
}

template <bool kProduct>
std::unique_ptr<OpKernel> make_cumulative(Info info) {
  const bool exclusive = info.node.int_attr("exclusive", 0) != 0;
  const bool reverse = info.node.int_attr("reverse", 0) != 0;
  return kernel_of([=](OpContext& context) {
    const Tensor& x = context.input(0);
    const int axis = normalize_axis(int_scalar(context.input(1), "axis"), x.dims.rank);
    Tensor& y = context.output(0, x.dtype, x.dims);
    const std::int64_t n = x.dims[axis], inner = x.dims.elements(axis + 1, x.dims.rank);
    if (x.elements() == 0) return;
    visit_numeric(x.dtype, [&]<typename T>() {
      parallel_for(context, x.elements() / n, n, [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t r = begin; r < end; ++r) {
          const std::int64_t first = r / inner * n * inner + r % inner;
          Compute<T> total = kProduct ? 1 : 0;
          for (std::int64_t i = 0; i < n; ++i) {
            const std::int64_t at = first + (reverse ? n - 1 - i : i) * inner;
            if (exclusive) y.as<T>()[at] = narrow<T>(total);
            total = accumulate<Compute<T>, kProduct>(total, widen(x.as<T>()[at]));
            if (!exclusive) y.as<T>()[at] = narrow<T>(total);
          }
        }
      });
    });
  });
}

std::unique_ptr<OpKernel> make_reverse_sequence(Info info) {
  const std::int64_t batch_axis = info.node.int_attr("batch_axis", 1);
  const std::int64_t time_axis = info.node.int_attr("time_axis", 0);
  if (batch_axis + time_axis != 1 || batch_axis * time_axis != 0) {
    fail(ErrorCode::kInvalidModel, "batch_axis and time_axis must be 0 and 1");
  }
  return kernel_of([=](OpContext& context) {
    const Tensor& x = context.input(0);
    const Tensor& lengths = context.input(1);
    check(x.dims.rank >= 2, [&] { return "the input has shape " + x.dims.str(); });
    const std::int64_t batch = x.dims[static_cast<int>(batch_axis)];
    const std::int64_t time = x.dims[static_cast<int>(time_axis)];
    check_dtype(lengths, DType::kI64, "sequence_lens");
    check(lengths.dims == Dims{batch}, [&] {
      return "sequence_lens has shape " + lengths.dims.str() + "; expected [" +
             std::to_string(batch) + "]";
    });
    Tensor& y = context.output(0, x.dtype, x.dims);
    const std::int64_t inner = x.dims.elements(2, x.dims.rank);
    visit_size(x.dtype, [&]<typename T>() {
      for (std::int64_t b = 0; b < batch; ++b) {
        const std::int64_t length = lengths.as<std::int64_t>()[b];
        check(length >= 0 && length <= time, [&] {
          return "a sequence of length " + std::to_string(length) + " in an axis of " +
                 std::to_string(time);
        });
        for (std::int64_t t = 0; t < time; ++t) {
          const std::int64_t from = t < length ? length - 1 - t : t;
          const auto at = [&](std::int64_t step) {
            return (batch_axis == 0 ? b * time + step : step * batch + b) * inner;
          };
          std::copy_n(x.as<T>() + at(from), inner, y.as<T>() + at(t));
        }
      }
    });
  });
}

}  // namespace

void register_cumulative(Registry& r) {
  r.add("CumSum", make_cumulative<false>);
  r.add("CumProd", make_cumulative<true>);
  r.add("ReverseSequence", make_reverse_sequence);
}

}  // namespace kvik::ops
