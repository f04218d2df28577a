// The threads of a model, for what is computed from its logits.
#pragma once

#include "base/thread_pool.h"
#include "kvik/model.h"

namespace kvik {

class ModelThreads {
 public:
  // As ThreadPool::run(); waits for a forward() of another thread.
  static void run(const Model& model, ParallelBody body);
};

}  // namespace kvik
