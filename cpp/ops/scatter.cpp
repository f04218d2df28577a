// ScatterElements, ScatterND and TensorScatter: a copy of the data with some elements replaced.
#include <cstring>

#include "ops/families.h"
#include "ops/indices.h"
#include "ops/support.h"

namespace kvik::ops {

namespace {

using Info = const NodeInfo&;

enum class Reduction { kNone, kAdd, kMul, kMax, kMin };

Reduction parse_reduction(Info info) {
  const std::string name = info.node.string_attr("reduction", "none");
  if (name == "none") return Reduction::kNone;
  if (name == "add") return Reduction::kAdd;
  if (name == "mul") return Reduction::kMul;
  if (name == "max") return Reduction::kMax;
  if (name == "min") return Reduction::kMin;
  fail(ErrorCode::kInvalidModel,
       "attribute reduction is '" + name + "'; expected none, add, mul, max or min");
}

// Integers wrap, computed in 64 unsigned bits.
template <typename T>
T combine(Reduction reduction, T old_element, T new_element) {
  const auto a = widen(old_element), b = widen(new_element);
  const auto arithmetic = [&](auto f) {
    if constexpr (std::is_integral_v<T>) {
      return static_cast<T>(f(static_cast<std::uint64_t>(a), static_cast<std::uint64_t>(b)));
    } else {
      return narrow<T>(f(a, b));
    }
  };
  switch (reduction) {
    case Reduction::kNone: return new_element;
    case Reduction::kAdd: return arithmetic([](auto x, auto y) { return x + y; });
    case Reduction::kMul: return arithmetic([](auto x, auto y) { return x * y; });
    case Reduction::kMax: return a < b ? new_element : old_element;
    case Reduction::kMin: return b < a ? new_element : old_element;
  }
  return new_element;
}

// Calls body with the element type: any of the size where elements are only moved.
template <typename F>
void visit_reduction(DType dtype, Reduction reduction, const F& body) {
  if (reduction == Reduction::kNone) return visit_size(dtype, body);
  if (dtype == DType::kBool) return body.template operator()<std::uint8_t>();
  visit_numeric(dtype, body);
}

Tensor& copy_data(OpContext& context, const Tensor& data) {
  Tensor& y = context.output(0, data.dtype, data.dims);
  if (data.elements() > 0) std::memcpy(y.data, data.data, result_bytes(data.dims, data.dtype));
  return y;
}

std::unique_ptr<OpKernel> make_scatter_elements(Info info) {
  const std::int64_t axis_attribute = info.node.int_attr("axis", 0);
  const Reduction reduction = parse_reduction(info);
  return kernel_of([=](OpContext& context) {
    const Tensor& data = context.input(0);
    const Tensor& indices = context.input(1);
    const Tensor& updates = context.input(2);
    check_same_dtype(data, updates, "data", "updates");
    const int axis = normalize_axis(axis_attribute, data.dims.rank);
    check_indices_fit(data.dims, indices.dims, axis);
    check(updates.dims == indices.dims, [&] {
      return "updates has shape " + updates.dims.str() + " but indices " + indices.dims.str();
    });
    Tensor& y = copy_data(context, data);
    const IndexReader index(indices, data.dims[axis]);
    const Dims strides = strides_of(data.dims);
    // In order, on one thread: where an index comes twice, the last update wins.
    visit_reduction(data.dtype, reduction, [&]<typename T>() {
      for (std::int64_t i = 0; i < indices.elements(); ++i) {
        T& element = y.as<T>()[element_offset(i, indices.dims, strides, axis, index(i))];
        element = combine(reduction, element, updates.as<T>()[i]);
      }
    });
  });
}

std::unique_ptr<OpKernel> make_scatter_nd(Info info) {
  const Reduction reduction = parse_reduction(info);
  return kernel_of([=](OpContext& context) {
    const Tensor& data = context.input(0);
    const Tensor& indices = context.input(1);
    const Tensor& updates = context.input(2);
    check_same_dtype(data, updates, "data", "updates");
    check(indices.dims.rank >= 1 && indices.dims.back() <= data.dims.rank,
          [&] { return "indices " + indices.dims.str() + " do not fit data " + data.dims.str(); });
    const int depth = static_cast<int>(indices.dims.back());
    Dims expected;
    for (int i = 0; i < indices.dims.rank - 1; ++i) expected.push_back(indices.dims[i]);
    for (int i = depth; i < data.dims.rank; ++i) expected.push_back(data.dims[i]);
    check(updates.dims == expected, [&] {
      return "updates has shape " + updates.dims.str() + "; expected " + expected.str();
    });
    Tensor& y = copy_data(context, data);
    const std::int64_t slice = data.dims.elements(depth, data.dims.rank);
    const std::int64_t tuples = indices.dims.elements(0, indices.dims.rank - 1);
    const TupleReader tuple(indices, data.dims, 0, depth);
    visit_reduction(data.dtype, reduction, [&]<typename T>() {
      for (std::int64_t i = 0; i < tuples; ++i) {
        T* to = y.as<T>() + tuple(i);
        const T* from = updates.as<T>() + i * slice;
        for (std::int64_t j = 0; j < slice; ++j) to[j] = combine(reduction, to[j], from[j]);
      }
    });
  });
}

// The cache [B, ..., S_max, ...] with `update` written at write_indices[b] along the axis.
std::unique_ptr<OpKernel> make_tensor_scatter(Info info) {
  const std::int64_t axis_attribute = info.node.int_attr("axis", -2);
  const std::string mode = info.node.string_attr("mode", "linear");
  if (mode != "linear" && mode != "circular") {
    fail(ErrorCode::kInvalidModel, "attribute mode is '" + mode + "'; expected linear or circular");
  }
  const bool circular = mode == "circular";
  return kernel_of([=](OpContext& context) {
    const Tensor& data = context.input(0);
    const Tensor& update = context.input(1);
    check_same_dtype(data, update, "past_cache", "update");
    const int axis = normalize_axis(axis_attribute, data.dims.rank);
    check(axis > 0, [] { return std::string("the axis is the batch axis"); });
    Dims expected = data.dims;
    if (update.dims.rank == data.dims.rank) expected[axis] = update.dims[axis];
    check(update.dims == expected && update.dims[axis] <= data.dims[axis], [&] {
      return "update has shape " + update.dims.str() + " for a cache of " + data.dims.str();
    });
    const std::int64_t* starts = nullptr;
    if (context.has_input(2)) {
      check_dtype(context.input(2), DType::kI64, "write_indices");
      check(context.input(2).dims == Dims{data.dims[0]}, [&] {
        return "write_indices has shape " + context.input(2).dims.str() + "; expected [" +
               std::to_string(data.dims[0]) + "]";
      });
      starts = context.input(2).as<std::int64_t>();
    }
    Tensor& y = copy_data(context, data);
    const std::int64_t size = data.dims[axis], count = update.dims[axis];
    const std::int64_t outer = data.dims.elements(0, axis);
    const std::int64_t inner = data.dims.elements(axis + 1, data.dims.rank);
    const std::int64_t per_batch = data.dims.elements(1, axis);
    visit_size(data.dtype, [&]<typename T>() {
      for (std::int64_t o = 0; o < outer; ++o) {
        const std::int64_t start = starts == nullptr ? 0 : starts[o / per_batch];
        check(start >= 0 &&
                  (circular ? start < std::max<std::int64_t>(size, 1) : start <= size - count),
              [&] {
                return "writing " + std::to_string(count) + " positions at " +
                       std::to_string(start) + " does not fit a cache of " + std::to_string(size);
              });
        for (std::int64_t i = 0; i < count; ++i) {
          std::copy_n(
              update.as<T>() + (o * count + i) * inner, inner,
              y.as<T>() + (o * size + (i < size - start ? start + i : start + i - size)) * inner);
        }
      }
    });
  });
}

}  // namespace

void register_scatter(Registry& r) {
  r.add("ScatterElements", make_scatter_elements);
  r.add("ScatterND", make_scatter_nd);
  r.add("TensorScatter", make_tensor_scatter);
}

}  // namespace kvik::ops
