#include "onnx/wire.h"

#include <cstring>

#include "base/text.h"
#include "kvik/error.h"

namespace kvik::onnx {

namespace {

const char* wire_type_name(WireType type) {
  switch (type) {
    case WireType::kVarint: return "varint";
    case WireType::kFixed64: return "fixed64";
    case WireType::kBytes: return "length-delimited";
    case WireType::kFixed32: return "fixed32";
  }
  return "unknown";
}

template <typename T>
T load_little_endian(const std::byte* p) {
  T value;
  std::memcpy(&value, p, sizeof(T));
  return value;
}

}  // namespace

void Budget::take_memory(std::int64_t bytes, std::string_view what) {
  if (bytes > limits_.memory - memory_) {
    throw Error(ErrorCode::kOutOfMemory, std::string(what) + " needs " + std::to_string(bytes) +
                                             " bytes; " + std::to_string(limits_.memory - memory_) +
                                             " of the " + std::to_string(limits_.memory) +
                                             " bytes that loading may take are left");
  }
  memory_ += bytes;
}

void Budget::take_node() {
  if (++nodes_ > limits_.nodes) {
    throw Error(ErrorCode::kOutOfMemory, "more than " + std::to_string(limits_.nodes) +
                                             " nodes, calls of functions counted: the limit of one "
                                             "model is reached");
  }
}

void Budget::throw_fields() const {
  throw Error(ErrorCode::kOutOfMemory, "more than " + std::to_string(limits_.fields) +
                                           " protobuf fields: the limit of one model is reached");
}

std::string Source::position(const std::byte* at) const {
  return "byte " + std::to_string(at - bytes.data());
}

bool read_varint(const std::byte** at, const std::byte* end, std::uint64_t* value) {
  std::uint64_t result = 0;
  for (int shift = 0; shift < 70; shift += 7) {
    if (*at == end) return false;
    const auto byte = std::to_integer<std::uint64_t>(*(*at)++);
    if (shift == 63 && byte > 1) return false;  // the tenth byte holds one bit
    result |= (byte & 0x7F) << shift;
    if (byte < 0x80) {
      *value = result;
      return true;
    }
  }
  return false;
}

void Reader::fail(const std::byte* at, const std::string& what) const {
  throw Error(ErrorCode::kInvalidModel,
              "not a valid " + std::string(message_) + ": " + source_.position(at) + ": " + what);
}

std::uint64_t Reader::varint(const char* what) {
  const std::byte* start = at_;
  std::uint64_t value = 0;
  if (!read_varint(&at_, end_, &value)) {
    const bool cut =
        at_ == end_ && at_ - start < 10 && (at_ == start || at_[-1] >= std::byte{0x80});
    fail(start, std::string(what) + (cut ? " is cut short" : " exceeds 64 bits"));
  }
  return value;
}

bool Reader::next(Field& field) {
  if (at_ == end_) return false;
  source_.budget.take_field();
  field.at = at_;
  const std::uint64_t tag = varint("a field's tag");
  if (tag >> 3 == 0 || tag >> 3 > 0x1FFFFFFF) {
    fail(field.at, "field number " + std::to_string(tag >> 3) + " does not exist");
  }
  field.number = static_cast<std::uint32_t>(tag >> 3);
  field.bytes = {};
  field.scalar = 0;
  const auto left = [&] { return static_cast<std::size_t>(end_ - at_); };
  const auto fixed = [&](std::size_t size) {
    if (left() < size) {
      fail(field.at, "field " + std::to_string(field.number) + " needs " + std::to_string(size) +
                         " bytes, the message has " + std::to_string(left()) + " left");
    }
    at_ += size;
    return at_ - size;
  };
  switch (tag & 7) {
    case 0:
      field.type = WireType::kVarint;
      field.scalar = varint("a varint");
      return true;
    case 1:
      field.type = WireType::kFixed64;
      field.scalar = load_little_endian<std::uint64_t>(fixed(8));
      return true;
    case 2: {
      field.type = WireType::kBytes;
      const std::uint64_t length = varint("a length");
      if (length > left()) {
        fail(field.at, "field " + std::to_string(field.number) + " has length " +
                           std::to_string(length) + ", the message has " + std::to_string(left()) +
                           " bytes left");
      }
      field.bytes = {at_, static_cast<std::size_t>(length)};
      at_ += length;
      return true;
    }
    case 5:
      field.type = WireType::kFixed32;
      field.scalar = load_little_endian<std::uint32_t>(fixed(4));
      return true;
    default:
      fail(field.at, "field " + std::to_string(field.number) + " has wire type " +
                         std::to_string(tag & 7) + ", which ONNX does not use");
  }
}

void Reader::expect(const Field& field, WireType type, const char* name) const {
  if (field.type == type) return;
  fail(field.at, "field '" + std::string(name) + "' has the wire type " +
                     wire_type_name(field.type) + ", expected " + wire_type_name(type));
}

std::int64_t Reader::int64(const Field& field, const char* name) const {
  expect(field, WireType::kVarint, name);
  return static_cast<std::int64_t>(field.scalar);
}

float Reader::float32(const Field& field, const char* name) const {
  expect(field, WireType::kFixed32, name);
  const auto bits = static_cast<std::uint32_t>(field.scalar);
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

Bytes Reader::bytes(const Field& field, const char* name) const {
  expect(field, WireType::kBytes, name);
  return field.bytes;
}

std::string_view Reader::string(const Field& field, const char* name) const {
  const Bytes content = bytes(field, name);
  const std::string_view text(reinterpret_cast<const char*>(content.data()), content.size());
  if (!is_utf8(text)) fail(field.at, "field '" + std::string(name) + "' is not UTF-8 text");
  return text;
}

}  // namespace kvik::onnx
