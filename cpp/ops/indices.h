// Reading index tensors (int32 or int64; negative indices count from the end), checked.
#pragma once

#include "ops/support.h"

namespace kvik::ops {

[[noreturn]] inline void fail_index(std::int64_t index, std::int64_t dim) {
  fail(ErrorCode::kInvalidArgument,
       "index " + std::to_string(index) + " is out of range for an axis of " + std::to_string(dim));
}

// index(i): element i of an index tensor for an axis of `dim`, in [0, dim). Throws
// kInvalidArgument naming the index.
class IndexReader {
 public:
  IndexReader(const Tensor& indices, std::int64_t dim) : data_(indices.data), dim_(dim) {
    wide_ = indices.dtype == DType::kI64;
    if (!wide_ && indices.dtype != DType::kI32) check_dtype(indices, DType::kI64, "indices");
  }
  std::int64_t operator()(std::int64_t i) const {
    const std::int64_t index = wide_ ? static_cast<const std::int64_t*>(data_)[i]
                                     : static_cast<const std::int32_t*>(data_)[i];
    if (index < -dim_ || index >= dim_) fail_index(index, dim_);
    return index < 0 ? index + dim_ : index;
  }

 private:
  const void* data_;
  std::int64_t dim_;
  bool wide_;
};

// tuple(i): the offset that tuple i of an index tensor [..., depth] selects within the axes
// [first, first + depth) of data, in elements.
class TupleReader {
 public:
  TupleReader(const Tensor& indices, const Dims& data, int first, int depth)
      : dims_(data),
        strides_(strides_of(data)),
        first_(first),
        depth_(depth),
        indices_(indices.as<std::int64_t>()) {
    check_dtype(indices, DType::kI64, "indices");
  }
  std::int64_t operator()(std::int64_t i) const {
    std::int64_t offset = 0;
    for (int d = 0; d < depth_; ++d) {
      const std::int64_t dim = dims_[first_ + d];
      const std::int64_t index = indices_[i * depth_ + d];
      if (index < -dim || index >= dim) fail_index(index, dim);
      offset += (index < 0 ? index + dim : index) * strides_[first_ + d];
    }
    return offset;
  }

 private:
  Dims dims_, strides_;
  int first_, depth_;
  const std::int64_t* indices_;
};

// Where element i of the index tensor (of `dims`) points in data with `strides`: its own place,
// with the index along `axis` replaced.
inline std::int64_t element_offset(std::int64_t i, const Dims& dims, const Dims& strides, int axis,
                                   std::int64_t index) {
  std::int64_t offset = index * strides[axis];
  for (int d = dims.rank - 1; d >= 0; --d) {
    if (d != axis) offset += i % dims[d] * strides[d];
    i /= dims[d];
  }
  return offset;
}

// GatherElements and ScatterElements: indices have data's rank and stay within its other axes.
inline void check_indices_fit(const Dims& data, const Dims& indices, int axis) {
  bool fits = data.rank == indices.rank;
  for (int d = 0; fits && d < data.rank; ++d) fits = d == axis || indices[d] <= data[d];
  check(fits, [&] {
    return "indices " + indices.str() + " do not fit data " + data.str() + " along axis " +
           std::to_string(axis);
  });
}

}  // namespace kvik::ops
