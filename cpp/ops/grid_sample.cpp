// GridSample: an image read at given coordinates.
#include <algorithm>
#include <cmath>

#include "ops/families.h"
#include "ops/window.h"

namespace kvik::ops {

namespace {

enum class Sampling : std::uint8_t { kNearest, kLinear, kCubic };
enum class Outside : std::uint8_t { kZeros, kBorder, kReflection };

constexpr int kMostGridAxes = 3;
constexpr int kMostSamples = 64;  // of a point: 4 along each axis

// The samples of one coordinate along an axis; an index of -1 is a zero.
struct AxisSamples {
  int count = 0;
  std::array<std::int64_t, 4> index{};
  std::array<float, 4> weight{};
};

// Thrown back and forth between the borders until it is within them.
float reflect(float x, float low, float high) {
  const float range = high - low;
  if (!(range > 0.0f) || !std::isfinite(x)) return low;
  const float distance = x < low ? low - x : x > high ? x - high : 0.0f;
  if (distance == 0.0f) return x;
  const float rest = std::fmod(distance, range);
  const bool even = std::fmod(std::floor(distance / range), 2.0f) == 0.0f;
  return (x < low) == even ? low + rest : high - rest;
}

class Sampler {
 public:
  Sampler(const graph::Node& node) : align_corners_(node.int_attr("align_corners", 0) != 0) {
    const std::string mode = node.string_attr("mode", "linear");
    const std::string padding = node.string_attr("padding_mode", "zeros");
    if (mode == "nearest") {
      mode_ = Sampling::kNearest;
    } else if (mode == "cubic" || mode == "bicubic") {
      mode_ = Sampling::kCubic;
    } else if (mode != "linear" && mode != "bilinear") {
      fail_model("attribute mode is '" + mode + "'; expected linear, nearest or cubic");
    }
    if (padding == "border") {
      outside_ = Outside::kBorder;
    } else if (padding == "reflection") {
      outside_ = Outside::kReflection;
    } else if (padding != "zeros") {
      fail_model("attribute padding_mode is '" + padding +
                 "'; expected zeros, border or reflection");
    }
  }

  // The samples of a coordinate in [-1, 1] on an axis of `size` > 0.
  AxisSamples at(float normal, std::int64_t size) const {
    const auto length = static_cast<float>(size);
    const float low = align_corners_ ? 0.0f : -0.5f;
    const float high = align_corners_ ? length - 1.0f : length - 0.5f;
    float x = align_corners_ ? (normal + 1.0f) / 2.0f * (length - 1.0f)
                             : ((normal + 1.0f) * length - 1.0f) / 2.0f;
    if (mode_ == Sampling::kNearest) x = std::nearbyint(x);
    if (!(x >= low && x <= high)) {
      if (outside_ == Outside::kBorder) x = x > high ? length - 1.0f : 0.0f;
      if (outside_ == Outside::kReflection) x = reflect(x, low, high);
    }
    AxisSamples samples;
    // What is further away than any sample reaches is zero, NaN too.
    if (!(x > -4.0f && x < length + 4.0f)) {
      samples.count = 1;
      samples.index[0] = -1;
      return samples;
    }
    const float left = std::floor(x), t = x - left;
    const auto first = static_cast<std::int64_t>(left);
    switch (mode_) {
      case Sampling::kNearest:
        samples.count = 1;
        samples.weight[0] = 1.0f;
        samples.index[0] = pixel(static_cast<std::int64_t>(x), size, low, high);
        return samples;
      case Sampling::kLinear:
        samples.count = 2;
        samples.weight = {1.0f - t, t};
        break;
      case Sampling::kCubic:
        samples.count = 4;
        samples.weight = {cubic(t + 1.0f), cubic(t), cubic(1.0f - t), cubic(2.0f - t)};
        break;
    }
    const std::int64_t begin = mode_ == Sampling::kCubic ? first - 1 : first;
    for (int i = 0; i < samples.count; ++i) {
      samples.index[static_cast<std::size_t>(i)] = pixel(begin + i, size, low, high);
    }
    return samples;
  }

