// The thread pool: who runs, what is rethrown, what happens with several callers and after fork().
#include <sched.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <numeric>
#include <stdexcept>
#include <thread>
#include <vector>

#include "base/thread_pool.h"
#include "cpp/check.h"
#include "kvik/error.h"

using kvik::Range;
using kvik::ThreadPool;

KVIK_TEST(split_range_covers_everything_once) {
  for (std::int64_t total : {0, 1, 2, 5, 63, 64, 65, 1000}) {
    for (int workers : {1, 2, 3, 8}) {
      for (std::int64_t grain : {1, 7, 64}) {
        std::int64_t next = 0, smallest = total, largest = 0;
        for (int w = 0; w < workers; ++w) {
          const Range range = kvik::split_range(total, w, workers, grain);
          CHECK_EQ(range.begin, next) << total << " in " << workers << ", grain " << grain;
          CHECK(range.end >= range.begin);
          CHECK(range.begin % grain == 0 || range.begin == total);
          const std::int64_t grains = (range.end - range.begin + grain - 1) / grain;
          smallest = std::min(smallest, grains);
          largest = std::max(largest, grains);
          next = range.end;
        }
        CHECK_EQ(next, total);
        CHECK(total == 0 || largest - smallest <= 1);
      }
    }
  }
}

KVIK_TEST(each_worker_runs_once) {
  for (int threads : {1, 2, 3, 8}) {
    ThreadPool pool(threads);
    CHECK_EQ(pool.threads(), threads);
    for (int limit : {-1, 0, 1, 2, 5, 1 << 30}) {
      const int expected = std::max(1, std::min(limit, threads));
      std::vector<int> runs(static_cast<std::size_t>(threads));  // each worker touches its own
      pool.run(
          [&](int worker, int workers) {
            if (workers == expected) ++runs[static_cast<std::size_t>(worker)];
          },
          limit);
      for (int w = 0; w < threads; ++w) {
        CHECK_EQ(runs[static_cast<std::size_t>(w)], w < expected ? 1 : 0)
            << "worker " << w << " of " << threads << ", limit " << limit;
      }
    }
  }
}

KVIK_TEST(caller_is_worker_zero) {
  ThreadPool pool(3);
  std::thread::id zero;
  pool.run([&](int worker, int) {
    if (worker == 0) zero = std::this_thread::get_id();
  });
  CHECK(zero == std::this_thread::get_id());
}

// A share that the caller waits for inside of its own can only be begun by the worker: posting
// wakes it every time.
KVIK_TEST(workers_begin_their_shares) {
  for (int threads : {2, 3}) {
    ThreadPool pool(threads);
    for (int i = 0; i < 200; ++i) {
      std::atomic<int> begun{0};
      pool.run([&](int worker, int workers) {
        ++begun;
        while (worker == 0 && begun.load() < workers) std::this_thread::yield();
      });
      if (i % 8 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(1));  // asleep again
    }
  }
}

// A worker that sleeps takes longer to wake than the caller to do nothing.
KVIK_TEST(the_caller_takes_shares_that_nobody_has_begun) {
  const std::thread::id caller = std::this_thread::get_id();
  ThreadPool pool(4);
  std::vector<int> runs(4), taken(4);
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(10);
  while (taken[1] + taken[2] + taken[3] == 0 && std::chrono::steady_clock::now() < deadline) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
    std::fill(runs.begin(), runs.end(), 0);
    pool.run([&](int worker, int) {
      const auto w = static_cast<std::size_t>(worker);
      ++runs[w];
      taken[w] += std::this_thread::get_id() == caller;
    });
    CHECK(runs == std::vector<int>(4, 1));
  }
  CHECK(taken[1] + taken[2] + taken[3] > 0);
}

// A share that has begun is waited for, also where the caller took others.
KVIK_TEST(begun_shares_are_waited_for) {
  ThreadPool pool(3);
  for (int i = 0; i < 50; ++i) {
    std::atomic<int> begun{0}, finished{0};
    pool.run([&](int worker, int) {
      ++begun;
      while (worker == 0 && begun.load() < 2) std::this_thread::yield();
      if (worker != 0) std::this_thread::sleep_for(std::chrono::microseconds(300));
      ++finished;
    });
    CHECK_EQ(finished.load(), 3);
  }
}

