// Normalisations. float32 rows go through the kernel table; other types are computed in double.
#include <cmath>

#include "ops/broadcast.h"
#include "ops/families.h"

namespace kvik::ops {

namespace {

using Info = const NodeInfo&;

// How X is cut into rows: `rows` of `n` elements, the axes from `axis` on.
struct RowSplit {
  std::int64_t rows = 0, n = 0;
  Dims normalised;  // the dimensions of one row
  Dims statistics;  // X's dimensions with the normalised ones replaced by 1
};

RowSplit split_rows(const Dims& dims, std::int64_t axis_attribute) {
  const int axis = normalize_axis(axis_attribute, dims.rank);
  RowSplit split;
  split.rows = dims.elements(0, axis);
  split.n = dims.elements(axis, dims.rank);
  for (int i = 0; i < dims.rank; ++i) {
    split.statistics.push_back(i < axis ? dims[i] : 1);
    if (i >= axis) split.normalised.push_back(dims[i]);
  }
  return split;
}

// Scale or bias for one row: itself where it has a value per element, else expanded into `scratch`.
template <typename T>
const T* row_parameter(OpContext& context, int i, const Tensor& x, const RowSplit& split,
                       const char* name, T* scratch) {
  if (!context.has_input(i)) return nullptr;
  const Tensor& p = context.input(i);
  check_same_dtype(x, p, "X", name);
  if (p.elements() == split.n) return p.as<T>();
  Tensor row{p.dtype, split.normalised, nullptr, 0};
  const std::array<const Tensor*, 2> operands{&row, &p};
  const BroadcastPlan plan = plan_broadcast(operands);
  check(plan.result == split.normalised, [&] {
    return std::string(name) + " has shape " + p.dims.str() + "; expected one that broadcasts to " +
           split.normalised.str();
  });
  const std::int64_t step = plan.strides[1].back();
  for_segments(plan, 0, plan.total, [&](std::int64_t at, const auto& offset, std::int64_t n) {
    for (std::int64_t j = 0; j < n; ++j) scratch[at + j] = p.as<T>()[offset[1] + j * step];
  });
  return scratch;
}

// Mean (0 unless centred) and 1 / sqrt(mean square deviation + epsilon) of n values `step` apart.
struct Moments {
  double mean = 0.0, inverse = 0.0;
};

template <typename T>
Moments moments(const T* x, std::int64_t n, double epsilon, bool centred) {
  Moments m;
  if (centred) {
    for (std::int64_t i = 0; i < n; ++i) m.mean += static_cast<double>(widen(x[i]));
    m.mean /= static_cast<double>(n);
  }
  double squares = 0.0;
  for (std::int64_t i = 0; i < n; ++i) {
    const double d = static_cast<double>(widen(x[i])) - m.mean;
    squares += d * d;
  }
  m.inverse = 1.0 / std::sqrt(squares / static_cast<double>(n) + epsilon);
  return m;
}

template <typename T>
void normalise_row(const T* x, std::int64_t n, const Moments& m, const T* scale, const T* bias,
                   T* y) {
  for (std::int64_t i = 0; i < n; ++i) {
    double v = (static_cast<double>(widen(x[i])) - m.mean) * m.inverse;
    if (scale) v *= static_cast<double>(widen(scale[i]));
    if (bias) v += static_cast<double>(widen(bias[i]));
    y[i] = narrow<T>(static_cast<Compute<T>>(v));
  }
}

// LayerNormalization (centred) and RMSNormalization over rows, for any float type.
template <typename T>
void run_rows(OpContext& context, const Tensor& x, const RowSplit& split, float epsilon,
              bool centred, T* y) {
  const std::size_t bytes = checked_product(static_cast<std::size_t>(split.n), sizeof(T));
  const bool expand = (context.has_input(1) && context.input(1).elements() != split.n) ||
                      (context.has_input(2) && context.input(2).elements() != split.n);
  T* scratch = expand ? static_cast<T*>(context.workspace(checked_product(2, bytes))) : nullptr;
  const T* scale = row_parameter<T>(context, 1, x, split, "scale", scratch);
  const T* bias =
      centred ? row_parameter<T>(context, 2, x, split, "bias", expand ? scratch + split.n : nullptr)
              : nullptr;
  const std::int64_t n = split.n;
  const std::int64_t stride = x.contiguous() ? n : x.row_stride;
  const auto& table = context.kernels();
  parallel_for(context, split.rows, 2 * n, [&](std::int64_t begin, std::int64_t end) {
    if constexpr (std::is_same_v<T, float>) {
      const float* from = x.as<float>() + begin * stride;
      if (centred) {
        table.layer_norm_f32(from, stride, end - begin, n, scale, bias, epsilon, y + begin * n, n);
      } else {
        table.rms_norm_f32(from, stride, end - begin, n, scale, epsilon, y + begin * n, n);
      }
    } else {
      for (std::int64_t r = begin; r < end; ++r) {
        const T* from = x.as<T>() + r * stride;
        const Moments m = moments(from, n, static_cast<double>(epsilon), centred);
        normalise_row(from, n, m, scale, bias, y + r * n);
      }
    }
  });
}

// The optional outputs 1 and 2 of LayerNormalization: mean and inverse standard deviation.
template <typename T>
void store_moments(OpContext& context, const Tensor& x, const RowSplit& split, float epsilon) {
  if (!context.wants_output(1) && !context.wants_output(2)) return;
  float* mean = context.wants_output(1)
                    ? context.output(1, DType::kF32, split.statistics).template as<float>()
                    : nullptr;
  float* inverse = context.wants_output(2)
                       ? context.output(2, DType::kF32, split.statistics).template as<float>()
                       : nullptr;
  for (std::int64_t r = 0; r < split.rows; ++r) {
    const Moments m = moments(x.as<T>() + r * split.n, split.n, static_cast<double>(epsilon), true);
    if (mean) mean[r] = static_cast<float>(m.mean);
    if (inverse) inverse[r] = static_cast<float>(m.inverse);
  }
}

std::unique_ptr<OpKernel> make_layer_norm(Info info) {
  const std::int64_t axis = info.node.int_attr("axis", -1);
  const float epsilon = info.node.float_attr("epsilon", 1e-5f);
  return kernel_of([=](OpContext& context) {
    const Tensor& x = context.input(0);
    const RowSplit split = split_rows(x.dims, axis);
    Tensor& y = context.output(0, x.dtype, x.dims);
    visit_float(x.dtype, [&]<typename T>() {
      run_rows<T>(context, x, split, epsilon, true, y.as<T>());
      store_moments<T>(context, x, split, epsilon);
    });
  });
}

std::unique_ptr<OpKernel> make_rms_norm(Info info) {
  const std::int64_t axis = info.node.int_attr("axis", -1);
  const float epsilon = info.node.float_attr("epsilon", 1e-5f);
  return kernel_of([=](OpContext& context) {
    const Tensor& x = context.input(0);
    const RowSplit split = split_rows(x.dims, axis);
    Tensor& y = context.output(0, x.dtype, x.dims);
    visit_float(x.dtype,
                [&]<typename T>() { run_rows<T>(context, x, split, epsilon, false, y.as<T>()); });
  });
}

// ---- Per-channel normalisations ---------------------------------------------------------------

// Scale and bias [C] of an input [N, C, ...].
void check_channels(OpContext& context, const Tensor& x, int first, int last) {
  check(x.dims.rank >= 2,
        [&] { return "X has shape " + x.dims.str() + "; expected [batch, channels, ...]"; });
  for (int i = first; i <= last; ++i) {
    const Tensor& p = context.input(i);
    check(p.dims == Dims{x.dims[1]}, [&] {
      return "input " + std::to_string(i) + " has shape " + p.dims.str() +
             "; expected one value "
             "for each of " +
             std::to_string(x.dims[1]) + " channels";
    });
  }
}

// Normalises groups of channels; InstanceNormalization has a group for each channel.
template <typename T>
void run_groups(OpContext& context, const Tensor& x, std::int64_t groups, double epsilon, T* y) {
  const std::int64_t channels = x.dims[1], area = x.dims.elements(2, x.dims.rank);
  const std::int64_t per_group = channels / groups, n = per_group * area;
  const T* scale = context.input(1).as<T>();
  const T* bias = context.input(2).as<T>();
  parallel_for(context, x.dims[0] * groups, 4 * n, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t g = begin; g < end; ++g) {
      const T* from = x.as<T>() + g * n;
      const Moments m = moments(from, n, epsilon, true);
      for (std::int64_t c = 0; c < per_group; ++c) {
        const std::int64_t channel = g % groups * per_group + c;
        const double s = static_cast<double>(widen(scale[channel])) * m.inverse;
        const double b = static_cast<double>(widen(bias[channel]));
        for (std::int64_t i = c * area; i < (c + 1) * area; ++i) {
          const double v = (static_cast<double>(widen(from[i])) - m.mean) * s + b;
          y[g * n + i] = narrow<T>(static_cast<Compute<T>>(v));
        }
      }
    }
  });
}

