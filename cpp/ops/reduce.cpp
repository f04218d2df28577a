// The Reduce family: sums, means, extrema, norms and logarithms over any set of axes.
#include <cmath>
#include <limits>

#include "ops/families.h"
#include "ops/support.h"

namespace kvik::ops {

namespace {

using Info = const NodeInfo&;

// Floats accumulate in double: exact enough that the order hardly matters, whatever the length.
// Integers accumulate in 64 bits, wrapping.
template <typename T>
using Accumulator =
    std::conditional_t<kIsFloat<T>, double,
                       std::conditional_t<std::is_signed_v<T>, std::int64_t, std::uint64_t>>;

template <typename A>
A wrapping_add(A a, A b) {
  if constexpr (std::is_integral_v<A>) {
    return static_cast<A>(static_cast<std::uint64_t>(a) + static_cast<std::uint64_t>(b));
  } else {
    return a + b;
  }
}

template <typename A>
A wrapping_mul(A a, A b) {
  if constexpr (std::is_integral_v<A>) {
    return static_cast<A>(static_cast<std::uint64_t>(a) * static_cast<std::uint64_t>(b));
  } else {
    return a * b;
  }
}

template <typename A>
A magnitude(A v) {
  if constexpr (std::is_unsigned_v<A>)
    return v;
  else
    return v < 0 ? wrapping_mul(v, A(-1)) : v;
}

// Each reduction of T: start, take one value after another, finish with the count.
template <typename A>
struct Sum {
  A total = 0;
  void take(A v) { total = wrapping_add(total, v); }
  A finish(std::int64_t) const { return total; }
};
template <typename A>
struct Mean : Sum<A> {
  A finish(std::int64_t n) const {
    if constexpr (std::is_integral_v<A>)
      return n == 0 ? A(0) : this->total / static_cast<A>(n);
    else
      return this->total / static_cast<A>(n);
  }
};
template <typename A>
struct Prod {
  A total = 1;
  void take(A v) { total = wrapping_mul(total, v); }
  A finish(std::int64_t) const { return total; }
};
template <typename A>
struct SumSquare : Sum<A> {
  void take(A v) { Sum<A>::take(wrapping_mul(v, v)); }
};
template <typename A>
struct L1 : Sum<A> {
  void take(A v) { Sum<A>::take(magnitude(v)); }
};
template <typename A>
struct L2 : SumSquare<A> {
  A finish(std::int64_t) const {
    return static_cast<A>(std::sqrt(static_cast<double>(this->total)));
  }
};
template <typename A>
struct LogSum : Sum<A> {
  A finish(std::int64_t) const {
    return static_cast<A>(std::log(static_cast<double>(this->total)));
  }
};
// log Σ e^v, with the largest value so far factored out.
template <typename A>
struct LogSumExp {
  double highest = -std::numeric_limits<double>::infinity(), total = 0.0;
  void take(A value) {
    const double v = static_cast<double>(value);
    if (v == highest) {  // also both infinite
      total += 1.0;
    } else if (v > highest) {
      total = total * std::exp(highest - v) + 1.0;
      highest = v;
    } else {
      total += std::exp(v - highest);  // NaN arrives here and stays
    }
  }
  A finish(std::int64_t) const {
    const bool empty = highest == -std::numeric_limits<double>::infinity() && !std::isnan(total);
    return static_cast<A>(empty ? highest : highest + std::log(total));
  }
};
// A NaN among the values is the result. Nothing reduced: the neutral element.
template <typename A>
struct Max {
  A best = std::is_floating_point_v<A> ? -std::numeric_limits<A>::infinity()
                                       : std::numeric_limits<A>::lowest();
  void take(A v) { best = best != best || v < best ? best : v; }
  A finish(std::int64_t) const { return best; }
};
template <typename A>
struct Min {
  A best = std::is_floating_point_v<A> ? std::numeric_limits<A>::infinity()
                                       : std::numeric_limits<A>::max();
  void take(A v) { best = best != best || v > best ? best : v; }
  A finish(std::int64_t) const { return best; }
};

// The walk over the input: kept axes give the result, reduced axes are summed up. Neighbours of
// one kind are merged.
struct ReducePlan {
  Dims result;
  Dims kept, kept_strides;
  Dims reduced, reduced_strides;
};

ReducePlan plan_reduce(const Dims& in, std::span<const int> axes, bool keep) {
  ReducePlan plan;
  const Dims strides = strides_of(in);
  int previous = -1;  // kind of the axis before: 0 kept, 1 reduced
  for (int axis = 0; axis < in.rank; ++axis) {
    const bool reduce = std::find(axes.begin(), axes.end(), axis) != axes.end();
    if (!reduce || keep) plan.result.push_back(reduce ? 1 : in[axis]);
    Dims& dims = reduce ? plan.reduced : plan.kept;
    Dims& steps = reduce ? plan.reduced_strides : plan.kept_strides;
    if (previous == static_cast<int>(reduce)) {
      dims[dims.rank - 1] *= in[axis];
      steps[steps.rank - 1] = strides[axis];
    } else {
      dims.push_back(in[axis]);
      steps.push_back(strides[axis]);
    }
    previous = static_cast<int>(reduce);
  }
  if (plan.reduced.rank == 0) {
    plan.reduced.push_back(1);
    plan.reduced_strides.push_back(0);
  }
  return plan;
}

template <typename T, template <typename> typename Reduction>
void reduce(OpContext& context, const ReducePlan& plan, const T* in, T* out) {
  using A = Accumulator<T>;
  const std::int64_t count = plan.reduced.elements();
  const std::int64_t run = plan.reduced.back(), step = plan.reduced_strides.back();
  const int outer = plan.reduced.rank - 1;
  parallel_for(context, plan.result.elements(), count, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t o = begin; o < end; ++o) {
      std::int64_t rest = o, base = 0;
      for (int axis = plan.kept.rank - 1; axis >= 0; --axis) {
        base += rest % plan.kept[axis] * plan.kept_strides[axis];
        rest /= plan.kept[axis];
      }
      Reduction<A> reduction;
      if (count > 0) {
        Dims index;
        std::int64_t offset = base;
        do {
          for (std::int64_t i = 0; i < run; ++i) {
            reduction.take(static_cast<A>(widen(in[offset + i * step])));
          }
        } while (advance(plan.reduced, outer, index, plan.reduced_strides, offset));
      }
      out[o] = narrow<T>(static_cast<Compute<T>>(reduction.finish(count)));
    }
  });
}

