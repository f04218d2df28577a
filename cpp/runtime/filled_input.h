// What the engine feeds an input of a graph that it runs as it stands.
#pragma once

#include <cstdint>

#include "base/aligned_buffer.h"
#include "base/tensor.h"

namespace kvik::runtime {

// [1, tokens] or [tokens] of any numeric type, element i = number(i).
class FilledInput {
 public:
  template <typename F>
  FilledInput(DType dtype, int rank, std::int64_t count, const F& number)
      : memory_(static_cast<std::size_t>(count) * 8) {
    tensor_ = {
        .dtype = dtype, .dims = rank == 1 ? Dims{count} : Dims{1, count}, .data = memory_.data()};
    for (std::int64_t i = 0; i < count; ++i) {
      const std::int64_t value = number(i);
      switch (dtype) {
        case DType::kI64: tensor_.as<std::int64_t>()[i] = value; break;
        case DType::kI32: tensor_.as<std::int32_t>()[i] = static_cast<std::int32_t>(value); break;
        case DType::kF32: tensor_.as<float>()[i] = static_cast<float>(value); break;
        default: tensor_.as<std::uint8_t>()[i] = value != 0; break;  // bool
      }
    }
  }
  const Tensor& tensor() const { return tensor_; }

 private:
  AlignedBuffer memory_;
  Tensor tensor_;
};

}  // namespace kvik::runtime
