// Pooling over windows and over whole images.
//
// Planes are independent of one another; within a window the order is fixed: floats are added along
// the other axes first, then along the last one, other types in double in the order of the taps.
#include <algorithm>
#include <cmath>
#include <limits>

#include "ops/families.h"
#include "ops/window.h"

namespace kvik::ops {

namespace {

using Info = const NodeInfo&;

// What a window covers on one axis.
struct Covered {
  std::int64_t first = 0;   // position of the first tap within the input
  std::int64_t taps = 0;    // within the input
  std::int64_t padded = 0;  // within the input and its padding
};

// The windows over a plane, axis by axis.
class Windows {
 public:
  Windows(const Window& window, WorkspacePlan& plan, int threads) : window_(window) {
    for (int i = 0; i < window.rank; ++i) {
      covered_at_[static_cast<std::size_t>(i)] = plan.add<Covered>(window[i].out);
    }
    for (int i = 0; i + 1 < window.rank; ++i) {
      const std::int64_t most = std::min(window[i].kernel, window[i].in);
      lines_ = dim_product(lines_, std::max<std::int64_t>(most, 1));
    }
    lines_at_ = plan.add<std::int64_t>(dim_product(lines_, threads));
    scratch_at_ = plan.add<float>(dim_product(line().in, 2 * threads));
  }

  void fill(const WorkspacePlan& plan) {
    lines_memory_ = plan.at<std::int64_t>(lines_at_);
    scratch_ = plan.at<float>(scratch_at_);
    for (int i = 0; i < window_.rank; ++i) {
      const WindowAxis& a = window_[i];
      Covered* covered = plan.at<Covered>(covered_at_[static_cast<std::size_t>(i)]);
      covered_[static_cast<std::size_t>(i)] = covered;
      for (std::int64_t o = 0; o < a.out; ++o) {
        const Range inside = a.taps_within(o, 0, a.in);
        const Range padded = a.taps_within(o, -a.pad_begin, a.in + a.pad_end);
        covered[o] = {a.position(o, inside.begin), inside.end - inside.begin,
                      padded.end - padded.begin};
      }
    }
  }

  // The lines along the last axis that a row of windows covers.
  struct Lines {
    std::int64_t count = 1, padded = 1;  // lines within the input; with its padding
    const std::int64_t* offsets = nullptr;
  };

  // Calls body(first window, lines) for every row of windows of a plane, in order.
  template <typename Body>
  void for_rows(int worker, Body body) const {
    std::array<std::int64_t, kMostSpatial> o{};
    const int last = window_.rank - 1;
    std::int64_t* lines = lines_memory_ + worker * lines_;
    for (std::int64_t index = 0;; index += window_[last].out) {
      body(index, lines_under(o, lines));
      int axis = last - 1;
      for (; axis >= 0; --axis) {
        const auto at = static_cast<std::size_t>(axis);
        if (++o[at] < window_[axis].out) break;
        o[at] = 0;
      }
      if (axis < 0) return;
    }
  }

  // Calls, for every window of a plane in row-major order, start(), then add(offset) for each
  // position within the plane in the order of the taps, then finish(window, taps, padded taps).
  template <typename Start, typename Add, typename Finish>
  void for_each(int worker, Start start, Add add, Finish finish) const {
    const std::int64_t dilation = line().dilation;
    for_rows(worker, [&](std::int64_t index, const Lines& lines) {
      for (std::int64_t x = 0; x < line().out; ++x) {
        start();
        for (std::int64_t i = 0; i < lines.count; ++i) {
          std::int64_t offset = lines.offsets[i] + along()[x].first;
          for (std::int64_t t = 0; t < along()[x].taps; ++t, offset += dilation) add(offset);
        }
        finish(index + x, lines.count * along()[x].taps, lines.padded * along()[x].padded);
      }
    });
  }

  const WindowAxis& line() const { return window_[window_.rank - 1]; }  // the last axis
  const Covered* along() const { return covered_[static_cast<std::size_t>(window_.rank - 1)]; }
  float* scratch(int worker) const { return scratch_ + 2 * worker * line().in; }  // [2, in]

 private:
  // The lines of the windows at o, whose offsets go to `lines`.
  Lines lines_under(const std::array<std::int64_t, kMostSpatial>& o, std::int64_t* lines) const {
    Lines found;
    found.offsets = lines;
    lines[0] = 0;
    for (int i = 0; i + 1 < window_.rank; ++i) {
      const auto at = static_cast<std::size_t>(i);
      const Covered& c = covered_[at][o[at]];
      // Backwards, so that the list grows in place.
      for (std::int64_t l = found.count - 1; l >= 0; --l) {
        for (std::int64_t t = c.taps - 1; t >= 0; --t) {
          lines[l * c.taps + t] = lines[l] * window_[i].in + c.first + t * window_[i].dilation;
        }
      }
      found.count *= c.taps;
      found.padded *= c.padded;
    }
    for (std::int64_t l = 0; l < found.count; ++l) lines[l] *= line().in;
    return found;
  }

