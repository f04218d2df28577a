// Conv and ConvTranspose over any number of spatial axes.
#include <algorithm>
#include <cstring>
#include <string>
#include <utility>

#include "ops/conv_run.h"
#include "ops/conv_shape.h"
#include "ops/families.h"

namespace kvik::ops {

namespace {

using graph::ConstantTensor;

// ---- Weights -----------------------------------------------------------------------------------

// Offsets of a phase's taps within a kernel.
std::vector<std::int64_t> kernel_offsets(const Dims& w,
                                         const std::array<PhaseAxis, kMostSpatial>& phase) {
  std::vector<std::int64_t> offsets{0};
  for (int i = 2; i < w.rank; ++i) {
    const PhaseAxis& axis = phase[static_cast<std::size_t>(i - 2)];
    std::vector<std::int64_t> next;
    next.reserve(offsets.size() * static_cast<std::size_t>(axis.taps));
    for (const std::int64_t before : offsets) {
      for (std::int64_t j = 0; j < axis.taps; ++j) {
        next.push_back(before * w[i] + axis.first_tap + j * axis.tap_step);
      }
    }
    offsets = std::move(next);
  }
  return offsets;
}

// Groups of a constant whose first dimension they divide.
ConstantTensor group_of(const ConstantTensor& w, std::int64_t group, std::int64_t groups) {
  ConstantTensor part;
  part.dtype = w.dtype;
  part.dims = w.dims;
  part.dims[0] = w.dims[0] / groups;
  const std::size_t bytes = result_bytes(part.dims, w.dtype);
  part.data = w.data.subspan(static_cast<std::size_t>(group) * bytes, bytes);
  part.owner = w.owner;
  return part;
}

// A group's weights of some taps, [out_channels, taps · in_channels] in floats.
ConstantTensor arranged(const ConstantTensor& w, const ConvShape& shape,
                        std::span<const std::int64_t> offsets) {
  const std::int64_t kernel = w.dims.elements(2, w.dims.rank);
  const std::int64_t rows = shape.transposed() ? w.dims[1] : w.dims[0];
  const std::int64_t channels = w.dims[shape.transposed() ? 0 : 1];
  const auto taps = static_cast<std::int64_t>(offsets.size());
  ConstantTensor out =
      ConstantTensor::allocate(DType::kF32, Dims{rows, dim_product(taps, channels)});
  auto* to = reinterpret_cast<float*>(out.mutable_data());
  const std::int64_t row_step = shape.transposed() ? kernel : channels * kernel;
  const std::int64_t channel_step = shape.transposed() ? rows * kernel : kernel;
  visit_float(w.dtype, [&]<typename T>() {
    for (std::int64_t r = 0; r < rows; ++r) {
      for (const std::int64_t offset : offsets) {
        const std::byte* from =
            w.data.data() + static_cast<std::size_t>(r * row_step + offset) * sizeof(T);
        for (std::int64_t c = 0; c < channels; ++c) {
          T value;  // a file's bytes need not be aligned
          std::memcpy(&value, from + static_cast<std::size_t>(c * channel_step) * sizeof(T),
                      sizeof(T));
          *to++ = static_cast<float>(widen(value));
        }
      }
    }
  });
  return out;
}

std::vector<ConvWeights> pack_convolution(const ConvShape& shape, const ConstantTensor& w,
                                          WeightCache& cache, const kernels::KernelTable& table,
                                          ThreadPool& pool) {
  std::vector<ConvWeights> out;
  for (const auto& phase : shape.phases(w.dims)) {
    ConvWeights weights;
    weights.phase = phase;
    const std::vector<std::int64_t> offsets = kernel_offsets(w.dims, phase);
    if (shape.depthwise(w.dims)) {
      // [groups, taps], or [taps, groups] of a transposed convolution, as the latter.
      const ConstantTensor flat = arranged(w, shape, offsets);
      const auto taps = static_cast<std::int64_t>(offsets.size());
      const std::int64_t groups = shape.groups();
      weights.depthwise = AlignedBuffer(static_cast<std::size_t>(groups * taps) * sizeof(float));
      const auto* from = reinterpret_cast<const float*>(flat.data.data());
      for (std::int64_t g = 0; g < groups; ++g) {
        for (std::int64_t t = 0; t < taps; ++t) {
          weights.depthwise.as<float>()[t * groups + g] =
              from[shape.transposed() ? t * groups + g : g * taps + t];
        }
      }
    } else {
      std::vector<std::int64_t> arrangement{shape.transposed() ? 2 : 1};
      arrangement.insert(arrangement.end(), offsets.begin(), offsets.end());
      for (std::int64_t g = 0; g < shape.groups(); ++g) {
        const ConstantTensor own = group_of(w, g, shape.groups());
        const ConstantTensor matrix = arranged(own, shape, offsets);
        const WeightSource source(matrix, {}, true, matrix.dims[1]);
        weights.groups.push_back(
            cache.get(source, cache.type_of(source, false), table, pool, own, arrangement));
      }
    }
    out.push_back(std::move(weights));
  }
  return out;
}

// Whether the panels of many small groups would take far more memory than their weights: a file of
// some megabytes must not become gigabytes. Such a convolution is computed as plain sums.
bool wasteful(const ConvShape& shape, const Dims& w, std::int64_t panel) {
  constexpr double kPanels = 1024;  // bytes beside a group's own
  constexpr double kFree = 64 << 20;
  if (shape.depthwise(w)) return false;
  const auto floats = static_cast<double>(w.elements());
  const std::int64_t columns = std::max<std::int64_t>(shape.out_channels(w), 1);
  const auto padded = static_cast<double>((columns + panel - 1) / panel * panel);
  const double groups =
      static_cast<double>(shape.groups()) * static_cast<double>(shape.phases(w).size());
  return 4 * floats * padded / static_cast<double>(columns) + kPanels * groups >
         16 * floats + kFree;
}

// ---- The operators -----------------------------------------------------------------------------

class Convolution final : public OpKernel {
 public:
  Convolution(const NodeInfo& info, bool transposed) : shape_(info.node, transposed) {
    const ConstantTensor* w = info.constant(1);
    if (w == nullptr || !dtype_is_float(w->dtype) || w->dtype == DType::kF64) return;
    shape_.check_weights(w->dims);
    if (w->dims.elements() == 0 || wasteful(shape_, w->dims, info.kernels.panel)) return;
    weights_ = pack_convolution(shape_, *w, info.weights, info.kernels, info.pool);
    dims_ = w->dims;
  }