KVIK_TEST(shared_ranges_cover_everything_once) {
  for (int threads : {1, 2, 3, 8}) {
    ThreadPool pool(threads);
    for (std::int64_t total : {0, 1, 2, 7, 64, 65, 1000}) {
      for (std::int64_t piece : {1, 3, 100, 5000}) {
        std::vector<std::atomic<int>> times(static_cast<std::size_t>(total));
        std::atomic<int> wrong{0};
        pool.share(total, piece, [&](int, std::int64_t begin, std::int64_t end) {
          const bool fits = 0 <= begin && begin < end && end <= total && end - begin <= piece;
          if (!fits) ++wrong;
          for (std::int64_t i = begin; fits && i < end; ++i) ++times[static_cast<std::size_t>(i)];
        });
        CHECK_EQ(wrong.load(), 0);
        CHECK(std::all_of(times.begin(), times.end(), [](const auto& n) { return n == 1; }))
            << total << " among " << threads << ", piece " << piece;
      }
    }
  }
}

// Ranges meet no ends of parts: each thread's own begins where split_range says.
KVIK_TEST(shared_ranges_begin_in_parts) {
  ThreadPool pool(3);
  std::array<std::atomic<int>, 100> begins{};
  pool.share(100, 30, [&](int, std::int64_t begin, std::int64_t) {
    ++begins[static_cast<std::size_t>(begin)];
  });
  for (std::size_t i = 0; i < begins.size(); ++i) {
    const bool expected = i == 0 || i == 30 || i == 34 || i == 64 || i == 67 || i == 97;
    CHECK_EQ(begins[i].load(), expected ? 1 : 0) << i;
  }
}

// Whoever has the first of the second part waits until everything else is done.
KVIK_TEST(a_slow_thread_is_helped) {
  ThreadPool pool(2);
  for (int i = 0; i < 20; ++i) {
    std::atomic<int> done{0};
    bool helped = false;
    pool.share(16, 1, [&](int, std::int64_t begin, std::int64_t) {
      const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(10);
      while (begin == 8 && !(helped = done.load() == 15)) {
        if (std::chrono::steady_clock::now() > deadline) break;
        std::this_thread::yield();
      }
      ++done;
    });
    CHECK(helped);
    CHECK_EQ(done.load(), 16);
  }
}

// Scratch memory is chosen by the worker's number: two ranges at a time must not have the same.
KVIK_TEST(shared_ranges_have_a_worker_of_their_own) {
  for (int threads : {1, 2, 3, 8}) {
    ThreadPool pool(threads);
    std::vector<std::atomic<int>> busy(static_cast<std::size_t>(threads));
    std::atomic<int> wrong{0}, together{0}, most{0};
    for (int i = 0; i < 50; ++i) {
      pool.share(64, 1, [&](int worker, std::int64_t, std::int64_t) {
        if (worker < 0 || worker >= threads) {
          ++wrong;
          return;
        }
        std::atomic<int>& mine = busy[static_cast<std::size_t>(worker)];
        if (mine.fetch_add(1) != 0) ++wrong;
        const int now = ++together;
        if (now > most) most = now;
        std::this_thread::yield();
        --together;
        --mine;
      });
    }
    CHECK_EQ(wrong.load(), 0) << threads << " threads";
    CHECK(most.load() <= threads);
  }
}

KVIK_TEST(an_exception_in_a_shared_range_is_rethrown) {
  for (int threads : {1, 2, 3}) {
    ThreadPool pool(threads);
    const std::string what = kvik::test::thrown([&] {
      pool.share(100, 7, [&](int, std::int64_t begin, std::int64_t end) {
        if (begin <= 60 && 60 < end) throw std::runtime_error("range of 60");
      });
    });
    CHECK_EQ(what, "range of 60");
    std::atomic<std::int64_t> after{0};
    pool.share(100, 7, [&](int, std::int64_t begin, std::int64_t end) { after += end - begin; });
    CHECK_EQ(after.load(), 100);
  }
}

