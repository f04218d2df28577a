// Arithmetic of two (or, for Sum, Mean, Min and Max, any number of) broadcast inputs.
#include <cmath>
#include <limits>

#include "ops/broadcast.h"
#include "ops/families.h"

namespace kvik::ops {

namespace {

using Info = const NodeInfo&;
using kernels::Binary;

// out[i] = f(a[i], b[i]) with broadcasting, for elements of type T computed in Compute<T>.
template <typename T, typename F>
void broadcast_apply(OpContext& context, const BroadcastPlan& plan, const Tensor& a,
                     const Tensor& b, T* out, std::int64_t cost, const F& f) {
  const T* pa = a.as<T>();
  const T* pb = b.as<T>();
  const std::int64_t sa = plan.strides[0].back(), sb = plan.strides[1].back();
  parallel_for(context.pool(), plan.total, cost, 64, [&](std::int64_t begin, std::int64_t end) {
    for_segments(plan, begin, end, [&](std::int64_t at, const auto& offset, std::int64_t n) {
      const T* x = pa + offset[0];
      const T* y = pb + offset[1];
      T* z = out + at;
      for (std::int64_t i = 0; i < n; ++i) z[i] = narrow<T>(f(widen(x[i * sa]), widen(y[i * sb])));
    });
  });
}

void broadcast_table(OpContext& context, const BroadcastPlan& plan, const Tensor& a,
                     const Tensor& b, float* out, Binary f) {
  const float* pa = a.as<float>();
  const float* pb = b.as<float>();
  const int sa = static_cast<int>(plan.strides[0].back());
  const int sb = static_cast<int>(plan.strides[1].back());
  const auto binary = context.kernels().binary_f32;
  parallel_elements(context, plan.total, [&](std::int64_t begin, std::int64_t end) {
    for_segments(plan, begin, end, [&](std::int64_t at, const auto& offset, std::int64_t n) {
      binary(f, pa + offset[0], sa, pb + offset[1], sb, n, out + at);
    });
  });
}

// Integer arithmetic wraps around; it is done unsigned, where wrapping is defined.
template <typename T>
using Wrapping = std::make_unsigned_t<std::conditional_t<(sizeof(T) < 4), std::int32_t, T>>;

template <Binary kOp, typename T>
T apply_binary(T a, T b) {
  if constexpr (std::is_integral_v<T>) {
    using U = Wrapping<T>;
    if constexpr (kOp == Binary::kAdd) return static_cast<T>(static_cast<U>(a) + static_cast<U>(b));
    if constexpr (kOp == Binary::kSub) return static_cast<T>(static_cast<U>(a) - static_cast<U>(b));
    if constexpr (kOp == Binary::kMul) return static_cast<T>(static_cast<U>(a) * static_cast<U>(b));
    if constexpr (kOp == Binary::kDiv) {
      if constexpr (std::is_signed_v<T>) {
        if (b == T(-1)) return static_cast<T>(U(0) - static_cast<U>(a));  // the minimum wraps
      }
      return static_cast<T>(a / b);
    }
    if constexpr (kOp == Binary::kMin) return b < a ? b : a;
    if constexpr (kOp == Binary::kMax) return a < b ? b : a;
  } else {
    if constexpr (kOp == Binary::kAdd) return a + b;
    if constexpr (kOp == Binary::kSub) return a - b;
    if constexpr (kOp == Binary::kMul) return a * b;
    if constexpr (kOp == Binary::kDiv) return a / b;
    // A NaN on either side gives NaN.
    if constexpr (kOp == Binary::kMin) return a != a ? a : b < a || b != b ? b : a;
    if constexpr (kOp == Binary::kMax) return a != a ? a : a < b || b != b ? b : a;
  }
}

template <typename T>
void check_no_zero(const Tensor& divisor) {
  const Slices slices = slices_of(divisor);
  for (std::int64_t row = 0; row < slices.count; ++row) {
    const T* p = divisor.as<T>() + row * slices.stride;
    if (std::find(p, p + slices.size, T(0)) != p + slices.size) {
      fail(ErrorCode::kInvalidArgument, "an integer is divided by zero");
    }
  }
}

template <Binary kOp>
void run_binary(OpContext& context, const Tensor& a, const Tensor& b, Tensor& out,
                const BroadcastPlan& plan) {
  if (a.dtype == DType::kF32) {
    return broadcast_table(context, plan, a, b, out.as<float>(), kOp);
  }
  visit_numeric(a.dtype, [&]<typename T>() {
    if constexpr (kOp == Binary::kDiv && std::is_integral_v<T>) check_no_zero<T>(b);
    broadcast_apply<T>(context, plan, a, b, out.as<T>(), 1, apply_binary<kOp, Compute<T>>);
  });
}

BroadcastPlan plan_pair(const Tensor& a, const Tensor& b) {
  const std::array<const Tensor*, 2> operands{&a, &b};
  return plan_broadcast(operands);
}

template <Binary kOp>
std::unique_ptr<OpKernel> arithmetic(Info) {
  return kernel_of(
      [](OpContext& context) {
        const Tensor& a = context.input(0);
        const Tensor& b = context.input(1);
        check_same_dtype(a, b, "the first input", "the second");
        const BroadcastPlan plan = plan_pair(a, b);
        run_binary<kOp>(context, a, b, context.output(0, a.dtype, plan.result), plan);
      },
      3);
}

// Sum, Mean, Min and Max of any number of inputs: folded from the left into the output.
template <Binary kOp, bool kMean>
std::unique_ptr<OpKernel> variadic(Info) {
  return kernel_of([](OpContext& context) {
    const Tensor& first = context.input(0);
    Dims dims = first.dims;
    for (int i = 1; i < context.input_count(); ++i) {
      check_same_dtype(first, context.input(i), "the first input", "another");
      dims = broadcast_dims(dims, context.input(i).dims);
    }
    Tensor& out = context.output(0, first.dtype, dims);
    // The accumulator has the full shape from the start: the first input is broadcast into it.
    visit_size(first.dtype, [&]<typename T>() {
      const BroadcastPlan plan = plan_pair(out, first);
      const T* in = first.as<T>();
      const std::int64_t step = plan.strides[1].back();
      for_segments(plan, 0, plan.total, [&](std::int64_t at, const auto& offset, std::int64_t n) {
        for (std::int64_t i = 0; i < n; ++i) out.as<T>()[at + i] = in[offset[1] + i * step];
      });
    });
    for (int i = 1; i < context.input_count(); ++i) {
      const Tensor& next = context.input(i);
      run_binary<kOp>(context, out, next, out, plan_pair(out, next));
    }
    if constexpr (kMean) {
      visit_float(first.dtype, [&]<typename T>() {
        const auto count = static_cast<Compute<T>>(context.input_count());
        for (std::int64_t i = 0; i < out.elements(); ++i) {
          out.as<T>()[i] = narrow<T>(widen(out.as<T>()[i]) / count);
        }
      });
    }
  });
}

// ---- Pow -------------------------------------------------------------------------------------

// base^e for an exponent that is common in models: exact powers instead of libm's general one.
template <typename T>
T pow_value(T base, double exponent) {
  if (exponent == 2.0) return base * base;
  if (exponent == 3.0) return base * base * base;
  if (exponent == 0.5 && base >= 0) return std::sqrt(base);
  if (exponent == 1.0) return base;
  if constexpr (std::is_same_v<T, float>) {
    // Through double, so that the result is the rounded true one in practice.
    return static_cast<float>(std::pow(static_cast<double>(base), exponent));
  } else {
    return std::pow(base, static_cast<T>(exponent));
  }
}

// Integer base: exact by squaring where the exponent is a whole number >= 0, wrapping.
template <typename T>
T pow_integer(T base, double exponent) {
  if (exponent < 0 || exponent != std::floor(exponent) || exponent > 1e6) {
    const double value = std::pow(static_cast<double>(base), exponent);
    if (!(value > -9.2e18 && value < 9.2e18)) return T(0);
    return static_cast<T>(static_cast<std::int64_t>(value));
  }
  using U = Wrapping<T>;
  U result = 1, factor = static_cast<U>(base);
  for (auto e = static_cast<std::uint64_t>(exponent); e != 0; e >>= 1) {
    if (e & 1u) result *= factor;
    factor *= factor;
  }
  return static_cast<T>(result);
}

template <typename T>
void run_pow(OpContext& context, const Tensor& a, const Tensor& b, Tensor& out,
             const BroadcastPlan& plan) {
  visit_numeric(b.dtype, [&]<typename E>() {
    const std::int64_t sa = plan.strides[0].back(), sb = plan.strides[1].back();
    parallel_for(context.pool(), plan.total, 8, 64, [&](std::int64_t begin, std::int64_t end) {
      for_segments(plan, begin, end, [&](std::int64_t at, const auto& offset, std::int64_t n) {
        for (std::int64_t i = 0; i < n; ++i) {
          const auto base = widen(a.as<T>()[offset[0] + i * sa]);
          const double exponent = static_cast<double>(widen(b.as<E>()[offset[1] + i * sb]));
          if constexpr (std::is_integral_v<T>) {
            out.as<T>()[at + i] = pow_integer(base, exponent);
          } else {
            out.as<T>()[at + i] = narrow<T>(pow_value(base, exponent));
          }
        }
      });
    });
  });
}

std::unique_ptr<OpKernel> make_pow(Info) {
  return kernel_of([](OpContext& context) {
    const Tensor& a = context.input(0);
    const Tensor& b = context.input(1);
    const BroadcastPlan plan = plan_pair(a, b);
    Tensor& out = context.output(0, a.dtype, plan.result);
    if (a.dtype == DType::kF32 && b.elements() == 1 && float_scalar(b, "the exponent") == 2.0) {
      parallel_elements(context, plan.total, [&](std::int64_t begin, std::int64_t end) {
        context.kernels().unary_f32(kernels::Unary::kSquare, a.as<float>() + begin, end - begin,
                                    out.as<float>() + begin);
      });
      return;
    }
    visit_numeric(a.dtype, [&]<typename T>() { run_pow<T>(context, a, b, out, plan); });
  });
}

// ---- Mod, PRelu, bits ------------------------------------------------------------------------

// The sign follows the divisor (Python's %) for fmod = 0, the dividend (C's %) for fmod = 1.
template <typename T>
T mod_value(T a, T b, bool fmod) {
  if constexpr (std::is_integral_v<T>) {
    if constexpr (std::is_signed_v<T>) {
      if (b == T(-1)) return T(0);  // the minimum % -1 overflows
    }
    const T rest = static_cast<T>(a % b);
    if (fmod || rest == 0 || (rest < 0) == (b < 0)) return rest;
    return static_cast<T>(rest + b);
  } else {
    const T rest = std::fmod(a, b);
    if (fmod || rest == 0 || (rest < 0) == (b < 0)) return rest;
    return rest + b;
  }
}

std::unique_ptr<OpKernel> make_mod(Info info) {
  const bool fmod = info.node.int_attr("fmod", 0) != 0;
  return kernel_of([fmod](OpContext& context) {
    const Tensor& a = context.input(0);
    const Tensor& b = context.input(1);
    check_same_dtype(a, b, "the first input", "the second");
    const BroadcastPlan plan = plan_pair(a, b);
    Tensor& out = context.output(0, a.dtype, plan.result);
    visit_numeric(a.dtype, [&]<typename T>() {
      if constexpr (std::is_integral_v<T>) check_no_zero<T>(b);
      broadcast_apply<T>(context, plan, a, b, out.as<T>(), 4,
                         [fmod](auto x, auto y) { return mod_value(x, y, fmod); });
    });
  });
}

std::unique_ptr<OpKernel> make_prelu(Info) {
  return kernel_of([](OpContext& context) {
    const Tensor& x = context.input(0);
    const Tensor& slope = context.input(1);
    check_same_dtype(x, slope, "the input", "the slope");
    const BroadcastPlan plan = plan_pair(x, slope);
    check(plan.result == x.dims, [&] {
      return "slope " + slope.dims.str() + " cannot be broadcast to the input " + x.dims.str();
    });
    Tensor& out = context.output(0, x.dtype, x.dims);
    visit_numeric(x.dtype, [&]<typename T>() {
      broadcast_apply<T>(context, plan, x, slope, out.as<T>(), 1, [](auto v, auto s) {
        return v < 0 ? apply_binary<Binary::kMul>(v, s) : v;
      });
    });
  });
}

template <typename F>
std::unique_ptr<OpKernel> integer_kernel(F f) {
  return kernel_of([f](OpContext& context) {
    const Tensor& a = context.input(0);
    const Tensor& b = context.input(1);
    check_same_dtype(a, b, "the first input", "the second");
    const BroadcastPlan plan = plan_pair(a, b);
    Tensor& out = context.output(0, a.dtype, plan.result);
    visit_integer(a.dtype, [&]<typename T>() {
      broadcast_apply<T>(context, plan, a, b, out.as<T>(), 1,
                         [f](T x, T y) { return static_cast<T>(f(x, y)); });
    });
  });
}

std::unique_ptr<OpKernel> make_bit_shift(Info info) {
  const std::string direction = info.node.string_attr("direction", "");
  if (direction != "LEFT" && direction != "RIGHT") {
    fail(ErrorCode::kInvalidModel,
         "attribute direction is '" + direction + "'; expected 'LEFT' or 'RIGHT'");
  }
  const bool left = direction == "LEFT";
  // Bits that leave are lost; a signed number shifted right keeps its sign. A shift by the width or
  // more (a negative one counts as that) moves every bit out.
  return integer_kernel([left](auto x, auto y) {
    using T = decltype(x);
    const bool all_out = y < 0 || static_cast<std::uint64_t>(y) >= sizeof(T) * 8;
    if (all_out) return static_cast<T>(!left && x < 0 ? -1 : 0);
    if (left) return static_cast<T>(static_cast<std::make_unsigned_t<T>>(x) << y);
    return static_cast<T>(x >> y);
  });
}

// silu(gate) · up, one of Kvik's fused operators.
std::unique_ptr<OpKernel> make_silu_mul(Info) {
  return kernel_of(
      [](OpContext& context) {
        const Tensor& gate = context.input(0);
        const Tensor& up = context.input(1);
        check_dtype(gate, DType::kF32, "gate");
        check_dtype(up, DType::kF32, "up");
        check(gate.dims == up.dims, [&] {
          return "gate has shape " + gate.dims.str() + " but up has shape " + up.dims.str();
        });
        float* out = context.output(0, DType::kF32, gate.dims).as<float>();
        const BroadcastPlan plan = plan_pair(gate, up);
        parallel_for(context.pool(), plan.total, 8, 64, [&](std::int64_t begin, std::int64_t end) {
          for_segments(plan, begin, end, [&](std::int64_t at, const auto& offset, std::int64_t n) {
            context.kernels().silu_mul_f32(gate.as<float>() + offset[0], up.as<float>() + offset[1],
                                           n, out + at);
          });
        });
      },
      3);
}

// ---- Clip ------------------------------------------------------------------------------------

template <typename T>
void run_clip(OpContext& context) {
  using C = Compute<T>;
  const Tensor& x = context.input(0);
  const auto bound = [&](int i, C fallback, const char* name) {
    if (!context.has_input(i)) return fallback;
    check_same_dtype(x, context.input(i), "the input", name);
    check(context.input(i).elements() == 1, [&] {
      return std::string(name) + " has shape " + context.input(i).dims.str() +
             "; expected one element";
    });
    return widen(*context.input(i).as<T>());
  };
  constexpr bool kFloat = kIsFloat<T>;
  const C low = bound(
      1, kFloat ? -std::numeric_limits<C>::infinity() : std::numeric_limits<C>::lowest(), "min");
  const C high =
      bound(2, kFloat ? std::numeric_limits<C>::infinity() : std::numeric_limits<C>::max(), "max");
  T* out = context.output(0, x.dtype, x.dims).as<T>();
  const T* in = x.as<T>();
  parallel_elements(context, x.elements(), [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) {
      const C v = widen(in[i]);
      const C raised = v < low ? low : v;
      out[i] = narrow<T>(raised > high ? high : raised);
    }
  });
}

std::unique_ptr<OpKernel> make_clip(Info) {
  return kernel_of([](OpContext& context) {
    visit_numeric(context.input(0).dtype, [&]<typename T>() { run_clip<T>(context); });
  });
}

}  // namespace

void register_binary(Registry& r) {
  r.add("Add", arithmetic<Binary::kAdd>);
  r.add("Sub", arithmetic<Binary::kSub>);
  r.add("Mul", arithmetic<Binary::kMul>);
  r.add("Div", arithmetic<Binary::kDiv>);
  r.add("Min", variadic<Binary::kMin, false>);
  r.add("Max", variadic<Binary::kMax, false>);
  r.add("Sum", variadic<Binary::kAdd, false>);
  r.add("Mean", variadic<Binary::kAdd, true>);
  r.add("Pow", make_pow);
  r.add("Mod", make_mod);
  r.add("PRelu", make_prelu);
  r.add("Clip", make_clip);
  r.add("BitShift", make_bit_shift);
  r.add("BitwiseAnd", [](Info) { return integer_kernel([](auto x, auto y) { return x & y; }); });
  r.add("BitwiseOr", [](Info) { return integer_kernel([](auto x, auto y) { return x | y; }); });
  r.add("BitwiseXor", [](Info) { return integer_kernel([](auto x, auto y) { return x ^ y; }); });
  r.add("kvik", "SiluMul", make_silu_mul);
}

}  // namespace kvik::ops
