// A view of a tensor's elements; it owns nothing.
#pragma once

#include <cstdint>

#include "base/dims.h"
#include "kvik/dtype.h"

namespace kvik {

struct Tensor {
  DType dtype = DType::kUndefined;
  Dims dims;             // row-major
  void* data = nullptr;  // null only when there are no elements
  // Elements between consecutive slices along dimension 0; within a slice the elements are
  // contiguous. 0 means contiguous throughout. Only operators that say so receive anything else.
  std::int64_t row_stride = 0;

  std::int64_t elements() const { return dims.elements(); }
  bool contiguous() const { return row_stride == 0; }
  template <typename T>
  T* as() const {
    return static_cast<T*>(data);
  }
};

}  // namespace kvik
