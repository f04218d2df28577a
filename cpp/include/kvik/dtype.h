// Element types of tensors.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kvik/export.h"

namespace kvik {

enum class DType : std::uint8_t {
  kUndefined = 0,
  kF32,
  kF16,
  kBF16,
  kF64,
  kI8,
  kU8,
  kI16,
  kU16,
  kI32,
  kU32,
  kI64,
  kU64,
  kBool,
  kI4,
  kU4,      // two elements a byte, the first in the low nibble
  kString,  // recognised in files, never computed with
};

// "float32", "int64", ...: the names numpy uses ("int4" and "bfloat16" where it has none).
KVIK_API const char* dtype_name(DType dtype) noexcept;

// Bits per element; 0 for kUndefined and kString.
KVIK_API std::size_t dtype_bits(DType dtype) noexcept;

KVIK_API bool dtype_is_float(DType dtype) noexcept;
KVIK_API bool dtype_is_integer(DType dtype) noexcept;  // i8 .. u64, i4, u4; not bool

}  // namespace kvik
