// How many threads a model uses when nobody says.
#pragma once

#include <sched.h>

#include <algorithm>
#include <string>
#include <thread>

#include "kvik/error.h"

namespace kvik::runtime {

inline constexpr int kMaxThreads = 1024;

// `threads` checked; for 0, the CPUs that this process may run on.
inline int thread_count(int threads) {
  if (threads < 0 || threads > kMaxThreads) {
    throw Error(ErrorCode::kInvalidArgument, "threads is " + std::to_string(threads) +
                                                 "; expected 0 (all CPUs) to " +
                                                 std::to_string(kMaxThreads));
  }
  if (threads > 0) return threads;
#if defined(__linux__)
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) {
    return std::clamp(CPU_COUNT(&set), 1, kMaxThreads);
  }
#endif
  return std::clamp(static_cast<int>(std::thread::hardware_concurrency()), 1, kMaxThreads);
}

}  // namespace kvik::runtime
