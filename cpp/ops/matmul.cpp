// MatMul of any rank with broadcasting, and Gemm.
//
// float32 goes through the one packed product of the kernel table, whatever the sizes, so that a
// row's result never depends on how many rows there are. Other types use plain loops.
#include <cstring>

#include "ops/broadcast.h"
#include "ops/families.h"
#include "ops/product.h"

namespace kvik::ops {

namespace {

// The sizes of a product A [..., m, k] · B [..., k, n]. A vector counts as one row (A) or one
// column (B), and its dimension is missing in the result.
struct MatMulShape {
  std::int64_t m = 1, k = 0, n = 1;
  Dims a_batch, b_batch, batch;  // leading dimensions, and what they broadcast to
  Dims result;
};

MatMulShape matmul_shape(const Dims& a, const Dims& b) {
  check(a.rank >= 1 && b.rank >= 1, [&] {
    return "shapes " + a.str() + " and " + b.str() + ": a scalar has no matrix product";
  });
  MatMulShape s;
  s.k = a.back();
  const std::int64_t b_rows = b.rank == 1 ? b[0] : b[b.rank - 2];
  check(s.k == b_rows, [&] {
    return "shapes " + a.str() + " and " + b.str() + " do not fit: " + std::to_string(s.k) +
           " columns meet " + std::to_string(b_rows) + " rows";
  });
  if (a.rank > 1) s.m = a[a.rank - 2];
  if (b.rank > 1) s.n = b.back();
  for (int i = 0; i < a.rank - 2; ++i) s.a_batch.push_back(a[i]);
  for (int i = 0; i < b.rank - 2; ++i) s.b_batch.push_back(b[i]);
  s.batch = broadcast_dims(s.a_batch, s.b_batch);
  s.result = s.batch;
  if (a.rank > 1) s.result.push_back(s.m);
  if (b.rank > 1) s.result.push_back(s.n);
  return s;
}

// Which matrix of `own` belongs to matrix i of `batch`.
std::int64_t matrix_index(std::int64_t i, const Dims& batch, const Dims& own) {
  std::int64_t index = 0, step = 1;
  for (int axis = batch.rank - 1; axis >= 0; --axis) {
    const int mine = axis - (batch.rank - own.rank);
    if (mine >= 0) {
      if (own[mine] != 1) index += i % batch[axis] * step;
      step *= own[mine];
    }
    i /= batch[axis];
  }
  return index;
}

// ---- float32 ---------------------------------------------------------------------------------

// One matrix B for all rows of A: packed with all threads, then one product.
void multiply_shared(OpContext& context, const float* a, std::ptrdiff_t a_stride, std::int64_t rows,
                     const float* b, std::ptrdiff_t k_stride, std::ptrdiff_t c_stride,
                     std::int64_t k, std::int64_t n, float* y) {
  const auto& table = context.kernels();
  const std::size_t floats = packed_floats(table, k, n);
  float* packed = static_cast<float*>(context.workspace(checked_product(floats, sizeof(float))));
  const std::int64_t panels = (n + table.panel - 1) / table.panel;
  parallel_for(context, panels, k * table.panel, [&](std::int64_t begin, std::int64_t end) {
    table.pack_f32(b, k_stride, c_stride, k, n, begin, end, packed);
  });
  multiply(table, context.pool(), a, a_stride, rows, packed, k, n, y, n);
}

// A B of its own for each matrix of the batch: workers take whole matrices where there are enough,
// each with a packed B of its own.
void multiply_batch(OpContext& context, const float* a, const float* b, const MatMulShape& s,
                    float* y) {
  const auto& table = context.kernels();
  ThreadPool& pool = context.pool();
  const std::int64_t batch = s.batch.elements();
  const std::int64_t panels = (s.n + table.panel - 1) / table.panel;
  // Rounded up to whole cache lines, so that every worker's part is aligned.
  const std::size_t floats = (packed_floats(table, s.k, s.n) + 15) / 16 * 16;
  const std::int64_t cost = (s.m * s.k * s.n) / 8 + s.k * s.n;
  const bool parallel = batch >= pool.threads() && pool.threads() > 1 &&
                        batch >= kMinParallelWork / std::max<std::int64_t>(cost, 1);
  const int workers = parallel ? pool.threads() : 1;
  float* packed = static_cast<float*>(context.workspace(
      checked_product(checked_product(floats, sizeof(float)), static_cast<std::size_t>(workers))));
  const auto pack_of = [&](std::int64_t i) {
    return b + matrix_index(i, s.batch, s.b_batch) * s.k * s.n;
  };
  const auto rows_of = [&](std::int64_t i) {
    return a + matrix_index(i, s.batch, s.a_batch) * s.m * s.k;
  };
  if (parallel) {
    pool.run([&](int worker, int count) {
      float* mine = packed + static_cast<std::size_t>(worker) * floats;
      const Range range = split_range(batch, worker, count);
      for (std::int64_t i = range.begin; i < range.end; ++i) {
        table.pack_f32(pack_of(i), s.n, 1, s.k, s.n, 0, panels, mine);
        table.matmul_f32(rows_of(i), s.k, s.m, s.k, mine, s.n, 0, panels, {}, y + i * s.m * s.n,
                         s.n);
      }
    });
    return;
  }
  for (std::int64_t i = 0; i < batch; ++i) {
    parallel_for(context, panels, s.k * table.panel, [&](std::int64_t begin, std::int64_t end) {
      table.pack_f32(pack_of(i), s.n, 1, s.k, s.n, begin, end, packed);
    });
    multiply(table, pool, rows_of(i), s.k, s.m, packed, s.k, s.n, y + i * s.m * s.n, s.n);
  }
}

// ---- Other types -----------------------------------------------------------------------------

// y[i] = Σ_k a[k · a_stride] · b[k · k_stride + i · c_stride], one row, sums in the compute type.
template <typename T>
void plain_row(const T* a, std::ptrdiff_t a_stride, const T* b, std::ptrdiff_t k_stride,
               std::ptrdiff_t c_stride, std::int64_t k, std::int64_t n, T* y) {
  for (std::int64_t c = 0; c < n; ++c) {
    if constexpr (std::is_integral_v<T>) {
      std::uint64_t sum = 0;  // wraps, as integer arithmetic does everywhere
      for (std::int64_t i = 0; i < k; ++i) {
        sum += static_cast<std::uint64_t>(a[i * a_stride]) *
               static_cast<std::uint64_t>(b[i * k_stride + c * c_stride]);
      }
      y[c] = static_cast<T>(sum);
    } else {
      Compute<T> sum = 0;
      for (std::int64_t i = 0; i < k; ++i) {
        sum += widen(a[i * a_stride]) * widen(b[i * k_stride + c * c_stride]);
      }
      y[c] = narrow<T>(sum);
    }
  }
}

template <typename T>
void multiply_plain(OpContext& context, const Tensor& a, const Tensor& b, const MatMulShape& s,
                    T* y) {
  parallel_for(
      context, s.batch.elements() * s.m, s.k * s.n, [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t row = begin; row < end; ++row) {
          const std::int64_t i = row / s.m;
          const T* pa = a.as<T>() + (matrix_index(i, s.batch, s.a_batch) * s.m + row % s.m) * s.k;
          const T* pb = b.as<T>() + matrix_index(i, s.batch, s.b_batch) * s.k * s.n;
          plain_row(pa, 1, pb, s.n, 1, s.k, s.n, y + row * s.n);
        }
      });
}

// ---- MatMul ----------------------------------------------------------------------------------

class MatMul final : public OpKernel {
 public:
  explicit MatMul(const NodeInfo& info) {
    const graph::ConstantTensor* b = info.constant(1);
    if (b != nullptr && b->dtype == DType::kF32 && b->dims.rank == 2) {
      weights_ =
          info.weights.get({*b, {}, false, b->dims[0]}, WeightType::kF32, info.kernels, info.pool);
    }
  }

