// Resize: nearest neighbours as a copy by index, linear and cubic interpolation axis by axis.
//
// Coordinates follow ONNX's reference: in double, lengths that a scale gives are not rounded.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "ops/families.h"
#include "ops/support.h"

namespace kvik::ops {

namespace {

enum class ResizeMode : std::uint8_t { kNearest, kLinear, kCubic };
enum class Coordinates : std::uint8_t {
  kHalfPixel,
  kHalfPixelSymmetric,
  kPytorchHalfPixel,
  kAlignCorners,
  kAsymmetric,
  kTfCropAndResize,
  kTfHalfPixelForNn,  // until opset 12
};
enum class Nearest : std::uint8_t { kRoundPreferFloor, kRoundPreferCeil, kFloor, kCeil };
enum class AspectRatio : std::uint8_t { kStretch, kNotLarger, kNotSmaller };

template <typename Value, std::size_t kCount>
Value choice(const graph::Node& node, const char* key, const char* fallback,
             const std::pair<const char*, Value> (&choices)[kCount]) {
  const std::string given = node.string_attr(key, fallback);
  std::string names;
  for (const auto& [name, value] : choices) {
    if (given == name) return value;
    names += (names.empty() ? "" : ", ") + std::string(name);
  }
  fail_model("attribute " + std::string(key) + " is '" + given + "'; expected one of " + names);
}

// One axis that is resized.
struct ResizedAxis {
  int axis = 0;
  std::int64_t in = 0, out = 0;
  double scale = 1.0;
  double roi_begin = 0.0, roi_end = 1.0;

  bool identity() const {
    return in == out && std::fabs(scale - 1.0) <= 1e-9 && roi_begin == 0.0 && roi_end == 1.0;
  }
};

struct ResizeAttributes {
  ResizeMode mode;
  Coordinates coordinates;
  Nearest nearest;
  AspectRatio aspect_ratio;
  bool antialias, exclude_outside;
  double cubic_a;
  float extrapolation;
  IntList axes;

  explicit ResizeAttributes(const graph::Node& node)
      : mode(choice<ResizeMode>(node, "mode", "nearest",
                                {{"nearest", ResizeMode::kNearest},
                                 {"linear", ResizeMode::kLinear},
                                 {"cubic", ResizeMode::kCubic}})),
        coordinates(
            choice<Coordinates>(node, "coordinate_transformation_mode", "half_pixel",
                                {{"half_pixel", Coordinates::kHalfPixel},
                                 {"half_pixel_symmetric", Coordinates::kHalfPixelSymmetric},
                                 {"pytorch_half_pixel", Coordinates::kPytorchHalfPixel},
                                 {"align_corners", Coordinates::kAlignCorners},
                                 {"asymmetric", Coordinates::kAsymmetric},
                                 {"tf_crop_and_resize", Coordinates::kTfCropAndResize},
                                 {"tf_half_pixel_for_nn", Coordinates::kTfHalfPixelForNn}})),
        nearest(choice<Nearest>(node, "nearest_mode", "round_prefer_floor",
                                {{"round_prefer_floor", Nearest::kRoundPreferFloor},
                                 {"round_prefer_ceil", Nearest::kRoundPreferCeil},
                                 {"floor", Nearest::kFloor},
                                 {"ceil", Nearest::kCeil}})),
        aspect_ratio(choice<AspectRatio>(node, "keep_aspect_ratio_policy", "stretch",
                                         {{"stretch", AspectRatio::kStretch},
                                          {"not_larger", AspectRatio::kNotLarger},
                                          {"not_smaller", AspectRatio::kNotSmaller}})),
        antialias(node.int_attr("antialias", 0) != 0),
        exclude_outside(node.int_attr("exclude_outside", 0) != 0),
        cubic_a(static_cast<double>(node.float_attr("cubic_coeff_a", -0.75f))),
        extrapolation(node.float_attr("extrapolation_value", 0.0f)) {
    for (const std::int64_t axis : node.ints_attr("axes").value_or(std::vector<std::int64_t>{})) {
      axes.push_back(axis);
    }
    if (antialias && mode == ResizeMode::kNearest) {
      fail_model("attribute antialias does not go with the mode nearest");
    }
  }

