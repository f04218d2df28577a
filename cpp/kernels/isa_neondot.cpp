// The table of NEON with the dot products of Armv8.2: the same vectors, bytes multiplied by one
// instruction. This file alone is compiled with the flags of this instruction set.
// clang-format off: each builds on those above it
#include "kernels/vec_neon.h"
#include "kernels/dot_neon.h"
#include "kernels/table.inl.h"
// clang-format on

#if !defined(__ARM_FEATURE_DOTPROD)
#error "compiled without the dot products"
#endif

namespace kvik::kernels {

extern const KernelTable kNeonDotTable;  // declared for the dispatcher in dispatch.h
constinit const KernelTable kNeonDotTable = make_table(Isa::kNeonDot, "neondot");

}  // namespace kvik::kernels
