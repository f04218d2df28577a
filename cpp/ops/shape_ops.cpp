// Operators that read a shape, or give the same elements another one without moving them.
#include "ops/families.h"
#include "ops/support.h"

namespace kvik::ops {

namespace {

using Info = const NodeInfo&;

std::unique_ptr<OpKernel> make_shape(Info info) {
  const std::int64_t start = info.node.int_attr("start", 0);
  const std::int64_t end = info.node.int_attr("end", kMaxRank);
  return kernel_of(
      [=](OpContext& context) {
        const Dims& dims = context.input(0).dims;
        const auto bound = [&](std::int64_t at) {
          return std::clamp<std::int64_t>(at < 0 ? at + dims.rank : at, 0, dims.rank);
        };
        const std::int64_t first = bound(start), last = std::max(first, bound(end));
        std::int64_t* out = context.output(0, DType::kI64, Dims{last - first}).as<std::int64_t>();
        for (std::int64_t i = first; i < last; ++i) out[i - first] = dims[static_cast<int>(i)];
      },
      1);
}

// The dims that `shape` asks for: 0 copies the input's (unless allow_zero), one -1 is inferred.
Dims reshape_dims(const Dims& from, std::span<const std::int64_t> shape, bool allow_zero) {
  const auto describe_request = [&] {
    std::string list;
    for (std::int64_t s : shape) list += (list.empty() ? "" : ", ") + std::to_string(s);
    return "cannot reshape " + from.str() + " to [" + list + "]";
  };
  Dims to{shape};
  int inferred = -1;
  for (int axis = 0; axis < to.rank; ++axis) {
    if (to[axis] == 0 && !allow_zero) {
      check(axis < from.rank, [&] {
        return describe_request() + ": 0 at position " + std::to_string(axis) +
               " has no dimension to copy";
      });
      to[axis] = from[axis];
    } else if (to[axis] == -1) {
      check(inferred < 0, [&] { return describe_request() + ": more than one -1"; });
      inferred = axis;
    } else {
      check(to[axis] >= 0, [&] { return describe_request() + ": a negative dimension"; });
    }
  }
  const std::int64_t elements = from.elements();
  if (inferred >= 0) {
    to[inferred] = 1;
    const std::int64_t rest = result_elements(to);
    check(rest != 0 && elements % rest == 0, [&] {
      return describe_request() + ": " + std::to_string(elements) +
             " elements cannot be divided to find the -1";
    });
    to[inferred] = elements / rest;
  }
  check(result_elements(to) == elements, [&] {
    return describe_request() + ": the input has " + std::to_string(elements) +
           " elements, the result would have " + std::to_string(result_elements(to));
  });
  return to;
}

std::unique_ptr<OpKernel> make_reshape(Info info) {
  const bool allow_zero = info.node.int_attr("allowzero", 0) != 0;
  return kernel_of([=](OpContext& context) {
    context.alias(
        0, 0, reshape_dims(context.input(0).dims, int_list(context.input(1), "shape"), allow_zero));
  });
}

// The axes input (or the attribute of older forms) of Squeeze and Unsqueeze.
IntList axes_of(OpContext& context) {
  if (!context.has_input(1)) return {};
  return int_list(context.input(1), "axes");
}

std::unique_ptr<OpKernel> make_squeeze(Info) {
  return kernel_of([](OpContext& context) {
    const Dims& dims = context.input(0).dims;
    const AxisList axes = normalize_axes(axes_of(context), dims.rank);
    const bool all = !context.has_input(1);
    Dims out;
    for (int axis = 0; axis < dims.rank; ++axis) {
      const bool named = std::find(axes.begin(), axes.end(), axis) != axes.end();
      check(!named || dims[axis] == 1, [&] {
        return "cannot squeeze axis " + std::to_string(axis) + " of " + dims.str() +
               ": its size is not 1";
      });
      if (!named && !(all && dims[axis] == 1)) out.push_back(dims[axis]);
    }
    context.alias(0, 0, out);
  });
}

std::unique_ptr<OpKernel> make_unsqueeze(Info) {
  return kernel_of([](OpContext& context) {
    const Dims& dims = context.input(0).dims;
    const IntList list = axes_of(context);
    check(list.size() <= static_cast<std::size_t>(kMaxRank),
          [&] { return std::string("too many axes"); });
    const int rank = dims.rank + static_cast<int>(list.size());
    const AxisList axes = normalize_axes(list, rank);
    Dims out;
    int next = 0;
    for (int axis = 0; axis < rank; ++axis) {
      const bool inserted = std::find(axes.begin(), axes.end(), axis) != axes.end();
      out.push_back(inserted ? 1 : dims[next++]);
    }
    context.alias(0, 0, out);
  });
}

std::unique_ptr<OpKernel> make_flatten(Info info) {
  const std::int64_t axis = info.node.int_attr("axis", 1);
  return kernel_of([=](OpContext& context) {
    const Dims& dims = context.input(0).dims;
    // The axis may equal the rank: everything goes to the first dimension.
    const int at = axis == dims.rank ? dims.rank : normalize_axis(axis, dims.rank);
    context.alias(0, 0, Dims{dims.elements(0, at), dims.elements(at, dims.rank)});
  });
}

std::unique_ptr<OpKernel> make_identity(Info) {
  return kernel_of([](OpContext& context) { context.alias(0, 0, context.input(0).dims); });
}

// Inference: the identity; the mask, where wanted, keeps everything.
std::unique_ptr<OpKernel> make_dropout(Info) {
  return kernel_of([](OpContext& context) {
    const Dims& dims = context.input(0).dims;
    if (context.has_input(2) && *context.input(2).as<std::uint8_t>() != 0 &&
        !(context.has_input(1) && float_scalar(context.input(1), "ratio") == 0.0)) {
      fail(ErrorCode::kUnsupported, "Dropout in training mode; export the model in eval mode");
    }
    context.alias(0, 0, dims);
    if (context.wants_output(1)) {
      std::uint8_t* mask = context.output(1, DType::kBool, dims).as<std::uint8_t>();
      std::fill_n(mask, dims.elements(), std::uint8_t{1});
    }
  });
}

}  // namespace

void register_shape(Registry& r) {
  r.add("Shape", make_shape);
  r.add("Size", [](Info) {
    return kernel_of(
        [](OpContext& context) {
          *context.output(0, DType::kI64, Dims{}).as<std::int64_t>() = context.input(0).elements();
        },
        1);
  });
  r.add("Reshape", make_reshape);
  r.add("Squeeze", make_squeeze);
  r.add("Unsqueeze", make_unsqueeze);
  r.add("Flatten", make_flatten);
  r.add("Identity", make_identity);
  r.add("Dropout", make_dropout);
}

}  // namespace kvik::ops