  // Where output o of an axis lies in the input.
  double coordinate(const ResizedAxis& a, std::int64_t o) const {
    const double at = static_cast<double>(o), in = static_cast<double>(a.in);
    const double out = a.scale * in;  // as the scale has it, a fraction maybe
    switch (coordinates) {
      case Coordinates::kHalfPixel: break;
      case Coordinates::kPytorchHalfPixel:
        if (out == 1.0) return -0.5;
        break;
      case Coordinates::kHalfPixelSymmetric: {
        const double adjustment = static_cast<double>(a.out) / out;
        return in / 2.0 * (1.0 - adjustment) + (at + 0.5) / a.scale - 0.5;
      }
      case Coordinates::kAlignCorners: return out == 1.0 ? 0.0 : at * (in - 1.0) / (out - 1.0);
      case Coordinates::kAsymmetric: return at / a.scale;
      case Coordinates::kTfHalfPixelForNn: return (at + 0.5) / a.scale;
      case Coordinates::kTfCropAndResize: {
        const double length = (a.roi_end - a.roi_begin) * (in - 1.0);
        const double begin = a.roi_begin * (in - 1.0);
        return begin + (out == 1.0 ? length / 2.0 : at * length / (out - 1.0));
      }
    }
    return (at + 0.5) / a.scale - 0.5;
  }