AxisList axes_to_reduce(OpContext& context, int rank, bool noop_with_empty_axes) {
  IntList list;
  if (context.has_input(1)) list = int_list(context.input(1), "axes");
  if (list.empty() && !noop_with_empty_axes) {
    for (int axis = 0; axis < rank; ++axis) list.push_back(axis);
  }
  return normalize_axes(list, rank);
}

template <template <typename> typename Reduction, bool kBool = false>
std::unique_ptr<OpKernel> make_reduce(Info info) {
  const bool keep = info.node.int_attr("keepdims", 1) != 0;
  const bool noop = info.node.int_attr("noop_with_empty_axes", 0) != 0;
  return kernel_of([=](OpContext& context) {
    const Tensor& x = context.input(0);
    const ReducePlan plan = plan_reduce(x.dims, axes_to_reduce(context, x.dims.rank, noop), keep);
    Tensor& y = context.output(0, x.dtype, plan.result);
    if (kBool && x.dtype == DType::kBool) {
      reduce<std::uint8_t, Reduction>(context, plan, x.as<std::uint8_t>(), y.as<std::uint8_t>());
      // An empty minimum or maximum, and bytes other than 0 and 1, become booleans.
      for (std::int64_t i = 0; i < y.elements(); ++i) {
        y.as<std::uint8_t>()[i] = y.as<std::uint8_t>()[i] != 0 ? 1 : 0;
      }
      return;
    }
    visit_numeric(x.dtype,
                  [&]<typename T>() { reduce<T, Reduction>(context, plan, x.as<T>(), y.as<T>()); });
  });
}

}  // namespace

void register_reduce(Registry& r) {
  r.add("ReduceSum", make_reduce<Sum>);
  r.add("ReduceMean", make_reduce<Mean>);
  r.add("ReduceProd", make_reduce<Prod>);
  r.add("ReduceMax", make_reduce<Max, true>);
  r.add("ReduceMin", make_reduce<Min, true>);
  r.add("ReduceSumSquare", make_reduce<SumSquare>);
  r.add("ReduceL1", make_reduce<L1>);
  r.add("ReduceL2", make_reduce<L2>);
  r.add("ReduceLogSum", make_reduce<LogSum>);
  r.add("ReduceLogSumExp", make_reduce<LogSumExp>);
}

}  // namespace kvik::ops
