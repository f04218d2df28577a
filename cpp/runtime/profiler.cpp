#include "runtime/profiler.h"

#include <string>

namespace kvik::runtime {

namespace {

double as_seconds(Profiler::Clock::duration time) {
  return std::chrono::duration<double>(time).count();
}

}  // namespace

void Profiler::start(std::vector<OpProfile> ops) {
  const std::lock_guard lock(mutex_);
  profile_ = {.ops = std::move(ops)};
  on_.store(true, std::memory_order_relaxed);
}

Profile Profiler::stop() {
  const std::lock_guard lock(mutex_);
  on_.store(false, std::memory_order_relaxed);
  Profile taken = std::exchange(profile_, {});
  std::erase_if(taken.ops, [](const OpProfile& op) { return op.calls == 0; });
  return taken;
}

// A run that began before stop() may end after it: it finds no operators to add to.
void Profiler::add(std::size_t op, Clock::duration time, const ops::OpCost& cost) {
  const std::lock_guard lock(mutex_);
  if (op >= profile_.ops.size()) return;
  OpProfile& sum = profile_.ops[op];
  sum.calls += 1;
  sum.seconds += as_seconds(time);
  sum.bytes += cost.bytes;
  sum.operations += cost.operations;
}

void Profiler::add_call(Clock::duration time) {
  const std::lock_guard lock(mutex_);
  if (profile_.ops.empty()) return;
  profile_.calls += 1;
  profile_.seconds += as_seconds(time);
}

OpProfile describe_op(const graph::Node& node, const ops::OpKernel& kernel) {
  ops::OpDescription description = kernel.describe();
  return {.op = node.domain.empty() ? node.op : node.domain + "." + node.op,
          .name = node.name,
          .shape = std::move(description.shape),
          .precision = std::move(description.precision)};
}

}  // namespace kvik::runtime