  // Whether an output at this coordinate is the extrapolation value.
  bool outside(const ResizedAxis& a, double coordinate) const {
    return coordinates == Coordinates::kTfCropAndResize &&
           !(coordinate >= 0.0 && coordinate <= static_cast<double>(a.in - 1));
  }
};

// A coordinate as an index; any number, NaN included, gives one within the axis.
std::int64_t clamp_index(double index, std::int64_t in) {
  if (!(index > 0.0)) return 0;
  return index >= static_cast<double>(in - 1) ? in - 1 : static_cast<std::int64_t>(index);
}

std::int64_t nearest_index(Nearest how, double coordinate, std::int64_t in) {
  switch (how) {
    case Nearest::kRoundPreferFloor: return clamp_index(std::ceil(coordinate - 0.5), in);
    case Nearest::kRoundPreferCeil: return clamp_index(std::floor(coordinate + 0.5), in);
    case Nearest::kFloor: return clamp_index(std::floor(coordinate), in);
    case Nearest::kCeil: return clamp_index(std::ceil(coordinate), in);
  }
  return 0;
}

// ---- Shapes ------------------------------------------------------------------------------------

double number_at(const Tensor& t, std::int64_t i) {
  return visit_float(t.dtype,
                     [&]<typename T>() { return static_cast<double>(widen(t.as<T>()[i])); });
}

bool given(OpContext& context, int i) {
  return context.has_input(i) && context.input(i).elements() > 0;
}

std::int64_t resized_length(double length) {
  check(length >= 0.0 && length < 0x1p48,
        [&] { return "a length of " + std::to_string(length) + " is out of range"; });
  return static_cast<std::int64_t>(length);
}

void apply_aspect_ratio(AspectRatio policy, std::span<ResizedAxis> axes) {
  if (policy == AspectRatio::kStretch || axes.empty()) return;
  double scale = axes.front().scale;
  for (const ResizedAxis& a : axes) {
    scale = policy == AspectRatio::kNotLarger ? std::min(scale, a.scale) : std::max(scale, a.scale);
  }
  for (ResizedAxis& a : axes) {
    a.scale = scale;
    a.out = resized_length(std::floor(scale * static_cast<double>(a.in) + 0.5));
  }
}

using ResizedAxes = ShortList<ResizedAxis>;

ResizedAxes resized_axes(OpContext& context, const ResizeAttributes& attributes) {
  const Tensor& x = context.input(0);
  const int rank = x.dims.rank;
  AxisList axes;
  if (attributes.axes.empty()) {
    for (int i = 0; i < rank; ++i) axes.push_back(i);
  } else {
    normalize_axes(std::span(attributes.axes.begin(), attributes.axes.size()), rank);  // checks
    for (const std::int64_t axis : attributes.axes) axes.push_back(normalize_axis(axis, rank));
  }
  const auto count = static_cast<std::int64_t>(axes.size());
  const bool by_scales = given(context, 2);
  check(by_scales || context.has_input(3),
        [] { return std::string("neither scales nor sizes are given"); });
  const Tensor& how = context.input(by_scales ? 2 : 3);
  check(how.dims == Dims{count}, [&] {
    return std::string(by_scales ? "scales" : "sizes") + " has shape " + how.dims.str() +
           "; expected " + Dims{count}.str() + " for X " + x.dims.str();
  });
  ResizedAxes out(static_cast<std::size_t>(count));
  for (std::int64_t i = 0; i < count; ++i) {
    ResizedAxis& a = out[static_cast<std::size_t>(i)];
    a.axis = axes[static_cast<std::size_t>(i)];
    a.in = x.dims[a.axis];
    if (by_scales) {
      const auto scale = static_cast<float>(number_at(how, i));
      check(scale > 0.0f && std::isfinite(scale),
            [&] { return "scales has " + std::to_string(scale) + "; expected positive numbers"; });
      a.scale = static_cast<double>(scale);
      // In float, as shape inference and every runtime has it: 10 · 0.7 is 7.
      a.out = resized_length(static_cast<double>(std::floor(static_cast<float>(a.in) * scale)));
    } else {
      check_dtype(how, DType::kI64, "sizes");
      a.out = how.as<std::int64_t>()[i];
      check(a.out >= 0 && a.out < (std::int64_t{1} << 48),
            [&] { return "sizes has " + std::to_string(a.out); });
      a.scale = a.in == a.out ? 1.0 : static_cast<double>(a.out) / static_cast<double>(a.in);
    }
    if (attributes.coordinates == Coordinates::kTfCropAndResize) {
      check(given(context, 1) && context.input(1).dims == Dims{2 * count},
            [&] { return "tf_crop_and_resize needs a roi of shape " + Dims{2 * count}.str(); });
      a.roi_begin = number_at(context.input(1), i);
      a.roi_end = number_at(context.input(1), count + i);
    }
  }
  if (!by_scales) apply_aspect_ratio(attributes.aspect_ratio, std::span(out.begin(), out.size()));
  for (const ResizedAxis& a : out) {
    check(a.in > 0 || a.out == 0, [&] {
      return "axis " + std::to_string(a.axis) + " of X " + x.dims.str() + " has nothing to resize";
    });
  }
  return out;
}

// ---- Nearest -----------------------------------------------------------------------------------

// To the nearest value of T that there is; a NaN is 0 as an integer.
template <typename T>
T saturated(double value) {
  if constexpr (kIsFloat<T>) {
    return narrow<T>(static_cast<Compute<T>>(value));
  } else {
    const double rounded = std::nearbyint(value);
    if (std::isnan(rounded)) return T{0};
    if (rounded <= static_cast<double>(std::numeric_limits<T>::lowest())) {
      return std::numeric_limits<T>::lowest();
    }
    if (rounded >= static_cast<double>(std::numeric_limits<T>::max())) {
      return std::numeric_limits<T>::max();
    }
    return static_cast<T>(rounded);
  }
}

// places: by axis, the input's offset for each output, -1 for the extrapolation value.
template <typename T>
void copy_nearest(OpContext& context, const Tensor& x, const Tensor& y, T fill,
                  const std::array<std::int64_t*, kMaxRank>& places) {
  const int last = y.dims.rank - 1;
  const std::int64_t n = y.dims[last], lines = y.elements() / n;
  const std::int64_t* along = places[static_cast<std::size_t>(last)];
  parallel_for(context, lines, n, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t line = begin; line < end; ++line) {
      std::int64_t offset = 0, rest = line;
      for (int axis = last - 1; axis >= 0; --axis) {
        const std::int64_t place = places[static_cast<std::size_t>(axis)][rest % y.dims[axis]];
        rest /= y.dims[axis];
        offset = place < 0 || offset < 0 ? -1 : offset + place;
      }
      T* to = y.as<T>() + line * n;
      if (offset < 0) {
        std::fill_n(to, n, fill);
        continue;
      }
      const T* from = x.as<T>() + offset;
      for (std::int64_t i = 0; i < n; ++i) to[i] = along[i] < 0 ? fill : from[along[i]];
    }
  });
}