  const Window& window_;
  std::array<std::size_t, kMostSpatial> covered_at_{};
  std::array<const Covered*, kMostSpatial> covered_{};
  std::int64_t lines_ = 1;  // most of a window
  std::size_t lines_at_ = 0;
  std::int64_t* lines_memory_ = nullptr;
  std::size_t scratch_at_ = 0;
  float* scratch_ = nullptr;
};

struct MaxFold {
  static constexpr auto kBinary = kernels::Binary::kMax;
  static constexpr float kEmpty = -std::numeric_limits<float>::infinity();
  static float of(float a, float b) { return a > b || std::isnan(a) ? a : b; }  // as the kernel
};
struct SumFold {
  static constexpr auto kBinary = kernels::Binary::kAdd;
  static constexpr float kEmpty = 0.0f;
  static float of(float a, float b) { return a + b; }
};

// One plane of floats, folded over each window: over its lines, then along them. Windows that have
// all their taps go whole vectors at a time, at every position of the line where their stride is
// small; of these, every stride-th is one.
template <typename Fold>
void fold_plane(const kernels::KernelTable& table, const Windows& windows, int worker,
                const float* plane, float* out) {
  constexpr std::int64_t kSmallStride = 4;
  const WindowAxis& line = windows.line();
  const Covered* along = windows.along();
  std::int64_t begin = 0, end = 0;  // windows that have all taps
  if (line.stride <= kSmallStride) {
    while (begin < line.out && along[begin].taps < line.kernel) ++begin;
    for (end = begin; end < line.out && along[end].taps == line.kernel;) ++end;
  }
  float* lines_folded = windows.scratch(worker);  // [in]
  float* all_positions = lines_folded + line.in;  // [in]
  windows.for_rows(worker, [&](std::int64_t index, const Windows::Lines& lines) {
    float* y = out + index;
    if (lines.count == 0) {
      std::fill_n(y, line.out, Fold::kEmpty);
      return;
    }
    const float* folded = plane + lines.offsets[0];
    for (std::int64_t l = 1; l < lines.count; ++l) {
      table.binary_f32(Fold::kBinary, folded, 1, plane + lines.offsets[l], 1, line.in,
                       lines_folded);
      folded = lines_folded;
    }
    if (begin < end) {
      const float* first = folded + along[begin].first;
      const std::int64_t count = (end - begin - 1) * line.stride + 1;
      const float* sums = first;
      for (std::int64_t t = 1; t < line.kernel; ++t) {
        table.binary_f32(Fold::kBinary, sums, 1, first + t * line.dilation, 1, count,
                         all_positions);
        sums = all_positions;
      }
      for (std::int64_t x = begin; x < end; ++x) y[x] = sums[(x - begin) * line.stride];
    }
    for (std::int64_t x = 0; x < line.out; ++x) {
      if (x == begin) x = end;
      if (x == line.out) break;
      float value = Fold::kEmpty;
      for (std::int64_t t = 0; t < along[x].taps; ++t) {
        const float next = folded[along[x].first + t * line.dilation];
        value = t == 0 ? next : Fold::of(value, next);
      }
      y[x] = value;
    }
  });
}

// Calls body(windows, worker, plane) for every plane of x, on the pool.
template <typename Body>
void for_planes(OpContext& context, const Tensor& x, const Window& window, Body body) {
  ThreadPool& pool = context.pool();
  WorkspacePlan plan;
  Windows windows(window, plan, pool.threads());
  plan.place(context.workspace(plan.bytes()));
  windows.fill(plan);
  const std::int64_t planes = x.dims[0] * x.dims[1];
  const auto range = [&](int worker, std::int64_t begin, std::int64_t end) {
    for (std::int64_t plane = begin; plane < end; ++plane) body(windows, worker, plane);
  };
  if (pool.threads() == 1 || planes < 2 || x.elements() < kMinParallelWork) {
    return range(0, 0, planes);
  }
  pool.run([&](int worker, int workers) {
    const Range part = split_range(planes, worker, workers);
    range(worker, part.begin, part.end);
  });
}

struct PoolShape {
  Window window;
  Dims result;
};

PoolShape pool_shape(const WindowAttributes& attributes, const Tensor& x) {
  PoolShape shape{attributes.over(x.dims), x.dims};
  for (int i = 0; i < shape.window.rank; ++i) shape.result[2 + i] = shape.window[i].out;
  result_elements(shape.result);
  return shape;
}

template <typename T>
Compute<T> lowest() {
  if constexpr (kIsFloat<T>) {
    return -std::numeric_limits<Compute<T>>::infinity();
  } else {
    return std::numeric_limits<T>::lowest();
  }
}

// Whether a value takes the place of the largest so far: the first of equals stays, NaN wins.
template <typename C>
bool larger(C value, C top) {
  if constexpr (std::is_floating_point_v<C>) {
    return value > top || (std::isnan(value) && !std::isnan(top));
  } else {
    return value > top;
  }
}

// An offset in a plane whose axes are numbered from the first on (storage_order 1).
std::int64_t column_major(std::int64_t offset, const Window& window) {
  std::array<std::int64_t, kMostSpatial> at{};
  for (int i = window.rank - 1; i >= 0; --i) {
    at[static_cast<std::size_t>(i)] = offset % window[i].in;
    offset /= window[i].in;
  }
  std::int64_t index = 0;
  for (int i = window.rank - 1; i >= 0; --i) {
    index = index * window[i].in + at[static_cast<std::size_t>(i)];
  }
  return index;
}

std::unique_ptr<OpKernel> make_max_pool(Info info) {
  const bool columns_first = info.node.int_attr("storage_order", 0) != 0;
  return kernel_of([attributes = pool_attributes(info.node), columns_first](OpContext& context) {
    const Tensor& x = context.input(0);
    const PoolShape shape = pool_shape(attributes, x);
    Tensor& y = context.output(0, x.dtype, shape.result);
    std::int64_t* indices = nullptr;
    if (context.wants_output(1)) {
      indices = context.output(1, DType::kI64, shape.result).as<std::int64_t>();
    }
    if (y.elements() == 0) return;
    const std::int64_t in = x.dims.elements(2, x.dims.rank), out = shape.window.windows();
    if (x.dtype == DType::kF32 && indices == nullptr) {
      for_planes(context, x, shape.window, [&](const Windows& w, int worker, std::int64_t plane) {
        fold_plane<MaxFold>(context.kernels(), w, worker, x.as<float>() + plane * in,
                            y.as<float>() + plane * out);
      });
      return;
    }
    visit_numeric(x.dtype, [&]<typename T>() {
      for_planes(context, x, shape.window, [&](const Windows& w, int worker, std::int64_t plane) {
        const T* from = x.as<T>() + plane * in;
        Compute<T> top{};
        std::int64_t place = 0;
        w.for_each(
            worker,
            [&] {
              top = lowest<T>();
              place = -1;
            },
            [&](std::int64_t offset) {
              const Compute<T> value = widen(from[offset]);
              if (place >= 0 && !larger(value, top)) return;
              top = value;
              place = offset;
            },
            [&](std::int64_t window, std::int64_t, std::int64_t) {
              y.as<T>()[plane * out + window] = narrow<T>(top);
              if (indices == nullptr) return;
              if (place >= 0 && columns_first) place = column_major(place, shape.window);
              indices[plane * out + window] = place < 0 ? -1 : plane * in + place;
            });
      });
    });
  });
}

std::unique_ptr<OpKernel> make_average_pool(Info info) {
  const bool with_padding = info.node.int_attr("count_include_pad", 0) != 0;
  return kernel_of([attributes = pool_attributes(info.node), with_padding](OpContext& context) {
    const Tensor& x = context.input(0);
    const PoolShape shape = pool_shape(attributes, x);
    Tensor& y = context.output(0, x.dtype, shape.result);
    if (y.elements() == 0) return;
    const std::int64_t in = x.dims.elements(2, x.dims.rank), out = shape.window.windows();
    if (x.dtype == DType::kF32) {
      for_planes(context, x, shape.window, [&](const Windows& w, int worker, std::int64_t plane) {
        float* sums = y.as<float>() + plane * out;
        fold_plane<SumFold>(context.kernels(), w, worker, x.as<float>() + plane * in, sums);
        w.for_rows(worker, [&](std::int64_t index, const Windows::Lines& lines) {
          for (std::int64_t i = 0; i < shape.window[shape.window.rank - 1].out; ++i) {
            const Covered& c = w.along()[i];
            const std::int64_t count =
                with_padding ? lines.padded * c.padded : lines.count * c.taps;
            sums[index + i] /= static_cast<float>(count);
          }
        });
      });
      return;
    }
    visit_float(x.dtype, [&]<typename T>() {
      for_planes(context, x, shape.window, [&](const Windows& w, int worker, std::int64_t plane) {
        const T* from = x.as<T>() + plane * in;
        double sum = 0.0;
        w.for_each(
            worker, [&] { sum = 0.0; },
            [&](std::int64_t offset) { sum += static_cast<double>(widen(from[offset])); },
            [&](std::int64_t window, std::int64_t taps, std::int64_t padded) {
              const double mean = sum / static_cast<double>(with_padding ? padded : taps);
              y.as<T>()[plane * out + window] = narrow<T>(static_cast<Compute<T>>(mean));
            });
      });
    });
  });
}

// (Σ |x|^p)^(1/p)
struct LpNorm {
  std::int64_t p;

