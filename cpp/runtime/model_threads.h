// The threads of a model, for what is computed from its logits.
#pragma once

#include "base/thread_pool.h"
#include "kvik/model.h"

namespace kvik {

class ModelThreads {
 public:
  // As ThreadPool::run(), on `most` threads at most; waits for a forward() of another thread.
  static void run(const Model& model, int most, ParallelBody body);
};

}  // namespace kvik
