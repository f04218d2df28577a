// What the operators of the convolution family are told: attributes, checked against shapes.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "ops/conv_run.h"
#include "ops/support.h"
#include "ops/window.h"

namespace kvik::ops {

struct ConvPlan {
  ConvSizes sizes;
  Window window;  // of a transposed convolution: see WindowAttributes::transposed
  Dims result;    // [batch, channels, out...]
};

// Weights W are [groups · out_channels, in_channels, kernel...], those of a transposed convolution
// [groups · in_channels, out_channels, kernel...].
class ConvShape {
 public:
  // Throws kInvalidModel for attributes that are wrong whatever the shapes.
  ConvShape(const graph::Node& node, bool transposed);

  bool transposed() const { return transposed_; }
  std::int64_t groups() const { return groups_; }
  std::int64_t in_channels(const Dims& w) const { return transposed_ ? w[0] / groups_ : w[1]; }
  std::int64_t out_channels(const Dims& w) const { return transposed_ ? w[1] : w[0] / groups_; }
  // Whether every channel is a group of its own, in and out.
  bool depthwise(const Dims& w) const;

  // Throws kInvalidModel where W does not fit the attributes.
  void check_weights(const Dims& w) const;
  // Throws kInvalidModel as above, kInvalidArgument where x does not fit.
  ConvPlan plan(const Dims& x, const Dims& w) const;
  // The phases of every axis in all combinations; one phase, which has all taps, of a Conv.
  std::vector<std::array<PhaseAxis, kMostSpatial>> phases(const Dims& w) const;

 private:
  bool transposed_;
  std::int64_t groups_;
  IntList kernel_, output_padding_, output_shape_;
  WindowAttributes attributes_;
};

// The input's pixel under a tap of the kernel at an output, all numbered in row-major order; -1 in
// the padding, and where a transposed convolution's tap meets no pixel.
std::int64_t pixel_under(const Window& window, bool transposed, std::int64_t output,
                         std::int64_t tap);

// Every element of the result as a plain sum, for element types that the products do not have:
// store(index, channel, sum), sum = Σ product(x index, W index) over the taps within the input and
// the channels of the group, in this order, from Sum(0).
template <typename Sum, typename Product, typename Store>
void convolve_plainly(OpContext& context, const ConvShape& shape, const ConvPlan& plan,
                      Product product, Store store) {
  const ConvSizes& s = plan.sizes;
  const std::int64_t planes = s.groups * s.out_channels;
  const std::int64_t kernel = plan.window.taps();
  const std::int64_t cost = 2 * kernel * std::max<std::int64_t>(s.in_channels, 1);
  parallel_for(context, plan.result.elements(), cost, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) {
      const std::int64_t plane = i / s.out_pixels % planes, image = i / s.out_pixels / planes;
      const std::int64_t group = plane / s.out_channels, channel = plane % s.out_channels;
      Sum sum(0);
      for (std::int64_t tap = 0; tap < kernel; ++tap) {
        const std::int64_t pixel =
            pixel_under(plan.window, shape.transposed(), i % s.out_pixels, tap);
        if (pixel < 0) continue;
        for (std::int64_t c = 0; c < s.in_channels; ++c) {
          const std::int64_t in = group * s.in_channels + c;
          const std::int64_t x = (image * s.groups * s.in_channels + in) * s.in_pixels + pixel;
          const std::int64_t w =
              shape.transposed() ? in * s.out_channels + channel : plane * s.in_channels + c;
          sum += product(x, w * kernel + tap);
        }
      }
      store(i, plane, sum);
    }
  });
}

}  // namespace kvik::ops
