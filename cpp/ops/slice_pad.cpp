// Slice and Pad.
#include <cstring>

#include "ops/families.h"
#include "ops/support.h"

namespace kvik::ops {

namespace {

using Info = const NodeInfo&;

// One axis of a slice: `count` elements from `start` on, `step` apart.
struct AxisSlice {
  std::int64_t start = 0, count = 0, step = 1;
};

// ONNX's rules: negative bounds count from the end, then bounds are clamped to the axis.
AxisSlice slice_axis(std::int64_t dim, std::int64_t start, std::int64_t end, std::int64_t step) {
  check(step != 0, [] { return std::string("a slice has step 0"); });
  const auto from_end = [dim](std::int64_t at) { return at < 0 ? at + dim : at; };
  AxisSlice out;
  out.step = step;
  if (step > 0) {
    out.start = std::clamp<std::int64_t>(from_end(start), 0, dim);
    const std::int64_t stop = std::clamp<std::int64_t>(from_end(end), 0, dim);
    out.count = stop > out.start ? (stop - out.start - 1) / step + 1 : 0;
  } else {
    // dim - 1 is -1 for an empty axis, where nothing is taken.
    out.start = std::clamp<std::int64_t>(from_end(start), 0, std::max<std::int64_t>(dim - 1, 0));
    const std::int64_t stop =
        std::clamp<std::int64_t>(end < -dim ? -1 : from_end(end), -1, dim - 1);
    // -(step + 1) instead of -step: the smallest int64 has no negative.
    if (dim > 0 && stop < out.start) {
      const std::uint64_t width = 0u - static_cast<std::uint64_t>(step);
      out.count =
          static_cast<std::int64_t>(static_cast<std::uint64_t>(out.start - stop - 1) / width + 1);
    }
  }
  if (out.count <= 1) out.step = 1;  // never multiplied, so that no product can overflow
  return out;
}

void run_slice(OpContext& context) {
  const Tensor& x = context.input(0);
  const auto starts = int_list(context.input(1), "starts");
  const auto ends = int_list(context.input(2), "ends");
  IntList axes, steps(starts.size(), 1);
  if (context.has_input(3)) {
    axes = int_list(context.input(3), "axes");
  } else {
    for (std::size_t i = 0; i < starts.size(); ++i) axes.push_back(static_cast<std::int64_t>(i));
  }
  if (context.has_input(4)) steps = int_list(context.input(4), "steps");
  check(
      starts.size() == ends.size() && starts.size() == axes.size() && starts.size() == steps.size(),
      [&] {
        return "starts, ends, axes and steps have " + std::to_string(starts.size()) + ", " +
               std::to_string(ends.size()) + ", " + std::to_string(axes.size()) + " and " +
               std::to_string(steps.size()) + " entries; expected as many in each";
      });
  normalize_axes(axes, x.dims.rank);  // refuses doubles

  Dims dims = x.dims, strides = strides_of(x.dims);
  std::int64_t first = 0;
  for (std::size_t i = 0; i < axes.size(); ++i) {
    const int axis = normalize_axis(axes[i], x.dims.rank);
    const AxisSlice s = slice_axis(x.dims[axis], starts[i], ends[i], steps[i]);
    dims[axis] = s.count;
    if (s.count > 0) first += s.start * strides[axis];
    strides[axis] *= s.step;
  }
  if (dims == x.dims && first == 0) return context.alias(0, 0, dims);
  Tensor& y = context.output(0, x.dtype, dims);
  if (y.elements() == 0) return;
  // Trailing axes that are taken whole are one run.
  int whole = dims.rank;
  std::int64_t run = 1;
  while (whole > 0 && strides[whole - 1] == run) run *= dims[--whole];
  visit_size(x.dtype, [&]<typename T>() {
    parallel_for(context, y.elements() / run, run, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t r = begin; r < end; ++r) {
        std::int64_t rest = r, offset = first;
        for (int axis = whole - 1; axis >= 0; --axis) {
          offset += rest % dims[axis] * strides[axis];
          rest /= dims[axis];
        }
        T* to = y.as<T>() + r * run;
        if (run == 1) {
          *to = x.as<T>()[offset];
        } else {
          std::memcpy(to, x.as<T>() + offset, static_cast<std::size_t>(run) * sizeof(T));
        }
      }
    });
  });
}

