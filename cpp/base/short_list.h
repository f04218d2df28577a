// A list that is nearly always short (axes, sizes, repeats), held inline: making one allocates
// nothing unless it has more than kInline elements.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <span>
#include <vector>

namespace kvik {

template <typename T>
class ShortList {
 public:
  static constexpr std::size_t kInline = 16;

  ShortList() = default;
  explicit ShortList(std::size_t count, T value = T()) { resize(count, value); }

  void resize(std::size_t count, T value = T()) {
    while (size_ < count) push_back(value);
    if (!heap_.empty()) heap_.resize(count);
    size_ = count;
  }
  void push_back(T value) {
    if (size_ < kInline && heap_.empty()) {
      inline_[size_++] = value;
      return;
    }
    if (heap_.empty()) heap_.assign(inline_.begin(), inline_.end());
    heap_.push_back(value);
    ++size_;
  }

  std::size_t size() const { return size_; }
  bool empty() const { return size_ == 0; }
  T* data() { return heap_.empty() ? inline_.data() : heap_.data(); }
  const T* data() const { return heap_.empty() ? inline_.data() : heap_.data(); }
  T* begin() { return data(); }
  T* end() { return data() + size_; }
  const T* begin() const { return data(); }
  const T* end() const { return data() + size_; }
  T& operator[](std::size_t i) { return data()[i]; }
  const T& operator[](std::size_t i) const { return data()[i]; }
  T& back() { return data()[size_ - 1]; }
  const T& back() const { return data()[size_ - 1]; }

 private:
  std::array<T, kInline> inline_{};
  std::vector<T> heap_;  // all elements, once there are more than kInline
  std::size_t size_ = 0;
};

}  // namespace kvik
