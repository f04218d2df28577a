// ONNX's numbering of element types, as it appears in attributes ("to", "dtype").
#pragma once

#include <cstdint>

#include "kvik/dtype.h"

namespace kvik::ops {

// The dtype of a TensorProto.DataType number. Throws kUnsupported for those that Kvik lacks.
DType dtype_from_onnx(std::int64_t number);

}  // namespace kvik::ops