// As many_small_runs; a worker that comes late to one job must not take a piece of the next.
KVIK_TEST(many_small_shared_loops) {
  for (int threads : {2, 3, 8}) {
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(2);
    ThreadPool pool(threads);
    std::array<std::int64_t, 64> cells{};
    std::int64_t loops = 0, sum = 0;
    for (; loops < 20000 && std::chrono::steady_clock::now() < deadline; ++loops) {
      const std::int64_t total = 1 + loops % 64;
      sum += total;
      pool.share(total, 1 + loops % 3, [&](int, std::int64_t begin, std::int64_t end) {
        for (std::int64_t i = begin; i < end; ++i) ++cells[static_cast<std::size_t>(i)];
      });
    }
    CHECK(loops > 100);
    CHECK_EQ(std::accumulate(cells.begin(), cells.end(), std::int64_t{0}), sum);
  }
}

// What one run wrote the next one reads, without synchronisation of its own: TSan watches.
KVIK_TEST(many_small_runs) {
  for (int threads : {1, 2, 3, 8}) {
    // 100000 runs take a tenth of a second with a core per thread; where threads have to take turns
    // on busy cores, as many as 4 seconds allow.
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(4);
    int runs = 0;
    ThreadPool pool(threads);
    std::vector<std::int64_t> counts(static_cast<std::size_t>(threads));
    for (; runs < 100000 && std::chrono::steady_clock::now() < deadline; ++runs) {
      pool.run([&, i = runs](int worker, int workers) {
        const auto next = static_cast<std::size_t>((worker + i) % workers);
        ++counts[next];  // another worker's cell each time
      });
    }
    std::int64_t sum = 0;
    for (std::int64_t count : counts) sum += count;
    CHECK_EQ(sum, static_cast<std::int64_t>(runs) * threads);
    CHECK(runs > 0);
  }
}

KVIK_TEST(runs_with_pauses_wake_sleepers) {
  ThreadPool pool(2);
  std::atomic<int> total{0};
  for (int i = 0; i < 50; ++i) {
    pool.run([&](int, int) { ++total; });
    std::this_thread::sleep_for(std::chrono::milliseconds(1));  // well past the spinning
  }
  CHECK_EQ(total.load(), 100);
}

#if defined(__linux__)
// A sleeper is told to wake up on another core than its caller's; once awake, it may run where it
// might before, and so may one whose share the caller did meanwhile. (With all cores, since few
// threads among many are left alone.)
KVIK_TEST(workers_keep_their_cores) {
  cpu_set_t before;
  CHECK_EQ(sched_getaffinity(0, sizeof before, &before), 0);
  ThreadPool pool(CPU_COUNT(&before));
  std::atomic<int> by_worker{0}, narrowed{0};
  const std::thread::id caller = std::this_thread::get_id();
  for (int round = 0; round < 40; ++round) {
    // Long enough to fall asleep, at times; and for workers to come to their shares, at times.
    std::this_thread::sleep_for(std::chrono::microseconds(round % 4 * 300));
    pool.run([&](int, int) {
      cpu_set_t now;
      if (sched_getaffinity(0, sizeof now, &now) != 0 || !CPU_EQUAL(&now, &before)) ++narrowed;
      if (std::this_thread::get_id() != caller) ++by_worker;
      std::this_thread::sleep_for(std::chrono::microseconds(round % 3 * 200));
    });
  }
  CHECK_EQ(narrowed.load(), 0);
  CHECK(pool.threads() == 1 || by_worker.load() > 0) << "the caller did everything itself";
}

// A set of cores that somebody gives a worker while it sleeps is kept when it wakes up.
KVIK_TEST(a_new_set_of_cores_outlives_a_wake_up) {
  cpu_set_t all;
  CHECK_EQ(sched_getaffinity(0, sizeof all, &all), 0);
  if (CPU_COUNT(&all) < 2) return;
  ThreadPool pool(CPU_COUNT(&all));
  std::atomic<pid_t> worker{0};
  const pid_t caller = gettid();
  while (worker == 0) {
    pool.run([&](int, int) {
      if (gettid() != caller) worker = gettid();
      std::this_thread::sleep_for(std::chrono::microseconds(100));
    });
  }
  cpu_set_t one;
  CPU_ZERO(&one);
  for (std::size_t cpu = 0; CPU_COUNT(&one) == 0; ++cpu) {
    if (CPU_ISSET(cpu, &all)) CPU_SET(cpu, &one);
  }
  CHECK_EQ(sched_setaffinity(worker, sizeof one, &one), 0);
  std::atomic<int> runs{0}, other{0};
  for (int round = 0; round < 400 && runs < 5; ++round) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
    pool.run([&](int, int) {
      std::this_thread::sleep_for(std::chrono::microseconds(300));
      if (gettid() != worker) return;
      cpu_set_t now;
      sched_getaffinity(0, sizeof now, &now);
      ++runs;
      if (!CPU_EQUAL(&now, &one)) ++other;
    });
  }
  CHECK(runs > 0);
  CHECK_EQ(other.load(), 0);
}
#endif

