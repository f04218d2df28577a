// Windows that move over the spatial axes of [batch, channels, spatial...]: the geometry that
// convolutions and pools share. Every size is checked; nothing here reads elements.
#pragma once

#include <cstdint>
#include <string>

#include "graph/graph.h"
#include "ops/support.h"

namespace kvik::ops {

// One spatial axis. Window o covers the input's positions o·stride - pad_begin + t·dilation for the
// taps t in [0, kernel); those outside [0, in) are padding.
struct WindowAxis {
  std::int64_t in = 0;
  std::int64_t kernel = 1;
  std::int64_t stride = 1;
  std::int64_t dilation = 1;
  std::int64_t pad_begin = 0, pad_end = 0;
  std::int64_t out = 0;

  std::int64_t position(std::int64_t o, std::int64_t t) const {
    return o * stride - pad_begin + t * dilation;
  }
  // The taps of window o whose positions are in [low, high): a range, empty where there are none.
  Range taps_within(std::int64_t o, std::int64_t low, std::int64_t high) const;
};

inline constexpr int kMostSpatial = kMaxRank - 2;

struct Window {
  int rank = 0;  // spatial axes
  std::array<WindowAxis, kMostSpatial> axes;

  const WindowAxis& operator[](int i) const { return axes[static_cast<std::size_t>(i)]; }
  std::int64_t taps() const;     // of all axes together
  std::int64_t windows() const;  // likewise
};

enum class AutoPad : std::uint8_t { kNotSet, kSameUpper, kSameLower, kValid };

// The attributes strides, dilations, pads, auto_pad, kernel_shape and ceil_mode, checked for
// themselves: strides, dilations and kernels are positive, paddings are not negative.
class WindowAttributes {
 public:
  explicit WindowAttributes(const graph::Node& node);

  bool has_kernel() const { return !kernel_.empty(); }
  // Spatial axes that the attributes speak of; -1 where they leave it open.
  int rank() const { return rank_; }

  std::int64_t stride(int axis) const { return at_or_one(strides_, axis); }
  std::int64_t dilation(int axis) const { return at_or_one(dilations_, axis); }

  // The windows over x [batch, channels, spatial...] with `kernel` (null: the attribute). Throws
  // kInvalidArgument where the attributes do not fit x, or a window is larger than the padded
  // input.
  Window over(const Dims& x, const std::int64_t* kernel = nullptr) const;

  // The inverse: the windows whose input is what a transposed convolution of x puts out, and whose
  // windows are x's positions: `in` is the size of the output, `out` that of x. output_padding and
  // output_shape are the attributes of that operator.
  Window transposed(const Dims& x, const std::int64_t* kernel, const IntList& output_padding,
                    const IntList& output_shape) const;

 private:
  static std::int64_t at_or_one(const IntList& list, int axis) {
    return list.empty() ? 1 : list[static_cast<std::size_t>(axis)];
  }
  WindowAxis axis_of(const Dims& x, int i, const std::int64_t* kernel) const;

  AutoPad auto_pad_ = AutoPad::kNotSet;
  bool ceil_ = false;
  int rank_ = -1;
  IntList kernel_, strides_, dilations_, pads_;  // empty: not given
};

// The same of a pool, whose kernel_shape must be there. Throws kInvalidModel.
WindowAttributes pool_attributes(const graph::Node& node);

// A list of integers of a node; empty where there is none.
IntList ints_of(const graph::Node& node, const char* key);

}  // namespace kvik::ops
