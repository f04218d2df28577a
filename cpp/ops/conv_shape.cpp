#include "ops/conv_shape.h"

#include <algorithm>

namespace kvik::ops {

ConvShape::ConvShape(const graph::Node& node, bool transposed)
    : transposed_(transposed),
      groups_(node.int_attr("group", 1)),
      kernel_(ints_of(node, "kernel_shape")),
      output_padding_(ints_of(node, "output_padding")),
      output_shape_(ints_of(node, "output_shape")),
      attributes_(node) {
  if (groups_ < 1) fail_model("attribute group is " + std::to_string(groups_));
}

void ConvShape::check_weights(const Dims& w) const {
  if (w.rank < 3) {
    fail_model("W has shape " + w.str() + "; expected [channels, channels, kernel...]");
  }
  const bool fits = kernel_.empty() || (kernel_.size() == static_cast<std::size_t>(w.rank - 2) &&
                                        std::equal(kernel_.begin(), kernel_.end(), w.begin() + 2));
  if (!fits || (attributes_.rank() >= 0 && attributes_.rank() != w.rank - 2)) {
    fail_model("W has shape " + w.str() + ", which the attributes do not fit");
  }
  if (w[0] % groups_ != 0 || (w[0] == 0 && groups_ > 1)) {
    fail_model("W has shape " + w.str() + "; its first dimension cannot be divided into " +
               std::to_string(groups_) + " groups");
  }
  for (int i = 2; i < w.rank; ++i) {
    if (w[i] < 1) fail_model("W has shape " + w.str() + ": a kernel without positions");
  }
}

bool ConvShape::depthwise(const Dims& w) const {
  constexpr std::int64_t kFewest = 4, kMostTaps = 1 << 16;
  return groups_ >= kFewest && in_channels(w) == 1 && out_channels(w) == 1 &&
         w.elements(2, w.rank) <= kMostTaps;
}

ConvPlan ConvShape::plan(const Dims& x, const Dims& w) const {
  check_weights(w);
  ConvPlan p;
  p.sizes.groups = groups_;
  p.sizes.in_channels = in_channels(w);
  p.sizes.out_channels = out_channels(w);
  check(x.rank == w.rank && x[1] == dim_product(groups_, p.sizes.in_channels), [&] {
    return "X has shape " + x.str() + "; expected " + std::to_string(w.rank - 2) +
           " spatial axes and " + std::to_string(groups_) + " times " +
           std::to_string(p.sizes.in_channels) + " channels for weights of " + w.str();
  });
  const std::int64_t* kernel = w.begin() + 2;
  p.window = transposed_ ? attributes_.transposed(x, kernel, output_padding_, output_shape_)
                         : attributes_.over(x, kernel);
  p.sizes.batch = x[0];
  p.sizes.in_pixels = x.elements(2, x.rank);
  p.result = Dims{x[0], dim_product(groups_, p.sizes.out_channels)};
  for (int i = 0; i < p.window.rank; ++i) {
    p.result.push_back(transposed_ ? p.window[i].in : p.window[i].out);
  }
  result_elements(p.result);
  p.sizes.out_pixels = p.result.elements(2, p.result.rank);
  return p;
}

std::vector<std::array<PhaseAxis, kMostSpatial>> ConvShape::phases(const Dims& w) const {
  std::vector<std::array<PhaseAxis, kMostSpatial>> all(1);
  for (int i = 0; i < w.rank - 2; ++i) {
    const std::int64_t kernel = w[2 + i];
    const std::int64_t stride = attributes_.stride(i), dilation = attributes_.dilation(i);
    constexpr std::int64_t kMostPhases = 1 << 14;
    const std::int64_t count = transposed_ ? phase_count(kernel, stride, dilation) : 1;
    if (count > kMostPhases / static_cast<std::int64_t>(all.size())) {
      fail(ErrorCode::kUnsupported, "the strides of a kernel " + w.str() + " are too large");
    }
    std::vector<PhaseAxis> own{{0, 1, kernel}};
    if (transposed_) own = phases_of(kernel, stride, dilation);
    std::vector<std::array<PhaseAxis, kMostSpatial>> next;
    next.reserve(all.size() * own.size());
    for (const auto& before : all) {
      for (const PhaseAxis& axis : own) {
        next.push_back(before);
        next.back()[static_cast<std::size_t>(i)] = axis;
      }
    }
    all = std::move(next);
  }
  return all;
}

std::int64_t pixel_under(const Window& window, bool transposed, std::int64_t output,
                         std::int64_t tap) {
  std::int64_t pixel = 0, step = 1;
  for (int i = window.rank - 1; i >= 0; --i) {
    const WindowAxis& a = window[i];
    const std::int64_t t = tap % a.kernel, size = transposed ? a.in : a.out;
    std::int64_t position = a.position(output % size, t);
    if (transposed) {
      const std::int64_t distance = output % size + a.pad_begin - t * a.dilation;
      position = distance < 0 || distance % a.stride != 0 ? -1 : distance / a.stride;
    }
    const std::int64_t limit = transposed ? a.out : a.in;
    if (position < 0 || position >= limit) return -1;
    pixel += position * step;
    step *= limit;
    tap /= a.kernel;
    output /= size;
  }
  return pixel;
}

}  // namespace kvik::ops