  bool needs_aligned(int i) const override { return i != 1 || weights_ == nullptr; }

  void run(OpContext& context) const override {
    const Tensor& a = context.input(0);
    const Tensor& b = context.input(1);
    check_same_dtype(a, b, "A", "B");
    const MatMulShape s = matmul_shape(a.dims, b.dims);
    Tensor& out = context.output(0, a.dtype, s.result);
    if (out.elements() == 0) return;
    if (a.dtype != DType::kF32) {
      visit_numeric(a.dtype, [&]<typename T>() { multiply_plain(context, a, b, s, out.as<T>()); });
      return;
    }
    float* y = out.as<float>();
    const std::int64_t rows = s.a_batch.elements() * s.m;
    if (weights_) {
      multiply(context, a.as<float>(), s.k, rows, {weights_.get(), {}, y, s.n});
    } else if (s.b_batch.elements() == 1 && s.a_batch.elements() == s.batch.elements()) {
      multiply_shared(context, a.as<float>(), s.k, rows, b.as<float>(), s.n, 1, s.k, s.n, y);
    } else {
      multiply_batch(context, a.as<float>(), b.as<float>(), s, y);
    }
  }

  OpCost cost(const OpContext& context) const override {
    const Dims& a = context.input(0).dims;
    if (weights_) return weights_->cost(a.rank == 1 ? 1 : a.elements(0, a.rank - 1));
    const MatMulShape s = matmul_shape(a, context.input(1).dims);
    return {.operations = 2.0 * static_cast<double>(s.batch.elements()) * static_cast<double>(s.m) *
                          static_cast<double>(s.k) * static_cast<double>(s.n)};
  }
  OpDescription describe() const override {
    return weights_ ? weights_->describe() : OpDescription{};
  }

