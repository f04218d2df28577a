// Comparisons and boolean logic, broadcast; results are booleans.
#include "ops/broadcast.h"
#include "ops/families.h"

namespace kvik::ops {

namespace {

using Info = const NodeInfo&;

template <typename T, typename F>
void compare_elements(OpContext& context, const Tensor& a, const Tensor& b, const F& f) {
  const std::array<const Tensor*, 2> operands{&a, &b};
  const BroadcastPlan plan = plan_broadcast(operands);
  std::uint8_t* out = context.output(0, DType::kBool, plan.result).as<std::uint8_t>();
  const std::int64_t sa = plan.strides[0].back(), sb = plan.strides[1].back();
  parallel_elements(context, plan.total, [&](std::int64_t begin, std::int64_t end) {
    for_segments(plan, begin, end, [&](std::int64_t at, const auto& offset, std::int64_t n) {
      const T* x = a.as<T>() + offset[0];
      const T* y = b.as<T>() + offset[1];
      for (std::int64_t i = 0; i < n; ++i) {
        out[at + i] = f(widen(x[i * sa]), widen(y[i * sb])) ? 1 : 0;
      }
    });
  });
}

template <typename F>
std::unique_ptr<OpKernel> comparison(F f) {
  return kernel_of([f](OpContext& context) {
    const Tensor& a = context.input(0);
    const Tensor& b = context.input(1);
    check_same_dtype(a, b, "the first input", "the second");
    if (a.dtype == DType::kBool) {
      // Any byte but 0 is true.
      return compare_elements<std::uint8_t>(context, a, b, [f](std::uint8_t x, std::uint8_t y) {
        return f(static_cast<std::uint8_t>(x != 0), static_cast<std::uint8_t>(y != 0));
      });
    }
    visit_numeric(a.dtype, [&]<typename T>() { compare_elements<T>(context, a, b, f); });
  });
}

template <typename F>
std::unique_ptr<OpKernel> logic(F f) {
  return kernel_of([f](OpContext& context) {
    const Tensor& a = context.input(0);
    const Tensor& b = context.input(1);
    check_dtype(a, DType::kBool, "the first input");
    check_dtype(b, DType::kBool, "the second input");
    compare_elements<std::uint8_t>(
        context, a, b, [f](std::uint8_t x, std::uint8_t y) { return f(x != 0, y != 0); });
  });
}

}  // namespace

void register_compare_logic(Registry& r) {
  r.add("Equal", [](Info) { return comparison([](auto x, auto y) { return x == y; }); });
  r.add("Less", [](Info) { return comparison([](auto x, auto y) { return x < y; }); });
  r.add("LessOrEqual", [](Info) { return comparison([](auto x, auto y) { return x <= y; }); });
  r.add("Greater", [](Info) { return comparison([](auto x, auto y) { return x > y; }); });
  r.add("GreaterOrEqual", [](Info) { return comparison([](auto x, auto y) { return x >= y; }); });
  r.add("And", [](Info) { return logic([](bool x, bool y) { return x && y; }); });
  r.add("Or", [](Info) { return logic([](bool x, bool y) { return x || y; }); });
  r.add("Xor", [](Info) { return logic([](bool x, bool y) { return x != y; }); });
}

}  // namespace kvik::ops