std::unique_ptr<OpKernel> group_kernel(float epsilon, std::int64_t fixed_groups) {
  return kernel_of([=](OpContext& context) {
    const Tensor& x = context.input(0);
    check_channels(context, x, 1, 2);
    check_same_dtype(x, context.input(1), "X", "scale");
    check_same_dtype(x, context.input(2), "X", "bias");
    const std::int64_t groups = fixed_groups == 0 ? x.dims[1] : fixed_groups;
    Tensor& y = context.output(0, x.dtype, x.dims);
    if (x.elements() == 0) return;
    check(x.dims[1] % groups == 0, [&] {
      return std::to_string(x.dims[1]) + " channels cannot be divided into " +
             std::to_string(groups) + " groups";
    });
    visit_float(x.dtype, [&]<typename T>() {
      run_groups<T>(context, x, groups, static_cast<double>(epsilon), y.as<T>());
    });
  });
}

std::unique_ptr<OpKernel> make_group_norm(Info info) {
  const std::int64_t groups = info.node.int_attr("num_groups", 0);
  if (groups <= 0) {
    fail(ErrorCode::kInvalidModel,
         "attribute num_groups is " + std::to_string(groups) + "; expected a positive number");
  }
  return group_kernel(info.node.float_attr("epsilon", 1e-5f), groups);
}