  bool needs_aligned(int i) const override { return i != 1 || weights_.empty(); }

  void run(OpContext& context) const override {
    const Tensor& x = context.input(0);
    const Tensor& w = context.input(1);
    check_same_dtype(x, w, "X", "W");
    const ConvPlan plan = shape_.plan(x.dims, w.dims);
    const Tensor* bias = context.has_input(2) ? &context.input(2) : nullptr;
    if (bias != nullptr) {
      check_same_dtype(x, *bias, "X", "B");
      check(bias->dims == Dims{plan.result[1]}, [&] {
        return "B has shape " + bias->dims.str() + "; expected " + Dims{plan.result[1]}.str();
      });
    }
    Tensor& y = context.output(0, x.dtype, plan.result);
    if (y.elements() == 0) return;
    if (w.elements() == 0) return fill_with_bias(context, plan, bias, y);
    if (x.dtype == DType::kF64) return run_plainly<double>(context, plan, x, w, bias, y);
    if (wasteful(shape_, w.dims, context.kernels().panel)) {
      return visit_float(x.dtype,
                         [&]<typename T>() { run_plainly<T>(context, plan, x, w, bias, y); });
    }
    if (!weights_.empty()) return run_with(context, plan, weights_, x, bias, y);
    WeightCache cache;
    run_with(context, plan,
             pack_convolution(shape_, constant_view(w), cache, context.kernels(), context.pool()),
             x, bias, y);
  }

