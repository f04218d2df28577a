#include "ops/window.h"

#include <algorithm>

namespace kvik::ops {

namespace {

// Sizes beyond this cannot belong to a tensor, and sums and products of three of them that are
// checked one by one stay far from overflow.
constexpr std::int64_t kLargestSize = std::int64_t{1} << 48;

std::string list_text(const IntList& list) {
  std::string out = "[";
  for (std::size_t i = 0; i < list.size(); ++i) out += (i ? ", " : "") + std::to_string(list[i]);
  return out + "]";
}

void check_each(const char* key, const IntList& list, std::int64_t least) {
  for (const std::int64_t value : list) {
    if (value < least || value > kLargestSize) {
      fail_model("attribute " + std::string(key) + " is " + list_text(list) +
                 "; expected numbers of at least " + std::to_string(least));
    }
  }
}

std::int64_t product_of(std::int64_t a, std::int64_t b) {
  std::int64_t product = 0;
  if (!checked_mul(a, b, &product) || product > 8 * kLargestSize) {
    fail(ErrorCode::kOutOfMemory, "a window of " + std::to_string(a) + " times " +
                                      std::to_string(b) + " positions is too large");
  }
  return product;
}

// The positions from the first tap to the last.
std::int64_t extent_of(const WindowAxis& a) {
  return product_of(a.kernel - 1, a.dilation) + 1;
}

std::int64_t ceil_div(std::int64_t a, std::int64_t b) {  // a >= 0
  return a / b + (a % b != 0 ? 1 : 0);
}

void split_padding(std::int64_t total, bool more_at_end, WindowAxis& a) {
  a.pad_begin = more_at_end ? total / 2 : total - total / 2;
  a.pad_end = total - a.pad_begin;
}

}  // namespace

IntList ints_of(const graph::Node& node, const char* key) {
  IntList out;
  for (const std::int64_t value : node.ints_attr(key).value_or(std::vector<std::int64_t>{})) {
    out.push_back(value);
  }
  return out;
}

Range WindowAxis::taps_within(std::int64_t o, std::int64_t low, std::int64_t high) const {
  const std::int64_t first = position(o, 0);
  Range range;
  range.begin = first >= low ? 0 : std::min(kernel, ceil_div(low - first, dilation));
  range.end = first >= high ? 0 : std::min(kernel, ceil_div(high - first, dilation));
  range.end = std::max(range.begin, range.end);
  return range;
}

std::int64_t Window::taps() const {
  std::int64_t product = 1;
  for (int i = 0; i < rank; ++i)
    product = product_of(product, axes[static_cast<std::size_t>(i)].kernel);
  return product;
}

std::int64_t Window::windows() const {
  std::int64_t product = 1;
  for (int i = 0; i < rank; ++i)
    product = dim_product(product, axes[static_cast<std::size_t>(i)].out);
  return product;
}

WindowAttributes::WindowAttributes(const graph::Node& node)
    : ceil_(node.int_attr("ceil_mode", 0) != 0),
      kernel_(ints_of(node, "kernel_shape")),
      strides_(ints_of(node, "strides")),
      dilations_(ints_of(node, "dilations")),
      pads_(ints_of(node, "pads")) {
  const std::string how = node.string_attr("auto_pad", "NOTSET");
  if (how == "SAME_UPPER") {
    auto_pad_ = AutoPad::kSameUpper;
  } else if (how == "SAME_LOWER") {
    auto_pad_ = AutoPad::kSameLower;
  } else if (how == "VALID") {
    auto_pad_ = AutoPad::kValid;
  } else if (how != "NOTSET" && !how.empty()) {
    fail_model("attribute auto_pad is '" + how +
               "'; expected NOTSET, SAME_UPPER, SAME_LOWER or VALID");
  }
  check_each("kernel_shape", kernel_, 1);
  check_each("strides", strides_, 1);
  check_each("dilations", dilations_, 1);
  check_each("pads", pads_, 0);
  const auto agree = [&](const char* key, std::size_t axes) {
    if (axes == 0) return;
    const int rank = static_cast<int>(std::min<std::size_t>(axes, kMaxRank));
    if (rank_ >= 0 && rank != rank_) {
      fail_model("attribute " + std::string(key) + " speaks of " + std::to_string(axes) +
                 " spatial axes, another one of " + std::to_string(rank_));
    }
    rank_ = rank;
  };
  agree("kernel_shape", kernel_.size());
  agree("strides", strides_.size());
  agree("dilations", dilations_.size());
  if (pads_.size() % 2 != 0)
    fail_model("attribute pads is " + list_text(pads_) + "; expected pairs");
  agree("pads", pads_.size() / 2);
}

// Without paddings and output size.
WindowAxis WindowAttributes::axis_of(const Dims& x, int i, const std::int64_t* kernel) const {
  const auto at = static_cast<std::size_t>(i);
  WindowAxis a;
  a.in = x[2 + i];
  a.kernel = kernel != nullptr ? kernel[i] : kernel_[at];
  a.stride = stride(i);
  a.dilation = dilation(i);
  if (auto_pad_ == AutoPad::kNotSet && !pads_.empty()) {
    a.pad_begin = pads_[at];
    a.pad_end = pads_[at + static_cast<std::size_t>(rank_)];
  }
  check(a.kernel >= 1 && a.kernel <= kLargestSize && a.in <= kLargestSize, [&] {
    return "a kernel of " + std::to_string(a.kernel) + " positions over " + std::to_string(a.in) +
           " is out of range";
  });
  return a;
}

namespace {

void check_spatial(const Dims& x, int rank) {
  check(x.rank >= 3,
        [&] { return "X has shape " + x.str() + "; expected [batch, channels, spatial...]"; });
  check(rank < 0 || rank == x.rank - 2, [&] {
    return "X has shape " + x.str() + "; the attributes speak of " + std::to_string(rank) +
           " spatial axes";
  });
}

}  // namespace

Window WindowAttributes::over(const Dims& x, const std::int64_t* kernel) const {
  check_spatial(x, rank_);
  Window window;
  window.rank = x.rank - 2;
  for (int i = 0; i < window.rank; ++i) {
    WindowAxis& a = window.axes[static_cast<std::size_t>(i)];
    a = axis_of(x, i, kernel);
    const std::int64_t extent = extent_of(a);
    if (auto_pad_ == AutoPad::kSameUpper || auto_pad_ == AutoPad::kSameLower) {
      a.out = ceil_div(a.in, a.stride);
      const std::int64_t covered = a.out == 0 ? 0 : product_of(a.out - 1, a.stride) + extent;
      split_padding(std::max<std::int64_t>(covered - a.in, 0), auto_pad_ == AutoPad::kSameUpper, a);
      continue;
    }
    const std::int64_t padded = a.in + a.pad_begin + a.pad_end;
    check(padded >= extent, [&] {
      return "a window of " + std::to_string(extent) + " positions is larger than the input of " +
             std::to_string(a.in) + " with paddings " + std::to_string(a.pad_begin) + " and " +
             std::to_string(a.pad_end);
    });
    const std::int64_t room = padded - extent;
    a.out = (ceil_ ? ceil_div(room, a.stride) : room / a.stride) + 1;
    // A window that would begin in the padding at the end is left out.
    if (ceil_ && product_of(a.out - 1, a.stride) >= a.in + a.pad_begin) --a.out;
  }
  return window;
}

Window WindowAttributes::transposed(const Dims& x, const std::int64_t* kernel,
                                    const IntList& output_padding,
                                    const IntList& output_shape) const {
  check_spatial(x, rank_);
  Window window;
  window.rank = x.rank - 2;
  const auto axes = static_cast<std::size_t>(window.rank);
  // Some exporters give the whole shape.
  const std::size_t skip = output_shape.size() == axes + 2 ? 2 : 0;
  check(output_padding.empty() || output_padding.size() == axes, [&] {
    return "attribute output_padding is " + list_text(output_padding) + " for X " + x.str();
  });
  check(output_shape.empty() || output_shape.size() == axes + skip, [&] {
    return "attribute output_shape is " + list_text(output_shape) + " for X " + x.str();
  });
  for (int i = 0; i < window.rank; ++i) {
    const auto at = static_cast<std::size_t>(i);
    WindowAxis& a = window.axes[at];
    a = axis_of(x, i, kernel);
    a.out = a.in;
    const std::int64_t extra = output_padding.empty() ? 0 : output_padding[at];
    check(extra >= 0 && extra <= kLargestSize, [&] {
      return "attribute output_padding is " + list_text(output_padding) +
             "; expected no negative numbers";
    });
    const std::int64_t whole =
        (a.out == 0 ? 0 : product_of(a.out - 1, a.stride) + extent_of(a)) + extra;
    const bool same = auto_pad_ == AutoPad::kSameUpper || auto_pad_ == AutoPad::kSameLower;
    if (!output_shape.empty() || same) {
      a.in = output_shape.empty() ? product_of(a.out, a.stride) : output_shape[at + skip];
      check(a.in >= 0 && a.in <= 8 * kLargestSize, [&] {
        return "attribute output_shape is " + list_text(output_shape) +
               "; expected no negative numbers";
      });
      // Where the output is larger than all windows together, the rest belongs to no window.
      split_padding(std::max<std::int64_t>(whole - a.in, 0), auto_pad_ == AutoPad::kSameUpper, a);
      continue;
    }
    a.in = whole - a.pad_begin - a.pad_end;
    check(a.in >= 0, [&] {
      return "paddings of " + std::to_string(a.pad_begin) + " and " + std::to_string(a.pad_end) +
             " leave nothing of an output of " + std::to_string(whole);
    });
  }
  return window;
}

WindowAttributes pool_attributes(const graph::Node& node) {
  WindowAttributes attributes(node);
  if (!attributes.has_kernel()) fail_model("attribute kernel_shape is missing");
  return attributes;
}

}  // namespace kvik::ops