// Inference only: y = (x - mean) / sqrt(var + epsilon) · scale + bias with stored statistics.
std::unique_ptr<OpKernel> make_batch_norm(Info info) {
  if (info.node.int_attr("training_mode", 0) != 0) {
    fail(ErrorCode::kUnsupported,
         "BatchNormalization in training mode; export the model in eval mode");
  }
  const double epsilon = static_cast<double>(info.node.float_attr("epsilon", 1e-5f));
  return kernel_of([=](OpContext& context) {
    const Tensor& x = context.input(0);
    check_channels(context, x, 1, 4);
    for (int i = 1; i <= 4; ++i) {  // their types may differ from X's, but Kvik wants one
      check_same_dtype(x, context.input(i), "X", "a parameter");
    }
    Tensor& y = context.output(0, x.dtype, x.dims);
    const std::int64_t channels = x.dims[1], area = x.dims.elements(2, x.dims.rank);
    visit_float(x.dtype, [&]<typename T>() {
      const auto parameter = [&](int i, std::int64_t c) {
        return static_cast<double>(widen(context.input(i).template as<T>()[c]));
      };
      parallel_for(context, x.dims[0] * channels, area, [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t r = begin; r < end; ++r) {
          const std::int64_t c = r % channels;
          const double s = parameter(1, c) / std::sqrt(parameter(4, c) + epsilon);
          const double mean = parameter(3, c), b = parameter(2, c);
          for (std::int64_t i = r * area; i < (r + 1) * area; ++i) {
            const double v = (static_cast<double>(widen(x.as<T>()[i])) - mean) * s + b;
            y.as<T>()[i] = narrow<T>(static_cast<Compute<T>>(v));
          }
        }
      });
    });
  });
}

