// A decode step allocates nothing; and when memory runs out, at any allocation, the sequence is as
// it was and the next call gives the same numbers.
#include "cpp/check.h"
#include "kernels/support.h"
#include "runtime/tiny_onnx.h"
#include "runtime/tiny_rows.h"

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <new>
#include <vector>

#include "kvik/kvik.h"
#include "ops/packed_weights.h"
#include "runtime/row_decoder.h"

namespace {

std::atomic<long> allocations{0};
std::atomic<long> fail_at{-1};  // the number of the allocation that fails; -1: none

void* allocate(std::size_t bytes, std::size_t alignment) {
  const long number = allocations.fetch_add(1);
  if (number == fail_at.load()) throw std::bad_alloc();
  void* memory = nullptr;
  if (posix_memalign(&memory, std::max(alignment, sizeof(void*)), bytes) != 0) {
    throw std::bad_alloc();
  }
  return memory;
}

}  // namespace

void* operator new(std::size_t bytes) {
  return allocate(bytes, alignof(std::max_align_t));
}
void* operator new[](std::size_t bytes) {
  return allocate(bytes, alignof(std::max_align_t));
}
void* operator new(std::size_t bytes, std::align_val_t alignment) {
  return allocate(bytes, static_cast<std::size_t>(alignment));
}
void* operator new[](std::size_t bytes, std::align_val_t alignment) {
  return allocate(bytes, static_cast<std::size_t>(alignment));
}
// The forms that return null, which AlignedBuffer and std::stable_sort use.
void* operator new(std::size_t bytes, std::align_val_t alignment, const std::nothrow_t&) noexcept {
  try {
    return allocate(bytes, static_cast<std::size_t>(alignment));
  } catch (const std::bad_alloc&) {
    return nullptr;
  }
}
void* operator new[](std::size_t bytes, std::align_val_t alignment,
                     const std::nothrow_t& none) noexcept {
  return operator new(bytes, alignment, none);
}
void* operator new(std::size_t bytes, const std::nothrow_t& none) noexcept {
  return operator new(bytes, std::align_val_t{alignof(std::max_align_t)}, none);
}
void* operator new[](std::size_t bytes, const std::nothrow_t& none) noexcept {
  return operator new(bytes, none);
}
#if defined(__GNUC__) && !defined(__clang__)
// Where GCC inlines these but not the forms of new above, it takes free() for a mismatch.
#pragma GCC diagnostic ignored "-Wmismatched-new-delete"
#endif
void operator delete(void* memory) noexcept {
  std::free(memory);
}
void operator delete[](void* memory) noexcept {
  std::free(memory);
}
void operator delete(void* memory, std::size_t) noexcept {
  std::free(memory);
}
void operator delete[](void* memory, std::size_t) noexcept {
  std::free(memory);
}
void operator delete(void* memory, std::align_val_t) noexcept {
  std::free(memory);
}
void operator delete[](void* memory, std::align_val_t) noexcept {
  std::free(memory);
}
void operator delete(void* memory, std::size_t, std::align_val_t) noexcept {
  std::free(memory);
}
void operator delete[](void* memory, std::size_t, std::align_val_t) noexcept {
  std::free(memory);
}

