// The kernels of isa_avx2vnni.cpp with the encoding of the instruction that AVX-512 VNNI has.
#define KVIK_VNNI_ENCODING "%{evex%} "
// clang-format off: each builds on those above it
#include "kernels/vec_avx2.h"
#include "kernels/dot_vnni.h"
#include "kernels/table.inl.h"
// clang-format on

namespace kvik::kernels {

extern const KernelTable kEmulatedAvx2VnniTable;  // declared for support.cpp there
constinit const KernelTable kEmulatedAvx2VnniTable =
    make_table(Isa::kAvx2Vnni, "emulated avx2vnni");

}  // namespace kvik::kernels
