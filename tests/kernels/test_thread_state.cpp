// Instruction sets whose registers a thread must set up, or the system must grant (AMX): every
// product of every table on any thread, in children of a process that used them, and on threads
// that began before the process had asked. A thread without its state dies of an illegal
// instruction.
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <memory>
#include <thread>
#include <vector>

#include "base/aligned_buffer.h"
#include "base/thread_pool.h"
#include "kernels/support.h"

using namespace kvik::test;
using kvik::AlignedBuffer;
using kvik::Range;
using kvik::ThreadPool;
using namespace kvik::kernels;

namespace {

constexpr std::int64_t kK = 100, kN = 300, kGroups = (kK + kGroup - 1) / kGroup;

// Products with weights of every precision.
struct Products {
  explicit Products(const KernelTable& table_)
      : table(table_),
        panels((kN + table.panel - 1) / table.panel),
        f32(bytes(4 * kK)),
        bf16(bytes(2 * kK)),
        i8(bytes(kGroups * kGroup)),
        i4(bytes(kGroups * (2 + kGroup / 2))),
        scale8(bytes(4)),
        scale4(bytes(4)) {
    Random random(1);
    std::vector<float> block(static_cast<std::size_t>(kK * table.panel));
    for (std::int64_t p = 0; p < panels; ++p) {
      const std::int64_t first = p * table.panel;
      for (float& w : block) w = random.uniform(-1.0f, 1.0f);
      table.pack_f32(block.data(), table.panel, 1, kK, table.panel, 0, 1,
                     f32.as<float>() + first * kK);
      table.pack_bf16(block.data(), kK, table.panel, bf16.as<std::uint16_t>() + first * kK);
      table.pack_i8(block.data(), kK, table.panel, i8.as<std::uint8_t>() + first * kGroups * kGroup,
                    scale8.as<float>() + first);
      table.pack_i4(block.data(), kK, table.panel,
                    i4.as<std::uint8_t>() + first * kGroups * (2 + kGroup / 2),
                    scale4.as<float>() + first);
    }
  }
  AlignedBuffer bytes(std::int64_t of_a_column) const {
    return AlignedBuffer(static_cast<std::size_t>(panels * table.panel * of_a_column));
  }

  // One, few and many rows, split over the pool by panels.
  std::vector<float> run(ThreadPool& pool) const {
    std::vector<float> all;
    for (const std::int64_t rows : {1, 5, 16, 40}) {
      Random random(2);
      std::vector<float> x(static_cast<std::size_t>(rows * kK));
      for (float& value : x) value = random.uniform(-1.0f, 1.0f);
      const AlignedBuffer q(static_cast<std::size_t>(rows * kGroups * kGroup));
      const AlignedBuffer scale(static_cast<std::size_t>(rows * 4));
      const AlignedBuffer sums(static_cast<std::size_t>(rows * (kGroups + 1) * 4));
      const AlignedBuffer rounded(static_cast<std::size_t>(rows * rounded_stride(kK) * 2));
      std::vector<RowOutliers> outliers(static_cast<std::size_t>(rows));
      table.quantize_rows(x.data(), kK, rows, kK, true, q.as<std::int8_t>(), scale.as<float>(),
                          sums.as<std::int32_t>(), outliers.data());
      table.round_rows(x.data(), kK, rows, kK, rounded.as<std::uint16_t>());
      const QuantizedRows bytes{q.as<std::int8_t>(),
                                scale.as<float>(),
                                sums.as<std::int32_t>(),
                                outliers.data(),
                                rows,
                                kGroups};
      std::vector<float> y(static_cast<std::size_t>(5 * rows * kN));
      pool.run([&](int worker, int workers) {
        const Range part = kvik::split_range(panels, worker, workers);
        float* to = y.data();
        const auto next = [&] { return std::exchange(to, to + rows * kN); };
        table.matmul_f32(x.data(), kK, rows, kK, f32.as<float>(), kN, part.begin, part.end, {},
                         next(), kN);
        table.matmul_i8(bytes, {i8.as<std::uint8_t>(), scale8.as<float>()}, kN, part.begin,
                        part.end, {}, next(), kN);
        table.matmul_i4(bytes, {i4.as<std::uint8_t>(), scale4.as<float>()}, kN, part.begin,
                        part.end, {}, next(), kN);
        table.matmul_bf16(x.data(), kK, rows, kK, bf16.as<std::uint16_t>(), kN, part.begin,
                          part.end, {}, next(), kN);
        if (table.matmul_bf16_rows == nullptr) return;
        table.matmul_bf16_rows({rounded.as<std::uint16_t>(), rows, kK}, bf16.as<std::uint16_t>(),
                               kN, part.begin, part.end, {}, next(), kN);
      });
      all.insert(all.end(), y.begin(), y.end());
    }
    return all;
  }

  const KernelTable& table;
  std::int64_t panels;
  AlignedBuffer f32, bf16, i8, i4, scale8, scale4;
};

std::vector<float> run_alone(const Products& products) {
  ThreadPool pool(1);
  return products.run(pool);
}

// How a child that runs `body` ended: "" for true.
std::string in_child(const std::function<bool()>& body) {
  const pid_t child = fork();
  if (child == 0) _exit(body() ? 0 : 1);
  int status = 0;
  if (child < 0 || waitpid(child, &status, 0) != child) return "no child";
  if (WIFSIGNALED(status)) return "died of signal " + std::to_string(WTERMSIG(status));
  return WEXITSTATUS(status) == 0 ? "" : "other bits";
}

}  // namespace

// First, because the tables are what asks the system.
KVIK_TEST(threads_that_began_before_the_tables_were_chosen) {
  std::atomic<const Products*> given{nullptr};
  std::atomic<bool> end{false};
  std::vector<float> got;
  std::thread early([&] {
    while (!end) {
      if (const Products* products = given.load()) {
        got = run_alone(*products);
        given = nullptr;
      }
      std::this_thread::yield();
    }
  });
  for_each_isa([&](const KernelTable& table) {
    const Products products(table);
    given = &products;
    while (given != nullptr) std::this_thread::yield();
    CHECK(same_bits(got, run_alone(products))) << table.name;
  });
  end = true;
  early.join();
}

KVIK_TEST(one_two_and_three_threads) {
  for_each_isa([](const KernelTable& table) {
    const Products products(table);
    const std::vector<float> want = run_alone(products);
    for (const int threads : {1, 2, 3}) {
      ThreadPool pool(threads);
      for (int round = 0; round < 3; ++round) {
        CHECK(same_bits(products.run(pool), want)) << table.name << ", threads " << threads;
      }
    }
  });
}

// Both threads of a process may have children; those start threads of their own.
KVIK_TEST(children_of_a_process_that_used_them) {
  for_each_isa([](const KernelTable& table) {
    const Products products(table);
    const std::vector<float> want = run_alone(products);
    const auto again = [&] {
      if (!same_bits(run_alone(products), want)) return false;
      ThreadPool pool(3);
      return same_bits(products.run(pool), want);
    };
    CHECK_EQ(in_child(again), "") << table.name;
    std::string of_a_thread = "did not run";
    std::thread([&] {
      if (same_bits(run_alone(products), want)) of_a_thread = in_child(again);
    }).join();
    CHECK_EQ(of_a_thread, "") << table.name << ", child of another thread";
    CHECK_EQ(in_child([&] { return in_child(again).empty(); }), "") << table.name << ", grandchild";
    CHECK(same_bits(run_alone(products), want)) << table.name << ", the parent afterwards";
  });
}

int main(int argc, char** argv) {
  return kvik::test::run_all(argc, argv);
}
