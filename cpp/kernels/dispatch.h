// What the dispatcher and the ISA files share. Users of the kernels include kernels.h alone.
#pragma once

#include <string>
#include <vector>

#include "kernels/kernels.h"

namespace kvik::kernels {

// One table per instruction set that this build holds; each is defined in its isa_*.cpp.
extern const KernelTable kReferenceTable;
#if defined(KVIK_KERNELS_X86)
extern const KernelTable kAvx2Table;
extern const KernelTable kAvx2VnniTable;
extern const KernelTable kAvx512Table;
extern const KernelTable kAvx512VnniTable;
extern const KernelTable kAvx512Bf16Table;
extern const KernelTable kAmxTable;

// What CPUID and XGETBV answer, as far as the tables depend on it. A hypervisor may hide any of
// these bits.
struct CpuBits {
  std::uint32_t leaf1_ecx = 0;
  std::uint32_t leaf7_ebx = 0, leaf7_ecx = 0, leaf7_edx = 0;
  std::uint32_t leaf7_1_eax = 0;
  std::uint64_t xcr0 = 0;  // the register state that the system saves; 0 where XGETBV is illegal
};

// Whether a CPU with these bits runs the table of that ISA: it has what the table is compiled for
// and all of what its kernels use. (For kAmx the system must grant tiles besides.)
bool runs(const CpuBits& cpu, Isa isa);
#endif
#if defined(KVIK_KERNELS_AARCH64)
extern const KernelTable kNeonTable;
extern const KernelTable kNeonDotTable;
#endif

// The tables that this CPU and its operating system can run, the best first; reference is last.
std::vector<const KernelTable*> available_tables();

// The table called `name` (in any case), or the best one when name is null or empty. Throws
// kvik::Error(kInvalidArgument) when the name is unknown or this CPU lacks the ISA.
const KernelTable& select_table(const char* name);

}  // namespace kvik::kernels
