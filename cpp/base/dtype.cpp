#include "kvik/dtype.h"

namespace kvik {

const char* dtype_name(DType dtype) noexcept {
  switch (dtype) {
    case DType::kUndefined: return "undefined";
    case DType::kF32: return "float32";
    case DType::kF16: return "float16";
    case DType::kBF16: return "bfloat16";
    case DType::kF64: return "float64";
    case DType::kI8: return "int8";
    case DType::kU8: return "uint8";
    case DType::kI16: return "int16";
    case DType::kU16: return "uint16";
    case DType::kI32: return "int32";
    case DType::kU32: return "uint32";
    case DType::kI64: return "int64";
    case DType::kU64: return "uint64";
    case DType::kBool: return "bool";
    case DType::kI4: return "int4";
    case DType::kU4: return "uint4";
    case DType::kString: return "string";
  }
  return "undefined";
}

std::size_t dtype_bits(DType dtype) noexcept {
  switch (dtype) {
    case DType::kUndefined:
    case DType::kString: return 0;
    case DType::kI4:
    case DType::kU4: return 4;
    case DType::kI8:
    case DType::kU8:
    case DType::kBool: return 8;
    case DType::kF16:
    case DType::kBF16:
    case DType::kI16:
    case DType::kU16: return 16;
    case DType::kF32:
    case DType::kI32:
    case DType::kU32: return 32;
    case DType::kF64:
    case DType::kI64:
    case DType::kU64: return 64;
  }
  return 0;
}

bool dtype_is_float(DType dtype) noexcept {
  return dtype == DType::kF32 || dtype == DType::kF16 || dtype == DType::kBF16 ||
         dtype == DType::kF64;
}

bool dtype_is_integer(DType dtype) noexcept {
  switch (dtype) {
    case DType::kI8:
    case DType::kU8:
    case DType::kI16:
    case DType::kU16:
    case DType::kI32:
    case DType::kU32:
    case DType::kI64:
    case DType::kU64:
    case DType::kI4:
    case DType::kU4: return true;
    default: return false;
  }
}

}  // namespace kvik
