// A bounded reader of the protobuf wire format.
//
// It walks bytes in place: strings and nested messages come back as views, nothing is copied. Every
// length is checked against the message that holds it; whatever is malformed throws
// kvik::Error(kInvalidModel) with the offset. Fields are counted against a budget, so that no input
// of any size is walked for longer than a fraction of a second.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

namespace kvik::onnx {

using Bytes = std::span<const std::byte>;

// What an import may spend. Estimates are charged before memory is taken.
struct Limits {
  std::int64_t memory = std::int64_t{52} << 20;  // bytes on the heap, besides the file itself
  std::int64_t nodes = 250'000;                  // after functions are inlined
  std::int64_t fields = 8'000'000;               // wire fields read, skipped ones too
  int graph_depth = 32;                          // If, Loop and Scan bodies within one another
  int function_depth = 100;                      // functions that call functions
};

// Counts down what is left. Throws kvik::Error(kOutOfMemory) that says which limit was reached.
class Budget {
 public:
  explicit Budget(const Limits& limits) : limits_(limits) {}
  const Limits& limits() const { return limits_; }

  // `what` names the thing that asks, for the message: "initializer 'w'".
  void take_memory(std::int64_t bytes, std::string_view what);
  void take_node();
  void take_field() {
    if (++fields_ > limits_.fields) throw_fields();
  }

 private:
  [[noreturn]] void throw_fields() const;

  Limits limits_;
  std::int64_t memory_ = 0;
  std::int64_t nodes_ = 0;
  std::int64_t fields_ = 0;
};

// The bytes of a file being read, and its budget.
struct Source {
  Bytes bytes;
  Budget& budget;

  // "byte 1234", the position of a view into `bytes`.
  std::string position(const std::byte* at) const;
};

enum class WireType : std::uint8_t { kVarint = 0, kFixed64 = 1, kBytes = 2, kFixed32 = 5 };

// One field as it stands on the wire. The accessors check the wire type.
class Field {
 public:
  std::uint32_t number = 0;
  WireType type = WireType::kVarint;
  std::uint64_t scalar = 0;       // varint, fixed64 or fixed32
  Bytes bytes;                    // kBytes
  const std::byte* at = nullptr;  // the tag

  bool is_bytes() const { return type == WireType::kBytes; }
};

// Reads the fields of one message in order.
class Reader {
 public:
  // `message` names the kind of message for errors: "GraphProto".
  Reader(const Source& source, Bytes bytes, const char* message)
      : source_(source), message_(message), at_(bytes.data()), end_(at_ + bytes.size()) {}

  // The next field, or false at the end of the message.
  bool next(Field& field);

  // The field's content; `name` is the field's name for the error of a wrong wire type.
  std::int64_t int64(const Field& field, const char* name) const;
  float float32(const Field& field, const char* name) const;
  Bytes bytes(const Field& field, const char* name) const;
  // A string; throws when it is not UTF-8.
  std::string_view string(const Field& field, const char* name) const;

  [[noreturn]] void fail(const std::byte* at, const std::string& what) const;

 private:
  std::uint64_t varint(const char* what);
  void expect(const Field& field, WireType type, const char* name) const;

  const Source& source_;
  const char* message_;
  const std::byte* at_;
  const std::byte* end_;
};

// Decodes one varint from [*at, end) and advances; false when it is cut short, longer than 10
// bytes or does not fit 64 bits.
bool read_varint(const std::byte** at, const std::byte* end, std::uint64_t* value);

}  // namespace kvik::onnx
