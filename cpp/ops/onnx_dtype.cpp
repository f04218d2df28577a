#include "ops/onnx_dtype.h"

#include <string>

#include "kvik/error.h"

namespace kvik::ops {

DType dtype_from_onnx(std::int64_t number) {
  switch (number) {
    case 1: return DType::kF32;
    case 2: return DType::kU8;
    case 3: return DType::kI8;
    case 4: return DType::kU16;
    case 5: return DType::kI16;
    case 6: return DType::kI32;
    case 7: return DType::kI64;
    case 9: return DType::kBool;
    case 10: return DType::kF16;
    case 11: return DType::kF64;
    case 12: return DType::kU32;
    case 13: return DType::kU64;
    case 16: return DType::kBF16;
    case 21: return DType::kU4;
    case 22: return DType::kI4;
    default:
      throw Error(ErrorCode::kUnsupported,
                  "the ONNX element type " + std::to_string(number) + " is not supported");
  }
}

}  // namespace kvik::ops
