// Operators that make elements from little: Range, ConstantOfShape, EyeLike, OneHot; and those
// that pick by position or truth: Trilu, NonZero, Compress.
#include <cmath>
#include <cstring>

#include "ops/families.h"
#include "ops/onnx_dtype.h"
#include "ops/support.h"

namespace kvik::ops {

namespace {

using Info = const NodeInfo&;

// Elements of a range: ceil((limit - start) / delta), at least 0.
template <typename T>
std::int64_t range_count(T start, T limit, T delta) {
  if constexpr (std::is_floating_point_v<T>) {
    const double n = std::ceil((static_cast<double>(limit) - static_cast<double>(start)) /
                               static_cast<double>(delta));
    check(!std::isnan(n), [] { return std::string("a bound of the range is not a number"); });
    if (n > 9e18) fail(ErrorCode::kOutOfMemory, "the range has too many elements");
    return std::max<std::int64_t>(0, static_cast<std::int64_t>(std::max(n, 0.0)));
  } else {
    const bool up = delta > 0;
    if (up ? limit <= start : limit >= start) return 0;
    // Unsigned, so that no difference of two int64 overflows.
    const auto low = static_cast<std::uint64_t>(up ? start : limit);
    const auto high = static_cast<std::uint64_t>(up ? limit : start);
    const std::uint64_t width =
        up ? static_cast<std::uint64_t>(delta) : 0u - static_cast<std::uint64_t>(delta);
    const std::uint64_t n = (high - low - 1) / width + 1;
    if (n > static_cast<std::uint64_t>(INT64_MAX)) {
      fail(ErrorCode::kOutOfMemory, "the range has too many elements");
    }
    return static_cast<std::int64_t>(n);
  }
}

void run_range(OpContext& context) {
  const Tensor& start = context.input(0);
  check_same_dtype(start, context.input(1), "start", "limit");
  check_same_dtype(start, context.input(2), "start", "delta");
  for (int i = 0; i < 3; ++i) {
    check(context.input(i).elements() == 1, [&] {
      return "start, limit and delta must have one element; found " + context.input(i).dims.str();
    });
  }
  visit_numeric(start.dtype, [&]<typename T>() {
    const Compute<T> first = widen(*start.as<T>());
    const Compute<T> limit = widen(*context.input(1).as<T>());
    const Compute<T> delta = widen(*context.input(2).as<T>());
    check(delta != 0 && delta == delta, [&] {
      return "delta is " + std::string(delta == 0 ? "0" : "not a number") +
             "; the range would never end";
    });
    const std::int64_t n = range_count(first, limit, delta);
    T* out = context.output(0, start.dtype, Dims{n}).template as<T>();
    for (std::int64_t i = 0; i < n; ++i) {
      if constexpr (std::is_integral_v<T>) {  // wraps, though no element in range does
        out[i] = static_cast<T>(static_cast<std::uint64_t>(first) +
                                static_cast<std::uint64_t>(i) * static_cast<std::uint64_t>(delta));
      } else {
        out[i] = narrow<T>(first + static_cast<Compute<T>>(i) * delta);
      }
    }
  });
}

std::unique_ptr<OpKernel> make_constant_of_shape(Info info) {
  graph::ConstantTensor value;
  const auto it = info.node.attributes.find("value");
  if (it == info.node.attributes.end()) {
    const float zero = 0.0f;
    value = graph::ConstantTensor::from_floats({&zero, 1}, Dims{1});
  } else {
    value = std::get<graph::ConstantTensor>(it->second);
  }
  const std::size_t size = dtype_bits(value.dtype) / 8;
  if (size == 0) fail_dtype(value.dtype);
  if (value.data.size() != size) {
    fail(ErrorCode::kInvalidModel,
         "attribute value has shape " + value.dims.str() + "; expected one element");
  }
  return kernel_of([value](OpContext& context) {
    const auto shape = int_list(context.input(0), "shape");
    Tensor& y = context.output(0, value.dtype, Dims{std::span<const std::int64_t>(shape)});
    visit_size(value.dtype, [&]<typename T>() {
      T element;
      std::memcpy(&element, value.data.data(), sizeof(T));
      parallel_elements(context, y.elements(), [&](std::int64_t begin, std::int64_t end) {
        std::fill(y.as<T>() + begin, y.as<T>() + end, element);
      });
    });
  });
}

std::unique_ptr<OpKernel> make_eye_like(Info info) {
  const std::int64_t k = info.node.int_attr("k", 0);
  const std::int64_t type = info.node.int_attr("dtype", 0);
  const DType fixed = type == 0 ? DType::kUndefined : dtype_from_onnx(type);
  return kernel_of([=](OpContext& context) {
    const Tensor& x = context.input(0);
    check(x.dims.rank == 2,
          [&] { return "the input has shape " + x.dims.str() + "; expected a matrix"; });
    const DType dtype = fixed == DType::kUndefined ? x.dtype : fixed;
    Tensor& y = context.output(0, dtype, x.dims);
    if (y.elements() > 0) std::memset(y.data, 0, result_bytes(x.dims, dtype));
    const auto fill = [&](auto one) {
      using T = decltype(one);
      for (std::int64_t row = 0; row < x.dims[0]; ++row) {
        std::int64_t column = 0;
        if (checked_add(row, k, &column) && column >= 0 && column < x.dims[1]) {
          y.as<T>()[row * x.dims[1] + column] = one;
        }
      }
    };
    if (dtype == DType::kBool) return fill(std::uint8_t{1});
    visit_numeric(dtype, [&]<typename T>() { fill(narrow<T>(1)); });
  });
}

std::unique_ptr<OpKernel> make_one_hot(Info info) {
  const std::int64_t axis_attribute = info.node.int_attr("axis", -1);
  return kernel_of([=](OpContext& context) {
    const Tensor& indices = context.input(0);
    const std::int64_t depth = static_cast<std::int64_t>(float_scalar(context.input(1), "depth"));
    const Tensor& values = context.input(2);
    check(values.elements() == 2,
          [&] { return "values has shape " + values.dims.str() + "; expected [off, on]"; });
    check(depth > 0, [&] { return "depth is " + std::to_string(depth) + "; expected at least 1"; });
    const int rank = indices.dims.rank + 1;
    const int axis = normalize_axis(axis_attribute, rank);
    Dims dims;
    for (int i = 0, from = 0; i < rank; ++i)
      dims.push_back(i == axis ? depth : indices.dims[from++]);
    Tensor& y = context.output(0, values.dtype, dims);
    const std::int64_t inner = indices.dims.elements(axis, indices.dims.rank);
    visit_size(values.dtype, [&]<typename T>() {
      std::fill_n(y.as<T>(), y.elements(), values.as<T>()[0]);
      visit_numeric(indices.dtype, [&]<typename I>() {
        for (std::int64_t i = 0; i < indices.elements(); ++i) {
          const double value = static_cast<double>(widen(indices.as<I>()[i]));
          // Outside of [-depth, depth) the row stays all "off".
          if (!(value >= -static_cast<double>(depth) && value < static_cast<double>(depth)))
            continue;
          auto at = static_cast<std::int64_t>(value);
          if (at < 0) at += depth;
          y.as<T>()[(i / inner * depth + at) * inner + i % inner] = values.as<T>()[1];
        }
      });
    });
  });
}

std::unique_ptr<OpKernel> make_trilu(Info info) {
  const bool upper = info.node.int_attr("upper", 1) != 0;
  return kernel_of([upper](OpContext& context) {
    const Tensor& x = context.input(0);
    check(x.dims.rank >= 2, [&] {
      return "the input has shape " + x.dims.str() + "; expected a matrix or a batch of them";
    });
    const std::int64_t k =
        context.has_input(1)
            ? std::clamp<std::int64_t>(int_scalar(context.input(1), "k"), -(std::int64_t{1} << 40),
                                       std::int64_t{1} << 40)
            : 0;
    Tensor& y = context.output(0, x.dtype, x.dims);
    const std::int64_t columns = x.dims.back(), rows = x.dims[x.dims.rank - 2];
    if (x.elements() == 0) return;
    visit_size(x.dtype, [&]<typename T>() {
      parallel_for(context, x.elements() / columns, columns,
                   [&](std::int64_t begin, std::int64_t end) {
                     for (std::int64_t r = begin; r < end; ++r) {
                       const T* in = x.as<T>() + r * columns;
                       T* out = y.as<T>() + r * columns;
                       const std::int64_t diagonal = r % rows + k;
                       // Upper keeps columns >= diagonal, lower keeps columns <= diagonal.
                       const std::int64_t cut =
                           std::clamp<std::int64_t>(upper ? diagonal : diagonal + 1, 0, columns);
                       std::fill(out + (upper ? 0 : cut), out + (upper ? cut : columns), T(0));
                       std::copy(in + (upper ? cut : 0), in + (upper ? columns : cut),
                                 out + (upper ? cut : 0));
                     }
                   });
    });
  });
}

// Whether element i differs from zero.
template <typename F>
void visit_truth(const Tensor& x, const F& body) {
  if (x.dtype == DType::kBool) {
    return body([p = x.as<std::uint8_t>()](std::int64_t i) { return p[i] != 0; });
  }
  visit_numeric(x.dtype, [&]<typename T>() {
    body([p = x.as<T>()](std::int64_t i) { return widen(p[i]) != 0; });
  });
}

void run_non_zero(OpContext& context) {
  const Tensor& x = context.input(0);
  const std::int64_t total = x.elements();
  visit_truth(x, [&](const auto& truth) {
    std::int64_t count = 0;
    for (std::int64_t i = 0; i < total; ++i) count += truth(i) ? 1 : 0;
    // A scalar counts as a list of one element, but has no axis to index.
    const int rank = x.dims.rank;
    std::int64_t* out = context.output(0, DType::kI64, Dims{rank, count}).as<std::int64_t>();
    std::int64_t column = 0;
    for (std::int64_t i = 0; i < total; ++i) {
      if (!truth(i)) continue;
      std::int64_t rest = i;
      for (int axis = rank - 1; axis >= 0; --axis) {
        out[axis * count + column] = rest % x.dims[axis];
        rest /= x.dims[axis];
      }
      ++column;
    }
  });
}

std::unique_ptr<OpKernel> make_compress(Info info) {
  const bool flat = !info.node.has_attr("axis");
  const std::int64_t axis_attribute = info.node.int_attr("axis", 0);
  return kernel_of([=](OpContext& context) {
    const Tensor& x = context.input(0);
    const Tensor& condition = context.input(1);
    check_dtype(condition, DType::kBool, "condition");
    check(condition.dims.rank == 1,
          [&] { return "condition has shape " + condition.dims.str() + "; expected a list"; });
    const Dims from = flat ? Dims{x.elements()} : x.dims;
    const int axis = flat ? 0 : normalize_axis(axis_attribute, x.dims.rank);
    std::vector<std::int64_t> kept;
    for (std::int64_t i = 0; i < condition.elements(); ++i) {
      if (condition.as<std::uint8_t>()[i] == 0) continue;
      check(i < from[axis], [&] {
        return "condition selects index " + std::to_string(i) + " of an axis of " +
               std::to_string(from[axis]);
      });
      kept.push_back(i);
    }
    Dims dims = from;
    dims[axis] = static_cast<std::int64_t>(kept.size());
    Tensor& y = context.output(0, x.dtype, dims);
    const std::int64_t outer = from.elements(0, axis), inner = from.elements(axis + 1, from.rank);
    visit_size(x.dtype, [&]<typename T>() {
      T* out = y.as<T>();
      for (std::int64_t o = 0; o < outer; ++o) {
        for (std::int64_t i : kept) {
          out = std::copy_n(x.as<T>() + (o * from[axis] + i) * inner, inner, out);
        }
      }
    });
  });
}

}  // namespace

void register_generators(Registry& r) {
  r.add("Range", [](Info) { return kernel_of(run_range); });
  r.add("ConstantOfShape", make_constant_of_shape);
  r.add("EyeLike", make_eye_like);
  r.add("OneHot", make_one_hot);
  r.add("Trilu", make_trilu);
  r.add("NonZero", [](Info) { return kernel_of(run_non_zero); });
  r.add("Compress", make_compress);
}

}  // namespace kvik::ops
