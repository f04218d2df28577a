// Placement in the arena: buffers alive at one step never overlap; dead ones give their place back.
#include "cpp/check.h"
#include "runtime/arena_plan.h"

#include <algorithm>
#include <limits>
#include <vector>

#include "base/aligned_buffer.h"
#include "kvik/error.h"

namespace {

using kvik::runtime::ArenaBuffer;
using kvik::runtime::plan_arena;

bool collide(const ArenaBuffer& a, const ArenaBuffer& b) {
  const bool same_time = a.first <= b.last && b.first <= a.last;
  const bool same_place = a.offset < b.offset + b.bytes && b.offset < a.offset + a.bytes;
  return same_time && same_place;
}

KVIK_TEST(arena_random_lifetimes_never_collide) {
  kvik::test::Random random(1);
  for (int round = 0; round < 50; ++round) {
    std::vector<ArenaBuffer> buffers(static_cast<std::size_t>(random.integer(0, 120)));
    std::int64_t sum = 0;
    for (ArenaBuffer& b : buffers) {
      b.bytes = random.integer(0, 3000);
      b.first = static_cast<int>(random.integer(0, 60));
      b.last = b.first + static_cast<int>(random.integer(0, 12));
      sum += (std::max<std::int64_t>(b.bytes, 1) + 63) / 64 * 64;
    }
    const std::int64_t size = plan_arena(buffers);
    CHECK(size <= sum) << "round " << round;
    for (std::size_t i = 0; i < buffers.size(); ++i) {
      CHECK_EQ(buffers[i].offset % static_cast<std::int64_t>(kvik::kAlignment), 0);
      CHECK(buffers[i].offset >= 0 && buffers[i].offset + buffers[i].bytes <= size);
      for (std::size_t j = 0; j < i; ++j) {
        CHECK(!collide(buffers[i], buffers[j])) << "round " << round << ": " << i << ", " << j;
      }
    }
  }
}

KVIK_TEST(arena_chain_needs_two_places) {
  std::vector<ArenaBuffer> chain;
  for (int i = 0; i < 100; ++i) chain.push_back({.bytes = 640, .first = i, .last = i + 1});
  CHECK_EQ(plan_arena(chain), 2 * 640);
}

KVIK_TEST(arena_overflow_is_an_error) {
  std::vector<ArenaBuffer> huge(
      2, {.bytes = std::numeric_limits<std::int64_t>::max() / 2 + 1, .first = 0, .last = 1});
  CHECK(!kvik::test::thrown([&] { plan_arena(huge); }).empty());
}

}  // namespace

int main(int argc, char** argv) {
  return kvik::test::run_all(argc, argv);
}
