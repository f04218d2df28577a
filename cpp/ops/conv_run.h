// Convolutions as products with packed weights, and depthwise ones as weighted sums of pixels.
//
// A convolution, and each phase of a transposed one, computes a grid of output points. The point's
// row holds the input's pixels under the taps, [taps, channels of the group]; the row times the
// weights is the point's output channels. Rows are made for a block of points at a time.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <vector>

#include "base/aligned_buffer.h"
#include "base/tensor.h"
#include "ops/packed_weights.h"
#include "ops/window.h"

namespace kvik::ops {

// Which taps of a kernel a phase has, in the order of its rows: first_tap + j · tap_step.
struct PhaseAxis {
  std::int64_t first_tap = 0;
  std::int64_t tap_step = 1;
  std::int64_t taps = 1;
};

// One spatial axis of a grid. Point q reads the input's positions q·in_step + offset +
// j·offset_step for j in [0, taps), and is the output's position out_first + q·out_step.
struct GridAxis {
  std::int64_t points = 0;
  std::int64_t in = 0, in_step = 1;
  std::int64_t taps = 1, offset = 0, offset_step = 1;
  std::int64_t out = 0, out_first = 0, out_step = 1;
};

struct ConvGrid {
  int rank = 0;
  std::array<GridAxis, kMostSpatial> axes;

  std::int64_t points() const;
  std::int64_t taps() const;
  // Whether point q reads pixel q and nothing else.
  bool pointwise() const;
};

// Of a convolution over the windows.
ConvGrid grid_over(const Window& window);
// Of a phase of a transposed convolution (see WindowAttributes::transposed).
ConvGrid grid_of_phase(const Window& window, const std::array<PhaseAxis, kMostSpatial>& phase);

// How many phases a transposed convolution has on one axis.
std::int64_t phase_count(std::int64_t kernel, std::int64_t stride, std::int64_t dilation);
// The phases of a transposed convolution on one axis: taps k of equal (k · dilation) mod stride
// meet the same outputs. Each tap is in one phase.
std::vector<PhaseAxis> phases_of(std::int64_t kernel, std::int64_t stride, std::int64_t dilation);

struct ConvSizes {
  std::int64_t batch = 0, groups = 1;
  std::int64_t in_channels = 0, out_channels = 0;  // of a group
  std::int64_t in_pixels = 0, out_pixels = 0;
};

// The weights of one phase: per group [taps · in_channels, out_channels], or, where each channel is
// a group of its own, fp32 [taps, groups].
struct ConvWeights {
  std::array<PhaseAxis, kMostSpatial> phase{};
  std::vector<std::shared_ptr<const PackedWeights>> groups;
  AlignedBuffer depthwise;
};

// y [batch, groups · out_channels, out...] of x [batch, groups · in_channels, in...], both of one
// floating-point type other than float64. Grids and weights by phase; `bias` [groups ·
// out_channels] of x's type or null. Outputs that no grid has are the bias, or 0.
void run_convolution(OpContext& context, const ConvSizes& sizes, std::span<const ConvGrid> grids,
                     std::span<const ConvWeights> weights, const Tensor& x, const Tensor* bias,
                     Tensor& y);

}  // namespace kvik::ops
