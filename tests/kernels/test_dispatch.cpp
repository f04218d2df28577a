// Which table is chosen. With an argument: prints the name of active_table(), or its error; the
// ctest cases run it so under values of KVIK_ISA.
#include <algorithm>
#include <cstdio>
#include <string>
#include <vector>

#include "cpp/check.h"
#include "kernels/dispatch.h"
#include "kvik/error.h"

using namespace kvik::kernels;

KVIK_TEST(reference_is_always_there) {
  CHECK(table_for(Isa::kReference) != nullptr);
  CHECK(available_tables().back()->isa == Isa::kReference);
}

KVIK_TEST(every_slot_is_filled) {
  for (const KernelTable* t : available_tables()) {
    CHECK_EQ(table_for(t->isa), t);
    CHECK(t->name && t->panel > 0 && t->pack_f32 && t->matmul_f32 && t->attention_f32) << t->name;
    CHECK(t->attention_part_f32 && t->attention_join_f32 && t->attention_divide_f32);
    CHECK(t->attention_scratch && t->store_kv && t->layer_norm_f32 && t->rms_norm_f32);
    CHECK(t->pack_i8 && t->pack_i4 && t->pack_bf16 && t->quantize_rows && t->round_rows);
    CHECK(t->matmul_i8 && t->matmul_i4 && t->matmul_bf16);
    CHECK(t->matmul_bf16_rows || !t->rounds_rows) << t->name;
    CHECK(t->softmax_f32 && t->rotary_f32 && t->unary_f32 && t->binary_f32 && t->silu_mul_f32);
  }
}

KVIK_TEST(names_are_found_in_any_case) {
  CHECK_EQ(&select_table(nullptr), available_tables().front());
  CHECK_EQ(&select_table(""), available_tables().front());
  CHECK_EQ(&select_table("REFERENCE"), table_for(Isa::kReference));
  for (const KernelTable* t : available_tables()) CHECK_EQ(&select_table(t->name), t);
}

KVIK_TEST(impossible_names_list_what_there_is) {
  std::vector<std::string> names{"sse9", "avx", "neon ", "reference2"};
  for (const char* name : {"avx512vnni", "avx512bf16", "amx"}) {  // known, but perhaps not here
    const auto here = [&](const KernelTable* t) { return std::string(t->name) == name; };
    const auto tables = available_tables();
    if (std::none_of(tables.begin(), tables.end(), here)) names.emplace_back(name);
  }
  for (const std::string& name : names) {
    const std::string what = kvik::test::thrown([&] { select_table(name.c_str()); });
    CHECK(what.find("\"" + name + "\"") != std::string::npos) << what;
    for (const KernelTable* t : available_tables()) {
      CHECK(what.find(t->name) != std::string::npos) << what;
    }
    CHECK(what.find('\n') == std::string::npos) << what;
  }
}

#if defined(KVIK_KERNELS_X86)

namespace {

// What a Sapphire Rapids under Linux answers, as far as the tables ask.
constexpr CpuBits kAll{.leaf1_ecx = 1u << 12 | 1u << 27 | 1u << 29,
                       .leaf7_ebx = 1u << 5 | 1u << 16 | 1u << 17 | 1u << 30 | 1u << 31,
                       .leaf7_ecx = 1u << 11,
                       .leaf7_edx = 1u << 22 | 1u << 24 | 1u << 25,
                       .leaf7_1_eax = 1u << 4 | 1u << 5,
                       .xcr0 = 0x600e7};
constexpr Isa kIsas[] = {Isa::kReference,  Isa::kAvx2,       Isa::kAvx2Vnni, Isa::kAvx512,
                         Isa::kAvx512Vnni, Isa::kAvx512Bf16, Isa::kAmx};

std::vector<Isa> missing(const CpuBits& cpu) {
  std::vector<Isa> isas;
  for (const Isa isa : kIsas) {
    if (!runs(cpu, isa)) isas.push_back(isa);
  }
  return isas;
}

}  // namespace

// A hypervisor may hide any bit: what needs it is not there, and all the rest still is.
KVIK_TEST(hidden_bits_take_what_needs_them) {
  using enum Isa;
  CHECK(missing(kAll).empty());
  CHECK(missing({}) == std::vector<Isa>(std::begin(kIsas) + 1, std::end(kIsas)));
  const auto without = []<typename Word>(Word CpuBits::* word, int bit) {
    CpuBits cpu = kAll;
    cpu.*word &= ~(Word{1} << bit);
    return missing(cpu);
  };
  for (const int tiles : {22, 24, 25}) {  // AMX_BF16, AMX_TILE, AMX_INT8
    CHECK(without(&CpuBits::leaf7_edx, tiles) == std::vector{kAmx}) << tiles;
  }
  for (const int tiles : {17, 18}) CHECK(without(&CpuBits::xcr0, tiles) == std::vector{kAmx});
  CHECK((without(&CpuBits::leaf7_1_eax, 5) == std::vector{kAvx512Bf16, kAmx}));
  CHECK((without(&CpuBits::leaf7_1_eax, 4) == std::vector{kAvx2Vnni}));
  CHECK((without(&CpuBits::leaf7_ecx, 11) == std::vector{kAvx512Vnni, kAvx512Bf16, kAmx}));
  for (const int wide : {16, 17, 30, 31}) {  // F, DQ, BW, VL
    CHECK((without(&CpuBits::leaf7_ebx, wide) ==
           std::vector{kAvx512, kAvx512Vnni, kAvx512Bf16, kAmx}))
        << wide;
  }
  for (const int zmm : {5, 6, 7}) {
    CHECK((without(&CpuBits::xcr0, zmm) == std::vector{kAvx512, kAvx512Vnni, kAvx512Bf16, kAmx}));
  }
  for (const int fma : {12, 29}) CHECK_EQ(without(&CpuBits::leaf1_ecx, fma).size(), 6u);
  CHECK_EQ(without(&CpuBits::leaf7_ebx, 5).size(), 6u);
  CHECK_EQ(without(&CpuBits::xcr0, 2).size(), 6u);
}

#endif

int main(int argc, char** argv) {
  if (argc == 2 && std::string(argv[1]) == "--active") {
    try {
      std::printf("active: %s\n", active_table().name);
    } catch (const kvik::Error& error) {
      std::printf("error: %s\n", error.what());
    }
    return 0;
  }
  return kvik::test::run_all(argc, argv);
}
