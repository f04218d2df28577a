// ConstantTensor: reading and making the elements of constants.
#include <cmath>
#include <cstring>
#include <limits>

#include "base/checked.h"
#include "graph/graph.h"
#include "kvik/error.h"

namespace kvik::graph {

namespace {

template <typename T>
T load(const std::byte* p) {
  T value;
  std::memcpy(&value, p, sizeof(T));  // constants in a file may be unaligned
  return value;
}

double half_to_double(std::uint16_t bits) {
  const double sign = (bits & 0x8000) ? -1.0 : 1.0;
  const int exponent = (bits >> 10) & 31;
  const int mantissa = bits & 1023;
  if (exponent == 31) {
    return mantissa ? std::numeric_limits<double>::quiet_NaN()
                    : sign * std::numeric_limits<double>::infinity();
  }
  if (exponent == 0) return sign * std::ldexp(mantissa, -24);
  return sign * std::ldexp(1024 + mantissa, exponent - 25);
}

double bfloat16_to_double(std::uint16_t bits) {
  const std::uint32_t wide = static_cast<std::uint32_t>(bits) << 16;
  float value;
  std::memcpy(&value, &wide, sizeof value);
  return value;
}

std::int64_t nibble(const std::byte* data, std::int64_t i, bool is_signed) {
  const int byte = std::to_integer<int>(data[i / 2]);
  const int value = (i % 2 == 0) ? byte & 15 : byte >> 4;
  return is_signed && value >= 8 ? value - 16 : value;
}

// Where element i begins, after checking that it is there.
const std::byte* element(const ConstantTensor& tensor, std::int64_t i) {
  const auto needed = checked_bytes(tensor.dims.elements(), tensor.dtype);
  if (i < 0 || i >= tensor.dims.elements() || !needed ||
      static_cast<std::size_t>(*needed) > tensor.data.size()) {
    throw Error(ErrorCode::kInternal, "element " + std::to_string(i) + " of a constant of dims " +
                                          tensor.dims.str() + " does not exist");
  }
  return tensor.data.data() + static_cast<std::size_t>(i) * (dtype_bits(tensor.dtype) / 8);
}

[[noreturn]] void throw_dtype(const char* wanted, DType found) {
  throw Error(ErrorCode::kInvalidModel, std::string("a constant of ") + dtype_name(found) +
                                            " where " + wanted + " is needed");
}

std::span<const std::byte> as_bytes(const std::byte* data, std::size_t size) {
  return {data, size};
}

}  // namespace

std::int64_t ConstantTensor::int_at(std::int64_t i) const {
  if (!dtype_is_integer(dtype) && dtype != DType::kBool) throw_dtype("an integer", dtype);
  const std::byte* p = element(*this, i);
  switch (dtype) {
    case DType::kBool: return load<std::uint8_t>(p) != 0;
    case DType::kI8: return load<std::int8_t>(p);
    case DType::kU8: return load<std::uint8_t>(p);
    case DType::kI16: return load<std::int16_t>(p);
    case DType::kU16: return load<std::uint16_t>(p);
    case DType::kI32: return load<std::int32_t>(p);
    case DType::kU32: return load<std::uint32_t>(p);
    case DType::kI64: return load<std::int64_t>(p);
    case DType::kI4: return nibble(data.data(), i, true);
    case DType::kU4: return nibble(data.data(), i, false);
    case DType::kU64: {
      const auto value = load<std::uint64_t>(p);
      if (value > static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max())) {
        throw Error(ErrorCode::kUnsupported,
                    "the uint64 constant " + std::to_string(value) + " exceeds the range of int64");
      }
      return static_cast<std::int64_t>(value);
    }
    default: throw_dtype("an integer", dtype);
  }
}

double ConstantTensor::float_at(std::int64_t i) const {
  switch (dtype) {
    case DType::kF32: return load<float>(element(*this, i));
    case DType::kF64: return load<double>(element(*this, i));
    case DType::kF16: return half_to_double(load<std::uint16_t>(element(*this, i)));
    case DType::kBF16: return bfloat16_to_double(load<std::uint16_t>(element(*this, i)));
    case DType::kU64: return static_cast<double>(load<std::uint64_t>(element(*this, i)));
    case DType::kUndefined:
    case DType::kString: throw_dtype("a number", dtype);
    default: return static_cast<double>(int_at(i));
  }
}

std::vector<std::int64_t> ConstantTensor::ints() const {
  std::vector<std::int64_t> out;
  const std::int64_t count = dims.elements();
  if (!dtype_is_integer(dtype) && dtype != DType::kBool) throw_dtype("integers", dtype);
  out.reserve(static_cast<std::size_t>(count));
  for (std::int64_t i = 0; i < count; ++i) out.push_back(int_at(i));
  return out;
}

ConstantTensor ConstantTensor::allocate(DType dtype, Dims dims) {
  const auto elements = checked_elements(dims.span());
  const auto bytes = elements ? checked_bytes(*elements, dtype) : std::nullopt;
  if (!bytes || dtype_bits(dtype) == 0) {
    throw Error(ErrorCode::kInternal,
                std::string("no constant of ") + dtype_name(dtype) + " " + dims.str());
  }
  ConstantTensor tensor;
  tensor.dtype = dtype;
  tensor.dims = dims;
  try {
    auto memory = std::make_shared<std::vector<std::byte>>(static_cast<std::size_t>(*bytes));
    tensor.data = as_bytes(memory->data(), memory->size());
    tensor.owner = std::move(memory);
  } catch (const std::exception&) {  // bad_alloc or length_error
    throw Error(ErrorCode::kOutOfMemory,
                "cannot allocate a constant of " + std::to_string(*bytes) + " bytes");
  }
  return tensor;
}

ConstantTensor ConstantTensor::from_ints(std::span<const std::int64_t> values, Dims dims) {
  ConstantTensor tensor = allocate(DType::kI64, dims);
  if (tensor.data.size() != values.size_bytes()) {
    throw Error(ErrorCode::kInternal,
                std::to_string(values.size()) + " values for dims " + dims.str());
  }
  if (!values.empty()) std::memcpy(tensor.mutable_data(), values.data(), values.size_bytes());
  return tensor;
}

ConstantTensor ConstantTensor::from_floats(std::span<const float> values, Dims dims) {
  ConstantTensor tensor = allocate(DType::kF32, dims);
  if (tensor.data.size() != values.size_bytes()) {
    throw Error(ErrorCode::kInternal,
                std::to_string(values.size()) + " values for dims " + dims.str());
  }
  if (!values.empty()) std::memcpy(tensor.mutable_data(), values.data(), values.size_bytes());
  return tensor;
}

}  // namespace kvik::graph