 private:
  std::shared_ptr<const PackedWeights> weights_;  // B where it is a constant matrix
};

// ---- Gemm ------------------------------------------------------------------------------------

// Y = alpha · A' · B' + beta · C with A' [m, k], B' [k, n], C broadcast to [m, n].
class Gemm final : public OpKernel {
 public:
  explicit Gemm(const NodeInfo& info)
      : alpha_(info.node.float_attr("alpha", 1.0f)),
        beta_(info.node.float_attr("beta", 1.0f)),
        trans_a_(info.node.int_attr("transA", 0) != 0),
        trans_b_(info.node.int_attr("transB", 0) != 0) {
    const graph::ConstantTensor* b = info.constant(1);
    if (b != nullptr && b->dtype == DType::kF32 && b->dims.rank == 2) {
      weights_ = info.weights.get({*b, {}, trans_b_, b->dims[trans_b_ ? 1 : 0]}, WeightType::kF32,
                                  info.kernels, info.pool);
    }
  }

  bool needs_aligned(int i) const override { return i != 1 || weights_ == nullptr; }

  void run(OpContext& context) const override {
    const Tensor& a = context.input(0);
    const Tensor& b = context.input(1);
    check_same_dtype(a, b, "A", "B");
    check(a.dims.rank == 2 && b.dims.rank == 2, [&] {
      return "A and B have shapes " + a.dims.str() + " and " + b.dims.str() + "; expected matrices";
    });
    const std::int64_t m = a.dims[trans_a_ ? 1 : 0], k = a.dims[trans_a_ ? 0 : 1];
    const std::int64_t n = b.dims[trans_b_ ? 0 : 1];
    check(k == b.dims[trans_b_ ? 1 : 0], [&] {
      return "shapes " + a.dims.str() + " and " + b.dims.str() +
             " do not fit: " + std::to_string(k) + " columns meet " +
             std::to_string(b.dims[trans_b_ ? 1 : 0]) + " rows";
    });
    const Dims dims{m, n};
    Tensor& out = context.output(0, a.dtype, dims);
    if (out.elements() == 0) return;
    if (a.dtype == DType::kF32 && !trans_a_) {
      product_f32(context, a, b, m, k, n, out.as<float>());
    } else {
      visit_numeric(a.dtype, [&]<typename T>() {
        parallel_for(context, m, k * n, [&](std::int64_t begin, std::int64_t end) {
          for (std::int64_t row = begin; row < end; ++row) {
            plain_row(a.as<T>() + row * (trans_a_ ? 1 : k), trans_a_ ? m : 1, b.as<T>(),
                      trans_b_ ? 1 : n, trans_b_ ? k : 1, k, n, out.as<T>() + row * n);
          }
        });
      });
    }
    add_c(context, out);
  }

