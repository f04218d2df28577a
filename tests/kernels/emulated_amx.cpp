// The kernels of isa_amx.cpp over tiles in software.
// clang-format off: each builds on those above it
#include "kernels/vec_avx512.h"
#include "kernels/dot_vnni.h"
#include "tile_emulated.h"
#include "kernels/table.inl.h"
#include "kernels/tiles.inl.h"
#include "kernels/tiles_bf16.inl.h"
#include "kernels/tiles_table.inl.h"
// clang-format on

namespace kvik::kernels {

extern const KernelTable kEmulatedAmxTable;  // declared for support.cpp there
constinit const KernelTable kEmulatedAmxTable = make_tiles_table(Isa::kAmx, "emulated amx");

}  // namespace kvik::kernels