 private:
  static float cubic(float x) {  // x >= 0
    constexpr float a = -0.75f;
    if (x <= 1.0f) return ((a + 2.0f) * x - (a + 3.0f)) * x * x + 1.0f;
    return ((a * x - 5.0f * a) * x + 8.0f * a) * x - 4.0f * a;
  }
  std::int64_t pixel(std::int64_t i, std::int64_t size, float low, float high) const {
    if (i >= 0 && i < size) return i;
    if (outside_ == Outside::kZeros) return -1;
    if (outside_ == Outside::kReflection) {
      i = static_cast<std::int64_t>(reflect(static_cast<float>(i), low, high));
    }
    return std::clamp<std::int64_t>(i, 0, size - 1);
  }

  Sampling mode_ = Sampling::kLinear;
  Outside outside_ = Outside::kZeros;
  bool align_corners_;
};

// The samples of one point over all axes: offsets into a plane and weights.
struct PointSamples {
  int count = 0;
  std::array<std::int64_t, kMostSamples> offset{};
  std::array<float, kMostSamples> weight{};

  void start() {
    count = 1;
    offset[0] = 0;
    weight[0] = 1.0f;
  }
  // Every sample so far with every one of an inner axis.
  void cross(const AxisSamples& axis, std::int64_t size) {
    const PointSamples before = *this;
    count = 0;
    for (int i = 0; i < before.count; ++i) {
      for (int j = 0; j < axis.count; ++j) {
        const auto at = static_cast<std::size_t>(i), along = static_cast<std::size_t>(j);
        if (axis.index[along] < 0) continue;
        offset[static_cast<std::size_t>(count)] = before.offset[at] * size + axis.index[along];
        weight[static_cast<std::size_t>(count++)] = before.weight[at] * axis.weight[along];
      }
    }
  }
};

float grid_value(const Tensor& grid, std::int64_t i) {
  return visit_float(grid.dtype,
                     [&]<typename T>() { return static_cast<float>(widen(grid.as<T>()[i])); });
}

std::unique_ptr<OpKernel> make_grid_sample(const NodeInfo& info) {
  return kernel_of([sampler = Sampler(info.node)](OpContext& context) {
    const Tensor& x = context.input(0);
    const Tensor& grid = context.input(1);
    const int axes = x.dims.rank - 2;
    check(axes >= 1 && grid.dims.rank == x.dims.rank && grid.dims[0] == x.dims[0] &&
              grid.dims.back() == axes,
          [&] {
            return "X and grid have shapes " + x.dims.str() + " and " + grid.dims.str() +
                   "; expected [batch, channels, in...] and [batch, out..., axes]";
          });
    if (axes > kMostGridAxes) {
      fail(ErrorCode::kUnsupported, "more than three spatial axes are not supported");
    }
    Dims dims{x.dims[0], x.dims[1]};
    for (int i = 0; i < axes; ++i) dims.push_back(grid.dims[1 + i]);
    Tensor& y = context.output(0, x.dtype, dims);
    if (y.elements() == 0) return;
    const std::int64_t channels = x.dims[1], in = x.dims.elements(2, x.dims.rank);
    check(in > 0, [&] { return "X has shape " + x.dims.str() + ": there is nothing to sample"; });
    const std::int64_t points = dims.elements(2, dims.rank);
    visit_float(x.dtype, [&]<typename T>() {
      const std::int64_t cost = 50 + 16 * channels;
      parallel_for(context, dims[0] * points, cost, [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t p = begin; p < end; ++p) {
          PointSamples samples;
          samples.start();
          // The grid names the innermost axis first.
          for (int axis = 0; axis < axes; ++axis) {
            const std::int64_t size = x.dims[2 + axis];
            samples.cross(sampler.at(grid_value(grid, p * axes + axes - 1 - axis), size), size);
          }
          const T* image = x.as<T>() + p / points * channels * in;
          T* out = y.as<T>() + p / points * channels * points + p % points;
          for (std::int64_t c = 0; c < channels; ++c, image += in, out += points) {
            Compute<T> sum = 0;
            for (int i = 0; i < samples.count; ++i) {
              const auto at = static_cast<std::size_t>(i);
              sum += static_cast<Compute<T>>(samples.weight[at]) * widen(image[samples.offset[at]]);
            }
            *out = narrow<T>(sum);
          }
        }
      });
    });
  });
}

}  // namespace

void register_grid_sample(Registry& r) {
  r.add("GridSample", make_grid_sample);
}

}  // namespace kvik::ops
