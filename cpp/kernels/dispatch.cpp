#include "kernels/dispatch.h"

#include <cstdlib>

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

struct CpuFeatures {
  bool avx2 = false;         // AVX2, FMA and F16C
  bool avx2_vnni = false;    // and AVX-VNNI
  bool avx512 = false;       // AVX-512 F, BW, DQ and VL
  bool avx512_vnni = false;  // and AVX512_VNNI
  bool amx = false;          // and AMX tiles and their products of bytes
};

constexpr unsigned bit(int n) {
  return 1u << n;
}

// The register state that the operating system saves (XCR0). Written as assembly so that this file
// needs no instruction set flag.
std::uint64_t xcr0() {
  std::uint32_t low = 0, high = 0;
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (static_cast<std::uint64_t>(high) << 32) | low;
}

CpuFeatures detect() {
  CpuFeatures features;
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (!__get_cpuid(1, &a, &b, &c, &d)) return features;
  const bool osxsave = c & bit(27);
  const unsigned needed = bit(12) | bit(29);  // FMA, F16C
  if (!osxsave || (c & needed) != needed) return features;

  // An instruction set is usable only if the system preserves its registers across a task switch.
  constexpr std::uint64_t kYmm = 0x06;              // XMM and YMM state
  constexpr std::uint64_t kZmm = kYmm | 0xe0;       // and opmask, ZMM0-15 high halves, ZMM16-31
  constexpr std::uint64_t kTiles = kZmm | 0x60000;  // and the tiles with their shapes
  const std::uint64_t saved = xcr0();
  if ((saved & kYmm) != kYmm || !__get_cpuid_count(7, 0, &a, &b, &c, &d)) return features;
  features.avx2 = b & bit(5);
  const unsigned avx512 = bit(16) | bit(17) | bit(30) | bit(31);  // F, DQ, BW, VL
  features.avx512 = features.avx2 && (b & avx512) == avx512 && (saved & kZmm) == kZmm;
  features.avx512_vnni = features.avx512 && (c & bit(11));
  const unsigned tiles = bit(24) | bit(25);  // AMX_TILE, AMX_INT8
  features.amx = features.avx512_vnni && (d & tiles) == tiles && (saved & kTiles) == kTiles;
  if (!__get_cpuid_count(7, 1, &a, &b, &c, &d)) return features;
  features.avx2_vnni = features.avx2 && (a & bit(4));
  return features;
}

const CpuFeatures& cpu() {
  static const CpuFeatures features = detect();
  return features;
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

const KernelTable* table_for(Isa isa) noexcept {
  switch (isa) {
    case Isa::kReference: return &kReferenceTable;
#if defined(KVIK_KERNELS_X86)
    case Isa::kAvx2: return cpu().avx2 ? &kAvx2Table : nullptr;
    case Isa::kAvx512: return cpu().avx512 ? &kAvx512Table : nullptr;
    case Isa::kAvx2Vnni: return cpu().avx2_vnni ? &kAvx2VnniTable : nullptr;
    case Isa::kAvx512Vnni: return cpu().avx512_vnni ? &kAvx512VnniTable : nullptr;
    case Isa::kAmx: return cpu().amx && tiles_granted() ? &kAmxTable : nullptr;
#endif
#if defined(KVIK_KERNELS_AARCH64)
    case Isa::kNeon: return &kNeonTable;
    case Isa::kNeonDot: return has_dot_products() ? &kNeonDotTable : nullptr;
#endif
    default: return nullptr;
  }
}

std::vector<const KernelTable*> available_tables() {
  std::vector<const KernelTable*> tables;
  for (Isa isa : {Isa::kAmx, Isa::kAvx512Vnni, Isa::kAvx512, Isa::kAvx2Vnni, Isa::kAvx2,
                  Isa::kNeonDot, Isa::kNeon, Isa::kReference}) {
    if (const KernelTable* table = table_for(isa)) tables.push_back(table);
  }
  return tables;
}

const KernelTable& select_table(const char* name) {
  const std::vector<const KernelTable*> tables = available_tables();
  if (name == nullptr || *name == '\0') return *tables.front();
  std::string have;
  for (const KernelTable* table : tables) {
    if (lower(name) == table->name) return *table;
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
