// Memory of intermediate values: counted against a limit, and reused within a run.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>

#include "base/aligned_buffer.h"

namespace kvik::runtime {

// Buffers for one run. A buffer that is released is kept for the next value of a similar size;
// what is kept counts, and is given back before the limit is declared exceeded.
class BufferPool : public std::enable_shared_from_this<BufferPool> {
 public:
  // max_bytes bounds what is alive at any moment, kept buffers included.
  static std::shared_ptr<BufferPool> create(std::int64_t max_bytes) {
    return std::shared_ptr<BufferPool>(new BufferPool(max_bytes));
  }

  // At least `bytes` bytes, uninitialised. Throws kOutOfMemory beyond the limit. The buffer returns
  // to the pool when the last reference goes; it may outlive every other use of the pool.
  std::shared_ptr<const AlignedBuffer> allocate(std::size_t bytes);

  // From here on released buffers are freed, as are those that were kept.
  void stop_keeping();

  std::int64_t peak_bytes() const;

 private:
  explicit BufferPool(std::int64_t max_bytes) : max_bytes_(max_bytes) {}
  void release(AlignedBuffer buffer);
  void free_kept();

  mutable std::mutex mutex_;
  std::multimap<std::size_t, AlignedBuffer> kept_;  // by size
  std::int64_t max_bytes_;
  std::int64_t bytes_ = 0;
  std::int64_t peak_ = 0;
  bool keeping_ = true;
};

}  // namespace kvik::runtime