// x / ‖x‖ along one axis; a vector of zeros stays as it is.
std::unique_ptr<OpKernel> make_lp_norm(Info info) {
  const std::int64_t axis_attribute = info.node.int_attr("axis", -1);
  const std::int64_t p = info.node.int_attr("p", 2);
  if (p != 1 && p != 2) {
    fail(ErrorCode::kInvalidModel, "attribute p is " + std::to_string(p) + "; expected 1 or 2");
  }
  return kernel_of([=](OpContext& context) {
    const Tensor& x = context.input(0);
    const int axis = normalize_axis(axis_attribute, x.dims.rank);
    Tensor& y = context.output(0, x.dtype, x.dims);
    const std::int64_t n = x.dims[axis], inner = x.dims.elements(axis + 1, x.dims.rank);
    if (x.elements() == 0) return;
    visit_float(x.dtype, [&]<typename T>() {
      parallel_for(context, x.elements() / n, 2 * n, [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t r = begin; r < end; ++r) {
          const std::int64_t first = r / inner * n * inner + r % inner;
          double total = 0.0;
          for (std::int64_t i = 0; i < n; ++i) {
            const double v = static_cast<double>(widen(x.as<T>()[first + i * inner]));
            total += p == 1 ? std::abs(v) : v * v;
          }
          const double norm = p == 1 ? total : std::sqrt(total);
          for (std::int64_t i = 0; i < n; ++i) {
            const double v = static_cast<double>(widen(x.as<T>()[first + i * inner]));
            y.as<T>()[first + i * inner] =
                narrow<T>(static_cast<Compute<T>>(norm == 0.0 ? 0.0 : v / norm));
          }
        }
      });
    });
  });
}

// y = x / (bias + alpha / size · Σ x²)^beta, the sum over `size` neighbouring channels.
std::unique_ptr<OpKernel> make_lrn(Info info) {
  const std::int64_t size = info.node.int_attr("size", 0);
  if (size < 1) fail_model("attribute size is " + std::to_string(size) + "; expected at least 1");
  const double alpha = static_cast<double>(info.node.float_attr("alpha", 1e-4f));
  const double beta = static_cast<double>(info.node.float_attr("beta", 0.75f));
  const double bias = static_cast<double>(info.node.float_attr("bias", 1.0f));
  return kernel_of([=](OpContext& context) {
    const Tensor& x = context.input(0);
    check(x.dims.rank >= 2,
          [&] { return "X has shape " + x.dims.str() + "; expected [batch, channels, ...]"; });
    Tensor& y = context.output(0, x.dtype, x.dims);
    const std::int64_t channels = x.dims[1], area = x.dims.elements(2, x.dims.rank);
    const double factor = alpha / static_cast<double>(size);
    const std::int64_t before = std::min((size - 1) / 2, channels);
    const std::int64_t after = std::min(size - 1 - (size - 1) / 2, channels);
    visit_float(x.dtype, [&]<typename T>() {
      const std::int64_t cost = before + after + 20;
      parallel_for(context, x.elements(), cost, [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t i = begin; i < end; ++i) {
          const std::int64_t c = i / area % channels;
          const std::int64_t low = std::max<std::int64_t>(c - before, 0);
          const std::int64_t high = std::min(c + after, channels - 1);
          double sum = 0.0;
          for (std::int64_t j = low; j <= high; ++j) {
            const double v = static_cast<double>(widen(x.as<T>()[i + (j - c) * area]));
            sum += v * v;
          }
          const double v = static_cast<double>(widen(x.as<T>()[i]));
          y.as<T>()[i] =
              narrow<T>(static_cast<Compute<T>>(v / std::pow(bias + factor * sum, beta)));
        }
      });
    });
  });
}

}  // namespace

void register_norm(Registry& r) {
  r.add("LayerNormalization", make_layer_norm);
  r.add("RMSNormalization", make_rms_norm);
  r.add("com.microsoft", "SimplifiedLayerNormalization", make_rms_norm);
  r.add("SimplifiedLayerNormalization", make_rms_norm);  // as older exporters wrote it
  r.add("GroupNormalization", make_group_norm);
  r.add("InstanceNormalization",
        [](Info info) { return group_kernel(info.node.float_attr("epsilon", 1e-5f), 0); });
  r.add("BatchNormalization", make_batch_norm);
  r.add("LpNormalization", make_lp_norm);
  r.add("LRN", make_lrn);
}

}  // namespace kvik::ops
