// The NEON table: what every aarch64 CPU has. This file alone is compiled with the flags of this
// instruction set.
// clang-format off: each builds on those above it
#include "kernels/vec_neon.h"
#include "kernels/dot_neon.h"
#include "kernels/table.inl.h"
// clang-format on

#if defined(__ARM_FEATURE_DOTPROD)
#error "compiled for more than NEON: CPUs without the dot products could not run it"
#endif

namespace kvik::kernels {

extern const KernelTable kNeonTable;  // declared for the dispatcher in dispatch.h
constinit const KernelTable kNeonTable = make_table(Isa::kNeon, "neon");

}  // namespace kvik::kernels