  OpCost cost(const OpContext& context) const override {
    const Dims& x = context.input(0).dims;
    const Dims& w = context.input(1).dims;
    const ConvPlan plan = shape_.plan(x, w);
    // Every tap of every window; for a transposed convolution, windows are pixels.
    const Dims& windows = shape_.transposed() ? x : plan.result;
    OpCost cost{.operations = 2.0 * static_cast<double>(windows.elements()) *
                              static_cast<double>(w[1]) *
                              static_cast<double>(w.elements(2, w.rank))};
    for (const ConvWeights& phase : weights_) {
      cost.bytes += static_cast<double>(phase.depthwise.size());
      for (const auto& group : phase.groups) cost.bytes += static_cast<double>(group->bytes());
    }
    return cost;
  }
  // "64 x 3 x 3 x 128": inputs, kernel, outputs; "32 x (4 x 3 x 3 x 4)": groups.
  OpDescription describe() const override {
    if (weights_.empty()) return {};
    std::string shape = std::to_string(shape_.in_channels(dims_));
    for (int i = 2; i < dims_.rank; ++i) shape += " x " + std::to_string(dims_[i]);
    shape += " x " + std::to_string(shape_.out_channels(dims_));
    if (shape_.groups() > 1) shape = std::to_string(shape_.groups()) + " x (" + shape + ")";
    const bool depthwise = weights_.front().groups.empty();
    return {.shape = shape,
            .precision = depthwise ? weight_type_name(WeightType::kF32)
                                   : weights_.front().groups.front()->describe().precision};
  }

 private:
  void run_with(OpContext& context, const ConvPlan& plan, const std::vector<ConvWeights>& weights,
                const Tensor& x, const Tensor* bias, Tensor& y) const {
    std::vector<ConvGrid> grids;
    grids.reserve(weights.size());
    for (const ConvWeights& phase : weights) {
      grids.push_back(shape_.transposed() ? grid_of_phase(plan.window, phase.phase)
                                          : grid_over(plan.window));
    }
    run_convolution(context, plan.sizes, grids, weights, x, bias, y);
  }

  template <typename T>
  void run_plainly(OpContext& context, const ConvPlan& plan, const Tensor& x, const Tensor& w,
                   const Tensor* bias, Tensor& y) const {
    using Sum = Compute<T>;
    const auto value = [](const Tensor& t, std::int64_t i) {
      return static_cast<Sum>(widen(t.as<T>()[i]));
    };
    convolve_plainly<Sum>(
        context, shape_, plan,
        [&](std::int64_t i, std::int64_t j) { return value(x, i) * value(w, j); },
        [&](std::int64_t i, std::int64_t channel, Sum sum) {
          y.as<T>()[i] = narrow<T>(bias == nullptr ? sum : sum + value(*bias, channel));
        });
  }

  // Of weights without elements: however many taps they have, there is nothing to add.
  void fill_with_bias(OpContext& context, const ConvPlan& plan, const Tensor* bias,
                      Tensor& y) const {
    visit_size(y.dtype, [&]<typename T>() {
      parallel_for(context, plan.result[0] * plan.result[1], plan.sizes.out_pixels,
                   [&](std::int64_t begin, std::int64_t end) {
                     for (std::int64_t plane = begin; plane < end; ++plane) {
                       std::fill_n(y.as<T>() + plane * plan.sizes.out_pixels, plan.sizes.out_pixels,
                                   bias ? bias->as<T>()[plane % plan.result[1]] : T{});
                     }
                   });
    });
  }

  ConvShape shape_;
  std::vector<ConvWeights> weights_;  // by phase; empty where W is no constant
  Dims dims_;                         // of W, where it is one
};

}  // namespace

void register_conv(Registry& r) {
  r.add("Conv", [](const NodeInfo& info) -> std::unique_ptr<OpKernel> {
    return std::make_unique<Convolution>(info, false);
  });
  r.add("ConvTranspose", [](const NodeInfo& info) -> std::unique_ptr<OpKernel> {
    return std::make_unique<Convolution>(info, true);
  });
}

}  // namespace kvik::ops
