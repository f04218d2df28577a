// From a dtype known at run time to a C++ type: one switch for the whole library.
//
// A body is a generic lambda, `[&]<typename T>() { ... }`. Booleans are stored as bytes; a byte of
// a file's boolean tensor may hold any value, so bodies compare it with zero and never read a
// `bool`.
#pragma once

#include <cstdint>
#include <string>
#include <type_traits>
#include <utility>

#include "base/float16.h"
#include "kvik/dtype.h"
#include "kvik/error.h"

namespace kvik::ops {

template <typename T>
inline constexpr bool kIsHalf = std::is_same_v<T, Float16> || std::is_same_v<T, BFloat16>;
template <typename T>
inline constexpr bool kIsFloat = kIsHalf<T> || std::is_floating_point_v<T>;

// The type that values of T are computed in: float for the 16-bit floats, else T itself.
template <typename T>
using Compute = std::conditional_t<kIsHalf<T>, float, T>;

template <typename T>
Compute<T> widen(T value) {
  return static_cast<Compute<T>>(value);
}
template <typename T>
T narrow(Compute<T> value) {
  return static_cast<T>(value);
}

[[noreturn]] void fail_dtype(DType dtype);

// Calls body with the storage type of a floating-point dtype; kUnsupported for any other.
template <typename F>
decltype(auto) visit_float(DType dtype, F&& body) {
  switch (dtype) {
    case DType::kF32: return body.template operator()<float>();
    case DType::kF16: return body.template operator()<Float16>();
    case DType::kBF16: return body.template operator()<BFloat16>();
    case DType::kF64: return body.template operator()<double>();
    default: fail_dtype(dtype);
  }
}

// The same for integers of 8 bits and more.
template <typename F>
decltype(auto) visit_integer(DType dtype, F&& body) {
  switch (dtype) {
    case DType::kI8: return body.template operator()<std::int8_t>();
    case DType::kU8: return body.template operator()<std::uint8_t>();
    case DType::kI16: return body.template operator()<std::int16_t>();
    case DType::kU16: return body.template operator()<std::uint16_t>();
    case DType::kI32: return body.template operator()<std::int32_t>();
    case DType::kU32: return body.template operator()<std::uint32_t>();
    case DType::kI64: return body.template operator()<std::int64_t>();
    case DType::kU64: return body.template operator()<std::uint64_t>();
    default: fail_dtype(dtype);
  }
}

// Floats and integers.
template <typename F>
decltype(auto) visit_numeric(DType dtype, F&& body) {
  if (dtype_is_float(dtype)) return visit_float(dtype, std::forward<F>(body));
  return visit_integer(dtype, std::forward<F>(body));
}

// Unsigned integers of 1, 2, 4 or 8 bytes, for operators that move elements and never read them.
template <typename F>
decltype(auto) visit_size(DType dtype, F&& body) {
  switch (dtype_bits(dtype)) {
    case 8: return body.template operator()<std::uint8_t>();
    case 16: return body.template operator()<std::uint16_t>();
    case 32: return body.template operator()<std::uint32_t>();
    case 64: return body.template operator()<std::uint64_t>();
    default: fail_dtype(dtype);
  }
}

}  // namespace kvik::ops
