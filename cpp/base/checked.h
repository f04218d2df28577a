// Arithmetic on sizes that come from files or callers: every overflow is an error, never a wrap.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

#include "kvik/dtype.h"

namespace kvik {

inline bool checked_add(std::int64_t a, std::int64_t b, std::int64_t* out) {
  return !__builtin_add_overflow(a, b, out);
}
inline bool checked_mul(std::int64_t a, std::int64_t b, std::int64_t* out) {
  return !__builtin_mul_overflow(a, b, out);
}

// Number of elements of dims, or nothing where a dimension is negative or the product of those that
// are not 0 overflows: then no product of some of them can wrap either.
inline std::optional<std::int64_t> checked_elements(std::span<const std::int64_t> dims) {
  std::int64_t product = 1;
  bool zero = false;
  for (std::int64_t dim : dims) {
    if (dim < 0) return std::nullopt;
    if (dim == 0) {
      zero = true;
    } else if (!checked_mul(product, dim, &product)) {
      return std::nullopt;
    }
  }
  return zero ? 0 : product;
}

// Bytes that hold `elements` of `dtype` (4-bit types round up), or nothing on overflow.
inline std::optional<std::int64_t> checked_bytes(std::int64_t elements, DType dtype) {
  std::int64_t bits = 0;
  if (elements < 0 || !checked_mul(elements, static_cast<std::int64_t>(dtype_bits(dtype)), &bits) ||
      !checked_add(bits, 7, &bits)) {
    return std::nullopt;
  }
  return bits / 8;
}

}  // namespace kvik
