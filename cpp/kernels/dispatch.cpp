#include "kernels/dispatch.h"

#include <cstdlib>
#include <iterator>

#include "kvik/error.h"

#if defined(KVIK_KERNELS_X86)
#include <cpuid.h>
#endif
#if defined(KVIK_KERNELS_X86) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#if defined(KVIK_KERNELS_AARCH64) && defined(__linux__)
#include <sys/auxv.h>
#endif

namespace kvik::kernels {
namespace {

#if defined(KVIK_KERNELS_X86)

constexpr std::uint32_t bit(int n) {
  return std::uint32_t{1} << n;
}

// XCR0. Written as assembly so that this file needs no instruction set flag.
std::uint64_t xcr0() {
  std::uint32_t low = 0, high = 0;
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (static_cast<std::uint64_t>(high) << 32) | low;
}

CpuBits read_cpu() {
  CpuBits cpu;
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (!__get_cpuid(1, &a, &b, &c, &d)) return cpu;
  cpu.leaf1_ecx = c;
  if (c & bit(27)) cpu.xcr0 = xcr0();  // OSXSAVE
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return cpu;
  cpu.leaf7_ebx = b, cpu.leaf7_ecx = c, cpu.leaf7_edx = d;
  if (a >= 1 && __get_cpuid_count(7, 1, &a, &b, &c, &d)) cpu.leaf7_1_eax = a;
  return cpu;
}

const CpuBits& cpu() {
  static const CpuBits bits = read_cpu();
  return bits;
}

// Tiles are 8 KiB of registers: Linux makes a process ask before its threads may use them, once and
// for all of them. Refused where the kernel predates AMX or a thread's signal stack is too small.
bool tiles_granted() {
#if defined(__linux__)
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  static const bool granted = syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
  return granted;
#else
  return false;
#endif
}

#endif

#if defined(KVIK_KERNELS_AARCH64)

// Whether the kernel reports the dot products of Armv8.2 (HWCAP_ASIMDDP). NEON itself needs no
// question: code for aarch64 may take it for granted.
bool has_dot_products() {
#if defined(__linux__)
  constexpr unsigned long kDotProducts = 1ul << 20;
  return (getauxval(AT_HWCAP) & kDotProducts) != 0;
#else
  return false;
#endif
}

#endif

std::string lower(std::string text) {
  for (char& c : text) {
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  }
  return text;
}

}  // namespace

#if defined(KVIK_KERNELS_X86)
bool runs(const CpuBits& cpu, Isa isa) {
  const auto has = [](std::uint64_t value, std::uint64_t all) { return (value & all) == all; };
  // An instruction set is usable only if the system preserves its registers across a task switch.
  constexpr std::uint64_t kYmm = 0x06;              // XMM and YMM state
  constexpr std::uint64_t kZmm = kYmm | 0xe0;       // and opmask, ZMM0-15 high halves, ZMM16-31
  constexpr std::uint64_t kTiles = kZmm | 0x60000;  // and the tiles with their shapes
  switch (isa) {
    case Isa::kReference: return true;
    case Isa::kAvx2:  // AVX2, FMA, F16C
      return has(cpu.leaf7_ebx, bit(5)) && has(cpu.leaf1_ecx, bit(12) | bit(29)) &&
             has(cpu.xcr0, kYmm);
    case Isa::kAvx2Vnni: return runs(cpu, Isa::kAvx2) && has(cpu.leaf7_1_eax, bit(4));
    case Isa::kAvx512:  // F, DQ, BW, VL
      return runs(cpu, Isa::kAvx2) && has(cpu.xcr0, kZmm) &&
             has(cpu.leaf7_ebx, bit(16) | bit(17) | bit(30) | bit(31));
    case Isa::kAvx512Vnni: return runs(cpu, Isa::kAvx512) && has(cpu.leaf7_ecx, bit(11));
    case Isa::kAvx512Bf16: return runs(cpu, Isa::kAvx512Vnni) && has(cpu.leaf7_1_eax, bit(5));
    case Isa::kAmx:  // AMX_BF16, AMX_TILE, AMX_INT8
      return runs(cpu, Isa::kAvx512Bf16) && has(cpu.xcr0, kTiles) &&
             has(cpu.leaf7_edx, bit(22) | bit(24) | bit(25));
    case Isa::kNeon:
    case Isa::kNeonDot: return false;
  }
  return false;
}
#endif

const KernelTable* table_for(Isa isa) noexcept {
#if defined(KVIK_KERNELS_X86)
  if (!runs(cpu(), isa)) return nullptr;
#endif
  switch (isa) {
    case Isa::kReference: return &kReferenceTable;
#if defined(KVIK_KERNELS_X86)
    case Isa::kAvx2: return &kAvx2Table;
    case Isa::kAvx2Vnni: return &kAvx2VnniTable;
    case Isa::kAvx512: return &kAvx512Table;
    case Isa::kAvx512Vnni: return &kAvx512VnniTable;
    case Isa::kAvx512Bf16: return &kAvx512Bf16Table;
    case Isa::kAmx: return tiles_granted() ? &kAmxTable : nullptr;
#endif
#if defined(KVIK_KERNELS_AARCH64)
    case Isa::kNeon: return &kNeonTable;
    case Isa::kNeonDot: return has_dot_products() ? &kNeonDotTable : nullptr;
#endif
    default: return nullptr;
  }
}

namespace {
// The best first.
constexpr Isa kByMerit[] = {Isa::kAmx,     Isa::kAvx512Bf16, Isa::kAvx512Vnni,
                            Isa::kAvx512,  Isa::kAvx2Vnni,   Isa::kAvx2,
                            Isa::kNeonDot, Isa::kNeon,       Isa::kReference};
}  // namespace

std::vector<const KernelTable*> available_tables() {
  std::vector<const KernelTable*> tables;
  for (const Isa isa : kByMerit) {
    if (const KernelTable* table = table_for(isa)) tables.push_back(table);
  }
  return tables;
}

const KernelTable& select_table(const char* name) {
  const bool any = name == nullptr || *name == '\0';
  // One after the other, worst first where one is named: asking for tiles changes the process (a
  // small sigaltstack() is refused from then on), which who forces another table may want to avoid.
  if (any) return *available_tables().front();
  for (std::size_t i = std::size(kByMerit); i-- > 0;) {
    const KernelTable* table = table_for(kByMerit[i]);
    if (table != nullptr && lower(name) == table->name) return *table;
  }
  std::string have;
  for (const KernelTable* table : available_tables()) {
    have += (have.empty() ? "" : ", ") + std::string(table->name);
  }
  throw Error(ErrorCode::kInvalidArgument, "KVIK_ISA is \"" + std::string(name) +
                                               "\", but this CPU and build have " + have +
                                               "; set one of these or unset it");
}

const KernelTable& active_table() {
  static const KernelTable& table = select_table(std::getenv("KVIK_ISA"));
  return table;
}

}  // namespace kvik::kernels
