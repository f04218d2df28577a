// The table of AMX: AVX-512 with VNNI, and products of bytes and of bfloat16 numbers through tiles.
// This file alone is compiled with the flags of this instruction set.
// clang-format off: each builds on those above it
#include "kernels/vec_avx512.h"
#include "kernels/dot_vnni.h"
#include "kernels/tile_amx.h"
#include "kernels/table.inl.h"
#include "kernels/tiles.inl.h"
#include "kernels/tiles_bf16.inl.h"
#include "kernels/tiles_table.inl.h"
// clang-format on

namespace kvik::kernels {

extern const KernelTable kAmxTable;  // declared for the dispatcher in dispatch.h
constinit const KernelTable kAmxTable = make_tiles_table(Isa::kAmx, "amx");

}  // namespace kvik::kernels
