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
  bool group_sums = false;         // of the bytes
  kernels::RoundedRows rounded{};  // if one does

  InputRows part(std::int64_t first, std::int64_t count) const {
    InputRows some = *this;
    some.x += first * x_stride;
    some.rows = count;
    if (bytes.q != nullptr) {
      some.bytes = {.q = bytes.q + first * bytes.groups * kernels::kGroup,
                    .scale = bytes.scale + first,
                    .sums = bytes.sums + first * (bytes.groups + 1),
                    .outliers = bytes.outliers + first,
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

// What the rows of some products have to be rounded to.
struct Rounding {
  bool to_bytes = false;
  bool group_sums = false;
  bool to_bfloat16 = false;

  static Rounding of(const kernels::KernelTable& table, std::span<const RowProduct> products) {
    Rounding r;
    for (const RowProduct& product : products) {
      r.to_bytes = r.to_bytes || needs_bytes(*product.weights);
      r.group_sums = r.group_sums || product.weights->type == WeightType::kI4;
      r.to_bfloat16 = r.to_bfloat16 || needs_rounding(table, *product.weights);
    }
    return r;
  }

  // Of a row: its bytes, the sums of its groups, its scale and outliers; or its bfloat16 elements
  // first.
  std::int64_t row_bytes(std::int64_t k) const {
    const std::int64_t groups = (k + kernels::kGroup - 1) / kernels::kGroup;
    return (to_bfloat16 ? kernels::rounded_stride(k) * 2 : 0) +
           (to_bytes ? groups * kernels::kGroup + (groups + 1) * 4 + 4 +
                           std::int64_t{sizeof(kernels::RowOutliers)}
                     : 0);
  }

  // Where x's rounded rows are in memory.
  void place(void* memory, InputRows& x) const {
    const std::int64_t groups = (x.k + kernels::kGroup - 1) / kernels::kGroup;
    auto* at = static_cast<std::byte*>(memory);
    if (to_bfloat16) {
      x.rounded = {reinterpret_cast<std::uint16_t*>(at), x.rows, x.k};
      at += x.rows * kernels::rounded_stride(x.k) * 2;
    }
    if (to_bytes) {
      std::byte* sums = at + x.rows * groups * kernels::kGroup;
      std::byte* scale = sums + x.rows * (groups + 1) * 4;
      x.bytes = {.q = reinterpret_cast<std::int8_t*>(at),
                 .scale = reinterpret_cast<float*>(scale),
                 .sums = reinterpret_cast<std::int32_t*>(sums),
                 .outliers = reinterpret_cast<kernels::RowOutliers*>(scale + x.rows * 4),
                 .rows = x.rows,
                 .groups = groups};
      x.group_sums = group_sums;
    }
  }
};

// Fills the rounded rows of x, whose memory is the caller's to write.
void round_input(const kernels::KernelTable& table, const InputRows& x) {
  if (x.bytes.q != nullptr) {
    table.quantize_rows(x.x, x.x_stride, x.rows, x.k, x.group_sums,
                        const_cast<std::int8_t*>(x.bytes.q), const_cast<float*>(x.bytes.scale),
                        const_cast<std::int32_t*>(x.bytes.sums),
                        const_cast<kernels::RowOutliers*>(x.bytes.outliers));
  }
  if (x.rounded.data != nullptr) {
    table.round_rows(x.x, x.x_stride, x.rows, x.k, const_cast<std::uint16_t*>(x.rounded.data));
  }
}

// Panels [begin, end) of one product, of the rows from `first` on.
void multiply_part(const kernels::KernelTable& table, const InputRows& x, std::int64_t first,
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

// Rows below which a kernel reads the panels too often for what it does with them.
constexpr std::int64_t kFewRows = 48;

// Calls body(first row, rows, first panel, last panel) on parts of a product, on the pool.
void split_product(ThreadPool& pool, std::int64_t rows, std::int64_t panels, PanelCost cost,
                   FunctionRef<void(std::int64_t, std::int64_t, std::int64_t, std::int64_t)> body) {
  const std::int64_t threads = pool.threads();
  if (panels >= 2 * threads || rows < 2 * threads) {
    share_work(pool, panels, std::max(rows * cost.row, cost.read), 1,
               [&](std::int64_t begin, std::int64_t end) { body(0, rows, begin, end); });
    return;
  }
  share_work(pool, rows, panels * cost.row, kFewRows,
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

std::size_t rounded_bytes(const kernels::KernelTable& table, std::int64_t rows,
                          std::span<const RowProduct> products) {
  if (products.empty()) return 0;
  const std::int64_t each = Rounding::of(table, products).row_bytes(products.front().weights->k);
  return checked_product(static_cast<std::size_t>(rows), static_cast<std::size_t>(each));
}

void multiply(const kernels::KernelTable& table, ThreadPool& pool, const float* x,
              std::ptrdiff_t x_stride, std::int64_t rows, std::span<const RowProduct> products,
              void* memory) {
  std::int64_t panels = 0, k = 0;
  bool fp32_rows = false;
  for (const RowProduct& product : products) {
    const PackedWeights& w = *product.weights;
    panels += panels_of(table, w.n);
    k = w.k;
    fp32_rows = fp32_rows || !(needs_bytes(w) || needs_rounding(table, w));
  }
  if (rows == 0 || panels == 0) return;
  InputRows all{.x = x, .x_stride = x_stride, .rows = rows, .k = k};
  const Rounding rounding = Rounding::of(table, products);
  if (rounding.to_bytes || rounding.to_bfloat16) {
    rounding.place(memory, all);
    parallel_for(pool, rows, k, 1, [&](std::int64_t begin, std::int64_t end) {
      round_input(table, all.part(begin, end - begin));
    });
  }
  split_product(pool, rows, panels, panel_cost(table, products.front().weights->type, k, fp32_rows),
                [&](std::int64_t first, std::int64_t count, std::int64_t begin, std::int64_t end) {
                  const InputRows some = all.part(first, count);
                  for (const RowProduct& product : products) {
                    const std::int64_t own = panels_of(table, product.weights->n);
                    if (begin < own && end > 0) {
                      multiply_part(table, some, first, product, std::max<std::int64_t>(begin, 0),
                                    std::min(end, own));
                    }
                    begin -= own;
                    end -= own;
                  }
                });
}

void multiply(OpContext& context, const float* x, std::ptrdiff_t x_stride, std::int64_t rows,
              std::span<const RowProduct> products) {
  const std::size_t bytes = rounded_bytes(context.kernels(), rows, products);
  void* memory = bytes == 0 ? nullptr : context.workspace(bytes);
  multiply(context.kernels(), context.pool(), x, x_stride, rows, products, memory);
}

void multiply_panels(const kernels::KernelTable& table, const float* x, std::ptrdiff_t x_stride,
                     std::int64_t rows, std::span<const RowProduct> products,
                     std::int64_t panel_begin, std::int64_t panel_end, void* memory) {
  if (rows == 0 || products.empty() || panel_begin >= panel_end) return;
  InputRows all{.x = x, .x_stride = x_stride, .rows = rows, .k = products.front().weights->k};
  const Rounding rounding = Rounding::of(table, products);
  if (rounding.to_bytes || rounding.to_bfloat16) {
    rounding.place(memory, all);
    round_input(table, all);
  }
  for (const RowProduct& product : products) {
    multiply_part(table, all, 0, product, panel_begin, panel_end);
  }
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
