#include "ops/product.h"

#include <algorithm>

#include "base/checked.h"
#include "ops/support.h"

namespace kvik::ops {

namespace {

// The rows of a product as its kernels read them.
struct InputRows {
  const float* x;  // [rows, k]
  std::ptrdiff_t x_stride;
  std::int64_t rows;
  std::int64_t k;
  kernels::QuantizedRows bytes{};  // if a product needs them
  kernels::RoundedRows rounded{};  // if one does

  InputRows part(std::int64_t first, std::int64_t count) const {
    InputRows some = *this;
    some.x += first * x_stride;
    some.rows = count;
    if (bytes.q != nullptr) {
      some.bytes = {.q = bytes.q + first * bytes.groups * kernels::kGroup,
                    .scale = bytes.scale + first,
                    .sums = bytes.sums + first * bytes.groups,
                    .rows = count,
                    .groups = bytes.groups};
    }
    if (rounded.data != nullptr) {
      some.rounded = {rounded.data + first * kernels::rounded_stride(k), count, k};
    }
    return some;
  }
};

bool needs_bytes(const PackedWeights& w) {
  return w.type == WeightType::kI8 || w.type == WeightType::kI4;
}
bool needs_rounding(const kernels::KernelTable& table, const PackedWeights& w) {
  return w.type == WeightType::kBF16 && table.rounds_rows;
}

// Makes bytes and rounded rows where asked for, in the context's workspace.
void prepare(OpContext& context, bool with_bytes, bool with_rounded, InputRows& x) {
  if (!with_bytes && !with_rounded) return;
  const std::int64_t groups = (x.k + kernels::kGroup - 1) / kernels::kGroup;
  const std::int64_t row_bytes = groups * kernels::kGroup;
  const std::int64_t stride = kernels::rounded_stride(x.k);
  // Of a row: its bytes, the sums of its groups, its scale; or its bfloat16 elements first.
  const std::int64_t each =
      (with_rounded ? stride * 2 : 0) + (with_bytes ? row_bytes + groups * 4 + 4 : 0);
  auto* memory = static_cast<std::byte*>(context.workspace(
      checked_product(static_cast<std::size_t>(x.rows), static_cast<std::size_t>(each))));
  auto* rounded = reinterpret_cast<std::uint16_t*>(memory);
  if (with_rounded) memory += x.rows * stride * 2;
  auto* q = reinterpret_cast<std::int8_t*>(memory);
  auto* sums = reinterpret_cast<std::int32_t*>(memory + x.rows * row_bytes);
  auto* scales = reinterpret_cast<float*>(memory + x.rows * (row_bytes + groups * 4));
  const kernels::KernelTable& table = context.kernels();
  parallel_for(context, x.rows, x.k, [&](std::int64_t begin, std::int64_t end) {
    const float* from = x.x + begin * x.x_stride;
    if (with_bytes) {
      table.quantize_rows(from, x.x_stride, end - begin, x.k, q + begin * row_bytes, scales + begin,
                          sums + begin * groups);
    }
    if (with_rounded) {
      table.round_rows(from, x.x_stride, end - begin, x.k, rounded + begin * stride);
    }
  });
  if (with_bytes) {
    x.bytes = {.q = q, .scale = scales, .sums = sums, .rows = x.rows, .groups = groups};
  }
  if (with_rounded) x.rounded = {.data = rounded, .rows = x.rows, .k = x.k};
}

// Panels [begin, end) of one product, of the rows from `first` on.
void multiply_panels(const kernels::KernelTable& table, const InputRows& x, std::int64_t first,
                     const RowProduct& product, std::int64_t begin, std::int64_t end) {
  const PackedWeights& w = *product.weights;
  kernels::MatmulEpilogue epilogue = product.epilogue;
  if (epilogue.residual) epilogue.residual += first * epilogue.residual_stride;
  float* y = product.y + first * product.y_stride;
  const kernels::IntegerPanels integers{w.panels.as<std::uint8_t>(), w.column_scale.as<float>()};
  switch (w.type) {
    case WeightType::kF32:
      return table.matmul_f32(x.x, x.x_stride, x.rows, x.k, w.panels.as<float>(), w.n, begin, end,
                              epilogue, y, product.y_stride);
    case WeightType::kBF16:
      if (needs_rounding(table, w)) {
        return table.matmul_bf16_rows(x.rounded, w.panels.as<std::uint16_t>(), w.n, begin, end,
                                      epilogue, y, product.y_stride);
      }
      return table.matmul_bf16(x.x, x.x_stride, x.rows, x.k, w.panels.as<std::uint16_t>(), w.n,
                               begin, end, epilogue, y, product.y_stride);
    case WeightType::kI8:
      return table.matmul_i8(x.bytes, integers, w.n, begin, end, epilogue, y, product.y_stride);
    case WeightType::kI4:
      return table.matmul_i4(x.bytes, integers, w.n, begin, end, epilogue, y, product.y_stride);
  }
}

// What a panel costs, in simple element operations.
struct PanelCost {
  std::int64_t row;   // multiplying a row by it
  std::int64_t read;  // reading it
};

// Calls body(first row, rows, first panel, last panel) on parts of a product, on the pool.
void split_product(ThreadPool& pool, std::int64_t rows, std::int64_t panels, PanelCost cost,
                   FunctionRef<void(std::int64_t, std::int64_t, std::int64_t, std::int64_t)> body) {
  const std::int64_t threads = pool.threads();
  if (panels >= 2 * threads || rows < 2 * threads) {
    parallel_for(pool, panels, std::max(rows * cost.row, cost.read), 1,
                 [&](std::int64_t begin, std::int64_t end) { body(0, rows, begin, end); });
    return;
  }
  parallel_for(pool, rows, panels * cost.row, 1,
               [&](std::int64_t begin, std::int64_t end) { body(begin, end - begin, 0, panels); });
}

// About 8 multiply-adds of fp32 or 16 of smaller numbers, and 8 bytes of weights, take the time of
// one simple element operation.
PanelCost panel_cost(const kernels::KernelTable& table, WeightType type, std::int64_t k,
                     bool fp32_rows) {
  const auto bytes = static_cast<std::int64_t>(panel_bytes(type, k, table.panel));
  return {k * table.panel / (fp32_rows ? 8 : 16), bytes / 8};
}

std::int64_t panels_of(const kernels::KernelTable& table, std::int64_t n) {
  return (n + table.panel - 1) / table.panel;
}

}  // namespace

void multiply(OpContext& context, const float* x, std::ptrdiff_t x_stride, std::int64_t rows,
              std::span<const RowProduct> products) {
  const kernels::KernelTable& table = context.kernels();
  std::int64_t panels = 0, k = 0;
  bool with_bytes = false, with_rounded = false, fp32_rows = false;
  for (const RowProduct& product : products) {
    const PackedWeights& w = *product.weights;
    panels += panels_of(table, w.n);
    k = w.k;
    with_bytes = with_bytes || needs_bytes(w);
    with_rounded = with_rounded || needs_rounding(table, w);
    fp32_rows = fp32_rows || !(needs_bytes(w) || needs_rounding(table, w));
  }
  if (rows == 0 || panels == 0) return;
  InputRows all{.x = x, .x_stride = x_stride, .rows = rows, .k = k};
  prepare(context, with_bytes, with_rounded, all);
  split_product(context.pool(), rows, panels,
                panel_cost(table, products.front().weights->type, k, fp32_rows),
                [&](std::int64_t first, std::int64_t count, std::int64_t begin, std::int64_t end) {
                  const InputRows some = all.part(first, count);
                  for (const RowProduct& product : products) {
                    const std::int64_t own = panels_of(table, product.weights->n);
                    if (begin < own && end > 0) {
                      multiply_panels(table, some, first, product, std::max<std::int64_t>(begin, 0),
                                      std::min(end, own));
                    }
                    begin -= own;
                    end -= own;
                  }
                });
}

void multiply(const kernels::KernelTable& table, ThreadPool& pool, const float* x,
              std::ptrdiff_t x_stride, std::int64_t rows, const float* panels, std::int64_t k,
              std::int64_t n, float* y, std::ptrdiff_t y_stride) {
  if (rows == 0 || n == 0) return;
  split_product(pool, rows, panels_of(table, n), panel_cost(table, WeightType::kF32, k, true),
                [&](std::int64_t first, std::int64_t count, std::int64_t begin, std::int64_t end) {
                  table.matmul_f32(x + first * x_stride, x_stride, count, k, panels, n, begin, end,
                                   {}, y + first * y_stride, y_stride);
                });
}

}  // namespace kvik::ops