  OpCost cost(const OpContext& context) const override {
    const Dims& a = context.input(0).dims;
    const Dims& b = context.input(1).dims;
    const std::int64_t m = a[trans_a_ ? 1 : 0];
    if (weights_) return weights_->cost(m);
    return {.operations = 2.0 * static_cast<double>(m) * static_cast<double>(b.elements())};
  }
  OpDescription describe() const override {
    return weights_ ? weights_->describe() : OpDescription{};
  }

 private:
  void product_f32(OpContext& context, const Tensor& a, const Tensor& b, std::int64_t m,
                   std::int64_t k, std::int64_t n, float* y) const {
    if (weights_) {
      multiply(context, a.as<float>(), k, m, {weights_.get(), {}, y, n});
    } else {
      multiply_shared(context, a.as<float>(), k, m, b.as<float>(), trans_b_ ? 1 : n,
                      trans_b_ ? k : 1, k, n, y);
    }
  }

  // y = alpha · y + beta · C, in place.
  void add_c(OpContext& context, Tensor& y) const {
    const bool with_c = context.has_input(2);
    if (!with_c && alpha_ == 1.0f) return;
    const Tensor& c = with_c ? context.input(2) : y;
    check_same_dtype(y, c, "A", "C");
    const std::array<const Tensor*, 2> operands{&y, &c};
    const BroadcastPlan plan = plan_broadcast(operands);
    check(plan.result == y.dims, [&] {
      return "C has shape " + c.dims.str() + "; expected one that broadcasts to " + y.dims.str();
    });
    const std::int64_t step = plan.strides[1].back();
    visit_numeric(y.dtype, [&]<typename T>() {
      const auto add = [&](auto v, auto w) {
        using C = decltype(v);
        const float beta = with_c ? beta_ : 0.0f;
        if constexpr (std::is_integral_v<C>) {
          if (alpha_ == 1.0f && beta == 1.0f) {
            return static_cast<C>(static_cast<std::uint64_t>(v) + static_cast<std::uint64_t>(w));
          }
          return static_cast<C>(static_cast<double>(alpha_) * static_cast<double>(v) +
                                static_cast<double>(beta) * static_cast<double>(w));
        } else {
          return with_c ? C(alpha_) * v + C(beta) * w : C(alpha_) * v;
        }
      };
      parallel_elements(context, plan.total, [&](std::int64_t begin, std::int64_t end) {
        for_segments(plan, begin, end, [&](std::int64_t at, const auto& offset, std::int64_t len) {
          T* to = y.as<T>() + at;
          const T* from = c.as<T>() + offset[1];
          for (std::int64_t i = 0; i < len; ++i) {
            to[i] = narrow<T>(add(widen(to[i]), widen(from[i * step])));
          }
        });
      });
    });
  }

  float alpha_, beta_;
  bool trans_a_, trans_b_;
  std::shared_ptr<const PackedWeights> weights_;
};

}  // namespace

void register_matmul(Registry& r) {
  r.add("MatMul", [](const NodeInfo& info) -> std::unique_ptr<OpKernel> {
    return std::make_unique<MatMul>(info);
  });
  r.add("Gemm", [](const NodeInfo& info) -> std::unique_ptr<OpKernel> {
    return std::make_unique<Gemm>(info);
  });
}

}  // namespace kvik::ops
