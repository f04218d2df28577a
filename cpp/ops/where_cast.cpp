// Where; Cast and CastLike between all numeric types.
#include <cmath>
#include <cstring>
#include <limits>

#include "ops/broadcast.h"
#include "ops/families.h"
#include "ops/onnx_dtype.h"

namespace kvik::ops {

namespace {

using Info = const NodeInfo&;

void run_where(OpContext& context) {
  const Tensor& condition = context.input(0);
  const Tensor& a = context.input(1);
  const Tensor& b = context.input(2);
  check_dtype(condition, DType::kBool, "condition");
  check_same_dtype(a, b, "X", "Y");
  const std::array<const Tensor*, 3> operands{&condition, &a, &b};
  const BroadcastPlan plan = plan_broadcast(operands);
  Tensor& out = context.output(0, a.dtype, plan.result);
  const std::uint8_t* c = condition.as<std::uint8_t>();
  visit_size(a.dtype, [&]<typename T>() {
    const std::int64_t sc = plan.strides[0].back();
    const std::int64_t sa = plan.strides[1].back(), sb = plan.strides[2].back();
    parallel_elements(context, plan.total, [&](std::int64_t begin, std::int64_t end) {
      for_segments(plan, begin, end, [&](std::int64_t at, const auto& offset, std::int64_t n) {
        const T* x = a.as<T>() + offset[1];
        const T* y = b.as<T>() + offset[2];
        for (std::int64_t i = 0; i < n; ++i) {
          out.as<T>()[at + i] = c[offset[0] + i * sc] != 0 ? x[i * sa] : y[i * sb];
        }
      });
    });
  });
}

// Where ONNX leaves a conversion undefined (a float beyond an integer's range), the value
// saturates, and NaN becomes 0. Integers wrap.
template <typename To, typename From>
To convert(From value) {
  if constexpr (kIsHalf<To>) {
    return static_cast<To>(static_cast<float>(value));
  } else if constexpr (std::is_floating_point_v<From> && std::is_integral_v<To>) {
    if (std::isnan(value)) return To(0);
    // The limits as floats: `high` may round up to one beyond the range, hence >=.
    constexpr auto low = static_cast<From>(std::numeric_limits<To>::lowest());
    constexpr auto high = static_cast<From>(std::numeric_limits<To>::max());
    if (value <= low) return std::numeric_limits<To>::lowest();
    if (value >= high) return std::numeric_limits<To>::max();
    return static_cast<To>(value);
  } else {
    return static_cast<To>(value);
  }
}

// Element i of a 4-bit tensor.
int nibble_at(const std::uint8_t* data, std::int64_t i, bool is_signed) {
  const int nibble = (data[i / 2] >> (i % 2 * 4)) & 0xf;
  return is_signed && nibble >= 8 ? nibble - 16 : nibble;
}

// Calls body.operator()<From>(load), load(i) being element i of the tensor in its compute type.
template <typename F>
void visit_source(const Tensor& x, const F& body) {
  if (x.dtype == DType::kI4 || x.dtype == DType::kU4) {
    const auto* data = x.as<std::uint8_t>();
    const bool is_signed = x.dtype == DType::kI4;
    return body([=](std::int64_t i) { return nibble_at(data, i, is_signed); });
  }
  if (x.dtype == DType::kBool) {
    const auto* data = x.as<std::uint8_t>();
    return body([=](std::int64_t i) { return data[i] != 0 ? 1 : 0; });
  }
  visit_numeric(x.dtype, [&]<typename T>() {
    const T* data = x.as<T>();
    body([=](std::int64_t i) { return widen(data[i]); });
  });
}

template <typename Load>
void store_nibbles(std::int64_t n, const Load& load, std::uint8_t* out) {
  // The low four bits of the whole number, as ONNX's own tests expect for values out of range.
  const auto nibble = [&](std::int64_t i) {
    return static_cast<unsigned>(convert<std::int64_t>(load(i))) & 0xfu;
  };
  for (std::int64_t i = 0; i < n; i += 2) {
    const unsigned high = i + 1 < n ? nibble(i + 1) : 0;
    out[i / 2] = static_cast<std::uint8_t>(nibble(i) | (high << 4));
  }
}

void cast(OpContext& context, DType to) {
  const Tensor& x = context.input(0);
  Tensor& y = context.output(0, to, x.dims);
  const std::int64_t n = x.elements();
  if (x.dtype == to) {
    if (n > 0) std::memcpy(y.data, x.data, result_bytes(x.dims, to));
    return;
  }
  visit_source(x, [&](const auto& load) {
    if (to == DType::kI4 || to == DType::kU4) {
      return store_nibbles(n, load, y.as<std::uint8_t>());
    }
    if (to == DType::kBool) {
      std::uint8_t* out = y.as<std::uint8_t>();
      for (std::int64_t i = 0; i < n; ++i) out[i] = load(i) != 0 ? 1 : 0;
      return;
    }
    visit_numeric(to, [&]<typename To>() {
      To* out = y.as<To>();
      parallel_elements(context, n, [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t i = begin; i < end; ++i) out[i] = convert<To>(load(i));
      });
    });
  });
}

bool castable(DType dtype) {
  return dtype_bits(dtype) != 0;
}

std::unique_ptr<OpKernel> make_cast(Info info) {
  const DType to = dtype_from_onnx(info.node.int_attr("to", 0));
  if (!castable(to)) fail_dtype(to);
  return kernel_of([to](OpContext& context) {
    if (!castable(context.input(0).dtype)) fail_dtype(context.input(0).dtype);
    cast(context, to);
  });
}

}  // namespace

void register_where_cast(Registry& r) {
  r.add("Where", [](Info) { return kernel_of(run_where); });
  r.add("Cast", make_cast);
  r.add("CastLike", [](Info) {
    return kernel_of([](OpContext& context) { cast(context, context.input(1).dtype); });
  });
}

}  // namespace kvik::ops