void resize_nearest(OpContext& context, const ResizeAttributes& attributes, const ResizedAxes& axes,
                    const Tensor& x, const Tensor& y) {
  WorkspacePlan plan;
  std::array<std::size_t, kMaxRank> at{};
  for (int i = 0; i < y.dims.rank; ++i) {
    at[static_cast<std::size_t>(i)] = plan.add<std::int64_t>(y.dims[i]);
  }
  plan.place(context.workspace(plan.bytes()));
  const Dims strides = strides_of(x.dims);
  std::array<std::int64_t*, kMaxRank> places{};
  for (int i = 0; i < y.dims.rank; ++i) {
    std::int64_t* place = plan.at<std::int64_t>(at[static_cast<std::size_t>(i)]);
    places[static_cast<std::size_t>(i)] = place;
    for (std::int64_t o = 0; o < y.dims[i]; ++o) place[o] = o * strides[i];
  }
  for (const ResizedAxis& a : axes) {
    if (a.identity()) continue;
    std::int64_t* place = places[static_cast<std::size_t>(a.axis)];
    for (std::int64_t o = 0; o < a.out; ++o) {
      const double coordinate = attributes.coordinate(a, o);
      place[o] = attributes.outside(a, coordinate)
                     ? -1
                     : nearest_index(attributes.nearest, coordinate, a.in) * strides[a.axis];
    }
  }
  if (x.dtype == DType::kBool) {
    return copy_nearest<std::uint8_t>(context, x, y, attributes.extrapolation != 0.0f, places);
  }
  visit_numeric(x.dtype, [&]<typename T>() {
    copy_nearest<T>(context, x, y, saturated<T>(static_cast<double>(attributes.extrapolation)),
                    places);
  });
}

// ---- Interpolation -----------------------------------------------------------------------------

// The weights of the inputs around each output of an axis: `taps` each, from `first` on; inputs
// beyond the ends are those at the ends.
struct AxisWeights {
  std::int64_t taps = 0;
  std::int64_t* first = nullptr;  // [out]; kOutside: the extrapolation value
  double* weights = nullptr;      // [out, taps]

  static constexpr std::int64_t kOutside = std::numeric_limits<std::int64_t>::min();
};

double cubic_weight(double distance, double a) {
  const double x = std::fabs(distance);
  if (x <= 1.0) return ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0;
  if (x < 2.0) return ((a * x - 5.0 * a) * x + 8.0 * a) * x - 4.0 * a;
  return 0.0;
}

// How far the weights reach to either side: 1 for linear, 2 for cubic, more where many inputs
// become one.
std::int64_t reach_of(const ResizeAttributes& attributes, const ResizedAxis& a) {
  const double reach = attributes.mode == ResizeMode::kCubic ? 2.0 : 1.0;
  if (!attributes.antialias || a.scale >= 1.0) return static_cast<std::int64_t>(reach);
  return resized_length(-(std::floor(-reach / a.scale) + 1.0)) + 1;
}

void fill_weights(const ResizeAttributes& attributes, const ResizedAxis& a, AxisWeights& w) {
  const double stretch = attributes.antialias ? std::min(a.scale, 1.0) : 1.0;
  for (std::int64_t o = 0; o < a.out; ++o) {
    const double coordinate = attributes.coordinate(a, o);
    double* weights = w.weights + o * w.taps;
    w.first[o] = AxisWeights::kOutside;
    if (attributes.outside(a, coordinate) || !std::isfinite(coordinate)) continue;
    // Of two equally near windows the one further left: at an input itself its weight is the last
    // but `reach`.
    const double bounded = std::clamp(coordinate, -0x1p50, 0x1p50);
    const double left = std::ceil(bounded) - 1.0;
    w.first[o] = static_cast<std::int64_t>(left) - (w.taps / 2 - 1);
    double sum = 0.0;
    for (std::int64_t t = 0; t < w.taps; ++t) {
      const std::int64_t index = w.first[o] + t;
      const double distance = (static_cast<double>(index) - bounded) * stretch;
      double weight = attributes.mode == ResizeMode::kCubic
                          ? cubic_weight(distance, attributes.cubic_a)
                          : std::max(0.0, 1.0 - std::fabs(distance));
      if (attributes.exclude_outside && (index < 0 || index >= a.in)) weight = 0.0;
      weights[t] = weight;
      sum += weight;
    }
    if ((attributes.exclude_outside || attributes.antialias) && sum != 0.0) {
      for (std::int64_t t = 0; t < w.taps; ++t) weights[t] /= sum;
    }
  }
}