  double term(double x) const {
    const double magnitude = std::fabs(x);
    if (p == 1) return magnitude;
    return p == 2 ? x * x : std::pow(magnitude, static_cast<double>(p));
  }
  double root(double sum) const {
    if (p == 1) return sum;
    return p == 2 ? std::sqrt(sum) : std::pow(sum, 1.0 / static_cast<double>(p));
  }
};

LpNorm lp_norm_of(const graph::Node& node) {
  const std::int64_t p = node.int_attr("p", 2);
  if (p < 1) fail_model("attribute p is " + std::to_string(p) + "; expected a positive number");
  return {p};
}

std::unique_ptr<OpKernel> make_lp_pool(Info info) {
  const LpNorm norm = lp_norm_of(info.node);
  return kernel_of([attributes = pool_attributes(info.node), norm](OpContext& context) {
    const Tensor& x = context.input(0);
    const PoolShape shape = pool_shape(attributes, x);
    Tensor& y = context.output(0, x.dtype, shape.result);
    if (y.elements() == 0) return;
    const std::int64_t in = x.dims.elements(2, x.dims.rank), out = shape.window.windows();
    visit_float(x.dtype, [&]<typename T>() {
      for_planes(context, x, shape.window, [&](const Windows& w, int worker, std::int64_t plane) {
        const T* from = x.as<T>() + plane * in;
        double sum = 0.0;
        w.for_each(
            worker, [&] { sum = 0.0; },
            [&](std::int64_t offset) {
              sum += norm.term(static_cast<double>(widen(from[offset])));
            },
            [&](std::int64_t window, std::int64_t, std::int64_t) {
              y.as<T>()[plane * out + window] = narrow<T>(static_cast<Compute<T>>(norm.root(sum)));
            });
      });
    });
  });
}

// ---- Whole planes ------------------------------------------------------------------------------

// Calls pool(plane's elements, count) for each plane and stores what it returns.
template <typename Pool>
void pool_planes(OpContext& context, Pool pool) {
  const Tensor& x = context.input(0);
  check(x.dims.rank >= 2,
        [&] { return "X has shape " + x.dims.str() + "; expected [batch, channels, spatial...]"; });
  Dims dims = x.dims;
  for (int i = 2; i < dims.rank; ++i) dims[i] = 1;
  Tensor& y = context.output(0, x.dtype, dims);
  const std::int64_t n = x.dims.elements(2, x.dims.rank);
  visit_float(x.dtype, [&]<typename T>() {
    parallel_for(context, y.elements(), n, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t plane = begin; plane < end; ++plane) {
        y.as<T>()[plane] = narrow<T>(static_cast<Compute<T>>(pool(x.as<T>() + plane * n, n)));
      }
    });
  });
}

