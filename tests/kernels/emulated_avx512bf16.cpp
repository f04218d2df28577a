// The kernels of isa_avx512bf16.cpp over products of pairs in software.
// clang-format off: each builds on those above it
#include "kernels/vec_avx512.h"
#include "kernels/dot_vnni.h"
#include "dot_bf16_emulated.h"
#include "kernels/table.inl.h"
#include "kernels/bfloat16_rows.inl.h"
// clang-format on

namespace kvik::kernels {

extern const KernelTable kEmulatedAvx512Bf16Table;  // declared for support.cpp there
constinit const KernelTable kEmulatedAvx512Bf16Table =
    make_bf16_table(Isa::kAvx512Bf16, "emulated avx512bf16");

}  // namespace kvik::kernels
