// The shared algorithms, and the table that they fill. An ISA file includes its vec_*.h and
// dot_*.h, then this.
#pragma once

// clang-format off: each builds on those above it
#include "kernels/math.inl.h"
#include "kernels/elementwise.inl.h"
#include "kernels/rows.inl.h"
#include "kernels/product.inl.h"
#include "kernels/matmul.inl.h"
#include "kernels/bfloat16.inl.h"
#include "kernels/quantized.inl.h"
#include "kernels/pack_quantized.inl.h"
#include "kernels/attention_values.inl.h"
#include "kernels/attention.inl.h"
#include "kernels/recurrent.inl.h"
// clang-format on

namespace kvik::kernels {
namespace {

constexpr KernelTable make_table(Isa isa, const char* name) {
  return {
      .isa = isa,
      .name = name,
      .panel = kPanel,
      .pack_f32 = pack_f32,
      .matmul_f32 = matmul_f32,
      .pack_i8 = pack_i8,
      .pack_i4 = pack_i4,
      .pack_bf16 = pack_bf16,
      .quantize_rows = quantize_rows,
      .matmul_i8 = matmul_i8,
      .matmul_i4 = matmul_i4,
      .matmul_bf16 = matmul_bf16,
      .rounds_rows = false,
      .round_rows = round_rows,
      .matmul_bf16_rows = nullptr,
      .attention_f32 = attention_f32,
      .attention_scratch = attention_scratch,
      .attention_part_f32 = attention_part_f32,
      .attention_join_f32 = attention_join_f32,
      .attention_divide_f32 = attention_divide_f32,
      .store_kv = store_kv,
      .layer_norm_f32 = layer_norm_f32,
      .rms_norm_f32 = rms_norm_f32,
      .softmax_f32 = softmax_f32,
      .rotary_f32 = rotary_f32,
      .unary_f32 = unary_f32,
      .binary_f32 = binary_f32,
      .silu_mul_f32 = silu_mul_f32,
      .weighted_sum_f32 = weighted_sum_f32,
      .recurrent_cell_f32 = recurrent_cell_f32,
  };
}

}  // namespace
}  // namespace kvik::kernels
