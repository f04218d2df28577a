#include "base/thread_pool.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <exception>
#include <mutex>
#include <string>
#include <string_view>
#include <system_error>
#include <thread>
#include <vector>

#include "base/aligned_buffer.h"
#include "kvik/error.h"

namespace kvik {
namespace {

// How long a thread spins before it sleeps. Steps of a decode follow each other within tens of
// microseconds; waking a sleeper costs a few.
constexpr std::chrono::nanoseconds kSpin{50'000};
constexpr std::chrono::nanoseconds kLeastSpin{500};

void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

// Counts fork()s on the way from the first process that used a pool to this one: a child's count
// differs from the one that its inherited pools noted.
std::atomic<std::uint32_t> fork_count{0};

void watch_forks() {
  static std::once_flag once;
  std::call_once(once, [] {
    pthread_atfork(nullptr, nullptr, [] { fork_count.fetch_add(1, std::memory_order_relaxed); });
  });
}

// Cores that this process may use.
int available_cores() {
#if defined(__linux__)
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) return std::max(CPU_COUNT(&set), 1);
#endif
  return std::max(static_cast<int>(std::thread::hardware_concurrency()), 1);
}

// Waits for a word to change: spins, then sleeps. Spinning pays where the thread that will change
// the word runs on another core; on a busy machine it may be queued behind this very one, and then
// spinning only delays it. So a spin that was in vain halves the next one, a spin that was rewarded
// restores it, and every kProbe-th wait spins in full to see whether times have changed. So does
// the wait after a change that came too late to be of use: another one is near.
class Waiter {
 public:
  explicit Waiter(bool spin) : may_spin_(spin) {}

  // `asleep`, if there is one, is true while it sleeps.
  std::uint32_t wait_while(const std::atomic<std::uint32_t>& word, std::uint32_t old,
                           std::atomic<bool>* asleep = nullptr) {
    std::uint32_t now = word.load(std::memory_order_acquire);
    if (now != old) return now;
    if (may_spin_) {
      const bool probe = ++waits_ % kProbe == 0;
      now = spin_while(word, old, probe ? kSpin : spin_);
      if (now != old) {
        spin_ = kSpin;
        return now;
      }
      spin_ = std::max(spin_ / 2, kLeastSpin);
    }
    if (asleep) asleep->store(true, std::memory_order_relaxed);
    word.wait(old, std::memory_order_acquire);
    if (asleep) asleep->store(false, std::memory_order_relaxed);
    return word.load(std::memory_order_acquire);
  }

  void came_late() { spin_ = kSpin; }

 private:
  static constexpr std::uint32_t kProbe = 64;

  static std::uint32_t spin_while(const std::atomic<std::uint32_t>& word, std::uint32_t old,
                                  std::chrono::nanoseconds limit) {
    const auto deadline = std::chrono::steady_clock::now() + limit;
    std::uint32_t now = old;
    do {
      for (int i = 0; i < 16 && now == old; ++i) {
        pause();
        now = word.load(std::memory_order_acquire);
      }
    } while (now == old && std::chrono::steady_clock::now() < deadline);
    return now;
  }

  bool may_spin_;
  std::uint32_t waits_ = 0;
  std::chrono::nanoseconds spin_ = kSpin;
};

// Where a worker that sleeps is to wake up: on another core than its caller's.
//
// Where a pool has most of a machine's few cores, Linux may look for no idle one among them (they
// were busy just now) and queue the worker behind its caller, which does not sleep before the work
// is done: until the balancer comes by, tens of milliseconds later, the caller works alone. So the
// core is taken from the worker's set for as long as it takes to wake up.
#if defined(__linux__)
class WakingPlace {
 public:
  // Called for a thread that sleeps, by the one that is about to wake it.
  void move_away_from_here(pthread_t thread) {
    if (left_.load(std::memory_order_acquire) >= 0) return;  // and has not woken up since
    const int here = sched_getcpu();
    cpu_set_t set;
    if (here < 0 || here >= CPU_SETSIZE || pthread_getaffinity_np(thread, sizeof set, &set) != 0) {
      return;
    }
    if (!CPU_ISSET(static_cast<std::size_t>(here), &set) || CPU_COUNT(&set) == 1) return;
    CPU_CLR(static_cast<std::size_t>(here), &set);
    if (pthread_setaffinity_np(thread, sizeof set, &set) != 0) return;
    left_.store(here, std::memory_order_release);
  }
  // Called by that thread when it is awake. Whatever else became of its set meanwhile stays.
  void come_home() {
    const int left = left_.load(std::memory_order_acquire);
    if (left < 0) return;
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0) {
      CPU_SET(static_cast<std::size_t>(left), &set);
      sched_setaffinity(0, sizeof set, &set);
    }
    left_.store(-1, std::memory_order_release);
  }

