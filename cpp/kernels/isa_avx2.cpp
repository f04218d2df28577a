// The AVX2 table. This file alone is compiled with the flags of this instruction set.
// clang-format off: each builds on those above it
#include "kernels/vec_avx2.h"
#include "kernels/dot_avx2.h"
#include "kernels/table.inl.h"
// clang-format on

namespace kvik::kernels {

extern const KernelTable kAvx2Table;  // declared for the dispatcher in dispatch.h
constinit const KernelTable kAvx2Table = make_table(Isa::kAvx2, "avx2");

}  // namespace kvik::kernels