namespace {

using namespace kvik;
using namespace kvik::runtime;
using kvik::test::for_each_isa;
using kvik::test::TinyRows;
using kvik::test::TinyShape;

struct Fixture {
  explicit Fixture(const TinyShape& shape, int threads,
                   const kernels::KernelTable& table = kernels::active_table(),
                   WeightType type = WeightType::kF32)
      : pool(threads),
        weights(type),
        decoder(std::make_unique<RowProgram>(TinyRows(shape).rows(), Engine{table, pool, weights},
                                             32)) {}
  ThreadPool pool;
  ops::WeightCache weights;
  RowDecoder decoder;
};

KVIK_TEST(decode_allocates_nothing) {
  for (const TinyShape& shape : {TinyShape{}, TinyShape{.alibi = true}, TinyShape{.split = true},
                                 TinyShape{.split = true, .swap = true}, TinyShape{.cell = "LSTM"},
                                 TinyShape{.cell = "GRU", .both = true}}) {
    for (const int threads : {1, 2}) {
      Fixture f(shape, threads);
      const auto state = f.decoder.new_state();
      std::vector<float> logits(static_cast<std::size_t>(f.decoder.program().output_features()));
      const std::int64_t token = 5;
      const DecodeStep step{state.get(), {&token, 1}, Logits::kLast};
      f.decoder.forward({&step, 1}, logits.data(), {});
      for (int position = 1; position < 150; ++position) {
        const long before = allocations.load();
        f.decoder.forward({&step, 1}, logits.data(), {});
        const long spent = allocations.load() - before;
        // A new page of the cache now and then, and with it room for a longer bias.
        if (position % kernels::kKvBlock != 0) {
          CHECK_EQ(spent, 0) << "position " << position << ", threads " << threads;
        }
      }
    }
  }
}

// What products in low precision make of their rows has its place after the first step.
KVIK_TEST(decode_in_low_precision_allocates_nothing) {
  for_each_isa([](const kernels::KernelTable& table) {
    for (const WeightType type : {WeightType::kBF16, WeightType::kI8}) {
      const TinyShape shape{.layers = 2, .heads = 8, .linear = true, .cell = "LSTM", .both = true};
      Fixture f(shape, 2, table, type);
      CHECK(f.weights.bytes() < Fixture(shape, 1, table).weights.bytes()) << table.name;
      const auto state = f.decoder.new_state();
      std::vector<float> logits(static_cast<std::size_t>(f.decoder.program().output_features()));
      const std::int64_t token = 5;
      const DecodeStep step{state.get(), {&token, 1}, Logits::kLast};
      f.decoder.forward({&step, 1}, logits.data(), {});
      const long before = allocations.load();
      for (int position = 1; position < kernels::kKvBlock; ++position) {
        f.decoder.forward({&step, 1}, logits.data(), {});
      }
      CHECK_EQ(allocations.load() - before, 0) << table.name << ", " << weight_type_name(type);
    }
  });
}

KVIK_TEST(any_allocation_may_fail) {
  std::vector<std::int64_t> prompt;
  for (int i = 0; i < 100; ++i) prompt.push_back(i % 61);
  const auto first = std::span<const std::int64_t>(prompt).first(50);
  const auto rest = std::span<const std::int64_t>(prompt).subspan(50);
  Fixture f({.context = 200}, 1);
  std::vector<float> want(static_cast<std::size_t>(f.decoder.program().output_features()));
  std::vector<float> got(want.size());
  const auto run = [&](SequenceState& state, std::span<const std::int64_t> tokens,
                       std::vector<float>& out) {
    const DecodeStep step{&state, tokens, Logits::kLast};
    f.decoder.forward({&step, 1}, out.data(), {});
  };
  const auto plain = f.decoder.new_state();
  run(*plain, prompt, want);
  int failures = 0;
  for (long n = 0; n < 1000; ++n) {
    Fixture* fresh = &f;
    const auto state = fresh->decoder.new_state();
    run(*state, first, got);
    const auto fork = state->fork();  // its first write copies a page
    fail_at = allocations.load() + n;
    bool failed = false;
    try {
      run(*fork, rest, got);
    } catch (const std::bad_alloc&) {
      failed = true;
    } catch (const Error& error) {
      failed = error.code() == ErrorCode::kOutOfMemory;
    }
    fail_at = -1;
    if (!failed) break;
    ++failures;
    CHECK_EQ(fork->length(), 50);
    run(*fork, rest, got);
    CHECK(std::memcmp(got.data(), want.data(), want.size() * sizeof(float)) == 0) << n;
  }
  CHECK(failures > 0) << "no allocation was made to fail";
}

KVIK_TEST(planning_survives_failed_allocations) {
  const auto rows = TinyRows({.layers = 1}).rows();
  long n = 0;
  for (;; ++n) {
    ThreadPool pool(1);
    ops::WeightCache weights;
    fail_at = allocations.load() + n;
    bool failed = false;
    try {
      const RowProgram program(rows, Engine{kernels::active_table(), pool, weights}, 8);
    } catch (const std::bad_alloc&) {
      failed = true;
    } catch (const Error& error) {
      failed = true;
      CHECK(error.code() == ErrorCode::kOutOfMemory) << error.what();
    }
    fail_at = -1;
    if (!failed) break;
  }
  CHECK(n > 50) << "only " << n << " allocations were made to fail";
}

// Through the public interface, sampling included, in every precision: the width makes matrices
// that are large enough to be quantised.
KVIK_TEST(a_generated_token_allocates_nothing) {
  const auto bytes = kvik::test::tiny_onnx({.width = 128, .context = 200});
  std::int64_t in_f32 = 0;
  for (const WeightType weights :
       {WeightType::kF32, WeightType::kBF16, WeightType::kI8, WeightType::kI4}) {
    for (const CacheType cache : {CacheType::kF32, CacheType::kBF16, CacheType::kI8}) {
      const Model model =
          Model::from_bytes(bytes, {.threads = 2, .weights = weights, .cache = cache});
      const std::int64_t size = model.info().packed_bytes;
      if (weights == WeightType::kF32) in_f32 = size;
      CHECK(weights == WeightType::kF32 || size < in_f32) << weight_type_name(weights);
      GenerateRequest request{.prompt = {1, 2, 3}, .max_new_tokens = 55};
      request.sampler = {.temperature = 0.8, .top_k = 10, .top_p = 0.9, .repetition_penalty = 1.2};
      Generator generator(model, {request, request});
      generator.step();
      generator.step();
      while (!generator.done()) {
        const long before = allocations.load();
        generator.step();
        if (generator.done()) break;  // the step that ends a request also frees its sequence
        CHECK_EQ(allocations.load() - before, 0)
            << generator.results()[0].tokens.size() << " tokens, " << weight_type_name(weights);
      }
    }
  }
}

KVIK_TEST(loading_survives_failed_allocations) {
  const auto bytes = kvik::test::tiny_onnx({});
  long n = 0;
  // Every allocation at first, then a sample: loading makes thousands.
  for (;; n += n < 300 ? 1 : 1 + n / 50) {
    fail_at = allocations.load() + n;
    bool failed = false;
    try {
      const Model model = Model::from_bytes(bytes, {.threads = 1});
    } catch (const std::bad_alloc&) {
      failed = true;
    } catch (const Error& error) {
      failed = true;
      CHECK(error.code() == ErrorCode::kOutOfMemory) << "allocation " << n << ": " << error.what();
    }
    const bool reached = allocations.load() > fail_at.load();
    fail_at = -1;
    if (!reached) break;
    (void)failed;  // a folding that ran out of memory is left out; the load may then succeed
  }
  CHECK(n > 1000) << "only " << n << " allocations were made to fail";
}

}  // namespace

int main(int argc, char** argv) {
  return kvik::test::run_all(argc, argv);
}
