// The table of AVX-512 with VNNI: the same vectors, bytes multiplied by one instruction. This file
// alone is compiled with the flags of this instruction set.
// clang-format off: each builds on those above it
#include "kernels/vec_avx512.h"
#include "kernels/dot_vnni.h"
#include "kernels/table.inl.h"
// clang-format on

namespace kvik::kernels {

extern const KernelTable kAvx512VnniTable;  // declared for the dispatcher in dispatch.h
constinit const KernelTable kAvx512VnniTable = make_table(Isa::kAvx512Vnni, "avx512vnni");

}  // namespace kvik::kernels
