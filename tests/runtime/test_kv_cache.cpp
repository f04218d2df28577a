// Pages of keys and values: shared by forks, copied on write.
#include "cpp/check.h"
#include "runtime/kv_cache.h"

#include <array>
#include <memory>
#include <vector>

#include "kernels/kernels.h"

namespace {

using kvik::kernels::kKvBlock;
using kvik::runtime::KvCache;
using kvik::runtime::KvLayerShape;
using kvik::runtime::KvLayout;
using kvik::runtime::KvPool;

constexpr int kHeadDim = 3;
constexpr int kValueDim = 5;

std::shared_ptr<KvPool> make_pool() {
  const std::array<KvLayerShape, 2> layers{{{2, kHeadDim, kValueDim}, {1, kHeadDim, kValueDim}}};
  return std::make_shared<KvPool>(KvLayout(layers));
}

float mark(std::int64_t table, std::int64_t position, std::int64_t d, float tag) {
  return tag + static_cast<float>(table) * 10 + static_cast<float>(position) * 100 +
         static_cast<float>(d);
}

// Writes the positions [cache.length(), end) of every table.
void append(KvCache& cache, std::int64_t end, float tag) {
  cache.reserve(end);
  const auto run = cache.run(0, end - cache.length(), cache.length());
  for (std::int64_t table = 0; table < 3; ++table) {
    for (std::int64_t p = cache.length(); p < end; ++p) {
      auto* k = static_cast<float*>(run.keys.k_blocks(table)[p / kKvBlock]);
      auto* v = static_cast<float*>(run.keys.v_blocks(table)[p / kKvBlock]);
      for (int d = 0; d < kHeadDim; ++d) k[d * kKvBlock + p % kKvBlock] = mark(table, p, d, tag);
      for (int d = 0; d < kValueDim; ++d) {
        v[(p % kKvBlock) * kValueDim + d] = -mark(table, p, d, tag);
      }
    }
  }
  cache.commit(end);
}

// Expects `tag` at positions below `split`, `tail` from there to the length.
void expect(const KvCache& cache, std::int64_t split, float tag, float tail) {
  const auto run = cache.run(0, 0, 0);
  for (std::int64_t table = 0; table < 3; ++table) {
    for (std::int64_t p = 0; p < cache.length(); ++p) {
      const float own = p < split ? tag : tail;
      const auto* k = static_cast<const float*>(run.keys.k_blocks(table)[p / kKvBlock]);
      const auto* v = static_cast<const float*>(run.keys.v_blocks(table)[p / kKvBlock]);
      for (int d = 0; d < kHeadDim; ++d) {
        CHECK_EQ(k[d * kKvBlock + p % kKvBlock], mark(table, p, d, own))
            << "key, table " << table << " position " << p;
      }
      for (int d = 0; d < kValueDim; ++d) {
        CHECK_EQ(v[(p % kKvBlock) * kValueDim + d], -mark(table, p, d, own))
            << "value, table " << table << " position " << p;
      }
    }
  }
}

KVIK_TEST(kv_append_in_pieces) {
  const auto pool = make_pool();
  KvCache cache(pool);
  for (const std::int64_t end : {1, 63, 64, 65, 200, 1500}) {
    append(cache, end, 0.5F);
    expect(cache, end, 0.5F, 0.5F);
  }
  CHECK_EQ(cache.pages(), (1500 + kKvBlock - 1) / kKvBlock);
}

KVIK_TEST(kv_fork_shares_then_copies_the_last_page) {
  const auto pool = make_pool();
  KvCache cache(pool);
  append(cache, 100, 0.5F);
  KvCache fork(cache);
  CHECK_EQ(cache.run(0, 0, 0).keys.k_blocks(0)[0], fork.run(0, 0, 0).keys.k_blocks(0)[0]);
  CHECK_EQ(cache.run(0, 0, 0).keys.k_blocks(0)[1], fork.run(0, 0, 0).keys.k_blocks(0)[1]);
  append(fork, 140, 0.25F);
  append(cache, 130, 0.75F);
  expect(cache, 100, 0.5F, 0.75F);
  expect(fork, 100, 0.5F, 0.25F);
  CHECK_EQ(cache.run(0, 0, 0).keys.k_blocks(0)[0], fork.run(0, 0, 0).keys.k_blocks(0)[0])
      << "full page";
  CHECK(cache.run(0, 0, 0).keys.k_blocks(0)[1] != fork.run(0, 0, 0).keys.k_blocks(0)[1])
      << "partial page";
}

KVIK_TEST(kv_fork_outlives_its_parent) {
  const auto pool = make_pool();
  auto cache = std::make_unique<KvCache>(pool);
  append(*cache, 70, 0.5F);
  KvCache fork(*cache);
  cache.reset();
  append(fork, 90, 0.25F);
  expect(fork, 70, 0.5F, 0.25F);
}

KVIK_TEST(kv_truncate) {
  const auto pool = make_pool();
  KvCache cache(pool);
  append(cache, 150, 0.5F);
  cache.truncate(80);
  CHECK_EQ(cache.pages(), 2);
  expect(cache, 80, 0.5F, 0.5F);
  append(cache, 90, 0.25F);
  expect(cache, 80, 0.5F, 0.25F);
  cache.truncate(0);
  CHECK_EQ(cache.pages(), 0);
}

KVIK_TEST(kv_truncate_of_a_fork_leaves_the_other) {
  const auto pool = make_pool();
  KvCache cache(pool);
  append(cache, 100, 0.5F);
  KvCache fork(cache);
  fork.truncate(70);
  append(fork, 80, 0.25F);
  expect(cache, 100, 0.5F, 0.5F);
  expect(fork, 70, 0.5F, 0.25F);
}

KVIK_TEST(kv_reserved_and_forgotten) {
  const auto pool = make_pool();
  KvCache cache(pool);
  append(cache, 10, 0.5F);
  append(cache, 40, 0.25F);  // a call that wrote, then failed:
  cache.truncate(10);
  expect(cache, 10, 0.5F, 0.5F);
}

KVIK_TEST(kv_pages_come_back) {
  const auto pool = make_pool();
  {
    KvCache cache(pool);
    append(cache, 64, 0.5F);
  }
  KvCache again(pool);
  append(again, 3, 0.25F);
  expect(again, 3, 0.25F, 0.25F);
}

}  // namespace

int main(int argc, char** argv) {
  return kvik::test::run_all(argc, argv);
}
