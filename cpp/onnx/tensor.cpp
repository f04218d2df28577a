#include "onnx/tensor.h"

#include <algorithm>
#include <cstring>
#include <limits>

#include "base/checked.h"
#include "base/text.h"
#include "kvik/error.h"

namespace kvik::onnx {

namespace {

using graph::ConstantTensor;

constexpr const char* kDataNames[TensorView::kDataFields] = {
    "float_data", "int32_data", "string_data", "int64_data", "double_data", "uint64_data"};
constexpr std::uint32_t kDataNumbers[TensorView::kDataFields] = {4, 5, 6, 7, 10, 11};

[[noreturn]] void fail(const std::string& what, const std::string& message) {
  throw Error(ErrorCode::kInvalidModel, what + ": " + message);
}

// The field that holds elements of this type when they are not in raw_data.
int data_field_of(DType dtype) {
  switch (dtype) {
    case DType::kF32: return TensorView::kFloatData;
    case DType::kF64: return TensorView::kDoubleData;
    case DType::kI64: return TensorView::kInt64Data;
    case DType::kU32:
    case DType::kU64: return TensorView::kUint64Data;
    default: return TensorView::kInt32Data;
  }
}

Dims checked_dims(const TensorView& tensor, const std::string& what) {
  if (tensor.rank > tensor.dims.size()) {
    throw Error(ErrorCode::kUnsupported, what + ": " + std::to_string(tensor.rank) +
                                             " dimensions; Kvik supports up to " +
                                             std::to_string(kMaxRank));
  }
  return Dims(std::span<const std::int64_t>(tensor.dims.data(), tensor.rank));
}

// Bytes of the tensor; refuses negative dimensions and products beyond int64.
std::int64_t checked_size(DType dtype, const Dims& dims, const std::string& what) {
  const auto elements = checked_elements(dims.span());
  const auto bytes = elements ? checked_bytes(*elements, dtype) : std::nullopt;
  if (!bytes) {
    const bool negative = std::any_of(dims.begin(), dims.end(), [](auto d) { return d < 0; });
    fail(what,
         "dims " + dims.str() +
             (negative ? " has a negative dimension" : " has more elements than int64 counts"));
  }
  return *bytes;
}

std::string type_text(DType dtype, const Dims& dims) {
  return std::string(dtype_name(dtype)) + " " + dims.str();
}

void check_bools(const ConstantTensor& tensor, const std::string& what) {
  if (tensor.dtype != DType::kBool) return;
  for (std::size_t i = 0; i < tensor.data.size(); ++i) {
    if (tensor.data[i] > std::byte{1}) {
      fail(what, "bool element " + std::to_string(i) + " is the byte " +
                     std::to_string(std::to_integer<int>(tensor.data[i])) + ", expected 0 or 1");
    }
  }
}

// What int32_data and uint64_data may hold for a type: its own values; the bits of half floats; a
// byte of two elements for 4-bit types.
struct ValueRange {
  std::int64_t low, high;
};
ValueRange range_of(DType dtype) {
  switch (dtype) {
    case DType::kI8: return {-128, 127};
    case DType::kU8: return {0, 255};
    case DType::kI4:
    case DType::kU4: return {-128, 255};
    case DType::kI16: return {-32768, 32767};
    case DType::kU16:
    case DType::kF16:
    case DType::kBF16: return {0, 65535};
    case DType::kI32:
      return {std::numeric_limits<std::int32_t>::min(), std::numeric_limits<std::int32_t>::max()};
    case DType::kU32: return {0, std::numeric_limits<std::uint32_t>::max()};
    case DType::kBool: return {0, 1};
    default:
      return {std::numeric_limits<std::int64_t>::min(), std::numeric_limits<std::int64_t>::max()};
  }
}

// Varints of a packed field: every one ends in a byte below 128.
std::int64_t count_varints(Bytes bytes) {
  return std::count_if(bytes.begin(), bytes.end(), [](std::byte b) { return b < std::byte{128}; });
}

}  // namespace

DType dtype_from_onnx(std::int64_t data_type, const std::string& what) {
  constexpr DType kKnown[] = {DType::kUndefined, DType::kF32,  DType::kU8,  DType::kI8,
                              DType::kU16,       DType::kI16,  DType::kI32, DType::kI64,
                              DType::kString,    DType::kBool, DType::kF16, DType::kF64,
                              DType::kU32,       DType::kU64};
  constexpr std::int64_t kLast = 28;  // of onnx.proto, IR version 14
  if (data_type > 0 && data_type < static_cast<std::int64_t>(std::size(kKnown)) &&
      kKnown[data_type] != DType::kString) {
    return kKnown[data_type];
  }
  if (data_type == 16) return DType::kBF16;
  if (data_type == 21) return DType::kU4;
  if (data_type == 22) return DType::kI4;
  if (data_type <= 0 || data_type > kLast) {
    fail(what, data_type == 0 ? "has no data type (data_type 0, UNDEFINED)"
                              : "data type " + std::to_string(data_type) + " does not exist");
  }
  constexpr const char* kNames[] = {
      "COMPLEX64",      "COMPLEX128", "",          "FLOAT8E4M3FN", "FLOAT8E4M3FNUZ", "FLOAT8E5M2",
      "FLOAT8E5M2FNUZ", "",           "",          "FLOAT4E2M1",   "FLOAT8E8M0",     "UINT2",
      "INT2",           "FLOAT6E2M3", "FLOAT6E3M2"};
  throw Error(ErrorCode::kUnsupported, what + ": the data type " +
                                           (data_type == 8 ? "STRING" : kNames[data_type - 14]) +
                                           " is not supported");
}

ConstantTensor TensorReader::in_place(DType dtype, const Dims& dims, Bytes data,
                                      std::shared_ptr<const void> owner) const {
  ConstantTensor out;
  out.dtype = dtype;
  out.dims = dims;
  out.data = data;
  out.owner = std::move(owner);
  return out;
}

ConstantTensor TensorReader::read(const TensorView& tensor, const std::string& what) {
  source_.budget.take_memory(static_cast<std::int64_t>(sizeof(ConstantTensor)) + 64, what);
  const DType dtype = dtype_from_onnx(tensor.data_type, what);
  if (tensor.has_segment) {
    throw Error(ErrorCode::kUnsupported, what + ": tensors in segments are not supported");
  }
  const Dims dims = checked_dims(tensor, what);
  const std::int64_t bytes = checked_size(dtype, dims, what);
  std::string fields;
  int sources = 0;
  const auto found = [&](const char* name) {
    fields += (sources++ ? " and " : "") + std::string(name);
  };
  if (tensor.is_external) found("external_data");
  // Some writers leave an empty raw_data beside another field: it holds nothing.
  if (tensor.raw_data && !tensor.raw_data->empty()) found("raw_data");
  for (std::size_t f = 0; f < tensor.data.size(); ++f) {
    if (tensor.data[f].chunks > 0) found(kDataNames[f]);
  }
  if (sources > 1) fail(what, "has data in " + fields + "; only one may be used");

  ConstantTensor out;
  if (tensor.is_external) {
    out = read_external(tensor, dtype, dims, bytes, what);
  } else if (tensor.raw_data && !tensor.raw_data->empty()) {
    if (tensor.raw_data->size() != static_cast<std::size_t>(bytes)) {
      fail(what, "raw_data holds " + std::to_string(tensor.raw_data->size()) + " bytes, " +
                     type_text(dtype, dims) + " needs " + std::to_string(bytes));
    }
    out = in_place(dtype, dims, *tensor.raw_data, owner_);
  } else {
    out = read_typed(tensor, dtype, dims, bytes, what);
  }
  check_bools(out, what);
  return out;
}

ConstantTensor TensorReader::read_external(const TensorView& tensor, DType dtype, const Dims& dims,
                                           std::int64_t bytes, const std::string& what) {
  const ExternalRange range = parse_external(tensor.external, what);
  if (range.length >= 0 && range.length != bytes) {
    fail(what, "external data has length " + std::to_string(range.length) + ", " +
                   type_text(dtype, dims) + " needs " + std::to_string(bytes));
  }
  const std::shared_ptr<const File> file = files_.open(range, what);
  const auto size = static_cast<std::int64_t>(file->bytes().size());
  std::int64_t end = 0;
  if (!checked_add(range.offset, bytes, &end) || end > size) {
    fail(what, "external data of " + std::to_string(bytes) + " bytes at offset " +
                   std::to_string(range.offset) + " does not fit into the " + std::to_string(size) +
                   " bytes of " + quote(range.location));
  }
  const Bytes data = file->bytes().subspan(static_cast<std::size_t>(range.offset),
                                           static_cast<std::size_t>(bytes));
  return in_place(dtype, dims, data, file);
}

ConstantTensor TensorReader::read_typed(const TensorView& tensor, DType dtype, const Dims& dims,
                                        std::int64_t bytes, const std::string& what) {
  const int field = data_field_of(dtype);
  for (int f = 0; f < TensorView::kDataFields; ++f) {
    if (f != field && tensor.data[static_cast<std::size_t>(f)].chunks > 0) {
      fail(what, std::string("elements of ") + dtype_name(dtype) + " belong in " +
                     kDataNames[field] + " or raw_data, found " + kDataNames[f]);
    }
  }
  const PackedField& data = tensor.data[static_cast<std::size_t>(field)];
  if (data.chunks == 0) {
    if (bytes != 0)
      fail(what,
           "no data, " + type_text(dtype, dims) + " needs " + std::to_string(bytes) + " bytes");
    return in_place(dtype, dims, {}, nullptr);
  }
  const bool fixed = dtype == DType::kF32 || dtype == DType::kF64;
  const bool nibbles = dtype_bits(dtype) == 4;
  const std::int64_t entries = nibbles ? bytes : dims.elements();
  // What is there is counted before anything is allocated for it.
  const bool one_chunk = data.chunks == 1 && data.packed;
  const std::int64_t entry_bytes = static_cast<std::int64_t>(dtype_bits(dtype) / 8);
  std::int64_t present = 0;
  if (one_chunk) {
    present = fixed ? static_cast<std::int64_t>(data.bytes.size()) / entry_bytes
                    : count_varints(data.bytes);
  } else {
    Reader reader(source_, tensor.message, "TensorProto");
    for (Field at; reader.next(at);) {
      if (at.number != kDataNumbers[field]) continue;
      present += !at.is_bytes() ? 1
                 : fixed        ? static_cast<std::int64_t>(at.bytes.size()) / entry_bytes
                                : count_varints(at.bytes);
    }
  }
  if (present != entries) {
    fail(what, std::string(kDataNames[field]) + " holds " + std::to_string(present) + " entries, " +
                   type_text(dtype, dims) + " needs " + std::to_string(entries));
  }
  if (fixed && one_chunk && static_cast<std::int64_t>(data.bytes.size()) == bytes) {
    return in_place(dtype, dims, data.bytes, owner_);
  }
  source_.budget.take_memory(bytes, what);
  ConstantTensor out = ConstantTensor::allocate(dtype, dims);
  if (fixed) {
    decode_fixed(tensor, field, out, what);
  } else {
    decode_varints(tensor, field, out, entries, what);
  }
  return out;
}

void TensorReader::decode_fixed(const TensorView& tensor, int field, ConstantTensor& out,
                                const std::string& what) {
  const std::size_t size = dtype_bits(out.dtype) / 8;
  std::size_t done = 0;
  Reader reader(source_, tensor.message, "TensorProto");
  for (Field at; reader.next(at);) {
    if (at.number != kDataNumbers[field]) continue;
    if (!at.is_bytes()) {
      std::memcpy(out.mutable_data() + done, &at.scalar, size);
      done += size;
      continue;
    }
    if (at.bytes.size() % size != 0) {
      fail(what, std::string(kDataNames[field]) + " has " + std::to_string(at.bytes.size()) +
                     " bytes, no multiple of " + std::to_string(size));
    }
    if (!at.bytes.empty()) {
      std::memcpy(out.mutable_data() + done, at.bytes.data(), at.bytes.size());
    }
    done += at.bytes.size();
  }
}

void TensorReader::decode_varints(const TensorView& tensor, int field, ConstantTensor& out,
                                  std::int64_t count, const std::string& what) {
  const std::size_t size = std::max<std::size_t>(1, dtype_bits(out.dtype) / 8);
  const auto [low, high] = range_of(out.dtype);
  std::byte* to = out.mutable_data();
  std::int64_t done = 0;
  const auto store = [&](std::uint64_t bits) {
    const auto value = static_cast<std::int64_t>(bits);
    if (value < low || value > high) {
      fail(what, std::string(kDataNames[field]) + " entry " + std::to_string(done) + " is " +
                     std::to_string(value) + ", outside the range of " + dtype_name(out.dtype));
    }
    if (done == count) fail(what, std::string(kDataNames[field]) + " is malformed");
    std::memcpy(to, &bits, size);  // little-endian: the low bytes come first
    to += size;
    ++done;
  };
  Reader reader(source_, tensor.message, "TensorProto");
  for (Field at; reader.next(at);) {
    if (at.number != kDataNumbers[field]) continue;
    if (!at.is_bytes()) {
      store(at.scalar);
      continue;
    }
    const std::byte* p = at.bytes.data();
    const std::byte* end = p + at.bytes.size();
    while (p != end) {
      std::uint64_t bits = 0;
      if (!read_varint(&p, end, &bits)) {
        fail(what, std::string(kDataNames[field]) + " holds a malformed varint");
      }
      store(bits);
    }
  }
}

ConstantTensor TensorReader::read_sparse(const SparseTensorView& sparse, const std::string& what) {
  if (!sparse.values || !sparse.indices) fail(what, "a sparse tensor without values or indices");
  if (sparse.dims.size() > static_cast<std::size_t>(kMaxRank)) {
    throw Error(ErrorCode::kUnsupported, what + ": " + std::to_string(sparse.dims.size()) +
                                             " dimensions; Kvik supports up to " +
                                             std::to_string(kMaxRank));
  }
  const Dims dims{std::span<const std::int64_t>(sparse.dims)};
  const ConstantTensor values = read(parse_tensor(source_, *sparse.values), what + " values");
  const ConstantTensor indices = read(parse_tensor(source_, *sparse.indices), what + " indices");
  const std::int64_t bytes = checked_size(values.dtype, dims, what);
  const std::int64_t count = values.dims.elements();
  const bool flat = indices.dims == Dims{count};
  if (values.dims.rank != 1) fail(what, "values are " + values.dims.str() + ", expected one axis");
  if (indices.dtype != DType::kI64 || !(flat || indices.dims == Dims{count, dims.rank})) {
    fail(what, "indices are " + type_text(indices.dtype, indices.dims) + ", expected int64 [" +
                   std::to_string(count) + "] or [" + std::to_string(count) + ", " +
                   std::to_string(dims.rank) + "]");
  }
  if (dtype_bits(values.dtype) < 8) {
    throw Error(ErrorCode::kUnsupported, what + ": sparse 4-bit tensors are not supported");
  }
  source_.budget.take_memory(bytes, what);
  ConstantTensor out = ConstantTensor::allocate(values.dtype, dims);
  const std::size_t size = dtype_bits(values.dtype) / 8;
  const std::int64_t elements = dims.elements();
  std::int64_t previous = -1;
  for (std::int64_t i = 0; i < count; ++i) {
    std::int64_t position = 0;
    if (flat) {
      position = indices.int_at(i);
    } else {
      for (int axis = 0; axis < dims.rank; ++axis) {
        const std::int64_t index = indices.int_at(i * dims.rank + axis);
        if (index < 0 || index >= dims[axis]) {
          fail(what, "index " + std::to_string(index) + " of value " + std::to_string(i) +
                         " is outside dims " + dims.str());
        }
        position = position * dims[axis] + index;
      }
    }
    if (position < 0 || position >= elements) {
      fail(what, "index " + std::to_string(position) + " of value " + std::to_string(i) +
                     " is outside dims " + dims.str());
    }
    if (position <= previous) {
      fail(what, "indices are not ascending at value " + std::to_string(i));
    }
    previous = position;
    std::memcpy(out.mutable_data() + static_cast<std::size_t>(position) * size,
                values.data.data() + static_cast<std::size_t>(i) * size, size);
  }
  return out;
}

}  // namespace kvik::onnx
