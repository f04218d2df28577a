// Owned memory aligned for SIMD.
#pragma once

#include <cstddef>
#include <utility>

namespace kvik {

inline constexpr std::size_t kAlignment = 64;  // a cache line, and one AVX-512 register

// Uninitialised bytes aligned to kAlignment. Movable; frees on destruction.
class AlignedBuffer {
 public:
  AlignedBuffer() = default;
  // Throws kvik::Error(kOutOfMemory) when the memory can't be had.
  explicit AlignedBuffer(std::size_t bytes);
  ~AlignedBuffer();
  AlignedBuffer(AlignedBuffer&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}
  AlignedBuffer& operator=(AlignedBuffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
  }

  void* data() const { return data_; }
  std::size_t size() const { return size_; }
  template <typename T>
  T* as() const {
    return static_cast<T*>(data_);
  }

 private:
  void* data_ = nullptr;
  std::size_t size_ = 0;
};

}  // namespace kvik
