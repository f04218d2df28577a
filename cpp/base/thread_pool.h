// The engine's own thread pool: lazy, spins briefly, then sleeps. No OpenMP.
#pragma once

#include <cstdint>
#include <memory>

#include "base/function_ref.h"

namespace kvik {

// Called as body(worker, workers). `worker` numbers a share of the work, and scratch memory for it;
// it is not bound to a thread.
using ParallelBody = FunctionRef<void(int, int)>;

// Called as body(begin, end) on a part of a range.
using RangeBody = FunctionRef<void(std::int64_t, std::int64_t)>;

// Called as body(worker, begin, end) on a part of a range. `worker` is in [0, threads()); of the
// calls that run at one time no two have the same, so that it numbers scratch memory.
using PartBody = FunctionRef<void(int, std::int64_t, std::int64_t)>;

// A half-open range of work.
struct Range {
  std::int64_t begin = 0;
  std::int64_t end = 0;
};

// The part of [0, total) that falls to `worker` of `workers`, in units of `grain`; parts differ by
// at most one grain.
Range split_range(std::int64_t total, int worker, int workers, std::int64_t grain = 1);

// Runs one body at a time on `threads` threads, the caller among them. Worker threads start on the
// first parallel call; they take no signals. Calls from several threads queue up behind one
// another. After fork() a child has no workers: a pool that had started in the parent notices and
// throws kvik::Error(kInvalidArgument) there; one that had not works in the child.
class ThreadPool {
 public:
  explicit ThreadPool(int threads);  // >= 1, else throws kvik::Error(kInvalidArgument)
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const;

  // Calls body(worker, workers) once per worker in [0, workers), workers = min(threads(), limit)
  // and at least 1, and returns when all have. The caller does share 0, then whatever share no
  // thread has begun by then: on a busy machine it never waits for a thread that has yet to be
  // scheduled. Allocates nothing once the workers have started. An exception in a body is rethrown
  // here, after all have finished (of several, the one of the lowest worker). Not re-entrant: a
  // call from within a body of the same pool throws kvik::Error(kInternal). Throws
  // kvik::Error(kOutOfMemory) when a thread can't be started.
  void run(ParallelBody body, int limit = 1 << 30);

  // Calls body(worker, begin, end) on ranges that cover [0, total), on all threads, and otherwise
  // as run(), but that any one of several exceptions is rethrown. Each thread has a part of its
  // own, the same at every call; it takes it in ranges of `piece` (>= 1, and total + threads() ·
  // piece fits into 64 bits) and then helps the others with what is left of theirs. So one that is
  // slower than the rest, or that the machine interrupts, holds them up by no more than the piece
  // that it is in.
  void share(std::int64_t total, std::int64_t piece, PartBody body);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace kvik
