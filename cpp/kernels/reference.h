// The slots of the reference table that do not stand in reference.cpp, by their file, and what
// those files share.
#pragma once

#include "kernels/kernels.h"

namespace kvik::kernels::reference {

inline constexpr int kPanel = 16;

// reference.cpp: the epilogue of row r and column c.
float finish(float sum, std::int64_t r, std::int64_t c, const MatmulEpilogue& epilogue);

// ---- reference_low_precision.cpp ----------------------------------------------------------------

// A row as bytes: what they stand for, and the factor that makes them, 0 where they are zeros.
struct RowScale {
  float scale;
  float inverse;

  std::int8_t byte(float x) const;
};
// Of a row without its outliers.
RowScale row_scale(const float* x, std::int64_t k, const RowOutliers& apart);

void pack_i8(const float* w, std::int64_t k, int columns, std::uint8_t* panel, float* column_scale);
void pack_i4(const float* w, std::int64_t k, int columns, std::uint8_t* panel, float* column_scale);
void pack_bf16(const float* w, std::int64_t k, int columns, std::uint16_t* panel);
void quantize_rows(const float* x, std::ptrdiff_t x_stride, std::int64_t rows, std::int64_t k,
                   bool group_sums, std::int8_t* q, float* scale, std::int32_t* sums,
                   RowOutliers* outliers);
void matmul_i8(const QuantizedRows& x, const IntegerPanels& w, std::int64_t n,
               std::int64_t panel_begin, std::int64_t panel_end, const MatmulEpilogue& epilogue,
               float* y, std::ptrdiff_t y_stride);
void matmul_i4(const QuantizedRows& x, const IntegerPanels& w, std::int64_t n,
               std::int64_t panel_begin, std::int64_t panel_end, const MatmulEpilogue& epilogue,
               float* y, std::ptrdiff_t y_stride);
void matmul_bf16(const float* x, std::ptrdiff_t x_stride, std::int64_t rows, std::int64_t k,
                 const std::uint16_t* packed, std::int64_t n, std::int64_t panel_begin,
                 std::int64_t panel_end, const MatmulEpilogue& epilogue, float* y,
                 std::ptrdiff_t y_stride);
void round_rows(const float* x, std::ptrdiff_t x_stride, std::int64_t rows, std::int64_t k,
                std::uint16_t* out);
void matmul_bf16_rows(const RoundedRows& x, const std::uint16_t* packed, std::int64_t n,
                      std::int64_t panel_begin, std::int64_t panel_end,
                      const MatmulEpilogue& epilogue, float* y, std::ptrdiff_t y_stride);

// ---- reference_attention.cpp --------------------------------------------------------------------

void attention_f32(const AttentionArgs& args);
std::size_t attention_scratch(int head_dim, int value_dim);
void attention_part_f32(const AttentionArgs& args, std::int64_t segment, const AttentionPart& part);
void attention_join_f32(const AttentionPart& sums, const AttentionPart& more, int rows,
                        int value_dim);
void attention_divide_f32(const AttentionPart& sums, int rows, int value_dim, float* out,
                          std::ptrdiff_t out_stride);
void store_kv(CacheType type, const CacheRows& rows, void* k_block, void* v_block);

// ---- reference_cells.cpp ------------------------------------------------------------------------

void weighted_sum_f32(const float* const* x, const float* w, int taps, std::int64_t n,
                      const float* bias, float* y);
void recurrent_cell_f32(const CellArgs& args);

}  // namespace kvik::kernels::reference