// [outer, in, inner] to [outer, out, inner]. `fill` is for outputs outside.
template <typename Sum>
void interpolate_axis(OpContext& context, const ResizedAxis& a, const AxisWeights& w,
                      std::int64_t outer, std::int64_t inner, Sum fill, const Sum* from, Sum* to) {
  parallel_for(context, outer * a.out, inner * w.taps, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t r = begin; r < end; ++r) {
      const std::int64_t o = r % a.out;
      const Sum* plane = from + r / a.out * a.in * inner;
      Sum* row = to + r * inner;
      if (w.first[o] == AxisWeights::kOutside) {
        std::fill_n(row, inner, fill);
        continue;
      }
      std::fill_n(row, inner, Sum{0});
      for (std::int64_t t = 0; t < w.taps; ++t) {
        const Sum weight = static_cast<Sum>(w.weights[o * w.taps + t]);
        if (weight == Sum{0}) continue;
        const std::int64_t index = std::clamp<std::int64_t>(w.first[o] + t, 0, a.in - 1);
        const Sum* line = plane + index * inner;
        for (std::int64_t i = 0; i < inner; ++i) row[i] += weight * line[i];
      }
    }
  });
}

// Axis by axis, the values of the intermediate tensors in Sum.
template <typename T, typename Sum>
void resize_smoothly(OpContext& context, const ResizeAttributes& attributes,
                     const ResizedAxes& axes, const Tensor& x, const Tensor& y) {
  WorkspacePlan plan;
  std::int64_t most = x.elements();
  Dims dims = x.dims;
  ShortList<std::size_t> first_at, weights_at;
  for (const ResizedAxis& a : axes) {
    dims[a.axis] = a.out;
    most = std::max(most, result_elements(dims));
    first_at.push_back(plan.add<std::int64_t>(a.out));
    weights_at.push_back(plan.add<double>(dim_product(a.out, 2 * reach_of(attributes, a))));
  }
  const std::size_t one_at = plan.add<Sum>(most), other_at = plan.add<Sum>(most);
  plan.place(context.workspace(plan.bytes()));
  Sum* now = plan.at<Sum>(one_at);
  Sum* next = plan.at<Sum>(other_at);
  parallel_elements(context, x.elements(), [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) now[i] = static_cast<Sum>(widen(x.as<T>()[i]));
  });
  dims = x.dims;
  for (std::size_t i = 0; i < axes.size(); ++i) {
    const ResizedAxis& a = axes[i];
    if (a.identity()) continue;
    AxisWeights w{2 * reach_of(attributes, a), plan.at<std::int64_t>(first_at[i]),
                  plan.at<double>(weights_at[i])};
    fill_weights(attributes, a, w);
    interpolate_axis<Sum>(context, a, w, dims.elements(0, a.axis),
                          dims.elements(a.axis + 1, dims.rank),
                          static_cast<Sum>(attributes.extrapolation), now, next);
    dims[a.axis] = a.out;
    std::swap(now, next);
  }
  parallel_elements(context, y.elements(), [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) {
      y.as<T>()[i] = saturated<T>(static_cast<double>(now[i]));
    }
  });
}

std::unique_ptr<OpKernel> make_resize(const NodeInfo& info) {
  return kernel_of([attributes = ResizeAttributes(info.node)](OpContext& context) {
    const Tensor& x = context.input(0);
    const ResizedAxes axes = resized_axes(context, attributes);
    Dims dims = x.dims;
    for (const ResizedAxis& a : axes) dims[a.axis] = a.out;
    result_elements(dims);
    Tensor& y = context.output(0, x.dtype, dims);
    if (y.elements() == 0) return;
    if (x.dims.rank == 0) {
      std::memcpy(y.data, x.data, result_bytes(dims, x.dtype));
    } else if (attributes.mode == ResizeMode::kNearest) {
      resize_nearest(context, attributes, axes, x, y);
    } else {
      visit_numeric(x.dtype, [&]<typename T>() {
        using Sum = std::conditional_t<kIsHalf<T> || std::is_same_v<T, float> || sizeof(T) == 1,
                                       float, double>;
        resize_smoothly<T, Sum>(context, attributes, axes, x, y);
      });
    }
  });
}

}  // namespace

void register_resize(Registry& r) {
  r.add("Resize", make_resize);
}

}  // namespace kvik::ops