 private:
  std::atomic<int> left_{-1};  // the core that was taken; negative: none
};

// Up to so many cores; a scheduler with more finds one, and the calls would add up.
constexpr int kFewCores = 16;

// KVIK_KEEP_AFFINITY=1: for sandboxes that punish a change of the threads' sets of cores.
bool may_place(int threads) {
  const char* keep = std::getenv("KVIK_KEEP_AFFINITY");
  if (keep != nullptr && *keep != '\0' && std::string_view(keep) != "0") return false;
  const int cores = available_cores();
  return threads <= cores && cores <= kFewCores && 2 * threads > cores;
}
#else
class WakingPlace {
 public:
  void move_away_from_here(pthread_t) {}
  void come_home() {}
};
bool may_place(int) {
  return false;
}
#endif

// One worker thread and its mailbox, on a cache line of its own. The caller writes the share, then
// makes `ticket` odd: open. Whoever makes it even again has claimed the share, be it the worker or,
// when the worker has not come to it, the caller; they run it, write `error` and count down.
//
// A mailbox and not one counter for all: in quiet times each thread meets the same share of every
// weight at every step, still in its core's cache, and touches no line that the others fight for.
struct alignas(kAlignment) Worker {
  std::atomic<std::uint32_t> ticket{0};
  const ParallelBody* body = nullptr;  // null: exit
  int workers = 0;
  std::exception_ptr error;
  std::thread thread;
  std::atomic<bool> asleep{false};
  WakingPlace place;

  void post(const ParallelBody* new_body, int new_workers, bool place_it) {
    body = new_body;
    workers = new_workers;
    if (place_it && asleep.load(std::memory_order_relaxed)) {
      place.move_away_from_here(thread.native_handle());
    }
    ticket.fetch_add(1, std::memory_order_release);
    ticket.notify_one();
  }

  // True when a share was open and is now the calling thread's. `seen`: the ticket, as it is after
  // the attempt; even then.
  bool claim(std::uint32_t& seen) {
    while (seen % 2 != 0) {
      if (ticket.compare_exchange_weak(seen, seen + 1, std::memory_order_acq_rel,
                                       std::memory_order_acquire)) {
        ++seen;
        return true;
      }
    }
    return false;
  }
};

// What is left of a thread's own part of a shared range; on a cache line of its own.
struct alignas(kAlignment) Part {
  std::atomic<std::int64_t> next{0};
  std::int64_t end = 0;
};

}  // namespace

Range split_range(std::int64_t total, int worker, int workers, std::int64_t grain) {
  const std::int64_t grains = total / grain + (total % grain != 0);
  const std::int64_t each = grains / workers;
  const std::int64_t extra = grains % workers;  // the first `extra` workers take one grain more
  const std::int64_t begin = worker * each + std::min<std::int64_t>(worker, extra);
  const std::int64_t end = begin + each + (worker < extra ? 1 : 0);
  return {std::min(begin * grain, total), std::min(end * grain, total)};
}

struct ThreadPool::Impl {
  explicit Impl(int thread_count)
      : threads(thread_count),
        spin(thread_count <= available_cores()),
        place(may_place(thread_count)),
        waiter(spin),
        workers(static_cast<std::size_t>(thread_count - 1)),
        parts(static_cast<std::size_t>(thread_count)) {}

  const int threads;
  const bool spin;   // false when there are more threads than cores: spinning would keep work away
  const bool place;  // whether workers are told where to wake up
  std::mutex mutex;  // held for the length of a run: callers queue here
  Waiter waiter;     // of the caller; guarded by mutex
  std::vector<Worker> workers;  // worker i + 1 of the body
  std::vector<Part> parts;      // of share(), one for each thread; guarded by mutex
  std::size_t started = 0;      // how many of them have a thread
  std::atomic<bool> any_started{false};
  std::uint32_t home_fork_count = 0;  // fork_count when the first thread started
  // Shares of the present job that have yet to be finished, the caller's own aside.
  alignas(kAlignment) std::atomic<std::uint32_t> pending{0};

  // True in a child process that inherited this pool without its threads.
  bool orphaned() const {
    return any_started.load(std::memory_order_acquire) &&
           home_fork_count != fork_count.load(std::memory_order_relaxed);
  }

  std::unique_lock<std::mutex> begin();
  void start();
  void loop(Worker& self, int index);
  void run_share(Worker& share, int index);
  void run(const ParallelBody& body, int count);
  void stop();
};

namespace {
// The pool whose body this thread is inside of: a nested run would wait for itself.
thread_local const void* inside = nullptr;

// Sets `inside` for the length of a body.
struct InsideScope {
  explicit InsideScope(const void* pool) : outer(inside) { inside = pool; }
  ~InsideScope() { inside = outer; }
  const void* outer;
};
}  // namespace

// The right to run a job: callers queue up.
std::unique_lock<std::mutex> ThreadPool::Impl::begin() {
  // Before the lock: the parent may have forked while another of its threads held it.
  if (orphaned()) {
    throw Error(ErrorCode::kInvalidArgument,
                "this thread pool was started before fork() and has no threads in the child "
                "process; load the model after the fork");
  }
  if (inside == this) {
    throw Error(ErrorCode::kInternal, "a thread pool was called from within one of its own bodies");
  }
  return std::unique_lock(mutex);
}

