// The table that tiles fill. Include table.inl.h, tiles.inl.h and tiles_bf16.inl.h first.
#pragma once

#include "kernels/kernels.h"

namespace kvik::kernels {
namespace {

constexpr KernelTable make_tiles_table(Isa isa, const char* name) {
  KernelTable table = make_table(isa, name);
  table.matmul_i8 = tiles_matmul_i8;
  table.matmul_i4 = tiles_matmul_i4;
  table.rounds_rows = true;
  table.matmul_bf16_rows = tiles_matmul_bf16;
  return table;
}

}  // namespace
}  // namespace kvik::kernels
