// The table of AVX2 with AVX-VNNI: the same vectors, bytes multiplied by one instruction. This file
// alone is compiled with the flags of this instruction set.
#define KVIK_VNNI_ENCODING "%{vex%} "
// clang-format off: each builds on those above it
#include "kernels/vec_avx2.h"
#include "kernels/dot_vnni.h"
#include "kernels/table.inl.h"
// clang-format on

namespace kvik::kernels {

extern const KernelTable kAvx2VnniTable;  // declared for the dispatcher in dispatch.h
constinit const KernelTable kAvx2VnniTable = make_table(Isa::kAvx2Vnni, "avx2vnni");

}  // namespace kvik::kernels