// ---- Pad -------------------------------------------------------------------------------------

enum class PadMode { kConstant, kReflect, kEdge, kWrap };

PadMode parse_mode(const std::string& mode) {
  if (mode == "constant") return PadMode::kConstant;
  if (mode == "reflect") return PadMode::kReflect;
  if (mode == "edge") return PadMode::kEdge;
  if (mode == "wrap") return PadMode::kWrap;
  fail(ErrorCode::kInvalidModel,
       "attribute mode is '" + mode + "'; expected 'constant', 'reflect', 'edge' or 'wrap'");
}

// The input index that result index `at` (relative to the input's start) reads; -1: the constant.
std::int64_t source_index(std::int64_t at, std::int64_t dim, PadMode mode) {
  if (at >= 0 && at < dim) return at;
  switch (mode) {
    case PadMode::kConstant: return -1;
    case PadMode::kEdge: return at < 0 ? 0 : dim - 1;
    case PadMode::kWrap: return ((at % dim) + dim) % dim;
    case PadMode::kReflect: {
      if (dim == 1) return 0;
      const std::int64_t period = 2 * (dim - 1);
      const std::int64_t folded = ((at % period) + period) % period;
      return folded < dim ? folded : period - folded;
    }
  }
  return -1;
}

std::unique_ptr<OpKernel> make_pad(Info info) {
  const PadMode mode = parse_mode(info.node.string_attr("mode", "constant"));
  return kernel_of([mode](OpContext& context) {
    const Tensor& x = context.input(0);
    const int rank = x.dims.rank;
    const auto pads = int_list(context.input(1), "pads");
    AxisList axes;
    if (context.has_input(3)) {
      const auto list = int_list(context.input(3), "axes");
      normalize_axes(list, rank);
      for (std::int64_t axis : list) axes.push_back(normalize_axis(axis, rank));
    } else {
      for (int axis = 0; axis < rank; ++axis) axes.push_back(axis);
    }
    check(pads.size() == 2 * axes.size(), [&] {
      return "pads has " + std::to_string(pads.size()) + " entries; expected " +
             std::to_string(2 * axes.size());
    });
    Dims dims = x.dims, begins;
    begins.rank = rank;
    for (std::size_t i = 0; i < axes.size(); ++i) {
      const int axis = axes[i];
      begins[axis] = pads[i];
      if (!checked_add(dims[axis], pads[i], &dims[axis]) ||
          !checked_add(dims[axis], pads[i + axes.size()], &dims[axis])) {
        fail(ErrorCode::kOutOfMemory,
             "the padded size of axis " + std::to_string(axis) + " overflows");
      }
      check(dims[axis] >= 0, [&] {
        return "pads take more from axis " + std::to_string(axis) + " than its size " +
               std::to_string(x.dims[axis]);
      });
      check(mode == PadMode::kConstant || x.dims[axis] > 0 || dims[axis] == 0, [&] {
        return "axis " + std::to_string(axis) + " is empty: there is nothing to repeat";
      });
    }
    Tensor& y = context.output(0, x.dtype, dims);
    const std::int64_t total = y.elements();
    const Dims strides = strides_of(x.dims);
    visit_size(x.dtype, [&]<typename T>() {
      T fill = 0;
      if (context.has_input(2)) {
        const Tensor& value = context.input(2);
        check_same_dtype(x, value, "the input", "constant_value");
        check(value.elements() == 1, [&] {
          return "constant_value has shape " + value.dims.str() + "; expected one element";
        });
        fill = *value.as<T>();
      }
      parallel_for(context, total, 8, [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t i = begin; i < end; ++i) {
          std::int64_t rest = i, offset = 0;
          bool inside = true;
          for (int axis = rank - 1; axis >= 0 && inside; --axis) {
            const std::int64_t at =
                source_index(rest % dims[axis] - begins[axis], x.dims[axis], mode);
            rest /= dims[axis];
            inside = at >= 0;
            offset += at * strides[axis];
          }
          y.as<T>()[i] = inside ? x.as<T>()[offset] : fill;
        }
      });
    });
  });
}

}  // namespace

void register_slice_pad(Registry& r) {
  r.add("Slice", [](Info) { return kernel_of(run_slice); });
  r.add("Pad", make_pad);
}

}  // namespace kvik::ops
