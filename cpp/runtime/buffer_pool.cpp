#include "runtime/buffer_pool.h"

#include <algorithm>
#include <string>

#include "kvik/error.h"

namespace kvik::runtime {

std::shared_ptr<const AlignedBuffer> BufferPool::allocate(std::size_t bytes) {
  AlignedBuffer buffer;
  {
    const std::lock_guard lock(mutex_);
    const auto it = kept_.lower_bound(bytes);
    // A buffer more than twice too large stays for a value that needs it.
    if (it != kept_.end() && (it->first <= 2 * bytes || it->first <= 4096)) {
      buffer = std::move(it->second);
      kept_.erase(it);
    } else {
      const auto fits = [&] {
        return bytes <= static_cast<std::size_t>(max_bytes_) &&
               bytes_ <= max_bytes_ - static_cast<std::int64_t>(bytes);
      };
      if (!fits()) free_kept();
      if (!fits()) {
        throw Error(ErrorCode::kOutOfMemory,
                    "a value of " + std::to_string(bytes) + " bytes would exceed the budget of " +
                        std::to_string(max_bytes_) + " bytes for intermediate values (" +
                        std::to_string(bytes_) + " are in use)");
      }
      buffer = AlignedBuffer(bytes);
      bytes_ += static_cast<std::int64_t>(bytes);
      peak_ = std::max(peak_, bytes_);
    }
  }
  // The deleter holds the pool, so that a result may outlive its run.
  auto* owned = new AlignedBuffer(std::move(buffer));
  return {owned, [pool = shared_from_this()](const AlignedBuffer* dead) {
            pool->release(std::move(*const_cast<AlignedBuffer*>(dead)));
            delete dead;
          }};
}

void BufferPool::release(AlignedBuffer buffer) {
  const std::lock_guard lock(mutex_);
  if (keeping_) {
    kept_.emplace(buffer.size(), std::move(buffer));
  } else {
    bytes_ -= static_cast<std::int64_t>(buffer.size());
  }
}

void BufferPool::free_kept() {
  for (const auto& [size, buffer] : kept_) bytes_ -= static_cast<std::int64_t>(size);
  kept_.clear();
}

void BufferPool::stop_keeping() {
  const std::lock_guard lock(mutex_);
  keeping_ = false;
  free_kept();
}

std::int64_t BufferPool::peak_bytes() const {
  const std::lock_guard lock(mutex_);
  return peak_;
}

}  // namespace kvik::runtime