KVIK_TEST(exception_is_rethrown_after_all_finished) {
  for (int threads : {1, 2, 3, 8}) {
    ThreadPool pool(threads);
    for (int thrower = 0; thrower < threads; ++thrower) {
      std::atomic<int> finished{0};
      const std::string what = kvik::test::thrown([&] {
        pool.run([&](int worker, int) {
          if (worker >= thrower) throw std::runtime_error("worker " + std::to_string(worker));
          ++finished;
        });
      });
      CHECK_EQ(what, "worker " + std::to_string(thrower));
      CHECK_EQ(finished.load(), thrower);
    }
    std::atomic<int> after{0};
    pool.run([&](int, int) { ++after; });
    CHECK_EQ(after.load(), threads);
  }
}

KVIK_TEST(two_callers_take_turns) {
  for (int threads : {1, 2, 3}) {
    ThreadPool pool(threads);
    std::atomic<int> inside{0}, overlaps{0};
    std::int64_t total = 0;  // touched by worker 0 of one run at a time
    auto caller = [&] {
      for (int i = 0; i < 300; ++i) {
        pool.run([&](int worker, int) {
          if (worker != 0) return;
          if (inside.fetch_add(1) != 0) ++overlaps;
          ++total;
          inside.fetch_sub(1);
        });
      }
    };
    std::thread other(caller);
    caller();
    other.join();
    CHECK_EQ(total, 600);
    CHECK_EQ(overlaps.load(), 0);
  }
}

KVIK_TEST(misuse_is_an_error) {
  CHECK_EQ(kvik::test::thrown([] { ThreadPool pool(0); }),
           "a thread pool of 0 threads; expected at least 1");
  ThreadPool pool(2);
  std::atomic<int> errors{0};
  pool.run([&](int, int) {
    if (!kvik::test::thrown([&] { pool.run([](int, int) {}); }).empty()) ++errors;
    const auto nested = [&] { pool.share(1, 1, [](int, std::int64_t, std::int64_t) {}); };
    if (!kvik::test::thrown(nested).empty()) ++errors;
  });
  CHECK_EQ(errors.load(), 4);
}

KVIK_TEST(unused_pools_come_and_go) {
  for (int i = 0; i < 100; ++i) ThreadPool pool(1 + i % 8);
}

namespace {
// Runs `body` in a child process and returns its exit status, or -1 if it had to be killed.
template <typename F>
int in_child(F body) {
  const pid_t child = fork();
  if (child == 0) _exit(body());
  for (int waited_ms = 0; waited_ms < 10000; waited_ms += 5) {
    int status = 0;
    if (waitpid(child, &status, WNOHANG) == child) {
      return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  kill(child, SIGKILL);
  waitpid(child, nullptr, 0);
  return -1;
}
}  // namespace

#if !defined(__SANITIZE_THREAD__)  // TSan does not allow threads in a forked child
KVIK_TEST(started_pool_in_a_child_is_an_error) {
  ThreadPool pool(2);
  pool.run([](int, int) {});
  CHECK_EQ(in_child([&] {
             try {
               pool.run([](int, int) {});
             } catch (const kvik::Error& error) {
               return error.code() == kvik::ErrorCode::kInvalidArgument ? 7 : 8;
             }
             return 9;
           }),
           7);
  CHECK_EQ(in_child([&] {  // leaving the child destroys what it inherited: no hang, no crash
             pool.~ThreadPool();
             return 7;
           }),
           7);
  pool.run([](int, int) {});  // the parent's pool is as it was
}

KVIK_TEST(unstarted_pool_works_in_a_child) {
  ThreadPool pool(2);
  CHECK_EQ(in_child([&] {
             std::atomic<int> runs{0};
             pool.run([&](int, int) { ++runs; });
             return runs.load();
           }),
           2);
}
#endif

int main(int argc, char** argv) {
  return kvik::test::run_all(argc, argv);
}
