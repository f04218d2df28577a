// The dimensions of a tensor, held inline so that no shape is ever allocated on a hot path.
#pragma once

#include <array>
#include <cstdint>
#include <initializer_list>
#include <span>
#include <string>

namespace kvik {

inline constexpr int kMaxRank = 8;

// Row-major dimensions, outermost first. Rank 0 is a scalar with one element.
struct Dims {
  std::array<std::int64_t, kMaxRank> d{};
  int rank = 0;

  Dims() = default;
  Dims(std::initializer_list<std::int64_t> values);
  explicit Dims(std::span<const std::int64_t> values);  // throws kUnsupported above kMaxRank

  std::int64_t& operator[](int i) { return d[static_cast<std::size_t>(i)]; }
  std::int64_t operator[](int i) const { return d[static_cast<std::size_t>(i)]; }
  std::int64_t back() const { return d[static_cast<std::size_t>(rank - 1)]; }
  void push_back(std::int64_t value);

  const std::int64_t* begin() const { return d.data(); }
  const std::int64_t* end() const { return d.data() + rank; }
  std::span<const std::int64_t> span() const { return {begin(), end()}; }

  // Product of all dimensions; 1 for a scalar. Dimensions were checked when the tensor was made,
  // so the product does not wrap.
  std::int64_t elements() const;
  // Product of the dimensions in [first, last).
  std::int64_t elements(int first, int last) const;

  bool operator==(const Dims& other) const;
  std::string str() const;  // "[2, 3, 768]"
};

}  // namespace kvik
