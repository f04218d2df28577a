// Records how long operators take, while somebody asks for it.
#pragma once

#include <atomic>
#include <chrono>
#include <cstddef>
#include <mutex>
#include <utility>
#include <vector>

#include "graph/graph.h"
#include "kvik/profile.h"
#include "ops/op.h"

namespace kvik::runtime {

// What runs an operator gets a pointer to a profiler, null when none is on: that is all that being
// off costs. Safe to use from several threads.
class Profiler {
 public:
  using Clock = std::chrono::steady_clock;

  // Begins anew with these operators, whose numbers add() takes; their sums are zero.
  void start(std::vector<OpProfile> ops);
  // Ends, and returns the operators that were called.
  Profile stop();
  // The profiler when it is on, else null.
  Profiler* active() { return on_.load(std::memory_order_relaxed) ? this : nullptr; }

  void add(std::size_t op, Clock::duration time, const ops::OpCost& cost);
  void add_call(Clock::duration time);

 private:
  std::atomic<bool> on_{false};
  std::mutex mutex_;
  Profile profile_;
};

// What a profile says of a node before it has run.
OpProfile describe_op(const graph::Node& node, const ops::OpKernel& kernel);

// Runs the kernel; the profiler, if there is one, adds the run to operator `op`.
inline void run_kernel(const ops::OpKernel& kernel, ops::OpContext& context, Profiler* profiler,
                       std::size_t op) {
  if (profiler == nullptr) [[likely]]
    return kernel.run(context);
  const Profiler::Clock::time_point start = Profiler::Clock::now();
  kernel.run(context);
  const Profiler::Clock::duration time = Profiler::Clock::now() - start;
  profiler->add(op, time, kernel.cost(context));
}

// Adds the time from its making to done() as one call.
class ProfiledCall {
 public:
  explicit ProfiledCall(Profiler* profiler) : profiler_(profiler) {
    if (profiler_ != nullptr) start_ = Profiler::Clock::now();
  }
  void done() {
    if (profiler_ != nullptr) profiler_->add_call(Profiler::Clock::now() - start_);
  }

 private:
  Profiler* profiler_;
  Profiler::Clock::time_point start_;
};

}  // namespace kvik::runtime
