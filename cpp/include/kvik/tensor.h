// Tensors as they go in and out of a model, and what the model says of them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "kvik/dtype.h"
#include "kvik/export.h"

namespace kvik {

// One dimension of an input or output. Exactly one of the two is meaningful: `size` when it is
// not negative, else the expression over the file's symbolic dimensions ("batch", "sequence",
// "2*batch"); empty where nothing is known.
struct Dimension {
  std::int64_t size = -1;
  std::string symbol;
};

// What the model says of an input or output.
struct TensorInfo {
  std::string name;
  DType dtype = DType::kUndefined;
  bool has_shape = false;        // false: not even the rank is known
  std::vector<Dimension> shape;  // outermost first; empty for a scalar
};

// Somebody else's elements: contiguous, row-major, native endianness, aligned for their type.
// Borrowed: `dims` and `data` must outlive the call that they are passed to.
struct TensorView {
  DType dtype = DType::kUndefined;
  std::span<const std::int64_t> dims;  // outermost first; empty for a scalar
  const void* data = nullptr;          // may be null when there are no elements
};

// A result that owns its elements: contiguous, row-major. Copies share the elements.
struct OwnedTensor {
  DType dtype = DType::kUndefined;
  std::vector<std::int64_t> dims;
  std::shared_ptr<void> data;  // null when there are no elements

  template <typename T>
  const T* as() const {
    return static_cast<const T*>(data.get());
  }
  KVIK_API std::int64_t elements() const;
  KVIK_API std::size_t bytes() const;
};

}  // namespace kvik