void ThreadPool::Impl::start() {
  if (started == workers.size()) return;
  if (!any_started.load(std::memory_order_relaxed)) {
    watch_forks();
    home_fork_count = fork_count.load(std::memory_order_relaxed);
    any_started.store(true, std::memory_order_release);
  }
  // Signals are the business of the application's own threads.
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  try {
    for (; started < workers.size(); ++started) {
      Worker& worker = workers[started];
      const int index = static_cast<int>(started) + 1;
      worker.thread = std::thread([this, &worker, index] { loop(worker, index); });
    }
  } catch (const std::system_error& error) {
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
    throw Error(ErrorCode::kOutOfMemory,
                "cannot start worker thread " + std::to_string(started + 1) + " of " +
                    std::to_string(workers.size()) + " (" + error.what() +
                    "); ask for fewer threads or raise the process's thread limit");
  }
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

// Runs a share that the calling thread has claimed.
void ThreadPool::Impl::run_share(Worker& share, int index) {
  try {
    const InsideScope scope(this);
    (*share.body)(index, share.workers);
  } catch (...) {
    share.error = std::current_exception();
  }
}

void ThreadPool::Impl::loop(Worker& self, int index) {
  std::uint32_t seen = 0;
  Waiter self_waiter(spin);
  for (;;) {
    seen = self_waiter.wait_while(self.ticket, seen, &self.asleep);
    self.place.come_home();
    if (!self.claim(seen)) {
      self_waiter.came_late();
      continue;
    }
    if (self.body == nullptr) return;
    run_share(self, index);
    if (pending.fetch_sub(1, std::memory_order_acq_rel) == 1) pending.notify_one();
  }
}

void ThreadPool::Impl::run(const ParallelBody& body, int count) {
  const int helpers = count - 1;
  pending.store(static_cast<std::uint32_t>(helpers), std::memory_order_relaxed);
  for (int i = 0; i < helpers; ++i) workers[static_cast<std::size_t>(i)].post(&body, count, place);
  std::exception_ptr error;
  try {
    const InsideScope scope(this);
    body(0, count);
  } catch (...) {
    error = std::current_exception();
  }
  // What nobody has begun would be later in any other hands. From the last: it was posted last.
  std::uint32_t taken = 0;
  for (int i = helpers - 1; i >= 0; --i) {
    Worker& share = workers[static_cast<std::size_t>(i)];
    std::uint32_t seen = share.ticket.load(std::memory_order_relaxed);
    if (!share.claim(seen)) continue;
    run_share(share, i + 1);
    ++taken;
  }
  std::uint32_t left = pending.load(std::memory_order_acquire);
  if (taken > 0) left = pending.fetch_sub(taken, std::memory_order_acq_rel) - taken;
  while (left != 0) left = waiter.wait_while(pending, left);
  // Of several failures the lowest worker's is reported, whichever came first.
  for (int i = 0; i < helpers; ++i) {
    Worker& share = workers[static_cast<std::size_t>(i)];
    if (!error) error = share.error;
    share.error = nullptr;
  }
  if (error) std::rethrow_exception(error);
}

void ThreadPool::Impl::stop() {
  for (std::size_t i = 0; i < started; ++i) workers[i].post(nullptr, 0, false);
  for (std::size_t i = 0; i < started; ++i) workers[i].thread.join();
}

ThreadPool::ThreadPool(int threads) {
  if (threads < 1) {
    throw Error(ErrorCode::kInvalidArgument,
                "a thread pool of " + std::to_string(threads) + " threads; expected at least 1");
  }
  impl_ = std::make_unique<Impl>(threads);
}

ThreadPool::~ThreadPool() {
  if (impl_->orphaned()) {
    // The threads live in the parent: there is nothing to join, and their handles can't be
    // destroyed. The memory goes with the child.
    (void)impl_.release();
    return;
  }
  impl_->stop();
}

int ThreadPool::threads() const {
  return impl_->threads;
}

void ThreadPool::run(ParallelBody body, int limit) {
  const std::unique_lock lock = impl_->begin();
  const int count = std::clamp(limit, 1, impl_->threads);
  if (count > 1) impl_->start();
  impl_->run(body, count);
}

void ThreadPool::share(std::int64_t total, std::int64_t piece, PartBody body) {
  const std::unique_lock lock = impl_->begin();
  const auto count = static_cast<int>(std::clamp<std::int64_t>(total, 1, impl_->threads));
  if (count > 1) impl_->start();
  for (int i = 0; i < count; ++i) {
    const Range own = split_range(total, i, count);
    Part& part = impl_->parts[static_cast<std::size_t>(i)];
    part.next.store(own.begin, std::memory_order_relaxed);  // made known by the post of the job
    part.end = own.end;
  }
  const auto take = [&](int worker, int workers) {
    for (int i = 0; i < workers; ++i) {
      Part& part = impl_->parts[static_cast<std::size_t>((worker + i) % workers)];
      // Not beyond the end: a part that is looked at again and again must not run over.
      while (part.next.load(std::memory_order_relaxed) < part.end) {
        const std::int64_t begin = part.next.fetch_add(piece, std::memory_order_relaxed);
        if (begin < part.end) body(worker, begin, std::min(begin + piece, part.end));
      }
    }
  };
  impl_->run(take, count);
}

}  // namespace kvik
