// The table of AVX-512 with VNNI and BF16: pairs of bfloat16 numbers multiplied by one instruction.
// This file alone is compiled with the flags of this instruction set.
// clang-format off: each builds on those above it
#include "kernels/vec_avx512.h"
#include "kernels/dot_vnni.h"
#include "kernels/dot_bf16.h"
#include "kernels/table.inl.h"
#include "kernels/bfloat16_rows.inl.h"
// clang-format on

namespace kvik::kernels {

extern const KernelTable kAvx512Bf16Table;  // declared for the dispatcher in dispatch.h
constinit const KernelTable kAvx512Bf16Table = make_bf16_table(Isa::kAvx512Bf16, "avx512bf16");

}  // namespace kvik::kernels
