// The AVX-512 table. This file alone is compiled with the flags of this instruction set.
// clang-format off: each builds on those above it
#include "kernels/vec_avx512.h"
#include "kernels/dot_avx512.h"
#include "kernels/table.inl.h"
// clang-format on

namespace kvik::kernels {

extern const KernelTable kAvx512Table;  // declared for the dispatcher in dispatch.h
constinit const KernelTable kAvx512Table = make_table(Isa::kAvx512, "avx512");

}  // namespace kvik::kernels