// Σ term(x), in four partial sums: the order depends on n alone.
template <typename T, typename Term>
double sum_of(const T* x, std::int64_t n, Term term) {
  double sums[4] = {};
  std::int64_t i = 0;
  for (; i + 4 <= n; i += 4) {
    for (int j = 0; j < 4; ++j) sums[j] += term(static_cast<double>(widen(x[i + j])));
  }
  for (; i < n; ++i) sums[0] += term(static_cast<double>(widen(x[i])));
  return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

std::unique_ptr<OpKernel> make_global_average_pool(Info) {
  return kernel_of([](OpContext& context) {
    pool_planes(context, [](const auto* x, std::int64_t n) {
      return sum_of(x, n, [](double v) { return v; }) / static_cast<double>(n);
    });
  });
}

std::unique_ptr<OpKernel> make_global_max_pool(Info) {
  return kernel_of([](OpContext& context) {
    pool_planes(context, [](const auto* x, std::int64_t n) {
      auto top = lowest<std::remove_cvref_t<decltype(*x)>>();
      for (std::int64_t i = 0; i < n; ++i) {
        if (larger(widen(x[i]), top)) top = widen(x[i]);
      }
      return top;
    });
  });
}

std::unique_ptr<OpKernel> make_global_lp_pool(Info info) {
  const LpNorm norm = lp_norm_of(info.node);
  return kernel_of([norm](OpContext& context) {
    pool_planes(context, [&](const auto* x, std::int64_t n) {
      return norm.root(sum_of(x, n, [&](double v) { return norm.term(v); }));
    });
  });
}

}  // namespace

void register_pool(Registry& r) {
  r.add("MaxPool", make_max_pool);
  r.add("AveragePool", make_average_pool);
  r.add("LpPool", make_lp_pool);
  r.add("GlobalMaxPool", make_global_max_pool);
  r.add("GlobalAveragePool", make_global_average_pool);
  r.add("GlobalLpPool", make_global_lp_pool);
}

}  // namespace kvik::ops
