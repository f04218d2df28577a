// Element-wise functions of one input: the kernel table's where it has them, libm's elsewhere.
#include <cmath>

#include "ops/families.h"
#include "ops/support.h"

namespace kvik::ops {

namespace {

// A loop over the n elements from `in` on, to `out`; the pointers have the type that the caller of
// map_elements works with.
using SliceBody = FunctionRef<void(const void* in, std::int64_t n, void* out)>;

// Runs body over an input that may be strided, split on the pool.
void map_elements(OpContext& context, const Tensor& x, Tensor& y, std::int64_t cost,
                  SliceBody body) {
  const Slices slices = slices_of(x);
  const auto in_size = static_cast<std::int64_t>(dtype_bits(x.dtype) / 8);
  const auto out_size = static_cast<std::int64_t>(dtype_bits(y.dtype) / 8);
  const auto* in = x.as<std::byte>();
  auto* out = y.as<std::byte>();
  if (slices.count == 1) {
    parallel_for(context.pool(), slices.size, cost, 64, [&](std::int64_t begin, std::int64_t end) {
      body(in + begin * in_size, end - begin, out + begin * out_size);
    });
    return;
  }
  parallel_for(
      context, slices.count, slices.size * cost, [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t row = begin; row < end; ++row) {
          body(in + row * slices.stride * in_size, slices.size, out + row * slices.size * out_size);
        }
      });
}

// As map_elements for a body on T -> T.
template <typename T, typename F>
void map_typed(OpContext& context, const Tensor& x, Tensor& y, std::int64_t cost, const F& f) {
  map_elements(context, x, y, cost, [&](const void* in, std::int64_t n, void* out) {
    f(static_cast<const T*>(in), n, static_cast<T*>(out));
  });
}

// Element operations that a transcendental function costs, for deciding about threads.
constexpr std::int64_t kFunctionCost = 8;

// out[i] = f(in[i]) on float32 numbers.
using FloatLoop = FunctionRef<void(const float* in, std::int64_t n, float* out)>;

// A float32 function on elements of another float type, which pass through float in pieces.
void run_in_float(OpContext& context, const Tensor& x, Tensor& y, FloatLoop loop) {
  visit_float(x.dtype, [&]<typename T>() {
    map_typed<T>(context, x, y, kFunctionCost, [&](const T* in, std::int64_t n, T* out) {
      float piece[256];
      for (std::int64_t i = 0; i < n; i += 256) {
        const std::int64_t count = std::min<std::int64_t>(256, n - i);
        for (std::int64_t j = 0; j < count; ++j) piece[j] = static_cast<float>(widen(in[i + j]));
        loop(piece, count, piece);
        for (std::int64_t j = 0; j < count; ++j) {
          out[i + j] = narrow<T>(static_cast<Compute<T>>(piece[j]));
        }
      }
    });
  });
}

// A function of the kernel table. float64 keeps float's accuracy.
void run_table(OpContext& context, kernels::Unary f) {
  const Tensor& x = context.input(0);
  Tensor& y = context.output(0, x.dtype, x.dims);
  const auto unary = context.kernels().unary_f32;
  const auto loop = [&](const float* in, std::int64_t n, float* out) { unary(f, in, n, out); };
  if (x.dtype != DType::kF32) return run_in_float(context, x, y, loop);
  map_typed<float>(context, x, y, kFunctionCost, loop);
}

// f maps float to float and double to double.
template <typename F>
void run_float(OpContext& context, const F& f) {
  const Tensor& x = context.input(0);
  Tensor& y = context.output(0, x.dtype, x.dims);
  const auto loop = [&]<typename T>(const T* in, std::int64_t n, T* out) {
    for (std::int64_t i = 0; i < n; ++i) out[i] = f(in[i]);
  };
  if (x.dtype == DType::kF64) return map_typed<double>(context, x, y, kFunctionCost, loop);
  if (x.dtype == DType::kF32) return map_typed<float>(context, x, y, kFunctionCost, loop);
  run_in_float(context, x, y, loop);
}

template <typename F>
void run_integer(OpContext& context, const F& f) {
  const Tensor& x = context.input(0);
  Tensor& y = context.output(0, x.dtype, x.dims);
  visit_integer(x.dtype, [&]<typename T>() {
    map_typed<T>(context, x, y, 1, [&](const T* in, std::int64_t n, T* out) {
      for (std::int64_t i = 0; i < n; ++i) out[i] = f(in[i]);
    });
  });
}

template <typename F>
std::unique_ptr<OpKernel> float_kernel(F f) {
  return kernel_of([f](OpContext& context) { run_float(context, f); }, 1);
}

// The table's function for float32 (and the 16-bit floats), f for float64.
template <kernels::Unary kFunction, typename F>
std::unique_ptr<OpKernel> table_kernel(F f) {
  return kernel_of(
      [f](OpContext& context) {
        if (context.input(0).dtype == DType::kF64) return run_float(context, f);
        run_table(context, kFunction);
      },
      1);
}

// As table_kernel, with g for integers.
template <kernels::Unary kFunction, typename F, typename G>
std::unique_ptr<OpKernel> numeric_kernel(F f, G g) {
  return kernel_of(
      [f, g](OpContext& context) {
        const DType dtype = context.input(0).dtype;
        if (dtype_is_integer(dtype)) return run_integer(context, g);
        if (dtype == DType::kF64) return run_float(context, f);
        run_table(context, kFunction);
      },
      1);
}

// Two's complement negation and magnitude without signed overflow.
const auto wrap_negate = [](auto x) {
  using T = decltype(x);
  return static_cast<T>(0u - static_cast<std::uint64_t>(x));
};
const auto wrap_abs = [](auto x) {
  using T = decltype(x);
  if constexpr (std::is_unsigned_v<T>) return x;
  return x < 0 ? static_cast<T>(0u - static_cast<std::uint64_t>(x)) : x;
};

const auto sigmoid = [](auto x) { return decltype(x)(1) / (decltype(x)(1) + std::exp(-x)); };
const auto softplus = [](auto x) {  // log(1 + e^x) without overflow
  using T = decltype(x);
  return std::max(x, T(0)) + std::log1p(std::exp(-std::abs(x)));
};
const auto gelu_erf = [](auto x) {
  using T = decltype(x);
  return x * T(0.5) * (T(1) + std::erf(x * T(0.70710678118654752440)));
};
const auto gelu_tanh = [](auto x) {
  using T = decltype(x);
  return x * T(0.5) * (T(1) + std::tanh(T(0.79788456080286535588) * (x + T(0.044715) * x * x * x)));
};

using Info = const NodeInfo&;
using kernels::Unary;

void register_table_functions(Registry& r) {
  r.add("Exp", [](Info) { return table_kernel<Unary::kExp>([](auto x) { return std::exp(x); }); });
  r.add("Tanh",
        [](Info) { return table_kernel<Unary::kTanh>([](auto x) { return std::tanh(x); }); });
  r.add("Sigmoid", [](Info) { return table_kernel<Unary::kSigmoid>(sigmoid); });
  r.add("Erf", [](Info) { return table_kernel<Unary::kErf>([](auto x) { return std::erf(x); }); });
  r.add("Sqrt",
        [](Info) { return table_kernel<Unary::kSqrt>([](auto x) { return std::sqrt(x); }); });
  r.add("Sin", [](Info) { return table_kernel<Unary::kSin>([](auto x) { return std::sin(x); }); });
  r.add("Cos", [](Info) { return table_kernel<Unary::kCos>([](auto x) { return std::cos(x); }); });
  r.add("Log", [](Info) { return table_kernel<Unary::kLog>([](auto x) { return std::log(x); }); });
  r.add("Reciprocal", [](Info) {
    return table_kernel<Unary::kReciprocal>([](auto x) { return decltype(x)(1) / x; });
  });
  r.add("Relu", [](Info) {
    return numeric_kernel<Unary::kRelu>([](auto x) { return x < 0 ? decltype(x)(0) : x; },
                                        [](auto x) { return std::max(x, decltype(x)(0)); });
  });
  r.add("Neg",
        [](Info) { return numeric_kernel<Unary::kNeg>([](auto x) { return -x; }, wrap_negate); });
  r.add("Abs", [](Info) {
    return numeric_kernel<Unary::kAbs>([](auto x) { return std::abs(x); }, wrap_abs);
  });
  r.add("Gelu", [](Info info) {
    const std::string approximate = info.node.string_attr("approximate", "none");
    if (approximate == "tanh") return table_kernel<Unary::kGeluTanh>(gelu_tanh);
    if (approximate == "none") return table_kernel<Unary::kGeluErf>(gelu_erf);
    fail(ErrorCode::kInvalidModel,
         "attribute approximate is '" + approximate + "'; expected 'none' or 'tanh'");
  });
  r.add("com.microsoft", "Gelu", [](Info) { return table_kernel<Unary::kGeluErf>(gelu_erf); });
  r.add("Swish", [](Info info) {
    const float alpha = info.node.float_attr("alpha", 1.0f);
    if (alpha == 1.0f) {
      return table_kernel<Unary::kSilu>([](auto x) { return x * sigmoid(x); });
    }
    return float_kernel([alpha](auto x) { return x * sigmoid(decltype(x)(alpha) * x); });
  });
  r.add("kvik", "Silu",
        [](Info) { return table_kernel<Unary::kSilu>([](auto x) { return x * sigmoid(x); }); });
  r.add("com.microsoft", "QuickGelu", [](Info info) {
    const float alpha = info.node.float_attr("alpha", 1.702f);
    return float_kernel([alpha](auto x) { return x * sigmoid(decltype(x)(alpha) * x); });
  });
}

void register_libm_functions(Registry& r) {
  r.add("Tan", [](Info) { return float_kernel([](auto x) { return std::tan(x); }); });
  r.add("Asin", [](Info) { return float_kernel([](auto x) { return std::asin(x); }); });
  r.add("Acos", [](Info) { return float_kernel([](auto x) { return std::acos(x); }); });
  r.add("Atan", [](Info) { return float_kernel([](auto x) { return std::atan(x); }); });
  r.add("Sinh", [](Info) { return float_kernel([](auto x) { return std::sinh(x); }); });
  r.add("Cosh", [](Info) { return float_kernel([](auto x) { return std::cosh(x); }); });
  r.add("Asinh", [](Info) { return float_kernel([](auto x) { return std::asinh(x); }); });
  r.add("Acosh", [](Info) { return float_kernel([](auto x) { return std::acosh(x); }); });
  r.add("Atanh", [](Info) { return float_kernel([](auto x) { return std::atanh(x); }); });
  r.add("Floor", [](Info) { return float_kernel([](auto x) { return std::floor(x); }); });
  r.add("Ceil", [](Info) { return float_kernel([](auto x) { return std::ceil(x); }); });
  // The default rounding mode of the FPU: to nearest, ties to even, as ONNX wants.
  r.add("Round", [](Info) { return float_kernel([](auto x) { return std::nearbyint(x); }); });
  r.add("Softplus", [](Info) { return float_kernel(softplus); });
  r.add("Softsign",
        [](Info) { return float_kernel([](auto x) { return x / (1 + std::abs(x)); }); });
  r.add("Mish",
        [](Info) { return float_kernel([](auto x) { return x * std::tanh(softplus(x)); }); });
}

void register_parametric(Registry& r) {
  r.add("HardSigmoid", [](Info info) {
    const float alpha = info.node.float_attr("alpha", 0.2f),
                beta = info.node.float_attr("beta", 0.5f);
    return float_kernel([=](auto x) {
      using T = decltype(x);
      return std::max(T(0), std::min(T(1), T(alpha) * x + T(beta)));
    });
  });
  r.add("HardSwish", [](Info) {
    return float_kernel([](auto x) {
      using T = decltype(x);
      return x * std::max(T(0), std::min(T(1), x * (T(1) / T(6)) + T(0.5)));
    });
  });
  r.add("Elu", [](Info info) {
    const float alpha = info.node.float_attr("alpha", 1.0f);
    return float_kernel([=](auto x) { return x < 0 ? decltype(x)(alpha) * std::expm1(x) : x; });
  });
  r.add("Celu", [](Info info) {
    const float alpha = info.node.float_attr("alpha", 1.0f);
    return float_kernel([=](auto x) {
      using T = decltype(x);
      return x < 0 ? T(alpha) * std::expm1(x / T(alpha)) : x;
    });
  });
  r.add("Selu", [](Info info) {
    const float alpha = info.node.float_attr("alpha", 1.67326319217681884765625f);
    const float gamma = info.node.float_attr("gamma", 1.05070102214813232421875f);
    return float_kernel([=](auto x) {
      using T = decltype(x);
      return T(gamma) * (x < 0 ? T(alpha) * std::expm1(x) : x);
    });
  });
  r.add("LeakyRelu", [](Info info) {
    const float alpha = info.node.float_attr("alpha", 0.01f);
    return float_kernel([=](auto x) { return x < 0 ? decltype(x)(alpha) * x : x; });
  });
  r.add("ThresholdedRelu", [](Info info) {
    const float alpha = info.node.float_attr("alpha", 1.0f);
    return float_kernel([=](auto x) { return x > decltype(x)(alpha) ? x : decltype(x)(0); });
  });
  r.add("Sign", [](Info) {
    return kernel_of(
        [](OpContext& context) {
          const auto sign = [](auto x) {  // NaN stays NaN
            using T = decltype(x);
            return x > 0 ? T(1) : x < 0 ? static_cast<T>(-1) : x == 0 ? T(0) : x;
          };
          if (dtype_is_integer(context.input(0).dtype)) return run_integer(context, sign);
          run_float(context, sign);
        },
        1);
  });
  r.add("Shrink", [](Info info) {
    const float bias = info.node.float_attr("bias", 0.0f);
    const float lambd = info.node.float_attr("lambd", 0.5f);
    const auto shrink = [=](auto x) -> decltype(x) {
      using T = decltype(x);
      if (static_cast<double>(x) < -static_cast<double>(lambd))
        return static_cast<T>(x + static_cast<T>(bias));
      if (static_cast<double>(x) > static_cast<double>(lambd))
        return static_cast<T>(x - static_cast<T>(bias));
      return T(0);
    };
    return kernel_of([shrink](OpContext& context) {
      if (dtype_is_integer(context.input(0).dtype)) return run_integer(context, shrink);
      run_float(context, shrink);
    });
  });
}

// f(T) -> bool for each float type T that is computed in.
template <typename F>
void run_predicate(OpContext& context, const F& f) {
  const Tensor& x = context.input(0);
  Tensor& y = context.output(0, DType::kBool, x.dims);
  visit_float(x.dtype, [&]<typename T>() {
    map_elements(context, x, y, 1, [&](const void* in, std::int64_t n, void* out) {
      for (std::int64_t i = 0; i < n; ++i) {
        const bool holds = f(widen(static_cast<const T*>(in)[i]));
        static_cast<std::uint8_t*>(out)[i] = holds ? 1 : 0;
      }
    });
  });
}

void register_predicates(Registry& r) {
  r.add("IsNaN", [](Info) {
    return kernel_of(
        [](OpContext& context) { run_predicate(context, [](auto x) { return std::isnan(x); }); });
  });
  r.add("IsInf", [](Info info) {
    const bool negative = info.node.int_attr("detect_negative", 1) != 0;
    const bool positive = info.node.int_attr("detect_positive", 1) != 0;
    return kernel_of([=](OpContext& context) {
      run_predicate(context,
                    [=](auto x) { return std::isinf(x) && (x < 0 ? negative : positive); });
    });
  });
  r.add("Not", [](Info) {
    return kernel_of([](OpContext& context) {
      const Tensor& x = context.input(0);
      check_dtype(x, DType::kBool, "the input");
      std::uint8_t* y = context.output(0, DType::kBool, x.dims).as<std::uint8_t>();
      const std::uint8_t* in = x.as<std::uint8_t>();
      for (std::int64_t i = 0; i < x.elements(); ++i) y[i] = in[i] == 0 ? 1 : 0;
    });
  });
  r.add("BitwiseNot", [](Info) {
    return kernel_of([](OpContext& context) {
      run_integer(context, [](auto x) { return static_cast<decltype(x)>(~x); });
    });
  });
}

}  // namespace

void register_unary(Registry& registry) {
  register_table_functions(registry);
  register_libm_functions(registry);
  register_parametric(registry);
  register_predicates(registry);
}

}  // namespace kvik::ops
