// Concat and Split: copies of whole runs of bytes.
#include <cstring>

#include "ops/families.h"
#include "ops/support.h"

namespace kvik::ops {

namespace {

using Info = const NodeInfo&;

// Copies `outer` runs of `run` bytes.
void copy_runs(const std::byte* from, std::size_t from_stride, std::byte* to, std::size_t to_stride,
               std::int64_t outer, std::size_t run) {
  if (run == 0) return;
  for (std::int64_t i = 0; i < outer; ++i) {
    std::memcpy(to + static_cast<std::size_t>(i) * to_stride,
                from + static_cast<std::size_t>(i) * from_stride, run);
  }
}

std::size_t element_size(DType dtype) {
  return visit_size(dtype, []<typename T>() { return sizeof(T); });
}

std::unique_ptr<OpKernel> make_concat(Info info) {
  if (!info.node.has_attr("axis")) fail(ErrorCode::kInvalidModel, "attribute axis is missing");
  const std::int64_t axis_attribute = info.node.int_attr("axis", 0);
  return kernel_of([=](OpContext& context) {
    const Tensor& first = context.input(0);
    const int axis = normalize_axis(axis_attribute, first.dims.rank);
    Dims dims = first.dims;
    for (int i = 1; i < context.input_count(); ++i) {
      const Tensor& next = context.input(i);
      check_same_dtype(first, next, "the first input", "another");
      Dims expected = first.dims;
      if (next.dims.rank == first.dims.rank) expected[axis] = next.dims[axis];
      check(next.dims == expected, [&] {
        return "input " + std::to_string(i) + " has shape " + next.dims.str() +
               ", which differs from the first input's " + first.dims.str() + " outside of axis " +
               std::to_string(axis);
      });
      if (!checked_add(dims[axis], next.dims[axis], &dims[axis])) {
        fail(ErrorCode::kOutOfMemory, "the concatenated dimension overflows");
      }
    }
    Tensor& y = context.output(0, first.dtype, dims);
    const std::size_t size = element_size(first.dtype);
    const std::int64_t outer = dims.elements(0, axis);
    const std::int64_t inner = dims.elements(axis + 1, dims.rank);
    const std::size_t stride = static_cast<std::size_t>(dims[axis] * inner) * size;
    auto* to = static_cast<std::byte*>(y.data);
    for (int i = 0; i < context.input_count(); ++i) {
      const Tensor& next = context.input(i);
      const std::size_t run = static_cast<std::size_t>(next.dims[axis] * inner) * size;
      if (next.elements() == 0) continue;
      copy_runs(static_cast<const std::byte*>(next.data), run, to, stride, outer, run);
      to += run;
    }
  });
}

// Sizes along the axis: the split input, or equal parts with a smaller last one.
IntList split_sizes(OpContext& context, std::int64_t dim, std::int64_t parts) {
  if (context.has_input(1)) {
    const IntList sizes = int_list(context.input(1), "split");
    std::int64_t sum = 0;
    bool valid = static_cast<int>(sizes.size()) == context.output_count();
    for (std::int64_t s : sizes) valid = valid && s >= 0 && checked_add(sum, s, &sum);
    check(valid && sum == dim, [&] {
      std::string list;
      for (std::int64_t s : sizes) list += (list.empty() ? "" : ", ") + std::to_string(s);
      return "split [" + list + "] does not divide an axis of " + std::to_string(dim) + " into " +
             std::to_string(context.output_count()) + " outputs";
    });
    return sizes;
  }
  if (parts == 0) parts = context.output_count();
  check(parts == context.output_count(), [&] {
    return "num_outputs is " + std::to_string(parts) + " but the node has " +
           std::to_string(context.output_count()) + " outputs";
  });
  const std::int64_t part = (dim + parts - 1) / parts;
  IntList sizes(static_cast<std::size_t>(parts), part);
  sizes.back() = dim - part * (parts - 1);
  check(sizes.back() >= 0, [&] {
    return "an axis of " + std::to_string(dim) + " cannot be split into " + std::to_string(parts) +
           " parts";
  });
  return sizes;
}

std::unique_ptr<OpKernel> make_split(Info info) {
  const std::int64_t axis_attribute = info.node.int_attr("axis", 0);
  const std::int64_t parts = info.node.int_attr("num_outputs", 0);
  if (parts < 0 || (info.node.has_attr("num_outputs") && parts == 0)) {
    fail(ErrorCode::kInvalidModel,
         "attribute num_outputs is " + std::to_string(parts) + "; expected a positive number");
  }
  return kernel_of([=](OpContext& context) {
    const Tensor& x = context.input(0);
    const int axis = normalize_axis(axis_attribute, x.dims.rank);
    const IntList sizes = split_sizes(context, x.dims[axis], parts);
    const std::size_t size = element_size(x.dtype);
    const std::int64_t outer = x.dims.elements(0, axis);
    const std::int64_t inner = x.dims.elements(axis + 1, x.dims.rank);
    const std::size_t stride = static_cast<std::size_t>(x.dims[axis] * inner) * size;
    const auto* from = static_cast<const std::byte*>(x.data);
    for (std::size_t i = 0; i < sizes.size(); ++i) {
      const std::size_t run = static_cast<std::size_t>(sizes[i] * inner) * size;
      if (context.wants_output(static_cast<int>(i))) {
        Dims dims = x.dims;
        dims[axis] = sizes[i];
        Tensor& y = context.output(static_cast<int>(i), x.dtype, dims);
        if (y.elements() > 0) {
          copy_runs(from, stride, static_cast<std::byte*>(y.data), run, outer, run);
        }
      }
      if (x.elements() > 0) from += run;
    }
  });
}

}  // namespace

void register_concat_split(Registry& r) {
  r.add("Concat", make_concat);
  r.add("Split", make_split);
}

}  // namespace kvik::ops
