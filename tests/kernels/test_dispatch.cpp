// Which table is chosen. With an argument: prints the name of active_table(), or its error; the
// ctest cases run it so under values of KVIK_ISA.
#include <cstdio>
#include <string>

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
  for (const char* name : {"sse9", "avx", "neon ", "reference2"}) {
    const std::string what = kvik::test::thrown([&] { select_table(name); });
    CHECK(what.find(std::string("\"") + name + "\"") != std::string::npos) << what;
    for (const KernelTable* t : available_tables()) {
      CHECK(what.find(t->name) != std::string::npos) << what;
    }
    CHECK(what.find('\n') == std::string::npos) << what;
  }
}

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
